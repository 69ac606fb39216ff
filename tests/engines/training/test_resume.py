"""Claims about resuming: a training stopped anywhere, in any way, ends bit for bit like one that was never stopped.

The real trainer on the shipped seed model and made-up pairs, in this process; a checkpoint after every step, unless
stated otherwise. tests/faults/test_trainer_killed.py kills it under Ray.
"""

import json
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.engines.training.worker_group import end_of_workers
from tests.sampling import sampled
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import ClusterConfig, TrainerConfig
from tpo.config.training import TrainConfig
from tpo.engines.cluster.room import Room
from tpo.engines.training import checkpoints
from tpo.engines.training.group import WorkerGroup
from tpo.engines.training.job import TrainingJob
from tpo.engines.training.launch import train_model
from tpo.engines.training.worker import (
    Progress,
    Stop,
    TrainingStep,
    epochs_of,
    finished,
    train_from_checkpoint,
    write_dataset,
)
from tpo.errors import StageError
from tpo.records import Pair

EVERY_STEP = TrainerConfig.model_construct(threads=1, checkpoint_share=1e9)
"""So large a share that a checkpoint is due as soon as the last one is sealed."""
SELDOM = TrainerConfig(threads=1, checkpoint_share=1e-6)
"""So small a share that no checkpoint is due after the first step's."""
TRAIN = TrainConfig(epochs=2, batch_size=8, micro_batch_size=4, learning_rate=1e-3)
PAIRS = 22
STEPS = 6
"""Two epochs of three steps; the last step of each has six pairs, in two rounds of three."""


class Stopped(Exception):
    """Raised by a test to stop a training."""


def some_pairs(count: int = PAIRS) -> list[Pair]:
    draw = random.Random(0)

    def ids(length: int) -> list[int]:
        return [draw.randrange(10, 60) for _ in range(length)]

    return [
        Pair(
            f"p{i}",
            "regular",
            ids(6),
            [*ids(draw.randrange(3, 12)), 2],
            [*ids(draw.randrange(3, 12)), 2],
            0,
            1,
            1.0,
            0.0,
            1.0,
        )
        for i in range(count)
    ]


def train(
    folder: Path,
    *,
    on_step: Progress = lambda done, total: None,
    stop: Stop = lambda: False,
    config: TrainConfig = TRAIN,
    trainer: TrainerConfig = EVERY_STEP,
    pairs: int = PAIRS,
) -> list[int]:
    """Trains as a worker does, and returns the steps that it reported."""
    seen: list[int] = []

    def note(done: int, total: int) -> None:
        if total and done not in seen:
            seen.append(done)
        on_step(done, total)

    folder.mkdir(exist_ok=True)
    write_dataset(some_pairs(pairs), folder / "dataset")
    train_from_checkpoint(SHIPPED_SEED_MODEL, folder, config=config, trainer=trainer, seed=7, on_step=note, stop=stop)
    return seen


def stop_at(step: int) -> Progress:
    def stop(done: int, total: int) -> None:
        if total and done == step:
            raise Stopped

    return stop


def result(folder: Path) -> dict[str, bytes]:
    """Everything that a training leaves on disk."""
    files = [*folder.glob("epoch_*/*"), folder / "log.jsonl", folder / "steps.jsonl"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def killed_at(event: str, what: str, work: Callable[[], object]) -> None:
    """Runs a function in a child process that kills itself when Python or `tpo.storage.disk` announces a change.

    `event` is the audit event, `what` a pattern to find in the first path that it names.
    """

    def hear(heard: str, arguments: tuple[object, ...]) -> None:
        if heard == event and re.search(what, str(arguments[0])):
            os.kill(os.getpid(), signal.SIGKILL)

    def heard_at_work() -> None:
        sys.addaudithook(hear)
        work()

    assert end_of_workers(1, heard_at_work) == [-signal.SIGKILL], f"{event} of {what} did not happen"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result of a training that is never stopped."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder) == list(range(1, STEPS + 1))
    torch.set_num_threads(before)
    return result(folder)


def checkpoints_in(folder: Path) -> set[str]:
    return {path.name for path in (folder / "trainer").glob("checkpoint-*") if path.is_dir()}


def test_the_frequency_of_checkpoints_changes_nothing_and_an_epochs_end_needs_none(
    tmp_path: Path, whole: dict[str, bytes]
):
    train(tmp_path, trainer=SELDOM)
    assert result(tmp_path) == whole
    assert checkpoints_in(tmp_path) == {"checkpoint-1"}


def test_the_last_step_needs_no_checkpoint(tmp_path: Path):
    train(tmp_path)
    assert checkpoints_in(tmp_path) == {f"checkpoint-{STEPS - 1}"}


@pytest.mark.parametrize("step", [4, STEPS])
def test_an_epochs_model_newer_than_the_last_checkpoint_is_remade_the_same(
    tmp_path: Path, whole: dict[str, bytes], step: int
):
    with pytest.raises(Stopped):
        train(tmp_path, on_step=stop_at(step), trainer=SELDOM)
    assert checkpoints_in(tmp_path) == {"checkpoint-1"} and (tmp_path / "epoch_1").is_dir()
    assert train(tmp_path, trainer=SELDOM) == list(range(2, STEPS + 1))
    assert result(tmp_path) == whole


@pytest.mark.parametrize("step", sampled("steps", range(1, STEPS + 1), 2, always=(STEPS,)))
def test_a_training_stopped_at_any_step_resumes_from_the_one_before_and_ends_the_same(
    tmp_path: Path, whole: dict[str, bytes], step: int
):
    with pytest.raises(Stopped):
        train(tmp_path, on_step=stop_at(step))
    assert train(tmp_path) == list(range(step, STEPS + 1))
    assert result(tmp_path) == whole


@pytest.mark.parametrize(
    "changes",
    [{"micro_batch_size": 2}, {"micro_batch_size": 8}, {"gradient_checkpointing": True, "packing": True}],
    ids=["smaller pieces", "larger pieces", "otherwise computed"],
)
def test_a_training_resumes_with_other_micro_batches_on_the_remaining_rows(
    tmp_path: Path, whole: dict[str, bytes], changes: dict[str, object]
):
    """As after an out-of-memory error, whose message suggests a smaller micro-batch size."""
    with pytest.raises(Stopped):
        train(tmp_path, on_step=stop_at(5))
    assert train(tmp_path, config=TRAIN.model_copy(update=changes)) == [5, 6]
    found, expected = (
        [json.loads(line) for line in text.splitlines()]
        for text in ((tmp_path / "steps.jsonl").read_bytes(), whole["steps.jsonl"])
    )
    assert found[:4] == expected[:4]
    assert [math.ceil(step["epoch"]) for step in found] == [1, 1, 1, 2, 2, 2]
    for name in ("step", "loss", "gradient_norm", "learning_rate"):
        assert [step[name] for step in found] == pytest.approx([step[name] for step in expected], abs=1e-4), name


@pytest.mark.parametrize("step", sampled("steps", range(1, STEPS + 1), 2, always=(STEPS,)))
def test_a_training_told_to_stop_saves_that_step_and_resumes_from_it(
    tmp_path: Path, whole: dict[str, bytes], step: int
):
    steps = iter(range(1, STEPS + 1))
    assert train(tmp_path, trainer=SELDOM, stop=lambda: next(steps) == step) == list(range(1, step + 1))
    assert finished(tmp_path, TRAIN.epochs) == (step == STEPS)
    assert [path.name for path in sorted(tmp_path.glob("epoch_*"))] == ["epoch_1", "epoch_2"][: step // 3]
    if step < STEPS:
        assert train(tmp_path, trainer=SELDOM) == list(range(step + 1, STEPS + 1))
    assert result(tmp_path) == whole


def test_a_training_stopped_again_and_again_makes_progress_and_ends_the_same(tmp_path: Path, whole: dict[str, bytes]):
    for _ in range(STEPS - 1):
        begun: list[int] = []

        def stop_after_one(done: int, total: int, begun: list[int] = begun) -> None:
            if total and done not in begun:
                begun.append(done)
                if len(begun) > 1:
                    raise Stopped

        with pytest.raises(Stopped):
            train(tmp_path, on_step=stop_after_one, trainer=SELDOM)
    assert train(tmp_path) == [STEPS]
    assert result(tmp_path) == whole


CHANGES = [
    ("tpo.rename", "dataset.tmp"),
    ("tpo.sync", "references.safetensors"),
    ("os.mkdir", "checkpoint-2"),
    ("open", "checkpoint-2/trainer_state.json"),
    ("tpo.sync", "checkpoint-2/optimizer.pt"),
    ("tpo.remove", "checkpoint-1.seal.json"),
    ("tpo.remove", "checkpoint-1$"),
    ("tpo.sync", "epoch_1.tmp/model.safetensors"),
    ("tpo.rename", "epoch_1.tmp"),
    ("os.mkdir", "checkpoint-3"),
    ("tpo.remove", "checkpoint-4$"),
    ("tpo.write", "steps.jsonl"),
]


@pytest.mark.parametrize(("event", "what"), sampled("changes of a training", CHANGES, 5))
def test_a_training_killed_while_it_saves_ends_the_same(tmp_path: Path, whole: dict[str, bytes], event: str, what: str):
    killed_at(event, what, lambda: train(tmp_path))
    train(tmp_path)
    assert result(tmp_path) == whole
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_finished_training_is_not_repeated_if_its_scratch_files_are_gone(tmp_path: Path, whole: dict[str, bytes]):
    train(tmp_path)
    trained = result(tmp_path)
    for scratch in ("trainer", "dataset"):
        shutil.rmtree(tmp_path / scratch)
    job = TrainingJob(
        SHIPPED_SEED_MODEL, some_pairs(), tmp_path, TRAIN, EVERY_STEP, ClusterConfig(address="nowhere"), seed=7
    )
    group = WorkerGroup(job.trainer, job.cluster, Room())
    epochs = train_model(job, progress=lambda done, total: None, group=group)
    assert [epoch.step for epoch in epochs] == [3, 6]
    assert trained == whole
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("missing", ["log.jsonl", "epoch_1"])
def test_a_training_without_its_log_or_an_epoch_has_not_ended(tmp_path: Path, missing: str):
    for name in ("log.jsonl", "epoch_1", "epoch_2"):
        if name != missing:
            (tmp_path / name).mkdir()
    assert not finished(tmp_path, TRAIN.epochs)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda trainer: flip_a_bit(trainer / "checkpoint-4" / "optimizer.pt"),
        lambda trainer: flip_a_bit(trainer / "checkpoint-4.seal.json"),
        lambda trainer: (trainer / "checkpoint-4.seal.json").write_bytes(b"[1]"),
        lambda trainer: (trainer / "checkpoint-4" / "scheduler.pt").unlink(),
        lambda trainer: (trainer / "checkpoint-4" / "pytorch_model.bin").write_bytes(b"more"),
        lambda trainer: shutil.rmtree(trainer.parent / "epoch_1"),
    ],
    ids=["a bit flipped", "its seal's too", "another seal", "a file gone", "a file more", "an epoch before it gone"],
)
def test_a_checkpoint_that_does_not_match_its_seal_or_lacks_an_epoch_is_not_used(
    tmp_path: Path, whole: dict[str, bytes], stopped: Path, damage: Callable[[Path], object]
):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    damage(folder / "trainer")
    assert checkpoints.tidy(folder) is None
    assert not [*folder.glob("epoch_*"), *folder.glob("trainer/checkpoint-*")]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, whole: dict[str, bytes]) -> Path:
    """A training stopped in its fifth step."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        train(folder, on_step=stop_at(5))
    assert {path.name for path in (folder / "trainer").glob("checkpoint-*")} == {
        "checkpoint-4",
        "checkpoint-4.seal.json",
    }
    return folder


@pytest.mark.parametrize("damage", [Path.unlink, flip_a_bit], ids=["gone", "a bit flipped"])
def test_recomputed_reference_log_probs_are_those_of_the_initial_model(
    tmp_path: Path, whole: dict[str, bytes], stopped: Path, damage: Callable[[Path], object]
):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    cache = folder / "dataset" / "references.safetensors"
    before = cache.read_bytes()
    damage(cache)
    assert train(folder) == [5, 6]
    assert cache.read_bytes() == before
    assert result(folder) == whole


def test_models_of_epochs_after_the_checkpoint_are_remade(tmp_path: Path, stopped: Path):
    folder = shutil.copytree(stopped, tmp_path / "copy")
    for name in ("epoch_2", ".epoch_2.tmp"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"of another training")
    found = checkpoints.tidy(folder)
    assert found is not None and (found.step, found.epochs) == (4, 1)
    assert {path.name for path in folder.glob("*epoch*")} == {"epoch_1"}


def test_a_training_waits_until_an_orphaned_one_has_ended(tmp_path: Path):
    (tmp_path / "trainer").mkdir()
    if (child := os.fork()) == 0:
        from filelock import FileLock

        lock = FileLock(tmp_path / "trainer" / "lock")
        lock.acquire()
        (tmp_path / "held").touch()
        signal.pause()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    gone = threading.Event()

    def end() -> None:
        gone.set()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    threading.Timer(1.0, end).start()

    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path, on_step=stop)
    assert gone.is_set()


@pytest.mark.parametrize("step", [2, 3])
def test_a_training_whose_stage_was_restarted_writes_nothing_to_the_new_one(tmp_path: Path, step: int):
    folder = tmp_path / "train"

    def begin_anew(done: int, total: int) -> None:
        if total and done == step:
            folder.rename(tmp_path / "train.old-1")
            folder.mkdir()

    with pytest.raises(StageError, match="was moved away while the training ran"):
        train(folder, on_step=begin_anew)
    assert not list(folder.iterdir())


def test_a_training_that_diverges_says_so(tmp_path: Path):
    with pytest.raises(StageError, match=r"loss at step \d is nan: .* lower train.learning_rate"):
        train(tmp_path, config=TRAIN.model_copy(update={"learning_rate": 1e30}))


def test_the_log_has_the_means_over_the_steps_of_each_epoch(tmp_path: Path, whole: dict[str, bytes]):
    steps = [TrainingStep(**json.loads(line)) for line in whole["steps.jsonl"].splitlines()]
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert steps[0].loss == pytest.approx(math.log(2), abs=1e-6)
    epochs = epochs_of(steps)
    assert [json.loads(line) for line in whole["log.jsonl"].splitlines()] == [vars(epoch) for epoch in epochs]
    assert [(epoch.epoch, epoch.step) for epoch in epochs] == [(1, 3), (2, 6)]
    assert epochs[1].loss == pytest.approx(sum(step.loss for step in steps[3:]) / 3)
    assert epochs[1].accuracy == 1.0 and (epochs[0].margin or 0.0) < (epochs[1].margin or 0.0)


@pytest.mark.parametrize(("seconds", "share", "wait"), [(0.05, 0.05, 1.0), (60.0, 0.05, 1200.0), (1.0, 0.5, 2.0)])
def test_the_next_checkpoint_is_due_when_the_last_ones_cost_is_within_its_share(
    seconds: float, share: float, wait: float
):
    now = [100.0]
    pace = checkpoints.Pace(share, clock=lambda: now[0])
    assert pace.due()
    pace.saved(seconds)
    now[0] = 100.0 + wait * 0.999
    assert not pace.due()
    now[0] = 100.0 + wait * 1.001
    assert pace.due()
