"""Ends what a run has started once the run is gone, however it went: no server or worker outlives it for long.

In: nothing. Out: a small process that notes our descendants every second, and ends them when we are gone. A driver that
is killed with -9 cannot do that itself, and Prefect's server and Ray's agents do not notice for a minute or for ever.
What came and was orphaned between two looks is known by a mark in its environment. (The mark alone would not do: Ray
writes the titles of its processes over their environment.) Nor can a driver that is gone say so: the watchdog does,
and says what to do. A driver whose Ray or Prefect server has died may wait for it for minutes or for ever: the watchdog
ends it.
"""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "TPO_RUN_MARK"
"""Environment variable of everything that belongs to one run's process."""
_SECONDS_BETWEEN_LOOKS = 1.0
_GRACE_SECONDS = (1.0, 3.0)
"""How long what is left may take to end by itself, and then to end when it is asked to."""
_VITAL = {
    b"raylet/raylet\0": "Ray's node process (raylet)",
    b"gcs/gcs_server\0": "Ray's control server (gcs_server)",
    b"prefect.server.api.server:create_app\0": "Prefect's server",
}
"""What a driver cannot do without: what stands in the command line, and what it is."""
_VITAL_SECONDS = 20.0
"""How long a driver may go on without one of them: it may be about to end."""
_AGAIN = "What is complete is kept: run the same command again"
_LESS_MEMORY = (
    "The kernel has killed a process for want of memory since the run began (see `dmesg`): give engines and trainer "
    "less memory"
)
_theirs: list[int] = []
"""The pipes to this process's watchdogs."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Has whatever this process has started ended when it is gone; says so where it is gone before the context ends."""
    environment = dict(os.environ)
    os.environ[MARK] = mark = secrets.token_hex(16)
    ours, theirs = os.pipe()
    subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid()), mark],
        stdin=ours,
        stdout=subprocess.DEVNULL,
        env={name: value for name, value in environment.items() if name != MARK},
        start_new_session=True,
    )
    os.close(ours)
    _theirs.append(theirs)
    try:
        yield
    finally:
        end_is_known()


def end_is_known() -> None:
    """Has the watchdog end what is left without a word once this process is gone, which has said why itself."""
    while _theirs:
        with contextlib.suppress(BrokenPipeError):
            os.write(_theirs.pop(), b"ended")  # and the pipe stays open until this process is gone


class _Flock:
    """The processes of a run that were seen, by when each was started: a number may come again for another process."""

    def __init__(self, driver: int, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._driver = driver
        self._members = {pid: process.start for pid, process in _processes() if pid == driver}
        self._vital: dict[int, str] = {}

    def look(self) -> list[int]:
        """Those that live now, but for the driver and this process."""
        living = dict(_processes())
        members = {pid for pid, start in self._members.items() if pid in living and living[pid].start == start}
        members |= {pid for pid in living.keys() - members if self._is_marked(pid)}
        while grown := {pid for pid, process in living.items() if process.parent in members} - members - {os.getpid()}:
            members |= grown
        self._members = {pid: living[pid].start for pid in members}
        self._vital |= {pid: name for pid in members - self._vital.keys() if (name := _vital_name(pid)) is not None}
        return [pid for pid in members if pid != self._driver]

    def lost(self) -> str | None:
        """What a vital process was that was there at an earlier look and is not any more."""
        return next((name for pid, name in self._vital.items() if pid not in self._members), None)

    def send(self, number: int) -> None:
        """Sends all of them a signal."""
        for pid in self.look():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _is_marked(self, pid: int) -> bool:
        try:
            return self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


@dataclass(frozen=True)
class _Process:
    """What /proc says of a process that has not ended."""

    parent: int
    start: str


def _processes() -> Iterator[tuple[int, _Process]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] != "Z":
                    yield int(folder.name), _Process(parent=int(fields[1]), start=fields[19])


def _vital_name(pid: int) -> str | None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return next((name for words, name in _VITAL.items() if words in command), None)


def _killed_for_memory() -> int:
    """Processes that the kernel has killed for want of memory, here and in this container, since they came up."""
    count = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError):
            rows = (line.split() for line in Path(path).read_text(errors="replace").splitlines())
            count += sum(int(row[1]) for row in rows if row[0] == "oom_kill")
    return count


def _wait_and_end(driver: int, mark: str) -> None:
    flock = _Flock(driver, mark)
    killed = _killed_for_memory()
    words = "error: the run ended without a word: it was killed"
    missed = time.monotonic()
    while not select.select([sys.stdin], [], [], _SECONDS_BETWEEN_LOOKS)[0]:
        flock.look()
        if (lost := flock.lost()) is None:
            missed = time.monotonic()
        elif time.monotonic() - missed > _VITAL_SECONDS:
            words = f"error: the run was ended, since {lost} has died"
            with contextlib.suppress(ProcessLookupError):
                os.kill(driver, signal.SIGKILL)
    if not sys.stdin.buffer.read():
        short = [_LESS_MEMORY] if _killed_for_memory() > killed else []
        with contextlib.suppress(OSError):  # a terminal that is gone
            print(". ".join([words, _AGAIN, *short]), file=sys.stderr, flush=True)
    for number, seconds in zip((0, signal.SIGTERM), _GRACE_SECONDS, strict=True):
        flock.send(number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not flock.look():
                return
            time.sleep(0.1)
    while flock.look():
        flock.send(signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    _wait_and_end(int(sys.argv[1]), sys.argv[2])
