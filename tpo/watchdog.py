"""Ends what a run has started once the run is gone, however it went: no server or worker outlives it for long.

In: nothing. Out: a small process that waits for ours to end and then looks for processes with our mark in their
environment, which everything that we start inherits. A driver that is killed with -9 cannot do that itself, and
Prefect's server and Ray's agents do not notice. Nor can it say that it is gone, or one that Ray ends when its own node
process dies: the watchdog says so, and what to do.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "TPO_RUN_MARK"
"""Environment variable of everything that belongs to one run's process."""
_GRACE_SECONDS = (1.0, 3.0)
"""How long what is left may take to end by itself, and then to end when it is asked to."""
_LAST_WORDS = (
    "error: the run ended without a word: it was killed, memory ran out, or Ray's node process died. What is complete "
    "is kept: run the same command again. If it ends like this again, look at `dmesg` for the kernel's killer of "
    "processes, and give engines and trainer less memory"
)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Has whatever this process starts from now on ended when it is gone; says so where it is gone before the context
    ends."""
    environment = dict(os.environ)
    os.environ[MARK] = mark = secrets.token_hex(16)
    ours, theirs = os.pipe()
    subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).resolve()), mark],
        stdin=ours,
        stdout=subprocess.DEVNULL,
        env={name: value for name, value in environment.items() if name != MARK},
        start_new_session=True,
    )
    os.close(ours)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            os.write(theirs, b"ended")  # and the pipe stays open until this process is gone


def _wait_and_end(mark: str) -> None:
    if not sys.stdin.buffer.read():
        print(_LAST_WORDS, file=sys.stderr, flush=True)
    for number, seconds in zip((0, signal.SIGTERM), _GRACE_SECONDS, strict=True):
        _send(mark, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not list(_marked(mark)):
                return
            time.sleep(0.1)
    while list(_marked(mark)):
        _send(mark, signal.SIGKILL)
        time.sleep(0.1)


def _send(mark: str, number: int) -> None:
    for process_id in _marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, number)


def _marked(mark: str) -> Iterator[int]:
    """Processes of this user that carry the mark and have not ended."""
    wanted = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)


if __name__ == "__main__":
    _wait_and_end(sys.argv[1])
