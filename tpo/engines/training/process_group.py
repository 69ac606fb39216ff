"""A torch process group for workers on one machine, without a port that others can reach.

Ray's own way opens torch's TCPStore, which listens on all interfaces without authentication. On one machine a file does
as well, and gloo's and NCCL's sockets are kept to loopback. A single worker gets no group.
"""

import os
from dataclasses import dataclass
from datetime import timedelta

import ray
import torch.distributed
from ray.train import BackendConfig
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import Backend
from ray.train.torch import TorchConfig


@dataclass
class LoopbackTorch(TorchConfig):
    """Ray Train's settings for torch on one machine."""

    rendezvous: str = ""
    """Path of a file that doesn't exist yet, for this start of the workers alone."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _LoopbackBackend


class _LoopbackBackend(Backend):
    share_cuda_visible_devices = True  # accelerate takes the GPU whose number is the worker's rank.

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, LoopbackTorch)
        workers = len(worker_group)
        if workers > 1:
            at = backend_config
            joining = [
                worker_group.execute_single_async(
                    i, _join, i, workers, str(at.backend), at.rendezvous, timeout_s=at.timeout_s
                )
                for i in range(workers)
            ]
            ray.get(joining)


def _join(number: int, workers: int, backend: str, rendezvous: str, *, timeout_s: float) -> None:
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"})
    # accelerate learns from these that it is one of several.
    os.environ.update({"RANK": str(number), "LOCAL_RANK": str(number)})
    os.environ.update({"WORLD_SIZE": str(workers), "LOCAL_WORLD_SIZE": str(workers)})
    store = torch.distributed.FileStore(rendezvous, workers)  # type: ignore[attr-defined]
    timeout = timedelta(seconds=timeout_s)  # NCCL's default is ten minutes, less than a large checkpoint may take.
    torch.distributed.init_process_group(backend, store=store, rank=number, world_size=workers, timeout=timeout)
