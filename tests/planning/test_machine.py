"""Claims about what is found out about this machine."""

from pathlib import Path

import pytest

from tpo.planning.machine import gpu_count, gpus_here, memory_bytes


def grouped(folder: Path, own: str, limits: dict[str, str]) -> int:
    """The memory found with these limits below /sys/fs/cgroup, for a process whose /proc/self/cgroup is `own`."""
    for path, limit in limits.items():
        place = folder / "cgroup" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(limit)
    (folder / "own").write_text(own)
    return memory_bytes(folder / "cgroup", folder / "own")


@pytest.mark.parametrize(
    ("own", "limits"),
    [
        ("0::/\n", {"memory.max": "1000\n"}),
        ("0::/a/b\n", {"a/b/memory.max": "1000\n", "a/memory.max": "2000\n"}),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1000\n"}),
        ("0::/not/seen/here\n", {"memory.max": "1000\n"}),
        (
            "4:memory:/a\n1:cpu:/b\n",
            {"memory/a/memory.limit_in_bytes": "1000\n", "memory/b/memory.limit_in_bytes": "7"},
        ),
    ],
    ids=["container", "nested", "above", "not_visible", "first_version"],
)
def test_a_control_groups_limit_is_the_available_memory(tmp_path: Path, own: str, limits: dict[str, str]):
    assert grouped(tmp_path, own, limits) == 1000


def test_without_a_limit_all_of_the_machines_memory_is_available(tmp_path: Path):
    machine = memory_bytes(tmp_path, tmp_path / "none")
    assert machine > 2**28
    assert grouped(tmp_path, "0::/\n", {"memory.max": "max\n"}) == machine
    assert grouped(tmp_path, "0::/\n", {"memory.max": str(2**60)}) == machine


@pytest.mark.parametrize(("visible", "count"), [("0,1,3", 3), ("", 0), ("-1", 0), ("GPU-1a2b", 1)])
def test_only_visible_gpus_are_counted(monkeypatch: pytest.MonkeyPatch, visible: str, count: int):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_count() == count


@pytest.mark.parametrize(
    ("says", "count"),
    [("echo 'GPU 0: A (UUID: a)'; echo '  MIG 1g: (UUID: b)'; echo 'GPU 1: A (UUID: c)'", 2), ("exit 9", None)],
    ids=["listed", "fails"],
)
def test_gpus_are_those_that_nvidia_smi_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, count: int | None
):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{says}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_count() == count


def test_without_nvidia_smi_gpus_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_count() is None


@pytest.mark.parametrize(
    ("visible", "gib"),
    [(None, [80, 24, 16]), ("", []), ("-1", []), ("1", [24]), ("2,0", [80, 16]), ("GPU-b", [24])],
    ids=["all", "none", "minus_1", "one", "two", "uuid"],
)
def test_a_plan_uses_only_visible_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, gib: list[float]
):
    table = "0, GPU-a1, H100, 81920\n1, GPU-b1, L4, 24576\n2, GPU-c1, T4, 16384\n"
    (tmp_path / "table").write_text(table)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nexec /bin/cat {tmp_path / 'table'}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.memory_gib for gpu in gpus_here.__wrapped__()] == gib
    assert visible is None or gpu_count() == len(gib)
