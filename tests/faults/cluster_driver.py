"""Drivers of a Ray cluster: `python -m tests.faults.cluster_driver <address> <what> <folder>`.

The folder is shared with the test. Prints a line of JSON for each event.
"""

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpo.config.data import DataConfig
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.config.run import RunConfig
from tpo.engines.cluster.actor_pool import ActorPool, JobSpec, Remedies
from tpo.engines.cluster.placement import Role
from tpo.engines.cluster.processes import start_ray
from tpo.engines.cluster.room import Room
from tpo.metrics.live import GpuReading

STOP = "stop"
"""File that tells a driver to stop asking for work."""


def tell(**what: Any) -> None:
    """One line."""
    print(json.dumps(what), flush=True)


class Squarer:
    """Replaces an engine: squares a number, and says on which node."""

    def load(self) -> None:
        """Ready at once."""

    def square(self, number: int) -> tuple[int, str]:
        """The square, and the node."""
        import ray

        time.sleep(0.1)
        return number * number, ray.get_runtime_context().get_node_id()


class Spanner:
    """Replaces an engine of several GPUs: starts workers in the bundles of its placement group, as vLLM does."""

    def __init__(self) -> None:
        self._workers: list[Any] = []

    def load(self) -> None:
        """Starts a worker per bundle."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = ray.util.get_current_placement_group()
        for bundle in range(group.bundle_count):
            where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
            self._workers.append(
                ray.remote(Squarer).options(num_cpus=0, num_gpus=1, scheduling_strategy=where).remote()
            )

    def read_gpus(self) -> list[GpuReading]:
        """No readings, as on a machine without NVIDIA's driver."""
        return []

    def square(self, number: int) -> tuple[int, list[str]]:
        """The square, and the nodes of the workers."""
        import ray

        done = ray.get([worker.square.remote(number) for worker in self._workers])
        return done[0][0], [node for _, node in done]


def orders() -> JobSpec[int]:
    """The job: squaring numbers."""
    return JobSpec(
        prepare=lambda actor: actor.load.remote(),
        submit=lambda actor, number: actor.square.remote(number),
        fault=lambda number, result: None if result[0] == number * number else f"{result[0]} of {number}",
        seconds=60,
        start_seconds=240,
        model="numbers",
        remedies=Remedies(memory="", late=""),
    )


def square(folder: Path) -> None:
    """Squares numbers on five actors with a CPU each, until the file `STOP` exists."""
    pool = ActorPool(Role("squarer", Squarer, (), cpus=1, gpus=0, environment={}), 5, Room())

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            if (folder / STOP).exists():
                return
            yield number

    for index, (value, node) in pool.work(numbers(), orders()):
        tell(index=index, value=value, node=node)
    pool.close()


def span(_: Path) -> None:
    """Works on actors of two GPUs each, then closes the pool."""
    import ray
    from ray.util import placement_group_table

    pool = ActorPool(Role("spanner", Spanner, (), cpus=0, gpus=2, environment={}), 2, Room())
    for index, (value, nodes) in pool.work(range(4), orders()):
        tell(index=index, value=value, nodes=nodes)
    tell(held=pool.holds("GPU"))
    pool.close()
    deadline = time.monotonic() + 60
    while ray.available_resources().get("GPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    states = sorted({group["state"] for group in placement_group_table().values()})
    tell(gpus=ray.available_resources().get("GPU", 0), states=states)


def sample(folder: Path) -> None:
    """Runs the sampling stage on two real engines, first undisturbed and then disturbed by the test."""
    from tasks.handles import seed_model, training_spec
    from tasks.load_prompts import load_prompts
    from tasks.sample import sample as stage
    from tpo.engines.engines import open_engines

    for name in ("undisturbed", "disturbed"):
        config = RunConfig(
            name=name,
            folder=folder,
            data=DataConfig(per_iteration=200),
            engine=EngineConfig(count=2, shard_prompts=4),
            cluster=ClusterConfig(address=sys.argv[1]),
        )
        seed = seed_model(config)
        prompts = load_prompts.fn(config, "iter_1/prompts", seed, [])
        tell(begins=name)
        with open_engines():
            done = stage.fn(config, training_spec(config, 1), seed, prompts)
        tell(ends=name, rows=done.rows, fingerprint=done.fingerprint)


if __name__ == "__main__":
    start_ray(ClusterConfig(address=sys.argv[1]))
    {"square": square, "span": span, "sample": sample}[sys.argv[2]](Path(sys.argv[3]))
