"""Claims about the watchdog: nothing that a run started outlives it, and nothing else is touched."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = """
import subprocess, sys, time
from tpo.watchdog import watched
before = subprocess.Popen(["sleep", "100"], stderr=subprocess.DEVNULL)
context = watched()
context.__enter__()
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
after = [subprocess.Popen(["sleep", "100"], start_new_session=True), subprocess.Popen([sys.executable, "-c", stubborn])]
time.sleep(0.5)
print(before.pid, *(process.pid for process in after), flush=True)
time.sleep(100 if sys.argv[1] == "stay" else 0)
context.__exit__(None, None, None)
"""


def alive(process_id: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("end", ["killed with -9", "ends by itself"])
def test_what_a_run_started_ends_with_it_and_nothing_else_does(end: str):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, "stay" if end == "killed with -9" else "go"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None and run.stderr is not None
    before, *after = map(int, run.stdout.readline().split())
    try:
        if end == "killed with -9":
            run.kill()
        run.wait()
        deadline = time.monotonic() + 20
        while any(map(alive, after)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(alive, after))
        assert alive(before)
        assert ("ended without a word" in run.stderr.read()) is (end == "killed with -9")
    finally:
        os.kill(before, signal.SIGKILL)
