"""How a command stops: ^C, SIGTERM and a closed terminal end it within seconds, and a second signal ends it at once.

The first signal raises `KeyboardInterrupt` in the main thread, so that locks, leases and engines are released in order.
If that takes longer than `GRACE_SECONDS` the process exits anyway: the run folder is consistent at every moment, and
the watchdog ends its remaining children. A thread counts the seconds and sees the second signal, since Python runs
handlers only in the main thread, which may be waiting in a library that ignores signals.

A terminal sends ^C to all processes of its foreground group. Ray's daemons, Prefect's server and the engines must
outlive that moment, or the driver would wait for them and report that they died; so a run starts its children in
separate sessions (`apart_from_terminal`).
"""

import atexit
import contextlib
import functools
import os
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from tpo.engines.cluster.watchdog import exit_silently

GRACE_SECONDS = 8.0
"""Seconds that an orderly stop may take."""
STOPPED = "Stopped."
TO_RESUME = "Stopped. Rerun the same command to resume."
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_received: int | None = None
_told = threading.Event()
_last_words = TO_RESUME
_leaving = threading.Lock()


def stop_in_order(*, grace_seconds: float = GRACE_SECONDS) -> None:
    """Makes signals that ask this process to end raise `KeyboardInterrupt(number)` in the main thread.

    An ignored signal stays ignored, as under `nohup`.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_leave_in_time, args=(reader, grace_seconds), name="stopping", daemon=True).start()
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # A forked child that is killed must not write into the pipe that it shares with us.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _leave_in_time(reader: int, grace_seconds: float) -> None:
    """Ends this process at the second signal, or `grace_seconds` after the first."""
    number = _next_signal(reader)
    if number == signal.SIGHUP:
        _let_go_of_terminal()
    _tell("Stopping. Press ^C again to stop at once." if number == signal.SIGINT else "Stopping.")
    _told.set()
    if select.select([reader], [], [], grace_seconds)[0]:
        number = _next_signal(reader)
    leave(number)


def _next_signal(reader: int) -> int:
    while (number := os.read(reader, 1)[0]) not in _SIGNALS:
        pass
    return number


def stop_requested() -> int | None:
    """The signal that asked this process to end, if one did."""
    return _received


def exit_status(number: int) -> int:
    """The exit status that a shell expects of a process ended by a signal."""
    return 128 + number


def last_words(message: str) -> None:
    """Sets the message for when this process is stopped."""
    global _last_words  # noqa: PLW0603 -- as signal handlers are, it is one for the process
    _last_words = message


def say_last_words() -> None:
    """Prints that this process was stopped, and what to do next."""
    _tell(_last_words)


def exit_in_order(status: int) -> NoReturn:
    """Exits as `sys.exit` does, but without the seconds that Python takes to tear down a process with torch and Ray."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # Waits for threads, as Python does before exit handlers.
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status)


def end_in_order(number: int) -> NoReturn:
    """Ends what libraries end when Python exits, such as Ray and Prefect's server, then this process."""
    atexit._run_exitfuncs()
    leave(number)


def leave(number: int) -> NoReturn:
    """Prints the last message and ends this process without waiting for anything.

    The main thread and the one that watches for a second signal may both come here; the later one waits for its end.
    """
    _leaving.acquire()
    exit_silently()
    say_last_words()
    os._exit(exit_status(number))


def _stop(number: int, _: FrameType | None) -> None:
    global _received  # noqa: PLW0603 -- as above
    if _received is None:  # at a second signal the thread leaves
        _received = number
        _told.wait(1.0)
        raise KeyboardInterrupt(number)


def _tell(line: str) -> None:
    """Writes to standard error past Python's buffers, whose locks the interrupted code may hold."""
    start = "\r\x1b[K" if os.isatty(2) else ""  # over ^C and a progress bar
    with contextlib.suppress(OSError):
        os.write(2, f"{start}{line}\n".encode())


def _let_go_of_terminal() -> None:
    """Turns what goes to a terminal that is gone to nowhere, where writing doesn't fail."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # `isatty` no longer knows one that has hung up
                os.dup2(nowhere, descriptor)


@contextlib.contextmanager
def apart_from_terminal() -> Iterator[None]:
    """Starts every child of this process in its own session, out of reach of the terminal's signals.

    Prefect and Ray start theirs through `subprocess` and have no setting for it.
    """
    start = subprocess.Popen.__init__
    apart = functools.partialmethod(start, start_new_session=True)
    subprocess.Popen.__init__ = apart  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]


def steady_streams() -> None:
    """Opens standard input, output and error if they are closed, and makes any text printable there.

    Otherwise a file opened later would get a closed one's number, and printed text would end up in it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
