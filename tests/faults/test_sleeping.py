"""Claims about pools that take turns on the same GPUs: they sleep and wake up, and start only once.

Ray counts four GPUs that don't exist; what vLLM and torch do when they sleep, only a real GPU can show."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.sleeping_driver import GPUS

pytestmark = [pytest.mark.drawn(3), pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.faults.sleeping_driver", str(tmp_path_factory.mktemp("starts"))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_pools_that_need_the_same_gpus_take_turns_and_start_once(seen: dict[str, Any]):
    for pool in ("first", "second"):
        turns = [each[pool] for each in seen["rounds"]]
        assert all(turn["gpus"] == [str(i) for i in range(GPUS)] for turn in turns)
        assert turns[0]["pids"] == turns[1]["pids"] == turns[2]["pids"]
        assert seen["starts"][pool] == GPUS


def test_a_sleeping_pool_holds_no_gpu(seen: dict[str, Any]):
    assert seen["held"]["first"] == 0 and seen["held"]["second"] < GPUS


def test_an_actor_that_cannot_sleep_is_stopped_and_started_again(seen: dict[str, Any]):
    assert seen["starts"]["sleepless"] == 1 and seen["again"] == 2


def test_engines_and_trainer_work_at_once_only_where_there_are_gpus_for_both(seen: dict[str, Any]):
    assert seen["fits"] == {"2 + 2 on gpu": True, "3 + 2 on gpu": False, "1 + 1 on cpu": False}


def test_a_closed_pool_forgets_its_sleepers(seen: dict[str, Any]):
    assert not set(seen["after_close"]["pids"]) & set(seen["rounds"][0]["first"]["pids"])
