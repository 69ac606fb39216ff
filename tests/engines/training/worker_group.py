"""Workers of a training without Ray: forked processes that form a gloo group, as Ray Train's workers do."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from tpo.engines.training.process_group import _join

TIMEOUT_S = 1234.0
"""Timeout for a worker that waits for the others."""


def run_workers(count: int, work: Callable[[], object]) -> None:
    """Runs a function in each of several workers, and fails if it fails in any."""
    ends = end_of_workers(count, work)
    assert ends == [0] * count, f"workers ended with {ends}"


def end_of_workers(count: int, work: Callable[[], object]) -> list[int]:
    """Exit code of each worker, or minus the signal that killed it; a worker whose peer died fails too."""
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        children = [_forked(number, count, rendezvous, work) for number in range(count)]
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _forked(number: int, count: int, rendezvous: str, work: Callable[[], object]) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        torch.set_num_threads(1)  # torch restores its thread pool after a fork here, but not while threads load a model
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if count > 1:
            _join(number, count, "gloo", rendezvous, timeout_s=TIMEOUT_S)
        work()
        code = 0
    except BaseException:  # noqa: BLE001  the child must end here in any case
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
