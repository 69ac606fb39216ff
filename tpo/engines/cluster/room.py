"""Sharing of GPUs and CPUs between actor pools: idle pools make way, and a GPU's memory is checked before a model is
loaded.

Engines stay alive from stage to stage, since a start takes long. If all of them and the trainer fit at once, none
ends; otherwise they take turns: idle pools make way, the least recently used first, until Ray has enough. On GPUs they
sleep (`tpo.engines.cluster.actor_pool`), otherwise they end. Ray
counts GPUs, not their memory, which a process that is slow to exit may still hold; so training workers check before
loading a model.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

from tpo.errors import StageError

HELD_SHARE = 0.1
"""Maximum share of a GPU's memory used by others, including the driver's own bookkeeping."""
_SETTLE_SECONDS = 2.0
"""Seconds until resources that were just released show up in Ray."""
_END_SECONDS = 30.0
"""Seconds for the processes of a closed pool to exit."""
_GIB = 2**30


class Resident(Protocol):
    """A holder of resources that stays alive while idle, to save a restart."""

    used: float
    """When it last worked, by `time.monotonic`."""

    def holds(self, resource: str) -> float:
        """How much of a resource it holds."""
        ...

    def make_way(self, resource: str) -> bool:
        """Releases all that it holds of a resource, unless it is working; returns whether it has."""
        ...


class Room:
    """The resources of a Ray cluster, shared by the pools of a run."""

    def __init__(self) -> None:
        self._residents: WeakSet[Resident] = WeakSet()
        self._lock = threading.Lock()

    def register(self, resident: Resident) -> None:
        """Registers a resident, which then makes way when idle."""
        self._residents.add(resident)

    def make(self, resource: str, count: float, requester: Resident | None = None) -> None:
        """Has idle pools make way until Ray has `count` of a resource (`GPU`, `CPU`) available, or none is left but
        `requester`.

        If that isn't enough, Ray places the request once other work in the cluster ends.
        """
        with self._lock:
            others = [
                resident for resident in self._residents if resident is not requester and resident.holds(resource)
            ]
            residents = sorted(others, key=lambda resident: resident.used)
            wait = _SETTLE_SECONDS
            while residents and not _becomes_free(resource, count, wait):
                resident, wait = residents.pop(0), 0.0
                back = _free(resource) + resident.holds(resource)
                if resident.make_way(resource):
                    _becomes_free(resource, min(count, back), _END_SECONDS)


def has_free(resource: str, count: float) -> bool:
    """Whether Ray has `count` of a resource available now."""
    return _free(resource) >= count


def has_in_all(resource: str, count: float) -> bool:
    """Whether Ray has `count` of a resource in all, free or not."""
    import ray

    return float(ray.cluster_resources().get(resource, 0.0)) >= count


def _free(resource: str) -> float:
    import ray

    return float(ray.available_resources().get(resource, 0.0))


def _becomes_free(resource: str, wanted: float, seconds: float) -> bool:
    """Waits up to `seconds` for Ray to have that much available; returns whether it has."""
    deadline = time.monotonic() + seconds
    while _free(resource) < wanted:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass(frozen=True)
class Memory:
    """A GPU's memory, in bytes."""

    free: int
    """Free memory."""
    total: int
    """Total memory."""


def gpu_memory() -> Memory:
    """The memory of the GPU that this Ray Train worker uses."""
    import torch
    from ray.train.torch import get_device

    return Memory(*torch.cuda.mem_get_info(get_device()))


def await_free_memory(read: Callable[[], Memory] = gpu_memory, *, seconds: float = 60.0) -> None:
    """Waits until a GPU's memory is free, except for a small share.

    Raises `StageError` if it isn't within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while (found := read()).free < (1 - HELD_SHARE) * found.total:
        if time.monotonic() >= deadline:
            raise StageError(
                f"{(found.total - found.free) / _GIB:.1f} of {found.total / _GIB:.1f} GiB of a GPU's memory are still "
                f"in use after {seconds:g} s, expected it free for training: find the process with nvidia-smi and "
                "stop it"
            )
        time.sleep(min(1.0, seconds / 10))
