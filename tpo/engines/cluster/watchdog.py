"""Ends what a run has started once the run is gone, however it went: no server or worker outlives it for long.

In: nothing. Out: a small process that notes our descendants every second, and ends them when we are gone. A driver that
is killed with -9 can't do that itself, and Prefect's server and Ray's agents don't notice for a minute or forever.
What came and was orphaned between two looks is known by a mark in its environment. (The mark alone would not do: Ray
writes the titles of its processes over their environment.) Nor can a driver that is gone say so: the watchdog does,
and says what to do. A driver whose Ray or Prefect server has died may wait for it for minutes or forever: the watchdog
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
from pathlib import Path

import psutil

MARK = "TPO_RUN_MARK"
"""Environment variable of everything that belongs to one run's process."""
_SECONDS_BETWEEN_LOOKS = 1.0
_GRACE_SECONDS = (1.0, 3.0)
"""How long what is left may take to end by itself, and then to end when it is asked to."""
_VITAL = {
    "raylet/raylet": "Ray's node process (raylet)",
    "gcs/gcs_server": "Ray's control server (gcs_server)",
    "prefect.server.api.server:create_app": "Prefect's server",
}
"""What a driver can't do without: how a word of its command line ends, and what it is."""
_VITAL_SECONDS = 20.0
"""How long a driver may go on without one of them: it may be about to end."""
_AGAIN = "Completed work is saved: rerun the same command"
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
        [sys.executable, "-I", str(Path(__file__).resolve()), str(os.getpid()), mark],
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
    """The processes that a run has started, including those whose parents have ended.

    psutil tells a process from a later one that gets the same number, and signals only the one that was seen.
    """

    def __init__(self, driver: int, mark: str) -> None:
        self._driver = driver
        self._mark = mark
        self._members: set[psutil.Process] = set()
        self._vital: dict[psutil.Process, str] = {}
        with contextlib.suppress(psutil.NoSuchProcess):  # which ended before this process had started
            self._members.add(psutil.Process(driver))

    def look(self) -> list[psutil.Process]:
        """Those alive now, except the driver and this process."""
        living = [
            process
            for process in psutil.process_iter(["ppid", "status", "environ"])
            if process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
        ]
        members = {process for process in living if self._is_marked(process)}
        members |= {process for process in self._members.intersection(living) if process.is_running()}
        parents = {process.pid for process in members}
        while grown := {process for process in living if process.info["ppid"] in parents} - members:
            members |= grown
            parents = {process.pid for process in grown}
        self._members = members
        self._vital |= {one: name for one in members - self._vital.keys() if (name := _vital_name(one)) is not None}
        return [process for process in members if process.pid != self._driver]

    def lost(self) -> str | None:
        """What a vital process was that has ended since an earlier look."""
        return next((name for process, name in self._vital.items() if process not in self._members), None)

    def send(self, number: int) -> None:
        """Sends all of them a signal."""
        for process in self.look():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def _is_marked(self, process: psutil.Process) -> bool:
        return (process.info["environ"] or {}).get(MARK) == self._mark  # None if it isn't this user's


def _vital_name(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return next((name for end, name in _VITAL.items() if any(word.endswith(end) for word in words)), None)
    return None


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
    words = "error: the run ended unexpectedly: it was killed"
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
