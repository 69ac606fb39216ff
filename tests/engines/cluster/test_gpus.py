"""Claims about readings of GPUs: means since the last report, by the names in CUDA_VISIBLE_DEVICES, and nothing at all
where there is nothing to read."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from tpo.engines.cluster.gpus import GpuMeter
from tpo.metrics.live import GpuReading


class FakeNvml:
    """Two GPUs as NVML shows them; `fails` names functions that raise its error."""

    class NVMLError(Exception):
        pass

    def __init__(self, *busy: int, fails: tuple[str, ...] = ()) -> None:
        self._busy = list(busy)
        self._fails = fails

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self._fails:

            def fail(*_: Any) -> None:
                raise FakeNvml.NVMLError(name)

            return fail
        return super().__getattribute__(name)

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        return {"GPU-aaaa": 0, "GPU-bbbb": 1}[name]

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"NVIDIA H200"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=self._busy.pop(0))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=2**30 * (handle + 1), total=2**37)


def reading(gpu: str, busy: float | None) -> GpuReading:
    return GpuReading(socket.gethostname(), gpu, "NVIDIA H200", busy, 2**30 * (int(gpu) + 1), 2**37)


@pytest.mark.parametrize(
    ("visible", "gpus"), [("1", ["1"]), ("GPU-bbbb,GPU-aaaa", ["1", "0"]), ("0,1", ["0", "1"]), ("", [])]
)
def test_the_gpus_are_those_of_this_process(visible: str, gpus: list[str]):
    found = GpuMeter(FakeNvml(50, 50), visible=visible, seconds=None).read()
    assert found == [reading(gpu, 0.5) for gpu in gpus]


def test_without_cuda_visible_devices_they_are_all_of_the_node(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [each.gpu for each in GpuMeter(FakeNvml(50, 50), seconds=None).read()] == ["0", "1"]


def test_a_report_has_the_mean_since_the_last_one():
    meter = GpuMeter(FakeNvml(10, 30, 80), visible="0", seconds=None)
    for gpu in (gpu for gpu in meter._gpus for _ in range(2)):
        gpu.look()
    assert meter.read() == [reading("0", 0.2)]
    assert meter.read() == [reading("0", 0.8)]


def test_a_slice_of_a_gpu_has_memory_and_no_utilization():
    nvml = FakeNvml(fails=("nvmlDeviceGetUtilizationRates",))
    assert GpuMeter(nvml, visible="0", seconds=None).read() == [reading("0", None)]


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetHandleByIndex"])
def test_without_a_driver_or_a_gpu_there_is_no_reading(fails: str):
    assert GpuMeter(FakeNvml(fails=(fails,)), visible="0").read() == []


def test_a_gpu_that_is_lost_has_no_reading():
    lost = FakeNvml(fails=("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo"))
    assert GpuMeter(lost, visible="0", seconds=None).read() == []


@pytest.mark.gpu
def test_a_real_gpu_has_its_name_and_memory():
    import torch

    (first, *_) = GpuMeter(seconds=None).read()
    assert first.name == torch.cuda.get_device_name(0) and first.memory_used and first.memory_total
