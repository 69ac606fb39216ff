"""Placement of a pool's actors: what each requests from Ray, and how.

Actors are requested at once; Ray places each as soon as it can, possibly only when a node joins.

An engine of several GPUs gets its own placement group: one bundle per GPU, on as few nodes as possible, with the actor
itself in it and requesting nothing, so that vLLM starts its workers in the bundles, on any nodes.
Single-GPU actors are packed, which leaves whole nodes to such groups; CPU engines are spread, since those on one
machine share its memory bandwidth.

An actor that can sleep without its GPU (`Role.sleeps`) doesn't request the GPU itself, since Ray can't take it back
from a living actor. A second actor, its holder, requests it, and ends when the first falls asleep. To wake it, a new
holder is placed, on whatever GPU is free, and the actor that sleeps there wakes up.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Role:
    """The kind of actor in a pool, and what each requests from Ray."""

    name: str
    """Its name in messages."""
    make: type
    """Its class; quick to construct, so that a placed actor can be distinguished from one that waits for placement."""
    arguments: tuple[Any, ...]
    """The class's arguments."""
    cpus: float
    """Number of Ray CPUs."""
    gpus: int
    """Number of GPUs; several may be on several nodes."""
    environment: Mapping[str, str]
    """Environment variables of its process."""
    concurrency: int = 1
    """Calls that it works on at once, each in its own thread."""
    one_by_one: bool = False
    """Whether the next actor starts when the one before is ready: on one machine, starts only delay each other, and the
    first works meanwhile."""
    sleeps: bool = False
    """Whether it can sleep: it has one GPU, and a method `sleep` that frees it; its next work wakes it up."""

    @property
    def needs(self) -> str:
        """What one requests; human-readable."""
        count, what = (self.gpus, "GPU") if self.gpus else (self.cpus, "CPU")
        return f"{count:g} {what}{'s' * (count != 1)}"

    def amount(self, resource: str) -> float:
        """How much one requests of a resource, by Ray's name (`GPU`, `CPU`)."""
        return {"GPU": self.gpus, "CPU": self.cpus}.get(resource, 0)


@dataclass(frozen=True)
class PoolActor:
    """A requested actor."""

    handle: Any
    """Ray's handle of it."""
    group: Any | None
    """Its placement group, if it has one."""
    holder: Any | None = None
    """The actor that holds its GPU, if it doesn't itself."""


@dataclass(frozen=True)
class Place:
    """One GPU of the cluster."""

    node: str
    """Ray's id of the node."""
    devices: str
    """The GPU, as `CUDA_VISIBLE_DEVICES` names it."""


class Holder:
    """Holds one GPU."""

    def place(self) -> Place:
        """Where it is."""
        import ray

        return Place(ray.get_runtime_context().get_node_id(), os.environ.get("CUDA_VISIBLE_DEVICES", ""))


def start_holder() -> Any:
    """Requests one GPU from Ray, without waiting for it; returns the actor that will hold it."""
    import ray

    return ray.remote(Holder).options(num_cpus=0, num_gpus=1).remote()


def start_at(role: Role, place: Place) -> Any:
    """Starts an actor on a GPU that a holder holds."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    environment = {**role.environment, "CUDA_VISIBLE_DEVICES": place.devices}
    actor = ray.remote(role.make).options(
        num_cpus=0,
        num_gpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
        runtime_env={"env_vars": environment},
        max_concurrency=role.concurrency,
    )
    return actor.remote(*role.arguments)


def start_actor(role: Role) -> PoolActor:
    """Requests an actor from Ray, without waiting for it."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    options: dict[str, Any] = {
        "runtime_env": {"env_vars": dict(role.environment)},
        "max_concurrency": role.concurrency,
    }
    if role.gpus <= 1:
        where = "DEFAULT" if role.gpus else "SPREAD"
        actor = ray.remote(role.make).options(
            num_cpus=role.cpus, num_gpus=role.gpus, scheduling_strategy=where, **options
        )
        return PoolActor(actor.remote(*role.arguments), None)
    group = placement_group([{"GPU": 1}] * role.gpus, strategy="PACK")
    # In the first bundle, since vLLM must be on a node with one of its workers; without a GPU, since the workers take
    # all of them.
    inside = PlacementGroupSchedulingStrategy(
        group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
    )
    actor = ray.remote(role.make).options(num_cpus=0, num_gpus=0, scheduling_strategy=inside, **options)
    return PoolActor(actor.remote(*role.arguments), group)


def is_placed(actor: PoolActor | None) -> bool:
    """Whether Ray has placed an actor, so that it has a process, alive or not."""
    from ray._private import state

    if actor is None:
        return False
    first = actor.handle if actor.holder is None else actor.holder
    return bool(state.actors(first._actor_id.hex()).get("Pid"))


def stop_actor(actor: PoolActor) -> None:
    """Kills an actor and everything in its placement group."""
    import ray
    from ray.util.placement_group import remove_placement_group

    for each in (actor.handle, actor.holder):
        if each is not None:
            ray.kill(each)
    if actor.group is not None:
        remove_placement_group(actor.group)
