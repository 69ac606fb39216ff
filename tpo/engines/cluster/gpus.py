"""How busy the GPUs of this process are and how full, by NVIDIA's library (NVML), for the run's metrics.

Readings are only ever missing, never wrong or in the way: without the library, the driver or a GPU there are none, and
an error ends them. NVML's utilization covers at most its last second, so a thread reads it every two seconds and a
report has the mean.
"""

import importlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from tpo.metrics.live import GpuReading

SECONDS = 2.0
"""Between two readings."""
REPORT_SECONDS = 5.0
"""Between two reports of a training worker."""


class GpuMeter:
    """Measures this process's GPUs from now on.

    Those are the GPUs in CUDA_VISIBLE_DEVICES, or, if it isn't set, all of the node: so is an engine of several GPUs,
    whose workers hold them.

    Args:
        nvml: The module `pynvml`, or a replacement.
        visible: CUDA_VISIBLE_DEVICES.
        seconds: Time between two readings; None for none but those of `read`.
    """

    def __init__(self, nvml: Any = None, *, visible: str | None = None, seconds: float | None = SECONDS) -> None:
        self._nvml = nvml or _library()
        self._lock = threading.Lock()
        self._gpus: list[_Gpu] = []
        if self._nvml is None:
            return
        asked = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
        try:
            self._nvml.nvmlInit()
            self._gpus = [_Gpu(self._nvml, handle) for handle in _handles(self._nvml, asked)]
        except self._nvml.NVMLError:
            self._gpus = []
        if self._gpus and seconds is not None:
            threading.Thread(target=self._watch, args=(seconds,), name="gpu meter", daemon=True).start()

    def read(self) -> list[GpuReading]:
        """A reading per GPU, since the last call."""
        with self._lock:
            return [reading for gpu in self._gpus if (reading := gpu.report()) is not None]

    def send(self, to: Callable[[list[GpuReading]], object], seconds: float = REPORT_SECONDS) -> None:
        """Reports again and again, from a thread that ends with the process; nothing if there is no GPU."""

        def report() -> None:
            while True:
                time.sleep(seconds)
                to(self.read())

        if self._gpus:
            threading.Thread(target=report, name="gpu reports", daemon=True).start()

    def _watch(self, seconds: float) -> None:
        while True:
            time.sleep(seconds)
            with self._lock:
                for gpu in self._gpus:
                    gpu.look()


class _Gpu:
    """One GPU, and what was seen since the last report."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._number = str(nvml.nvmlDeviceGetIndex(handle))
        self._name = _text(nvml.nvmlDeviceGetName(handle))
        self._seen: list[float] = []

    def look(self) -> None:
        """Notes its utilization."""
        # Not supported for a slice of a GPU (MIG).
        if (rates := self._asked(self._nvml.nvmlDeviceGetUtilizationRates)) is not None:
            self._seen.append(rates.gpu / 100)

    def report(self) -> GpuReading | None:
        """The reading; None if it can't be read at all."""
        if not self._seen:
            self.look()
        memory = self._asked(self._nvml.nvmlDeviceGetMemoryInfo)
        seen, self._seen = self._seen, []
        if memory is None and not seen:
            return None
        return GpuReading(
            node=socket.gethostname(),
            gpu=self._number,
            name=self._name,
            utilization=sum(seen) / len(seen) if seen else None,
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
        )

    def _asked(self, function: Callable[[Any], Any]) -> Any:
        try:
            return function(self._handle)
        except self._nvml.NVMLError:
            return None


def _library() -> Any:
    """The module pynvml; None if it isn't installed, as in the environment for CPUs."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def _handles(nvml: Any, visible: str | None) -> Iterable[Any]:
    """NVML's handles of the GPUs that CUDA_VISIBLE_DEVICES names, by number or UUID; of all if it isn't set."""
    if visible is None:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    named = [name.strip() for name in visible.split(",") if name.strip()]
    return [
        nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
        for name in named
    ]


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def give_memory_back() -> None:
    """Frees the memory of models that nothing refers to any more, on the GPU as well."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
