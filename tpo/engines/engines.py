"""The engines of a run: pools of samplers and scorers, which outlive a stage since they start slowly, and the trainer.

They share one `Room`, so that idle pools make way for what needs their GPUs and CPUs.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tpo.config.resources import ClusterConfig, EngineConfig, JudgeEngineConfig
from tpo.engines.cluster.room import Room
from tpo.engines.training.job import TrainingJob
from tpo.records import Epoch
from tpo.run_context import run_context, using

if TYPE_CHECKING:
    from tpo.engines.inference.reward_reader import Load, ScorerPool
    from tpo.engines.inference.sampler import SamplerPool
    from tpo.engines.training.worker import Progress, Stop

Pool = TypeVar("Pool", "SamplerPool", "ScorerPool")


class Engines:
    """Samplers, scorers and the trainer of a run; the creator must close them."""

    def __init__(self) -> None:
        self._room = Room()
        self._sampler_pools: dict[Hashable, SamplerPool] = {}
        self._scorer_pools: dict[Hashable, ScorerPool] = {}
        self._lock = threading.Lock()

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

        return train_model(job, progress=progress, room=self._room, stop=stop)

    def close(self) -> None:
        """Stops all pools and releases their memory."""
        with self._lock:
            for samplers in self._sampler_pools.values():
                samplers.close()
            for scorers in self._scorer_pools.values():
                scorers.close()
            self._sampler_pools.clear()
            self._scorer_pools.clear()


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
