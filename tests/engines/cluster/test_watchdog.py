"""Claims about the watchdog: nothing that a run started outlives it, and nothing else is touched."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RUN = """
import subprocess, sys, time
from tpo.engines.cluster.watchdog import watched
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
with watched():
    started = [
        subprocess.Popen(["sleep", "100"], start_new_session=True),
        subprocess.Popen([sys.executable, "-c", stubborn]),
        subprocess.Popen(["sleep", "100"], env={}, start_new_session=True),
    ]
    orphan = subprocess.run(["sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)
    time.sleep(2.5)
    print(*(process.pid for process in started), orphan.stdout, flush=True)
    time.sleep(100 if sys.argv[1] == "stay" else 0)
"""


def alive(process_id: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return False


@pytest.mark.drawn(1)
@pytest.mark.parametrize("end", ["killed with -9", "ends by itself"])
def test_only_what_a_run_started_ends_with_it(end: str):
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, "stay" if end == "killed with -9" else "go"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    other = subprocess.Popen(["sleep", "100"])
    assert run.stdout is not None and run.stderr is not None
    started = [int(word) for word in run.stdout.readline().split()]
    assert len(started) == 4 and all(map(alive, started))
    try:
        if end == "killed with -9":
            run.kill()
        run.wait()
        deadline = time.monotonic() + 20
        while any(map(alive, started)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(alive, started))
        assert alive(other.pid)
        complaint = run.stderr.read()
        assert ("exited unexpectedly" in complaint) is (end == "killed with -9")
        assert "memory" not in complaint, "and none was short"
    finally:
        other.kill()
        other.wait()


@pytest.mark.slow
def test_a_run_whose_ray_has_died_stops_waiting(tmp_path: Path):
    raylet = tmp_path / "raylet" / "raylet"
    raylet.parent.mkdir()
    raylet.symlink_to("/bin/sleep")
    code = (
        "import subprocess, sys, time\n"
        "from tpo.engines.cluster.watchdog import watched\n"
        "with watched():\n"
        "    subprocess.Popen([sys.argv[1], '3'])\n"
        "    time.sleep(100)\n"
    )
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-c", code, str(raylet)], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False
    )
    assert time.monotonic() - started < 60
    assert run.returncode == -9
    assert "Ray's node process (raylet) has died. Completed work is saved: rerun the same command" in run.stderr


@pytest.mark.slow
def test_a_forked_child_of_ray_may_end():
    code = (
        "import subprocess, sys, time\n"
        "from tpo.engines.cluster.watchdog import watched\n"
        "fork = 'import os, time; time.sleep(2) if os.fork() == 0 else time.sleep(100)'\n"
        "with watched():\n"
        "    subprocess.Popen([sys.executable, '-c', fork, 'raylet/raylet'])\n"
        "    time.sleep(27)\n"
        "    print('still here', flush=True)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "still here\n", "")
