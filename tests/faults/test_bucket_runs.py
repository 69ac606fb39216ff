"""Claims about a run in a bucket: killed at any change there, it resumes elsewhere from an empty disk and ends the
same.

The stages are the real ones, on engines that answer at once (`mock_run`); the bucket is a real S3 server's.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.faults import mock_run
from tests.faults.mock_run import STAGES
from tests.faulty_proxy import FaultyProxy, weather
from tests.s3_server import S3Server, new_url
from tests.sampling import sampled

ROOT = Path(__file__).parents[2]
KILL, KILL_TWICE = "kill -9 at a change in the bucket", "kill -9 at a change in the bucket, twice"
DISKS = {"kept": "resumed on the same machine", "lost": "resumed on another machine with an empty disk"}
ONCE, TWICE = [(KILL, stage, "lost") for stage in STAGES], [(KILL_TWICE, "all", disk) for disk in DISKS]
MATRIX = sampled("killed in a bucket", [*ONCE, *TWICE], 1)
BAD_WEATHER = ("nothing else", "all", "kept")
STRUCK = 0.04
"""Share of the requests that fail in bad weather."""

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Mapping[str, Any]:
    """The result of one run per case, each forked by one process; the last in bad weather."""
    parent = tmp_path_factory.mktemp("broken")
    with FaultyProxy(s3.endpoint) as proxy:
        proxy.script = weather(0, STRUCK, seconds=3.0)
        storages = {
            where: s3.storage(
                parent, endpoint_url=endpoint, lease_seconds=2, max_attempts=6, timeout_seconds=2
            ).model_dump(mode="json")
            for where, endpoint in (("fair", s3.endpoint), ("bad", proxy.endpoint))
        }
        (parent / "storages.json").write_text(json.dumps(storages))
        command = [sys.executable, "-m", "tests.faults.test_bucket_runs", str(parent)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return {**json.loads((parent / "broken.json").read_text()), "hit by the weather": proxy.struck}


@pytest.mark.parametrize(("fault", "stage", "disk"), MATRIX)
def test_a_run_killed_at_a_change_in_its_bucket_ends_the_same(
    broken: Mapping[str, Any], outcome: Callable[[str, str, str], None], fault: str, stage: str, disk: str
):
    found = broken[f"{fault}, {stage}, {disk}"]
    assert found["stopped"], "no fault was injected"
    assert found["recovered"], found["log"]
    assert found["differences"] == [[0, 0, 0], [0, 0, 0]], found["log"]
    outcome(f"{fault}; {DISKS[disk]}", stage if stage != "all" else "any stage", "recovers")


def test_in_bad_weather_a_run_ends_the_same(broken: Mapping[str, Any], outcome: Callable[[str, str, str], None]):
    found = broken[", ".join(BAD_WEATHER)]
    assert broken["hit by the weather"] > 20
    assert found["recovered"] and found["differences"] == [[0, 0, 0], [0, 0, 0]], found["log"]
    outcome(
        f"{STRUCK:.0%} of the requests to the bucket get a 5xx, no reply, a cut connection or a lost reply",
        "any stage",
        "continues; ends with the same bytes",
    )


@mock_run.prepared()
def main(parent: Path) -> None:
    """Breaks a run per case and writes the results."""
    from tests.faults.compare import astuple, difference
    from tpo.storage.mirror import reading

    storages = json.loads((parent / "storages.json").read_text())
    mock_run.make_seed(parent / "seed")
    expected = mock_run.an_example(parent / "example", mock_run.Plan("pairwise", 1))
    in_bucket = mock_run.Plan("pairwise", 1, new_url(), storages["fair"])
    changes = mock_run.an_example(parent / "in bucket", in_bucket).changes
    found = {}
    for case in (*MATRIX, BAD_WEATHER):
        fault, stage, disk = case
        dice, storage = random.Random(f"{fault} {stage} {disk}"), storages["bad" if case == BAD_WEATHER else "fair"]
        plan = mock_run.Plan("pairwise", 1, new_url(), storage)
        with mock_run.folder_for_runs(parent) as folder:
            log, status = folder / "log.txt", 0
            for kills in range({KILL: 1, KILL_TWICE: 2}.get(fault, 0)):
                most = changes[stage] // 2**kills  # less is left to do the second time
                injection = mock_run.Injection("put", stage, dice.randint(1, most), _kill)
                status = mock_run.attempt(folder, plan, log, injection=injection)
                if disk == "lost":
                    shutil.rmtree(folder / "cache")
            stopped = status == -signal.SIGKILL
            for _ in range(mock_run.ATTEMPTS):
                if (status := mock_run.attempt(folder, plan, log)) == 0:
                    break
            differences = [difference(expected.root, plan.root(folder))]
            shutil.rmtree(folder / "cache")
            with reading(mock_run.config_of(folder, plan)):
                differences.append(difference(expected.root, plan.root(folder)))
            output = log.read_text(errors="replace")
        found[f"{fault}, {stage}, {disk}"] = {
            "stopped": stopped,
            "recovered": status == 0 and "Traceback" not in output,
            "differences": [astuple(one) for one in differences],
            "log": output[-4000:],
        }
    (parent / "broken.json").write_text(json.dumps(found))


def _kill(_: tuple[Any, ...]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
