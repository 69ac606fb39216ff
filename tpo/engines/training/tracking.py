"""Experiment trackers, through the integrations of transformers: the callback that a trainer gets for `[tracking]`.

A training that resumes from a checkpoint repeats the steps after it, and no step may be reported twice. TensorBoard can
forget what came after the checkpoint, which is exact. The others can't, so each step is noted before it is reported and
never reported again: the step in progress when a worker is killed may be missing there. The notes are with the
trainer's checkpoints and belong to one attempt at the stage; another attempt is another run to the tracker.
"""

import contextlib
import importlib.util
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo.config.resources import TrackingConfig
from tpo.engines.cluster.gpus import GpuMeter
from tpo.errors import InputError
from tpo.planning.model_flops import TrainingLoad
from tpo.storage.disk import append, make_folder, write_atomically
from tpo.storage.store import set_aside

if TYPE_CHECKING:
    from transformers import TrainerCallback

PACKAGES = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow-skinny",  # The full mlflow refuses the pinned pandas.
    "trackio": "trackio",
}
"""What to install for each tracker."""


@dataclass(frozen=True)
class Tracked:
    """A training as its tracker shows it."""

    tracking: TrackingConfig
    """Which tracker."""
    run: str
    """Name of the run."""
    part: str
    """Which of the run's trainings this is, by its folder: `iter_1`."""
    root: Path
    """The run folder, which holds a tracker's files."""
    load: TrainingLoad | None = None
    """What a step takes, for its speed."""
    before: Mapping[str, float] = field(default_factory=dict)
    """What the stages before the training measured; reported once, with its first step."""

    @property
    def name(self) -> str:
        """Its name in the tracker."""
        return f"{self.run}-{self.part.replace('/', '-')}"


def check_tracker(tracking: TrackingConfig) -> None:
    """Raises `InputError` if the tracker isn't installed."""
    if tracking.to != "none" and importlib.util.find_spec(tracking.to) is None:
        raise InputError(
            f'tracking.to is "{tracking.to}", which is not installed: {sys.executable} -m pip install '
            f'{PACKAGES[tracking.to]}, or set tracking.to = "none"'
        )


def check_tracker_key(tracking: TrackingConfig) -> None:
    """Raises `InputError` if Weights & Biases has no key that its server accepts: a worker could not prompt for one.

    Asks that server, unless WANDB_MODE keeps everything local.
    """
    if tracking.to != "wandb" or os.environ.get("WANDB_MODE", "online") != "online":
        return
    import wandb

    try:
        found = "it knows no key" if not wandb.login(prompt=False) else None
    except wandb.errors.Error as error:
        found = str(error)
    if found:
        raise InputError(
            f'tracking.to is "wandb", and {found}: run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to '
            "keep everything in the run's folder"
        )


def tracker_callbacks(
    tracked: Tracked, folder: Path, *, done: int, warn: Callable[[str], None]
) -> "list[TrainerCallback]":
    """The callbacks that report a training to its tracker; for the first worker only.

    A tracker that can't be opened stops the training before its first step; one that fails later is dropped until the
    next start.

    Args:
        tracked: The training.
        folder: Where the notes are kept until the training is finished.
        done: Steps done by the checkpoint that it resumes from.
        warn: Receives a message about a tracker that failed.
    """
    if tracked.tracking.to == "none":
        return []
    from transformers import TrainerCallback

    class Teller(TrainerCallback):
        """Opens the tracker when the training begins, reports each step once, and closes it at the end."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._failed = False
            self._began: float | None = None
            self._gpus = None if args.use_cpu else GpuMeter()
            self._notes = Notes(folder / "tracked")
            self._tracker = _OPENERS[tracked.tracking.to](tracked, _Start(self._notes.run, done))
            self._notes.begin(self._tracker.run)
            args.project, args.run_name = tracked.tracking.project, self._tracker.run
            self._tracker.callback.on_train_begin(args, state, control, **kwargs)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._began = time.monotonic()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
        ) -> None:
            # The library's final log (run time, mean loss) counts from the last start.
            if self._failed or not logs or "loss" not in logs:
                return
            if self._tracker.forgets or self._notes.is_news(state.global_step):
                first = tracked.before if state.global_step == 1 else {}
                # Another dictionary: the trainer's own is kept in its history, which checkpoints hold.
                logs = {**logs, **_speed_of(tracked.load, self._began, self._gpus), **first}
                with self._left_where_it_fails(state.global_step):
                    self._tracker.callback.on_log(args, state, control, logs=logs, **kwargs)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not self._failed:
                with self._left_where_it_fails(state.global_step):
                    self._tracker.callback.on_train_end(args, state, control, **kwargs)
                    self._tracker.close()

        @contextlib.contextmanager
        def _left_where_it_fails(self, step: int) -> Iterator[None]:
            """Nothing depends on a tracker, and hours of training must not end because its server is down."""
            try:
                yield
            except Exception as error:  # noqa: BLE001  trackers raise what they like
                self._failed = True
                why = f"{type(error).__name__}: {error}"
                warn(
                    f"{tracked.tracking.to} failed at step {step} ({why}) and gets no more reports; "
                    "the training continues, "
                    "and all its steps will stand in steps.jsonl"
                )

    return [Teller()]


def _speed_of(load: TrainingLoad | None, began: float | None, gpus: GpuMeter | None) -> dict[str, float]:
    """How fast the step was that began then, and how busy and full the first worker's GPU is; only what is known."""
    found = {}
    if load is not None and began is not None and (seconds := time.monotonic() - began) > 0:
        found["tokens_per_second"] = load.step_tokens / seconds
        if (mfu := load.mfu(load.step_flops or 0.0, seconds)) is not None:
            found["mfu"] = mfu
    for reading in gpus.read() if gpus else ():
        if reading.utilization is not None:
            found["gpu_utilization"] = reading.utilization
        if reading.memory_used is not None:
            found["gpu_memory_gib"] = reading.memory_used / 2**30
    return found


@dataclass(frozen=True)
class _Start:
    """Where a training resumes."""

    run: str | None
    """The tracker's id of it; None for a new one."""
    done: int
    """Steps done by its checkpoint."""


@dataclass(frozen=True)
class _Tracker:
    """A tracker opened for a training."""

    callback: "TrainerCallback"
    """The library's integration of it."""
    run: str
    """The tracker's id of the training, to resume it after a stop."""
    close: Callable[[], object]
    """Flushes the tracker."""
    forgets: bool = False
    """Whether it forgets what came after the checkpoint."""


class Notes:
    """What was reported to a tracker: one line for its id of the training, then one per step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # A line that was cut was noted and not reported.
            write_atomically(path, whole.encode())
        lines = whole.splitlines()
        self.run = lines[0] if lines else None
        self._last = int(lines[-1]) if len(lines) > 1 else 0

    def begin(self, run: str) -> None:
        """Notes the tracker's id of the training, unless that is noted already."""
        if self.run is None:
            self.run = run
            self._add(run)

    def is_news(self, step: int) -> bool:
        """Whether a step is still to be reported; from then on it counts as reported."""
        if step <= self._last:
            return False
        self._last = step
        self._add(str(step))
        return True

    def _add(self, line: str) -> None:
        make_folder(self._path.parent)
        with self._path.open("ab") as file:
            append(file, f"{line}\n".encode())


def _open_tensorboard(tracked: Tracked, start: _Start) -> _Tracker:
    """Event files in the run folder, where `tensorboard --logdir runs` finds them; those of another attempt at the
    stage are moved aside."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    place = tracked.root / "tensorboard" / tracked.part.replace("/", "-")
    if start.run is None and place.exists():
        set_aside(place)
    writer = SummaryWriter(str(place), purge_step=start.done + 1)
    return _Tracker(TensorBoardCallback(writer), start.run or place.name, writer.close, forgets=True)


def _open_wandb(tracked: Tracked, start: _Start) -> _Tracker:
    """A run of Weights & Biases; its files are in the run folder."""
    import wandb
    from transformers.integrations import WandbCallback

    run = start.run or secrets.token_hex(4)
    folder = os.environ.get("WANDB_DIR", str(tracked.root))
    wandb.init(project=tracked.tracking.project, name=tracked.name, id=run, resume="allow", dir=folder)
    return _Tracker(WandbCallback(), run, wandb.finish)


def _open_mlflow(tracked: Tracked, start: _Start) -> _Tracker:
    """A run of MLflow, in the store that MLFLOW_TRACKING_URI names or in a database in the run folder."""
    import mlflow
    from transformers.integrations import MLflowCallback

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{tracked.root / 'mlflow.db'}")
    mlflow.set_experiment(tracked.tracking.project)
    begun = mlflow.start_run(run_id=start.run, run_name=tracked.name)
    return _Tracker(MLflowCallback(), begun.info.run_id, mlflow.end_run)


def _open_trackio(tracked: Tracked, start: _Start) -> _Tracker:
    """A run of trackio, which identifies runs by name, stored in the run folder."""
    os.environ.setdefault("TRACKIO_DIR", str(tracked.root / "trackio"))  # Read when trackio is imported.
    from transformers.integrations import TrackioCallback

    return _Tracker(TrackioCallback(), start.run or f"{tracked.name}-{secrets.token_hex(4)}", lambda: None)


_OPENERS: Mapping[str, Callable[[Tracked, _Start], _Tracker]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
    "trackio": _open_trackio,
}
