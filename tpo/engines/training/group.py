"""Ray Train's workers, which outlive a training: the next one saves the start of their processes, and their imports.

`launch` says what a training is. Here: a group of workers, started before or with its first training, given one after
the other through an actor, the desk, and watched while they train.

On an external cluster a group ends with its training: Ray Train keeps files in a folder that all nodes see, which is
the training's own.
"""

import contextlib
import itertools
import math
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tpo.config.resources import ClusterConfig, TrainerConfig
from tpo.config.training import SftConfig, TrainConfig, TrainingConfig
from tpo.console import say
from tpo.engines.cluster.gpus import GpuMeter, give_memory_back
from tpo.engines.cluster.processes import environment, rays_folder, start_ray
from tpo.engines.cluster.room import Room, await_free_memory, has_free
from tpo.engines.training.rounds import TrainingRound
from tpo.engines.training.worker import Progress, Stop, train_from_checkpoint
from tpo.errors import StageError, TpoError
from tpo.metrics.live import GpuReading
from tpo.run_context import run_context
from tpo.storage.disk import make_folder, remove
from tpo.storage.mirror import helping

SECTIONS: Mapping[str, type[TrainingConfig]] = {"train": TrainConfig, "recipe.sft": SftConfig}
"""The config of a training by the section that describes it."""
_WORKER = "worker"
"""The role of a training's workers in the metrics."""
_LOOK_SECONDS = 0.25
"""Seconds between two looks at the workers' progress."""
_POLL_SECONDS = 0.1
"""Seconds between two questions of an idle worker for its next training."""
_END_SECONDS = 20.0
"""Seconds for idle workers to end before they are killed."""


class WorkerGroup:
    """The workers for trainings with these settings; started when needed, and alive until `close`."""

    def __init__(self, trainer: TrainerConfig, cluster: ClusterConfig, room: Room) -> None:
        self._trainer, self._cluster, self._room = trainer, cluster, room
        self._resource = "GPU" if trainer.device == "gpu" else "CPU"
        self._lock = threading.Lock()
        self._fit: _Fit | None = None
        self.used = time.monotonic()
        room.register(self)

    def holds(self, resource: str) -> float:
        """How much of a resource its workers hold."""
        return self._trainer.workers if self._fit is not None and resource == self._resource else 0

    def make_way(self, _: str) -> bool:
        """Stops all workers, unless they are training."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._end()
        finally:
            self._lock.release()
        return True

    def close(self) -> None:
        """Stops all workers and releases their resources."""
        self._end()

    def start_early(self) -> None:
        """Starts the workers, if they'll outlive their first training and there is room for them right away."""
        if self._cluster.address is not None or not self._lock.acquire(blocking=False):
            return
        try:
            start_ray(self._cluster)
            if self._fit is None and has_free(self._resource, self._trainer.workers):
                self._start(None)
        finally:
            self._lock.release()

    def train(self, arguments: Mapping[str, Any], *, progress: Progress, stop: Stop) -> str | None:
        """Has the workers train; returns None, or what killed one of them.

        Raises `StageError` with the error of the training itself.
        """
        with self._lock:
            start_ray(self._cluster)
            if self._fit is None or not self._fit.is_alive:
                self._end()
                self._room.make(self._resource, self._trainer.workers, self)
                self._start(Path(arguments["folder"]))
            assert self._fit is not None
            try:
                death = _trained(self._fit, arguments, self._trainer, progress, stop)
            except BaseException:
                self._end(wait=False)
                raise
            if death is not None or self._cluster.address is not None:
                self._end()
            self.used = time.monotonic()
            return death

    def _start(self, folder: Path | None) -> None:
        if self._cluster.address is None:
            make_folder(rays_folder())
            folder = Path(tempfile.mkdtemp(prefix="training-", dir=rays_folder()))
        assert folder is not None
        self._fit = _Fit(self._trainer, self._cluster, folder / "ray")

    def _end(self, *, wait: bool = True) -> None:
        fit, self._fit = self._fit, None
        if fit is not None:
            fit.end(_END_SECONDS if wait else 0.0)
            if self._cluster.address is None:
                remove(fit.folder.parent)


class _Fit:
    """One start of the workers: Ray Train's call, which lasts as long as they do, in a thread."""

    def __init__(self, trainer: TrainerConfig, cluster: ClusterConfig, folder: Path) -> None:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        on_gpu = trainer.device == "gpu"
        name = uuid.uuid4().hex  # Ray resumes a run of the same name by itself.
        make_folder(folder)
        self.folder = folder
        self.desk = ray.remote(_Desk).options(num_cpus=0).remote()
        self.error: Exception | None = None
        run = TorchTrainer(
            _work,
            train_loop_config={"desk": self.desk},
            torch_config=_torch_config(trainer, cluster, folder / f"{name}.rendezvous"),
            scaling_config=ScalingConfig(
                num_workers=trainer.workers, use_gpu=on_gpu, resources_per_worker={"GPU": 1} if on_gpu else {"CPU": 1}
            ),
            run_config=RunConfig(
                name=name,
                storage_path=str(folder),
                # By default Ray silently retries failed worker start-ups forever.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                worker_runtime_env={"env_vars": environment(trainer.threads)},
            ),
        )
        self._thread = threading.Thread(target=self._run, args=(run,), daemon=True, name="ray-train")
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the workers are there, or on their way."""
        return self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Waits until the workers have ended, for some seconds at most; returns whether they have."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def end(self, seconds: float) -> None:
        """Has the workers end; kills them if they haven't within `seconds`."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.desk.close.remote())
            if not self.wait(seconds):
                self.kill()
                self.wait(_END_SECONDS)
        ray.kill(self.desk)

    def kill(self) -> None:
        """Kills all workers."""
        import ray

        for worker in ray.get(self.desk.get.remote()).workers:
            ray.kill(worker)

    def _run(self, run: Any) -> None:
        import ray

        try:
            run.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            self.error = error


def _trained(
    fit: _Fit, arguments: Mapping[str, Any], trainer: TrainerConfig, progress: Progress, stop: Stop
) -> str | None:
    """Has the workers train, and watches them: shows progress, asks them to end if `stop` says so, and kills them if
    none reports anything for `stall_seconds`. Returns None, or what killed one of them."""
    import ray

    metrics = run_context().metrics
    metrics.show_actors(_WORKER, _WORKER, [])
    ray.get(fit.desk.give.remote(dict(arguments)))
    calls, since, shown, has_stalled = -1, time.monotonic(), 0, False
    try:
        while True:
            ended = fit.wait(_LOOK_SECONDS)
            with contextlib.suppress(ray.exceptions.RayError):
                status = ray.get(fit.desk.get.remote())
                if status.calls:
                    progress(*status.steps)
                metrics.show_actors(_WORKER, _WORKER, ["busy"] * len(status.workers))
                metrics.report_gpus(_WORKER, chain.from_iterable(status.gpus.values()))
                for warning in status.warnings[shown:]:
                    say(f"training: {warning}")
                shown = len(status.warnings)
                if status.finished == trainer.workers:
                    return None
                if not status.stopped and stop():
                    ray.get(fit.desk.stop.remote())
                if status.calls != calls or not status.workers:
                    calls, since = status.calls, time.monotonic()
                elif time.monotonic() - since > trainer.stall_seconds and not ended and not has_stalled:
                    has_stalled = True
                    fit.kill()
            if ended:
                death = "the workers ended" if fit.error is None else death_of(fit.error)
                hung = f"no step ended in {trainer.stall_seconds:g} seconds (trainer.stall_seconds)"
                return hung if has_stalled else death
    finally:
        metrics.show_actors(_WORKER, _WORKER, [])
        metrics.forget_gpus(_WORKER)


def _torch_config(trainer: TrainerConfig, cluster: ClusterConfig, rendezvous: Path) -> Any:
    """How workers find each other: on one machine by a file, on a cluster by Ray's own way.

    The timeout is longer than a step's: a worker that hangs, or saves for too long, is then noticed by `_trained`,
    whose message names the setting.
    """
    from ray.train.torch import TorchConfig

    from tpo.engines.training.process_group import LoopbackTorch

    backend = "nccl" if trainer.device == "gpu" else "gloo"
    timeout_s = math.ceil(trainer.stall_seconds) + 60
    if cluster.address is not None:
        return TorchConfig(backend=backend, timeout_s=timeout_s)
    return LoopbackTorch(backend=backend, timeout_s=timeout_s, rendezvous=str(rendezvous))


def _work(options: Mapping[str, Any]) -> None:
    """The function that each Ray Train worker runs: one training after the other, until the desk is closed."""
    import ray
    import torch
    from trl import DPOTrainer, SFTTrainer  # noqa: F401  slow to import, and from `join` on silence is a sign of a hang

    torch.set_flush_denormal(True)
    desk = options["desk"]
    ray.get(desk.join.remote(ray.get_runtime_context().current_actor))
    for number in itertools.count():
        # Each question fails if the driver has died: then this worker must end.
        while (arguments := ray.get(desk.training.remote(number))) is None:
            time.sleep(_POLL_SECONDS)
        if not arguments:
            return
        if arguments["trainer"]["device"] == "gpu" and number == 0:
            await_free_memory()
            _send_gpus(desk)
        _train(arguments, desk)
        give_memory_back()
        ray.get(desk.finish.remote())


def _send_gpus(desk: Any) -> None:
    """Tells the desk from now on how busy this worker's GPU is."""
    import ray

    worker = ray.train.get_context().get_world_rank()
    GpuMeter().send(lambda readings: desk.report_gpus.remote(worker, readings))


def _train(arguments: Mapping[str, Any], desk: Any) -> None:
    """One training."""
    import ray

    model, folder = Path(arguments["model"]), Path(arguments["folder"])
    reference = None if arguments["reference"] is None else Path(arguments["reference"])
    place: TrainingRound = arguments["place"]
    with helping(arguments["handover"], *filter(None, (model, reference, place.carried)), folder):
        train_from_checkpoint(
            model,
            folder,
            config=SECTIONS[arguments["section"]].model_validate(arguments["config"]),
            trainer=TrainerConfig.model_validate(arguments["trainer"]),
            seed=arguments["seed"],
            reference=reference,
            # Wait for it, because it fails if the driver has died: then this worker must not write any more.
            on_step=lambda done, total: ray.get(desk.set.remote(done, total)),
            stop=lambda: ray.get(desk.is_stopped.remote()),
            warn=lambda message: ray.get(desk.warn.remote(message)),
            tracked=arguments["tracked"],
            place=place,
        )


@dataclass(frozen=True)
class _Status:
    """The driver's view of its workers."""

    steps: tuple[int, int]
    """Steps done and to do."""
    calls: int
    """Signs of life."""
    workers: tuple[Any, ...]
    """The workers' actors."""
    finished: int = 0
    """Workers that have done what they were given."""
    stopped: bool = False
    """Whether they were asked to end early."""
    warnings: tuple[str, ...] = ()
    """Their warnings."""
    gpus: Mapping[int, Sequence[GpuReading]] = field(default_factory=dict)
    """What each worker last said about its GPU."""


class _Desk:
    """Where workers fetch trainings and report progress, and the driver reads it."""

    def __init__(self) -> None:
        self._status = _Status((0, 0), 0, ())
        self._trainings: list[Mapping[str, Any]] = []

    def give(self, arguments: Mapping[str, Any]) -> None:
        """Adds a training, once the one before is finished."""
        self._trainings.append(arguments)
        self._status = _Status((0, 0), 0, self._status.workers)

    def close(self) -> None:
        """Has the workers end."""
        self._trainings.append({})

    def training(self, number: int) -> Mapping[str, Any] | None:
        """The training of that number; None if there is none yet, empty if the workers are to end."""
        return self._trainings[number] if number < len(self._trainings) else None

    def finish(self) -> None:
        self._status = replace(self._status, finished=self._status.finished + 1, calls=self._status.calls + 1)

    def join(self, worker: Any) -> None:
        self._status = replace(self._status, workers=(*self._status.workers, worker))

    def set(self, done: int, total: int) -> None:
        self._status = replace(self._status, steps=(done, total), calls=self._status.calls + 1)

    def warn(self, message: str) -> None:
        self._status = replace(self._status, warnings=(*self._status.warnings, message))

    def report_gpus(self, worker: int, readings: Sequence[GpuReading]) -> None:
        self._status = replace(self._status, gpus={**self._status.gpus, worker: readings})

    def stop(self) -> None:
        self._status = replace(self._status, stopped=True)

    def is_stopped(self) -> bool:
        return self._status.stopped

    def get(self) -> _Status:
        return self._status


def death_of(error: Exception) -> str:
    """What killed a worker, in words.

    Raises `StageError` if Ray Train's failure contains an error of the training itself, or if the workers never
    started.
    """
    import ray
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    if isinstance(error, ray.train.WorkerGroupError):
        failures = [failure for _, failure in sorted(error.worker_failures.items())]
    else:
        failures = [getattr(error, "controller_failure", error)]
    failures = [getattr(failure, "health_check_failure", failure) for failure in failures]
    for failure in failures:
        if isinstance(failure, TpoError):
            raise StageError(f"training failed: {failure}") from error
        if isinstance(failure, WorkerGroupStartupTimeoutError):
            raise StageError(
                f"training failed: Ray has not started all of {failure.num_workers} workers in time: each asks for a "
                "GPU, or for a CPU if it trains on those; lower trainer.workers, or see what else holds them "
                "(`ray status`), and rerun"
            ) from error
        if not _is_death(failure):
            remedy = "; lower train.micro_batch_size" if _out_of_memory(failure) else ""
            raise StageError(f"training failed: {type(failure).__name__}: {failure}{remedy}\n{error}") from error
    return "a worker ran out of memory" if any(map(_out_of_memory, failures)) else "a worker died"


def _is_death(failure: Exception) -> bool:
    """Whether a worker is gone, or failed because another one left, which torch reports in various ways."""
    import ray
    import torch.distributed as dist
    from ray.train.v2._internal import exceptions

    died = (
        ray.exceptions.RayActorError,
        ray.exceptions.OutOfMemoryError,
        exceptions.WorkerHealthCheckTimeoutError,
        exceptions.WorkerGroupStartupFailedError,
        dist.DistError,
    )
    return isinstance(failure, died) or (isinstance(failure, RuntimeError) and "gloo" in str(failure))


def _out_of_memory(failure: Exception) -> bool:
    signs = ("out of memory", "low on memory", "can't allocate memory")
    return isinstance(failure, MemoryError) or any(sign in str(failure).lower() for sign in signs)
