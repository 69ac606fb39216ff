"""Claims about the whole command, on Prefect, Ray, vLLM and TRL: a run that meets fault after fault, or loses its
machine, ends the same.

Faults are injected into one run in turn, each as soon as there is something to break: three per commit, all of them in
`make exhaustive`; `make chaos` injects one per run at random moments. Another run is in a bucket of a real S3 server,
and resumes on another machine.
"""

import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.compare import difference
from tests.faults.real_run import BY_NAME, MAX_SECONDS, Run
from tests.s3_server import S3Server, new_url
from tests.sampling import sampled
from tpo.config.resources import StorageConfig
from tpo.report.summary import read_summary
from tpo.storage.bucket import Bucket

pytestmark = [pytest.mark.faults, pytest.mark.end_to_end, pytest.mark.timeout(1800)]
ALL_FAULTS = (
    ("an engine freezes (SIGSTOP)", "iter_0/validation/epoch_0/samples/plan.json"),
    ("kill -9 of the raylet", "iter_1/samples/plan.json"),
    ("^C in the terminal", "iter_1/pairs/manifest.json"),
    ("kill -9 of a trainer", "iter_1/train/dataset"),
    ("kill -9 of the driver", "iter_1/train/log.jsonl"),
    ("kill -9 of Prefect's server", "iter_1/validation/epoch_2/samples/plan.json"),
    ("Prefect's database is deleted", "iter_1/test/samples/plan.json"),
)
"""Faults, each with the file whose appearance it waits for."""
FAULTS = sampled("faults of a real run", ALL_FAULTS, 3)
SOON_NOTICED = "engine.start_seconds=90"
"""Time limit for an engine that is stopped while it starts."""
ERROR_SECONDS = 60.0
FROM_NOTHING_SECONDS = 60.0
"""Time limit for finding, on a busy machine and from an empty disk, that there is nothing to do."""
CAME = "recovers by itself or when rerun; if it stops, it says so within a minute"
"""Which of the two isn't recorded: the next fault may come before the end that this one leads to."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("expected")
    run = Run(folder, folder / "log.txt")
    assert run.end(MAX_SECONDS) == 0, (folder / "log.txt").read_text()
    assert run.clear() == 0, "processes outlived the run"
    return folder / "run"


@pytest.mark.story("fault after fault", 320)
def test_a_run_that_meets_fault_after_fault_ends_the_same(
    expected: Path, tmp_path: Path, outcome: Callable[[str, str, str], None]
):
    log, dice, struck = tmp_path / "log.txt", random.Random(0), -math.inf  # before the first fault it may not end
    run = Run(tmp_path, log, SOON_NOTICED)

    def begun_again(name: str) -> Run:
        output = log.read_text()
        if name == "^C in the terminal":
            assert run.end(0) == 130 and output.endswith("Stopped. Rerun the same command to resume.\n"), output[-4000:]
            assert "error: " not in output and "Traceback" not in output
        elif name == "kill -9 of the driver":
            assert run.end(0) == -9, output[-4000:]  # the process that would say why is gone
        else:
            assert run.end(0) != 0 and "error: " in output, f"{name}: {output[-4000:]}"
        assert time.monotonic() - struck < ERROR_SECONDS, f"{name}: it took long to say so"
        assert run.clear() == 0, f"{name}: processes outlived the driver"
        log.write_text("")
        return Run(tmp_path, log, SOON_NOTICED)

    for (name, file), following in zip(FAULTS, [*(file for _, file in FAULTS[1:]), "nothing"], strict=True):
        while not ((tmp_path / "run" / file).exists() and BY_NAME[name].hit(run, dice)):
            if run.end(0.1) is not None:  # by the fault before this one
                run = begun_again(f"before {name}")
        struck = time.monotonic()
        while (status := run.end(0.1)) is None and not (tmp_path / "run" / following).exists():
            pass
        if status:
            run = begun_again(name)
        outcome(name, "the whole command", CAME)
    assert run.end(MAX_SECONDS) == 0, log.read_text()[-4000:]
    assert not difference(expected, tmp_path / "run")


def a_machine(folder: Path, storage: StorageConfig, url: str) -> Run:
    """The command on a machine that knows only the bucket."""
    folder.mkdir()
    settings = [f"storage.endpoint_url={storage.endpoint_url}", f"storage.cache={folder / 'cache'}"]
    return Run(folder, folder / "log.txt", f'folder="{url}"', "storage.lease_seconds=10", *settings)


def copy_of(folder: Path) -> Path:
    (root,) = (folder / "cache").glob("*/run")
    return root


@pytest.mark.story("a machine is lost", 300)
def test_a_run_whose_machine_is_lost_during_training_ends_the_same_on_another(
    expected: Path, s3: S3Server, tmp_path: Path, outcome: Callable[[str, str, str], None]
):
    storage, url = s3.storage(tmp_path), new_url()
    bucket = Bucket(f"{url}/run", storage)
    lost = a_machine(tmp_path / "lost", storage, url)
    while not (sealed := [n for n in bucket.versions("iter_1/train/trainer/") if n.endswith(".seal.json")]):
        assert lost.end(0.1) is None, (tmp_path / "lost/log.txt").read_text()[-4000:]
    BY_NAME["everything is killed at once"].hit(lost, random.Random(0))
    lost.end(60.0)
    lost.clear()
    assert bucket.version("iter_1/train/manifest.json") is None, f"it had trained already: {sealed}"

    other = a_machine(tmp_path / "other", storage, url)
    assert other.end(MAX_SECONDS) == 0, (tmp_path / "other/log.txt").read_text()[-4000:]
    output = (tmp_path / "other/log.txt").read_text()
    assert "which exited without releasing it" in output and f"Report: {url}/run/report.html" in output
    assert other.clear() == 0, "processes outlived the run"
    assert {"summary.json", "report.html", "config.json"} <= bucket.versions().keys()
    assert not [name for name in bucket.versions() if "/trainer/" in name or "/dataset/" in name or ".tmp" in name]

    assert not difference(expected, copy_of(tmp_path / "other"))

    started = time.monotonic()
    third = a_machine(tmp_path / "third", storage, url)
    assert third.end(FROM_NOTHING_SECONDS) == 0
    print(f"from an empty disk, nothing to do: {time.monotonic() - started:.1f} s")
    assert "nothing to do" in (tmp_path / "third/log.txt").read_text()
    assert read_summary(copy_of(tmp_path / "third") / "summary.json").models[-1].model == "M_1"
    assert not difference(expected, copy_of(tmp_path / "third"))
    outcome("everything is killed during training and the disk is lost", "the whole command, in a bucket", "recovers")
