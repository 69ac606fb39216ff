"""`make chaos` breaks runs of each kind and reads them back."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.story("chaos", 20), pytest.mark.faults]


def test_runs_broken_at_random_lose_nothing():
    command = [sys.executable, "-m", "tests.faults.chaos", "--engine", "mock", "--runs", "2", "--seed", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" s\n") and "2 runs in" in done.stdout
