"""Where the actors of a crew go: what each asks of Ray, and how it is asked.

In: a role. Out: an actor, at once; Ray places it as soon as it can, which may be when a node joins.

An engine of several GPUs gets a placement group of its own: a bundle a GPU, on as few nodes as will do, the actor
itself in it and asking for nothing, so that vLLM starts its workers in the bundles, on whatever nodes they are. On GPUs
Ray packs, which leaves whole nodes to such groups; on CPUs engines are spread, since those of one machine share its
memory's bandwidth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Role:
    """What the actors of a crew are, and what each asks of Ray."""

    name: str
    """What one is called, for people."""
    make: type
    """Its class; quick to construct, so that an actor that has arrived can be told from one that waits for a place."""
    arguments: tuple[Any, ...]
    """What the class is called with."""
    cpus: float
    """CPUs of Ray's count."""
    gpus: int
    """GPUs; several may be on several nodes."""
    environment: Mapping[str, str]
    """Environment variables of its process."""

    @property
    def asks(self) -> str:
        """What one asks for, for people."""
        count, what = (self.gpus, "GPU") if self.gpus else (self.cpus, "CPU")
        return f"{count:g} {what}{'s' * (count != 1)}"

    def amount(self, resource: str) -> float:
        """How much one asks of a resource, by Ray's name for it."""
        return {"GPU": self.gpus, "CPU": self.cpus}.get(resource, 0)


@dataclass(frozen=True)
class Member:
    """An actor that Ray has been asked for."""

    actor: Any
    """Its handle."""
    group: Any | None
    """Its placement group, if it has one."""


def hire(role: Role) -> Member:
    """Asks Ray for an actor; does not wait for it."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    options: dict[str, Any] = {"runtime_env": {"env_vars": dict(role.environment)}}
    if role.gpus <= 1:
        where = "DEFAULT" if role.gpus else "SPREAD"
        actor = ray.remote(role.make).options(
            num_cpus=role.cpus, num_gpus=role.gpus, scheduling_strategy=where, **options
        )
        return Member(actor.remote(*role.arguments), None)
    group = placement_group([{"GPU": 1}] * role.gpus, strategy="PACK")
    # In the first bundle, for vLLM wants to be where one of its workers is; without a GPU, for they take them all.
    inside = PlacementGroupSchedulingStrategy(
        group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
    )
    actor = ray.remote(role.make).options(num_cpus=0, num_gpus=0, scheduling_strategy=inside, **options)
    return Member(actor.remote(*role.arguments), group)


def is_placed(member: Member | None) -> bool:
    """Whether Ray has found a place for an actor, so that it has a process, alive or not."""
    from ray._private import state

    return member is not None and bool(state.actors(member.actor._actor_id.hex()).get("Pid"))


def dismiss(member: Member) -> None:
    """Ends an actor, and what it has started in its placement group."""
    import ray
    from ray.util.placement_group import remove_placement_group

    ray.kill(member.actor)
    if member.group is not None:
        remove_placement_group(member.group)
