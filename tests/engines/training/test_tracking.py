"""Claims about trackers: each shows every step of a training once, even if it was stopped, and the training ends the
same.

The real trainer and real trackers; those not installed are skipped. Nothing is sent anywhere.
"""

import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tests.engines.training.test_resume import EVERY_STEP, TRAIN, Stopped, result, some_pairs, stop_at
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import TrackingConfig
from tpo.engines.cluster.processes import QUIET
from tpo.engines.training.tracking import Notes, Tracked
from tpo.engines.training.worker import train_from_checkpoint, write_dataset
from tpo.planning.model_flops import TrainingLoad

ROOT = Path(__file__).parents[3]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio", "none"]
BEFORE = "sampling_tokens_per_second"
LOAD = TrainingLoad(step_tokens=640, step_flops=3e9, peak=1e12)
"""What a step takes, as if it ran on a GPU whose peak is known."""
Shown = dict[int, list[Any]]
"""The losses that a tracker shows, by step."""


OURS = ("MLFLOW_TRACKING_URI", "TRACKIO_DIR", "WANDB_DIR", "WANDB_API_KEY")
"""Variables that users may set, unset here."""


@pytest.fixture(autouse=True)
def _a_workers_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker's environment, without a tracker's memory of an earlier test."""
    for name in OURS:
        monkeypatch.setenv(name, "so that it is restored to what it was")
        monkeypatch.delenv(name)
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(root: Path, to: Tracker = "tensorboard", *, stop: int | None = None, making: str = "train") -> Path:
    """Makes iteration 1's training stage, or a part of it; returns its folder."""
    folder = root / "iter_1" / making
    folder.mkdir(parents=True, exist_ok=True)
    write_dataset(some_pairs(), folder / "dataset")
    train_from_checkpoint(
        SHIPPED_SEED_MODEL,
        folder,
        config=TRAIN,
        trainer=EVERY_STEP,
        seed=7,
        on_step=stop_at(stop) if stop else lambda done, total: None,
        tracked=Tracked(TrackingConfig(to=to), "mine", "iter_1", root, LOAD, {BEFORE: 1234.0}),
    )
    return folder


def losses(folder: Path) -> Shown:
    """The training's own record, in `steps.jsonl`."""
    steps = map(json.loads, (folder / "steps.jsonl").read_text().splitlines())
    return {step["step"]: [pytest.approx(step["loss"], abs=1e-6)] for step in steps}


def skip_without(tracker: Tracker) -> None:
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")


def in_tensorboard(root: Path) -> Shown:
    return scalars(root, "loss")


def scalars(root: Path, name: str) -> Shown:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root / "tensorboard" / "iter_1")).Reload()
    return by_step((event.step, event.value) for event in events.Scalars(f"train/{name}"))


def in_wandb(root: Path) -> Shown:
    from wandb.proto.wandb_internal_pb2 import Record

    shown = []
    files = sorted(root.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({file.name for file in files}) == 1, "a resumed training is another run"
    for data in (data for file in files for data in records(file.read_bytes())):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            shown.append((int(row["train/global_step"]), float(row["train/loss"])))
    return by_step(shown)


def records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after wandb's header of seven bytes."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield whole
            whole = b""


def in_mlflow(root: Path) -> Shown:
    with sqlite3.connect(root / "mlflow.db") as database:
        assert database.execute("select distinct name, status from runs").fetchall() == [("mine-iter_1", "FINISHED")]
        return by_step(database.execute("select step, value from metrics where key = 'loss' order by step"))


def in_trackio(root: Path) -> Shown:
    with sqlite3.connect(root / "trackio" / "tpo.db") as database:
        rows = [json.loads(metrics) for (metrics,) in database.execute("select metrics from metrics order by id")]
    return by_step((row["train/global_step"], row["train/loss"]) for row in rows if "train/loss" in row)


def by_step(pairs: Any) -> Shown:
    shown: Shown = {}
    for step, loss in pairs:
        shown.setdefault(step, []).append(loss)
    return shown


READERS: dict[Tracker, Callable[[Path], Shown]] = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
}
EACH = pytest.mark.parametrize("to", READERS)


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result of a training without a tracker."""
    return result(train(tmp_path_factory.mktemp("unwatched"), "none"))


@EACH
def test_a_tracker_shows_every_step_once_and_changes_nothing(tmp_path: Path, unwatched: dict[str, bytes], to: Tracker):
    skip_without(to)
    folder = train(tmp_path, to)
    assert READERS[to](tmp_path) == losses(folder)
    assert result(folder) == unwatched
    if to == "tensorboard":
        speed, mfu, before = (scalars(tmp_path, name) for name in ("tokens_per_second", "mfu", BEFORE))
        assert speed.keys() == mfu.keys() == losses(folder).keys() and before == {1: [1234.0]}
        for step, (share,) in mfu.items():
            assert share * LOAD.peak / LOAD.step_flops == pytest.approx(speed[step][0] / LOAD.step_tokens, rel=1e-5)


@EACH
def test_a_training_that_was_stopped_shows_each_step_once(tmp_path: Path, unwatched: dict[str, bytes], to: Tracker):
    skip_without(to)
    for step in (3, 5):
        with pytest.raises(Stopped):
            train(tmp_path, to, stop=step)
        close(to)
    folder = train(tmp_path, to)
    assert READERS[to](tmp_path) == losses(folder)
    assert result(folder) == unwatched


def close(to: Tracker) -> None:
    """Ends the tracker as a worker's death does."""
    if to in (ends := {"wandb": "finish", "mlflow": "end_run", "trackio": "finish"}):
        getattr(sys.modules[to], ends[to])()


@pytest.mark.parametrize(("to", "runs"), [("wandb", "wandb/offline-run-*/run-*.wandb"), ("trackio", "trackio/*.db")])
def test_a_remade_stage_is_another_run(tmp_path: Path, to: Tracker, runs: str):
    skip_without(to)
    ids = {(train(tmp_path, to, making=name) / "trainer" / "tracked").read_text().split()[0] for name in ("a", "b")}
    assert len(ids) == 2
    if to == "wandb":
        assert len({path.name for path in tmp_path.glob(runs)}) == 2
    else:
        with sqlite3.connect(next(tmp_path.glob(runs))) as database:
            assert {name for (name,) in database.execute("select run_name from metrics")} == ids


def test_event_files_of_an_earlier_training_are_moved_aside(tmp_path: Path):
    losses_of = [losses(train(tmp_path, making=name)) for name in ("train.old-1", "train")]
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {"iter_1", "iter_1.old-1"}
    assert in_tensorboard(tmp_path) == losses_of[1]


def test_a_step_under_way_when_a_worker_died_is_not_reported_twice(tmp_path: Path):
    notes = tmp_path / "tracked"
    notes.write_text("a1b2\n1\n2\n3")  # the last line was cut
    read = Notes(notes)
    assert (read.run, [step for step in range(1, 4) if read.is_news(step)]) == ("a1b2", [3])
    assert [step for step in range(1, 6) if Notes(notes).is_news(step)] == [4, 5]


def test_a_failing_tracker_is_dropped_with_a_message_and_the_training_ends_the_same(
    tmp_path: Path, unwatched: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from torch.utils.tensorboard import SummaryWriter

    steps = list[int]()

    def add_scalar(writer: SummaryWriter, name: str, value: float, step: int) -> None:
        steps.append(step)
        if step == 3:
            raise ConnectionError("nobody there")

    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    assert result(train(tmp_path)) == unwatched
    assert max(steps) == 3
    assert (
        capsys.readouterr().err.count("failed at step 3 (ConnectionError: nobody there) and gets no more reports") == 1
    )


def test_without_a_tracker_nothing_is_written_for_one(tmp_path: Path):
    folder = train(tmp_path, "none")
    assert {path.name for path in tmp_path.iterdir()} == {"iter_1"}
    assert not (folder / "trainer" / "tracked").exists()


def in_a_process(code: str, **variables: str) -> str:
    """Stdout and stderr of some code in a process with a worker's environment."""
    environment = {**os.environ, **QUIET, **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    ).stdout


@EACH
def test_a_tracker_that_writes_files_contacts_no_other_machine(tmp_path: Path, to: Tracker):
    skip_without(to)
    output = in_a_process(
        "import pathlib, sys\n"
        "events = ('socket.connect', 'socket.getaddrinfo')\n"
        "sys.addaudithook(lambda event, what: print('ASKED', event, what) if event in events else None)\n"
        "from tests.engines.training.test_tracking import train\n"
        f"train(pathlib.Path({str(tmp_path)!r}), {to!r})\n"
        "print('DONE')\n"
    )
    assert "DONE" in output
    contacts = [
        line for line in output.splitlines() if "ASKED" in line and not re.search(r"127\.0\.0\.1|::1|, '/", line)
    ]
    assert not contacts


CHECK = """
import importlib.util, sys
from tpo.config.resources import TrackingConfig
from tpo.engines.training.tracking import check_tracker, check_tracker_key
importlib.util.find_spec = {find}
try:
    check_tracker(TrackingConfig(to={to!r}))
    check_tracker_key(TrackingConfig(to={to!r}))
    print("passed")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_missing_tracker_is_refused_with_what_to_install():
    output = in_a_process(CHECK.format(find="lambda name: None", to="mlflow"))
    assert (
        f'InputError tracking.to is "mlflow", which is not installed: {sys.executable} -m pip install mlflow' in output
    )
    assert "passed" in in_a_process(CHECK.format(find="lambda name: None", to="none"))


def test_weights_and_biases_without_a_key_is_refused_unless_it_stays_offline(tmp_path: Path):
    skip_without("wandb")
    code = CHECK.format(find="importlib.util.find_spec", to="wandb")
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    assert "InputError tracking.to is" in (output := in_a_process(code, **nobody, WANDB_MODE="online"))
    assert "run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline" in output
    assert "passed" in in_a_process(code, **nobody, WANDB_MODE="offline")
