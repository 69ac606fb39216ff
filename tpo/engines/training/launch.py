"""A training on Ray Train's workers: starts them, watches them, and restarts them if one dies.

It writes one folder of safetensors per epoch, and the log; `tpo.engines.training.worker` runs in each worker. A worker
that dies or hangs is restarted and resumes from its last checkpoint. An error raised by the training itself isn't
retried: it would only occur again, later.
"""

import contextlib
import math
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from tpo.config.resources import ClusterConfig, TrainerConfig
from tpo.config.training import SftConfig, TrainConfig, TrainingConfig
from tpo.console import say
from tpo.engines.cluster.gpus import GpuMeter
from tpo.engines.cluster.processes import environment, start_ray
from tpo.engines.cluster.room import Room, await_free_memory
from tpo.engines.training.job import TrainingJob
from tpo.engines.training.rounds import TrainingRound
from tpo.engines.training.worker import Progress, Stop, finished, read_log, train_from_checkpoint, write_dataset
from tpo.errors import StageError, TpoError
from tpo.metrics.live import GpuReading
from tpo.records import Epoch
from tpo.run_context import run_context
from tpo.storage.disk import bring_here, make_folder
from tpo.storage.mirror import catch_up, hand_over, helping

RESTARTS = 3
"""Maximum number of restarts in one call: more deaths than that have a lasting cause."""
_WORKER = "worker"
"""The role of a training's workers in the metrics."""
_SECTIONS: Mapping[str, type[TrainingConfig]] = {"train": TrainConfig, "recipe.sft": SftConfig}


def train_model(job: TrainingJob, *, progress: Progress, room: Room, stop: Stop = lambda: False) -> list[Epoch]:
    """Trains a model; `epoch_<n>` of the job's folder holds it after each epoch, or only after the last if another
    round follows.

    Continues what an earlier call for the same job left in its folder. If `stop`, which is called twice a second,
    returns true, training ends with a checkpoint, and no epochs are returned. Raises `StageError` with the worker's own
    error if training fails, or if workers keep dying.
    """
    config, trainer, place = job.config, job.trainer, job.place
    folder = job.folder.resolve()
    passes = config.passes(len(job.rows))
    if finished(folder, passes, place):
        return read_log(folder)
    bring_here(folder)
    start_ray(job.cluster)
    room.make("GPU" if trainer.device == "gpu" else "CPU", trainer.workers)
    write_dataset(job.rows, folder / "dataset")
    arguments = {
        "model": str(job.model.resolve()),
        "reference": None if job.reference is None else str(job.reference.resolve()),
        "folder": str(folder),
        "section": next(name for name, kind in _SECTIONS.items() if isinstance(config, kind)),
        "config": config.model_dump(mode="json"),
        "trainer": trainer.model_dump(mode="json"),
        "seed": job.seed,
        "tracked": job.tracked,
        "place": replace(place, carried=None if place.carried is None else place.carried.resolve()),
        "handover": hand_over(),
    }
    run_context().metrics.show_actors(_WORKER, _WORKER, [])
    deaths: list[str] = []
    while len(deaths) <= RESTARTS:
        if deaths:
            say(f"training: {deaths[-1]}; restarted from its last checkpoint")
            run_context().metrics.failed_actor(_WORKER)
        death = _attempt(arguments, folder, trainer=trainer, cluster=job.cluster, progress=progress, stop=stop)
        if death is None:
            catch_up(folder)
            return read_log(folder) if finished(folder, passes, place) else []
        deaths.append(death)
    raise StageError(
        f"training failed: {deaths[-1]}, and so {len(deaths)} times. Its checkpoints are kept: rerun to continue. If "
        f"memory ran out, lower {arguments['section']}.micro_batch_size (now {config.micro_batch_size})"
    )


def _attempt(
    arguments: Mapping[str, Any],
    folder: Path,
    *,
    trainer: TrainerConfig,
    cluster: ClusterConfig,
    progress: Progress,
    stop: Stop,
) -> str | None:
    """Runs the workers: returns None, or what killed one of them.

    Raises `StageError` with the error of the training itself.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    on_gpu = trainer.device == "gpu"
    name = uuid.uuid4().hex  # Ray resumes a run of the same name by itself.
    make_folder(folder / "ray")
    counter = ray.remote(_Counter).options(num_cpus=0).remote()
    run = TorchTrainer(
        _work,
        train_loop_config={**arguments, "counter": counter},
        torch_config=_torch_config(trainer, cluster, folder / "ray" / f"{name}.rendezvous"),
        scaling_config=ScalingConfig(
            num_workers=trainer.workers, use_gpu=on_gpu, resources_per_worker={"GPU": 1} if on_gpu else {"CPU": 1}
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder / "ray"),
            # By default Ray silently retries failed worker start-ups forever.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            worker_runtime_env={"env_vars": environment(trainer.threads)},
        ),
    )
    with _watched(counter, progress, stop, trainer.stall_seconds) as stalled:
        try:
            run.fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            death = death_of(error)
            hung = f"no step ended in {trainer.stall_seconds:g} seconds (trainer.stall_seconds)"
            return hung if stalled.is_set() else death
    return None


def _torch_config(trainer: TrainerConfig, cluster: ClusterConfig, rendezvous: Path) -> Any:
    """How workers find each other: on one machine by a file, on a cluster by Ray's own way.

    The timeout is longer than a step's: a worker that hangs, or saves for too long, is then noticed by `_watched`,
    whose message names the setting.
    """
    from ray.train.torch import TorchConfig

    from tpo.engines.training.process_group import LoopbackTorch

    backend = "nccl" if trainer.device == "gpu" else "gloo"
    timeout_s = math.ceil(trainer.stall_seconds) + 60
    if cluster.address is not None:
        return TorchConfig(backend=backend, timeout_s=timeout_s)
    return LoopbackTorch(backend=backend, timeout_s=timeout_s, rendezvous=str(rendezvous))


def _work(arguments: Mapping[str, Any]) -> None:
    """The function that each Ray Train worker runs."""
    import ray
    import torch
    from trl import DPOTrainer, SFTTrainer  # noqa: F401  slow to import, and from `join` on silence is a sign of a hang

    torch.set_flush_denormal(True)
    counter = arguments["counter"]
    ray.get(counter.join.remote(ray.get_runtime_context().current_actor))
    if arguments["trainer"]["device"] == "gpu":
        await_free_memory()
        worker = ray.train.get_context().get_world_rank()
        GpuMeter().send(lambda readings: counter.report_gpus.remote(worker, readings))
    model, folder = Path(arguments["model"]), Path(arguments["folder"])
    reference = None if arguments["reference"] is None else Path(arguments["reference"])
    place: TrainingRound = arguments["place"]
    with helping(arguments["handover"], *filter(None, (model, reference, place.carried)), folder):
        train_from_checkpoint(
            model,
            folder,
            config=_SECTIONS[arguments["section"]].model_validate(arguments["config"]),
            trainer=TrainerConfig.model_validate(arguments["trainer"]),
            seed=arguments["seed"],
            reference=reference,
            # Wait for it, because it fails if the driver has died: then this worker must not write any more.
            on_step=lambda done, total: ray.get(counter.set.remote(done, total)),
            stop=lambda: ray.get(counter.is_stopped.remote()),
            warn=lambda message: ray.get(counter.warn.remote(message)),
            tracked=arguments["tracked"],
            place=place,
        )


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


@dataclass(frozen=True)
class _Status:
    """The driver's view of its workers."""

    steps: tuple[int, int]
    """Steps done and to do."""
    calls: int
    """Signs of life."""
    workers: tuple[Any, ...]
    """The workers' actors."""
    stopped: bool = False
    """Whether they were asked to end early."""
    warnings: tuple[str, ...] = ()
    """Their warnings."""
    gpus: Mapping[int, Sequence[GpuReading]] = field(default_factory=dict)
    """What each worker last said about its GPU."""


class _Counter:
    """Where workers report progress, and the driver reads it."""

    def __init__(self) -> None:
        self._status = _Status((0, 0), 0, ())

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


@contextlib.contextmanager
def _watched(counter: Any, progress: Progress, stop: Stop, stall_seconds: float) -> Iterator[threading.Event]:
    """Shows progress, and asks workers to end if `stop` says so; kills them if none reports anything for
    `stall_seconds`, and then sets the event that it yields."""
    import ray

    ended, stalled = threading.Event(), threading.Event()
    metrics = run_context().metrics

    def show(status: _Status) -> None:
        metrics.show_actors(_WORKER, _WORKER, ["busy"] * len(status.workers))
        metrics.report_gpus(_WORKER, chain.from_iterable(status.gpus.values()))

    def watch() -> None:
        calls, since, shown = -1, time.monotonic(), 0
        last = False
        while not last:
            last = ended.wait(0.5)
            with contextlib.suppress(ray.exceptions.RayError):
                status = ray.get(counter.get.remote())
                if status.calls:
                    progress(*status.steps)
                show(status)
                for warning in status.warnings[shown:]:
                    say(f"training: {warning}")
                shown = len(status.warnings)
                if not status.stopped and stop():
                    ray.get(counter.stop.remote())
                if status.calls != calls or not status.workers:
                    calls, since = status.calls, time.monotonic()
                elif time.monotonic() - since > stall_seconds and not last:
                    stalled.set()
                    for worker in status.workers:
                        ray.kill(worker)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield stalled
    finally:
        ended.set()
        thread.join()
        metrics.show_actors(_WORKER, _WORKER, [])
        metrics.forget_gpus(_WORKER)
