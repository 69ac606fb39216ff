"""This machine's memory, CPUs, disk and GPUs that this process may use.

Unknown values are None or empty. No library is loaded: GPUs are queried with `nvidia-smi`.
"""

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def memory_bytes(cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP) -> int:
    """Memory for processes here: the machine's, or a lower limit of a control group, e.g. of a container."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_limits(cgroups, own_cgroup)])


def cpu_count() -> int:
    """CPUs that a local Ray cluster offers: the machine's, but at least two."""
    return max(2, os.cpu_count() or 2)


def free_disk(folder: Path) -> int:
    """Free bytes on the disk of a folder, which needn't exist yet."""
    folder = folder.resolve()
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free


def has_gpu() -> bool:
    """Whether this machine seems to have a GPU: only files are checked."""
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def gpu_count() -> int | None:
    """GPUs that Ray would find: those in `CUDA_VISIBLE_DEVICES`, or all if it isn't set; None if `nvidia-smi` fails."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    """Its name in `nvidia-smi`."""
    memory_gib: float
    """Its memory, in GiB."""


@functools.cache
def gpus_here() -> tuple[Gpu, ...]:
    """This machine's GPUs, only those in `CUDA_VISIBLE_DEVICES` if it is set; empty if `nvidia-smi` fails."""
    asked = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
        rows = [[cell.strip() for cell in line.split(",")] for line in listed.stdout.splitlines()]
        return tuple(Gpu(name, float(mib) / 1024) for index, uuid, name, mib in rows if _is_visible(index, uuid))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _is_visible(index: str, uuid: str) -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return True
    names = [name.strip() for name in visible.split(",")]
    return any(name == index or (name.startswith("GPU-") and uuid.startswith(name)) for name in names)


def _limits(cgroups: Path, own_cgroup: Path) -> list[int]:
    """Memory limits of this process's control group (v1 and v2) and its ancestors; groups that aren't visible here are
    skipped."""
    try:
        lines = own_cgroup.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = []
    for line in ["0::/", *lines]:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, name = (cgroups, "memory.max") if not controllers else (cgroups / "memory", "memory.limit_in_bytes")
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            try:
                found.append(int((folder / name).read_text(encoding="ascii")))
            except (OSError, ValueError):
                continue  # The file is missing, or contains "max".
    return found
