"""Claims about a whole run on Prefect, Ray, vLLM and TRL that is struck again and again: it ends as it would have.

One run takes all of these blows in turn, each as soon as there is something to hit; `make chaos` deals them one a run
at random moments.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.compare import difference
from tests.faults.real_run import BY_NAME, LONGEST, Run

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
BLOWS = (
    ("an engine stops dead (SIGSTOP)", "iter_0/validation/epoch_0/samples/plan.json"),
    ("kill -9 of the raylet", "iter_1/samples/plan.json"),
    ("kill -9 of a trainer", "iter_1/train/dataset"),
    ("kill -9 of the driver", "iter_1/train/log.jsonl"),
    ("kill -9 of Prefect's server", "iter_1/validation/epoch_2/samples/plan.json"),
    ("Prefect's database is deleted", "iter_1/test/samples/plan.json"),
)
"""What strikes, and the file whose appearance it waits for."""
ERROR_SECONDS = 60.0
CAME = "recovers, by itself or when run again; says so within a minute where it stops"
"""Which of the two is not told: what strikes next may come before the end that a blow leads to."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing struck."""
    folder = tmp_path_factory.mktemp("expected")
    run = Run(folder, folder / "log.txt")
    assert run.end(LONGEST) == 0, (folder / "log.txt").read_text()
    assert run.clear() == 0, "processes outlived the run"
    return folder / "run"


def test_a_run_that_is_struck_again_and_again_ends_as_it_would_have(
    expected: Path, tmp_path: Path, outcome: Callable[[str, str, str], None]
):
    log, dice = tmp_path / "log.txt", random.Random(0)
    run = Run(tmp_path, log)
    for (name, file), following in zip(BLOWS, [*(file for _, file in BLOWS[1:]), "nothing"], strict=True):
        while not (tmp_path / "run" / file).exists() and run.end(0.1) is None:
            pass
        while not (hit := BY_NAME[name].hit(run, dice)) and run.end(0.1) is None:
            pass
        assert hit, f"{name}: the run had ended before:\n{log.read_text()[-4000:]}"
        struck = time.monotonic()
        while (status := run.end(0.1)) is None and not (tmp_path / "run" / following).exists():
            pass
        if status:
            said = log.read_text()
            assert "error: " in said, said[-4000:]
            assert time.monotonic() - struck < ERROR_SECONDS, f"{name}: it took long to say so"
            assert run.clear() == 0, f"{name}: processes outlived the driver"
            log.write_text("")
            run = Run(tmp_path, log)
        outcome(name, "the whole command", CAME)
    assert run.end(LONGEST) == 0, log.read_text()[-4000:]
    assert not difference(expected, tmp_path / "run")
