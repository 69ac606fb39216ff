"""The rank of a worker, and collective operations. A single worker has no process group."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Found = TypeVar("Found")


def rank() -> int:
    """This worker's rank, from 0."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of workers."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def as_first_worker(work: Callable[[], Found]) -> Found:
    """The first worker's result, broadcast to all; the first one's error ends only that worker, and so the group."""
    import torch.distributed as dist

    found = [work() if rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]  # by now what the first worker found stands here


def wait_for_all() -> None:
    """A barrier of all workers."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def summed(tensor: "Tensor") -> "Tensor":
    """The sum of all workers' tensors of one shape, in place."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
