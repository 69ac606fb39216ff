"""A training whose driver or worker is killed, or whose worker hangs, ends with the same bits as an undisturbed one.

Here under Ray Train; tests/engines/training/test_resume.py stops it at every step and every change of the disk.
"""

import contextlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.engines.training.test_resume import some_pairs
from tests.sampling import sampled
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import ClusterConfig, TrainerConfig
from tpo.config.training import TrainConfig
from tpo.engines.cluster.processes import environment, start_ray
from tpo.engines.cluster.room import Room
from tpo.engines.training.group import WorkerGroup
from tpo.engines.training.job import TrainingJob
from tpo.engines.training.launch import train_model
from tpo.engines.training.worker import Stop, train_from_checkpoint, write_dataset
from tpo.errors import StageError
from tpo.records import Epoch, Pair

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

TRAIN = TrainConfig(epochs=3, batch_size=8, micro_batch_size=2)
PAIRS = some_pairs(200)
STEPS = 75
OFTEN = 1.0
"""`checkpoint_share` for tests that need a checkpoint before the fault, however early."""
Outcome = Callable[[str, str, str], None]


def train(
    folder: Path,
    on_step: Callable[[int], None],
    *,
    pairs: Sequence[Pair] = PAIRS,
    stop: Stop = lambda: False,
    **trainer: Any,
) -> list[Epoch]:
    workers = TrainerConfig.model_validate({"threads": 1, "stall_seconds": 300.0, **trainer})
    job = TrainingJob(SHIPPED_SEED_MODEL, pairs, folder, TRAIN, workers, ClusterConfig(), seed=0)
    with contextlib.closing(WorkerGroup(workers, job.cluster, Room())) as group:
        return train_model(job, progress=lambda done, total: on_step(done), group=group, stop=stop)


def worker_of(folder: Path) -> int | None:
    """The process that holds the training's lock."""
    lock = str(folder / "trainer" / "lock")
    for opened in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(opened.readlink()) == lock:
                return int(opened.parts[2])
        except OSError:
            continue
    return None


def result(folder: Path) -> dict[str, bytes]:
    left = [*folder.glob("epoch_*/*"), folder / "log.jsonl", folder / "steps.jsonl"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in left}


def checkpointed(folder: Path) -> int:
    """Steps in the last checkpoint; 0 if there is none, or it is just being replaced."""
    try:
        return max(int(json.loads(seal.read_text())["step"]) for seal in (folder / "trainer").glob("*.seal.json"))
    except (OSError, ValueError):
        return 0


class _Injection:
    """Sends a signal to the worker after some steps, and records at which step it resumes.

    It waits for a checkpoint past the first step, so that resuming can be distinguished from starting over.
    """

    def __init__(self, folder: Path, number: signal.Signals, at: int) -> None:
        self._folder, self._signal, self._at = folder, number, at
        self.struck: int | None = None
        self.resumed_at: int | None = None

    def __call__(self, done: int) -> None:
        if self.struck is None and done >= self._at and checkpointed(self._folder) > 1:
            pid = worker_of(self._folder)
            assert pid is not None
            os.kill(pid, self._signal)
            self.struck = done
        elif self.struck is not None and self.resumed_at is None and 0 < done != self.struck:
            self.resumed_at = done


@pytest.fixture(scope="module", autouse=True)
def _ray_session() -> None:
    start_ray(ClusterConfig())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the same training in a process like a worker's, without Ray Train and without a checkpoint."""
    return undisturbed(tmp_path_factory.mktemp("whole"), PAIRS)


def undisturbed(folder: Path, pairs: Sequence[Pair]) -> dict[str, bytes]:
    import ray

    def work() -> None:
        import torch

        torch.set_flush_denormal(True)
        write_dataset(pairs, folder / "dataset")
        seldom = TrainerConfig(threads=1, checkpoint_share=1e-6)
        train_from_checkpoint(
            SHIPPED_SEED_MODEL, folder, config=TRAIN, trainer=seldom, seed=0, on_step=lambda done, total: None
        )

    ray.get(ray.remote(work).options(num_cpus=0, runtime_env={"env_vars": environment(1)}).remote())
    return result(folder)


def _drive(folder: Path, at: int) -> None:
    def die(done: int) -> None:
        if done >= at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(folder, die)


def _kill_the_driver(folder: Path) -> None:
    driver = multiprocessing.get_context("spawn").Process(target=_drive, args=(folder, 10))
    driver.start()
    driver.join()
    assert driver.exitcode == -signal.SIGKILL
    assert not (folder / "log.jsonl").exists()
    assert train(folder, lambda done: None)[-1].step == STEPS


def _strike_the_worker(folder: Path, number: signal.Signals) -> None:
    injection = _Injection(folder, number, at=25)
    assert train(folder, injection, stall_seconds=12, checkpoint_share=OFTEN)[-1].step == STEPS
    assert injection.struck is not None and injection.resumed_at is not None and injection.resumed_at > 1


def _kill_the_worker(folder: Path) -> None:
    _strike_the_worker(folder, signal.SIGKILL)


def _freeze_the_worker(folder: Path) -> None:
    _strike_the_worker(folder, signal.SIGSTOP)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "kill -9 of the driver during training": (
        _kill_the_driver, "resumes from its last checkpoint; ends with the same bits",
    ),
    "kill -9 of the training worker": (
        _kill_the_worker, "a new one resumes from the last checkpoint; ends with the same bits",
    ),
    "the training worker freezes (SIGSTOP)": (
        _freeze_the_worker, "killed; a new one resumes and ends with the same bits",
    ),
}  # fmt: skip


@pytest.mark.story("a killed trainer", 150)
@pytest.mark.parametrize("fault", sampled("faults of a training", list(FAULTS), 1))
def test_a_training_ends_the_same_after_a_fault(
    tmp_path: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str], outcome: Outcome, fault: str
):
    inject, end = FAULTS[fault]
    inject(tmp_path)
    hung = "no step ended in 12 seconds (trainer.stall_seconds); restarted" in capsys.readouterr().err
    assert hung == (inject is _freeze_the_worker)
    assert result(tmp_path) == whole
    outcome(fault, "train", end)


def test_more_workers_than_ray_has_room_for_stop_the_training_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
):
    import ray

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")
    many = int(ray.cluster_resources()["CPU"]) + 1
    with pytest.raises(
        StageError, match=f"Ray has not started all of {many} workers in time: .* lower trainer.workers"
    ):
        train(tmp_path, lambda done: None, workers=many)
    outcome("Ray has no room for all workers", "train", "stops, says what it needs")


FEW = PAIRS[:75]
"""Ten steps an epoch, the last one of three pairs."""


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one worker's training on a few pairs."""
    return undisturbed(tmp_path_factory.mktemp("lone"), FEW)


@pytest.mark.story("one of two workers is killed", 80)
@pytest.mark.parametrize("strategy", sampled("one of two workers is killed", ["ddp", "fsdp"], 1))
def test_two_workers_killed_and_then_stopped_make_the_steps_of_an_undisturbed_one(
    tmp_path: Path, lone: dict[str, bytes], outcome: Outcome, strategy: str
):
    """Two workers end with the same bits as two left alone: tests/engines/training/test_many_workers.py."""
    injection, seen = _Injection(tmp_path, signal.SIGKILL, at=8), list[int]()

    def strike(done: int) -> None:
        injection(done)
        if injection.resumed_at is not None:
            seen.append(done)

    def spent() -> bool:
        """Whether to stop, as if the budget had run out."""
        return max(seen, default=0) >= 18

    two: dict[str, Any] = {"workers": 2, "strategy": strategy, "checkpoint_share": OFTEN}
    assert train(tmp_path, strike, pairs=FEW, stop=spent, **two) == []
    assert injection.struck is not None and injection.resumed_at is not None and injection.resumed_at > 1
    (seal,) = (tmp_path / "trainer").glob("*.seal.json")
    stopped = json.loads(seal.read_text())["step"]
    assert 18 <= stopped < 30
    after: list[int] = []
    assert train(tmp_path, after.append, pairs=FEW, **two)[-1].step == 30
    assert min(after) >= stopped
    left = result(tmp_path)
    steps, expected = ([json.loads(line) for line in each["steps.jsonl"].splitlines()] for each in (left, lone))
    assert [step["step"] for step in steps] == list(range(1, 31))
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in expected], abs=1e-4)
    assert left.keys() == lone.keys()
    outcome(f"kill -9 of one of two training workers ({strategy})", "train", "both restart from the last checkpoint")
    outcome(f"the budget runs out while two workers train ({strategy})", "train", "saves and stops; resumes from there")
