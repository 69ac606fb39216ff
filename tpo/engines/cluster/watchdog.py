"""Kills a run's child processes after its driver exits for any reason, including SIGKILL, and prints why.

The watchdog is a small process that records the driver's descendants every second and ends them when it is gone. A
killed driver can't, and Prefect's server and Ray's agents take a minute to notice, or never do. Processes that were
started and orphaned between two polls are recognized by a mark in their environment; the mark alone isn't enough, since
Ray overwrites the environment of its processes with their titles.

If Ray or Prefect's server dies, the driver might wait for it indefinitely: the watchdog kills the driver.
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
"""Environment variable that marks the processes of one run."""
_SECONDS_BETWEEN_LOOKS = 1.0
_GRACE_SECONDS = (1.0, 3.0)
"""Seconds for remaining processes to exit by themselves, and then after SIGTERM."""
_VITAL = {
    "raylet/raylet": "Ray's node process (raylet)",
    "gcs/gcs_server": "Ray's control server (gcs_server)",
    "prefect.server.api.server:create_app": "Prefect's server",
}
"""Processes that a driver depends on: the end of a command line argument, and a description."""
_VITAL_SECONDS = 20.0
"""Seconds before a driver that has lost one is killed: it may be exiting by itself."""
_AGAIN = "Completed work is saved: rerun the same command"
_LESS_MEMORY = (
    "The kernel has killed a process because memory ran out since the run began (see `dmesg`): give engines and "
    "trainer less memory"
)
_theirs: list[int] = []
"""The pipes to this process's watchdogs."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Starts the watchdog of this process; it prints an error if the process is gone before the context is left."""
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
        exit_silently()


def exit_silently() -> None:
    """Has the watchdog clean up silently, since this process reports its exit itself."""
    while _theirs:
        with contextlib.suppress(BrokenPipeError):
            os.write(_theirs.pop(), b"ended")  # The pipe stays open until this process is gone.


class _ProcessTree:
    """The processes of a run, including those whose parents have exited.

    psutil recognizes a reused process id and signals only the original process.
    """

    def __init__(self, driver: int, mark: str) -> None:
        self._driver = driver
        self._mark = mark
        self._members: set[psutil.Process] = set()
        self._vital: dict[psutil.Process, str] = {}
        with contextlib.suppress(psutil.NoSuchProcess):  # It exited before this process had started.
            self._members.add(psutil.Process(driver))

    def update(self) -> list[psutil.Process]:
        """Updates the tree; returns the processes that are alive, except the driver and this one."""
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
        unknown = [process for process in members - self._vital.keys() if process.pid != self._driver]
        new = {process: name for process in unknown if (name := _vital_name(process)) is not None}
        # A child that has just been forked still has its parent's command line, and is something else a moment later.
        names = {one.pid: name for one, name in (self._vital | new).items()}
        self._vital |= {one: name for one, name in new.items() if names.get(one.info["ppid"]) != name}
        return [process for process in members if process.pid != self._driver]

    def lost(self) -> str | None:
        """The description of a vital process that has died, or None."""
        return next((name for process, name in self._vital.items() if process not in self._members), None)

    def send(self, number: int) -> None:
        """Sends all of them a signal."""
        for process in self.update():
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def _is_marked(self, process: psutil.Process) -> bool:
        return (process.info["environ"] or {}).get(MARK) == self._mark  # `environ` is None for other users' processes.


def _vital_name(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.Error):
        arguments = process.cmdline()
        return next((name for end, name in _VITAL.items() if any(word.endswith(end) for word in arguments)), None)
    return None


def _killed_for_memory() -> int:
    """Number of processes killed by the kernel's OOM killer, on this machine and in this container, since boot."""
    count = 0
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError):
            rows = (line.split() for line in Path(path).read_text(errors="replace").splitlines())
            count += sum(int(row[1]) for row in rows if row[0] == "oom_kill")
    return count


def _wait_and_end(driver: int, mark: str) -> None:
    tree = _ProcessTree(driver, mark)
    killed = _killed_for_memory()
    message = "error: the run exited unexpectedly: it was killed"
    missed = time.monotonic()
    while not select.select([sys.stdin], [], [], _SECONDS_BETWEEN_LOOKS)[0]:
        tree.update()
        if (lost := tree.lost()) is None:
            missed = time.monotonic()
        elif time.monotonic() - missed > _VITAL_SECONDS:
            message = f"error: the run was killed, since {lost} has died"
            with contextlib.suppress(ProcessLookupError):
                os.kill(driver, signal.SIGKILL)
    if not sys.stdin.buffer.read():
        short = [_LESS_MEMORY] if _killed_for_memory() > killed else []
        with contextlib.suppress(OSError):  # The terminal may be gone.
            print(". ".join([message, _AGAIN, *short]), file=sys.stderr, flush=True)
    for number, seconds in zip((0, signal.SIGTERM), _GRACE_SECONDS, strict=True):
        tree.send(number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not tree.update():
                return
            time.sleep(0.1)
    while tree.update():
        tree.send(signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    _wait_and_end(int(sys.argv[1]), sys.argv[2])
