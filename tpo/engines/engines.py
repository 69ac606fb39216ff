"""The engines of a run: samplers, scorers and the workers that train, which outlive a stage since they start slowly.

They share one `Room`, so that idle pools make way for what needs their GPUs and CPUs.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tpo.config.contexts import context_of
from tpo.config.recipes import ThinkPo
from tpo.config.resources import ClusterConfig, EngineConfig, JudgeEngineConfig, TrainerConfig
from tpo.config.run import RunConfig
from tpo.engines.cluster.room import Room
from tpo.engines.training.job import TrainingJob
from tpo.records import Epoch
from tpo.run_context import run_context, using
from tpo.storage.store import folder_artifact

if TYPE_CHECKING:
    from tpo.engines.inference.reward_reader import Load, ScorerPool
    from tpo.engines.inference.sampler import SamplerPool
    from tpo.engines.training.group import WorkerGroup
    from tpo.engines.training.worker import Progress, Stop

Pool = TypeVar("Pool", "SamplerPool", "ScorerPool", "WorkerGroup")


class Engines:
    """Samplers, scorers and training workers of a run; the creator must close them."""

    def __init__(self) -> None:
        self._room = Room()
        self._sampler_pools: dict[Hashable, SamplerPool] = {}
        self._scorer_pools: dict[Hashable, ScorerPool] = {}
        self._worker_groups: dict[Hashable, WorkerGroup] = {}
        self._lock = threading.Lock()
        self._started_early = threading.Event()
        self._started_early.set()
        self._closed = False

    def sampler_pool(
        self,
        config: EngineConfig,
        cluster: ClusterConfig,
        context_tokens: int,
        *,
        cpus: float = 1.0,
        forcing: bool = False,
    ) -> "SamplerPool":
        """The pool for these settings, as `SamplerPool` has them."""
        from tpo.engines.inference.sampler import SamplerPool

        key = (config, cluster, context_tokens, cpus, forcing)
        return self._kept(
            self._sampler_pools,
            key,
            lambda: SamplerPool(config, cluster, context_tokens, room=self._room, cpus=cpus, forcing=forcing),
        )

    def scorer_pool(
        self, load: "Load", folder: Path, config: JudgeEngineConfig, cluster: ClusterConfig
    ) -> "ScorerPool":
        """The pool for this model and these settings, as `ScorerPool` has them."""
        from tpo.engines.inference.reward_reader import ScorerPool

        key = (load, folder.resolve(), config, cluster)
        return self._kept(self._scorer_pools, key, lambda: ScorerPool(load, folder, config, cluster, room=self._room))

    def _kept(self, pools: dict[Hashable, Pool], key: Hashable, make: Callable[[], Pool]) -> Pool:
        with self._lock:
            if key not in pools:
                pools[key] = make()
            return pools[key]

    def train_model(self, job: TrainingJob, *, progress: "Progress", stop: "Stop" = lambda: False) -> list[Epoch]:
        """Trains a model, as `tpo.engines.training.launch.train_model` says."""
        from tpo.engines.training.launch import train_model

        return train_model(job, progress=progress, group=self._worker_group(job.trainer, job.cluster), stop=stop)

    def fit_beside_training(self, config: RunConfig) -> bool:
        """Whether engines have GPUs of their own while a model is trained, so that both can work at once."""
        from tpo.engines.cluster.processes import start_ray
        from tpo.engines.cluster.room import has_in_all

        engine, trainer = config.engine, config.trainer
        if (engine.device, trainer.device) != ("gpu", "gpu"):
            return False
        start_ray(config.cluster)
        return has_in_all("GPU", engine.count * engine.tensor_parallel + trainer.workers)

    def _worker_group(self, trainer: TrainerConfig, cluster: ClusterConfig) -> "WorkerGroup":
        from tpo.engines.training.group import WorkerGroup

        return self._kept(self._worker_groups, (trainer, cluster), lambda: WorkerGroup(trainer, cluster, self._room))

    def start_early(self, config: RunConfig) -> None:
        """Starts the processes that a run begins with in the background, most of whose start is imports: the samplers,
        with the seed model, and the workers that train, if there is room for both.

        On an external cluster nothing starts before it has work.
        """
        if config.cluster.address is not None or not self._started_early.is_set():
            return
        self._started_early.clear()

        def work() -> None:
            with contextlib.suppress(Exception):  # Whoever needs what didn't start meets the error again.
                self._start_early(config)
            self._started_early.set()
            threading.Event().wait()  # Linux ends Ray's daemons with the thread that has started them.

        threading.Thread(target=work, daemon=True, name="early start").start()

    def _start_early(self, config: RunConfig) -> None:
        if not isinstance(config.recipe, ThinkPo):
            forcing = config.sample.forces_tokens
            pool = self.sampler_pool(config.engine, config.cluster, context_of(config), forcing=forcing)
            pool.start_early(folder_artifact(config.model.folder))
        if not self._closed:
            self._worker_group(config.trainer, config.cluster).start_early()

    def close(self) -> None:
        """Stops all pools and releases their memory."""
        self._closed = True
        self._started_early.wait()
        with self._lock:
            for samplers in self._sampler_pools.values():
                samplers.close()
            for scorers in self._scorer_pools.values():
                scorers.close()
            for workers in self._worker_groups.values():
                workers.close()
            self._sampler_pools.clear()
            self._scorer_pools.clear()
            self._worker_groups.clear()


@contextlib.contextmanager
def open_engines() -> Iterator[Engines]:
    """Engines for everything that runs in this context; closed when it is left."""
    with contextlib.closing(Engines()) as engines, using(dataclasses.replace(run_context(), engines=engines)):
        yield engines


def engines_of_run() -> Engines:
    """The engines of the open context."""
    if (found := run_context().engines) is None:
        raise AssertionError("no engines are open: enter `open_engines` first")
    return found
