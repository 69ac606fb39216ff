"""Room for who works next: crews that lie idle make way, and a GPU is looked at before a model is loaded onto it.

In: how much of a resource is needed. Out: nothing; idle crews are closed, the longest unused first, until Ray has it.

Engines live on from stage to stage, since a start takes long. Where all of them and the trainer fit at once nobody is
closed; where they do not, they take turns. Ray counts GPUs and not their memory, which a process that is slow to end
may still hold: so whoever loads a model for training looks first.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

from tpo.errors import StageError

HELD_SHARE = 0.1
"""Largest share of a GPU's memory that may be held by others, the driver's own bookkeeping included."""
_SETTLE_SECONDS = 2.0
"""Time for what has just ended to show in what Ray has."""
_END_SECONDS = 30.0
"""Time for the processes of a crew that was closed to end."""
_GIB = 2**30


class Tenant(Protocol):
    """What holds resources while it is idle, so that it need not start again."""

    used: float
    """When it last worked, by `time.monotonic`."""

    def holds(self, resource: str) -> float:
        """How much of a resource it holds."""
        ...

    def close_if_idle(self) -> bool:
        """Gives everything back, unless it works."""
        ...


_TENANTS: "WeakSet[Tenant]" = WeakSet()
_LOCK = threading.Lock()


def register(tenant: Tenant) -> None:
    """From here on it makes way when it is idle."""
    _TENANTS.add(tenant)


def make_room(resource: str, count: float, asker: Tenant | None = None) -> None:
    """Closes idle crews until Ray has `count` of a resource (`GPU`, `CPU`) to give, or none but `asker` is left.

    Where that is not enough Ray places what is asked for as others of the cluster end.
    """
    with _LOCK:
        others = [tenant for tenant in _TENANTS if tenant is not asker and tenant.holds(resource)]
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
    """Whether Ray has as much to give within some seconds."""
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
    """What nobody holds."""
    total: int
    """All of it."""


def gpu_memory() -> Memory:
    """The memory of the GPU that this worker of Ray Train trains on."""
    import torch
    from ray.train.torch import get_device

    return Memory(*torch.cuda.mem_get_info(get_device()))


def await_free_memory(read: Callable[[], Memory] = gpu_memory, *, seconds: float = 60.0) -> None:
    """Waits until a GPU's memory is free, but for a small share.

    Raises `StageError` where it is not within `seconds`.
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
