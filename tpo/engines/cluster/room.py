"""Arbitration of GPUs and CPUs between actor pools: idle pools make way, and a GPU's memory is checked before a model
is loaded.

Engines stay alive from stage to stage, since a start takes long. If all of them and the trainer fit at once, none is
closed; otherwise they take turns: idle pools are closed, the least recently used first, until Ray has enough. Ray
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
"""Maximum share of a GPU's memory in use by others, the driver's own bookkeeping included."""
_SETTLE_SECONDS = 2.0
"""Seconds until resources that were just released show up in Ray."""
_END_SECONDS = 30.0
"""Seconds for the processes of a closed pool to exit."""
_GIB = 2**30


class Tenant(Protocol):
    """A holder of resources that stays alive while idle, to save a restart."""

    used: float
    """When it last worked, by `time.monotonic`."""

    def holds(self, resource: str) -> float:
        """How much of a resource it holds."""
        ...

    def close_if_idle(self) -> bool:
        """Releases everything, unless it is working."""
        ...


class Room:
    """What one Ray cluster has, between the pools of a run."""

    def __init__(self) -> None:
        self._tenants: WeakSet[Tenant] = WeakSet()
        self._lock = threading.Lock()

    def register(self, tenant: Tenant) -> None:
        """Registers a resident, which from now on makes way when idle."""
        self._tenants.add(tenant)

    def make(self, resource: str, count: float, asker: Tenant | None = None) -> None:
        """Closes idle pools until Ray has `count` of a resource (`GPU`, `CPU`) available, or none but `asker` is left.

        If that isn't enough, Ray places the request once other work in the cluster ends.
        """
        with self._lock:
            others = [tenant for tenant in self._tenants if tenant is not asker and tenant.holds(resource)]
            tenants = sorted(others, key=lambda tenant: tenant.used)
            wait = _SETTLE_SECONDS
            while tenants and not _comes(resource, count, wait):
                tenant, wait = tenants.pop(0), 0.0
                back = _free(resource) + tenant.holds(resource)
                if tenant.close_if_idle():
                    _comes(resource, min(count, back), _END_SECONDS)


def _free(resource: str) -> float:
    import ray

    return float(ray.available_resources().get(resource, 0.0))


def _comes(resource: str, wanted: float, seconds: float) -> bool:
    """Whether Ray has that much available within some seconds."""
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
                f"{(found.total - found.free) / _GIB:.1f} of {found.total / _GIB:.1f} GiB of a GPU's memory are held "
                f"by others after {seconds:g} s, expected it free for training: look with nvidia-smi who holds it, "
                "and end that"
            )
        time.sleep(min(1.0, seconds / 10))
