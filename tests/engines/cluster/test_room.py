"""Claims about a GPU's memory: a training starts if it is free, waits until it is, and stops if it stays in use."""

import re
import subprocess
import sys

import pytest

from tpo.engines.cluster.room import Memory, await_free_memory
from tpo.errors import StageError

GIB = 2**30
TOTAL = 80 * GIB

HOLDER = """
import sys, torch
share = float(sys.argv[1])
held = torch.empty(int(share * torch.cuda.mem_get_info()[1]), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def reading(*free_gib: float):
    """Successive readings, the last of which repeats forever."""
    left = list(free_gib)
    return lambda: Memory(int((left.pop(0) if len(left) > 1 else left[0]) * GIB), TOTAL)


def test_an_almost_free_gpu_is_taken_at_once():
    await_free_memory(reading(72.5), seconds=0)


def test_a_training_waits_for_memory_that_an_ending_process_releases():
    await_free_memory(reading(8, 40, 79), seconds=5)


def test_memory_that_stays_in_use_stops_the_training_with_its_amount():
    with pytest.raises(StageError, match=re.escape("71.5 of 80.0 GiB of a GPU's memory are still in use after 0.2 s")):
        await_free_memory(reading(0, 8.5), seconds=0.2)


@pytest.mark.gpu
def test_memory_held_and_released_by_another_process_is_seen_on_a_real_gpu():
    import torch

    def read() -> Memory:
        return Memory(*torch.cuda.mem_get_info())

    await_free_memory(read, seconds=0)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, "0.3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(StageError, match=r"GiB of a GPU's memory are still in use"):
            await_free_memory(read, seconds=1)
        holder.stdin.close()
        await_free_memory(read, seconds=30)
