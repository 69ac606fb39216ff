"""Claims about how a command stops: cleanly, within seconds, with all its child processes and without a traceback."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines.cluster.test_watchdog import alive

pytestmark = pytest.mark.drawn(5)
ROOT = Path(__file__).parents[3]
RUN = """
import ctypes, os, subprocess, sys, time
from flows.cli import stopping
from flows.cli.main import ended
from tpo.engines.cluster.watchdog import watched

def work():
    with watched(), stopping.apart_from_terminal():
        child = subprocess.Popen(["sleep", "100"])
        time.sleep(1.5)  # until the watchdog has seen it
        try:
            print(child.pid, flush=True)
            if "deaf" in sys.argv:
                lock = ctypes.create_string_buffer(64)
                for _ in range(2):
                    ctypes.CDLL(None).pthread_mutex_lock(lock)
            time.sleep(100)
        except KeyboardInterrupt as error:
            if "swallowed" in sys.argv:  # as Cython does, below Ray
                raise SystemError("returned a result with an exception set") from error
            raise
        finally:
            if "child must live" in sys.argv:
                time.sleep(0.5)
                print("alive" if child.poll() is None else "dead", flush=True)
            if "hangs" in sys.argv:
                while True:
                    try:
                        time.sleep(100)
                    except KeyboardInterrupt:
                        pass

stopping.stop_in_order(grace_seconds=1.0 if "soon" in sys.argv else 60.0)
status = ended(work)
stopping.end_in_order(stopping.stop_requested()) if stopping.stop_requested() else stopping.exit_in_order(status)
"""


class Command:
    """A process with the code above, the leader of a process group like a shell's job."""

    def __init__(self, *words: str, **options: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,  # type: ignore[call-overload]
        )
        assert self.process.stdout is not None
        self.child = int(self.process.stdout.readline())

    def signal(self, number: int) -> None:
        """Sends a signal to its process group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Its exit status, stdout and stderr, once it and its child have ended."""
        output, errors = self.process.communicate(timeout=60)
        deadline = time.monotonic() + 20
        while alive(self.child) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(self.child)
        return self.process.returncode, output, errors


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(*words: str, **options: object) -> Command:
        started.append(Command(*words, **options))
        return started[-1]

    yield start
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_whole_group_stops_the_command_and_spares_its_children(
    command: Callable[..., Command], number: signal.Signals
):
    run = command("child must live")
    run.signal(number)
    status, output, errors = run.end()
    assert status == 128 + number
    assert output == "alive\n"
    assert errors.splitlines()[-1] == "Stopped. Rerun the same command to resume."
    assert errors.splitlines()[0].startswith("Stopping.") and len(errors.splitlines()) == 2


def test_another_exception_that_a_library_makes_of_the_signal_is_not_reported(command: Callable[..., Command]):
    run = command("swallowed")
    run.signal(signal.SIGINT)
    status, _, errors = run.end()
    assert status == 130 and "Traceback" not in errors
    assert errors.endswith("Stopped. Rerun the same command to resume.\n")


@pytest.mark.parametrize("how", ["hangs", "deaf"])
def test_a_second_signal_ends_a_command_that_hangs(command: Callable[..., Command], how: str):
    run = command(how)
    run.signal(signal.SIGINT)
    assert run.process.stderr is not None and "Press ^C again" in run.process.stderr.readline()
    run.signal(signal.SIGINT)
    status, _, errors = run.end()
    assert (status, errors) == (130, "Stopped. Rerun the same command to resume.\n")


@pytest.mark.parametrize("how", ["hangs", "deaf"])
def test_a_command_that_does_not_stop_within_the_grace_period_is_ended(command: Callable[..., Command], how: str):
    run = command(how, "soon")
    run.signal(signal.SIGINT)
    status, _, errors = run.end()
    assert status == 130 and errors.endswith("Stopped. Rerun the same command to resume.\n")


def test_an_ignored_signal_stays_ignored(command: Callable[..., Command]):
    run = command(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    run.signal(signal.SIGHUP)
    run.signal(signal.SIGTERM)
    assert run.end()[0] == 143


def in_terminal(arguments: list[str], press: Callable[[int], object]) -> tuple[int, str]:
    """The exit status and output of a command in its own terminal; `press` is called at the first output."""
    process, terminal = pty.fork()
    if not process:
        os.chdir(ROOT)
        os.execv(arguments[0], arguments)
    output = b""
    with contextlib.suppress(OSError):  # EIO once the terminal closes
        while chunk := os.read(terminal, 1000):
            if not output:
                press(terminal)
            output += chunk
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), output.decode()


def test_ctrl_c_in_a_terminal_is_one_line_and_status_130():
    status, output = in_terminal([sys.executable, "-c", RUN], lambda terminal: os.write(terminal, b"\x03"))
    assert status == 130 and "Traceback" not in output
    assert output.endswith("Stopped. Rerun the same command to resume.\r\n")


def test_ctrl_c_during_imports_prints_no_traceback():
    command = [sys.executable, "-X", "importtime", "-m", "flows", "plan"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    while "argparse" not in run.stderr.readline():  # an early import, before the slow ones
        pass
    run.send_signal(signal.SIGINT)
    assert "Traceback" not in run.communicate(timeout=60)[1]
    assert run.returncode == 130


@pytest.mark.parametrize(
    ("redirections", "status"), [("<&-", 0), (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), ("| head -1", 0)]
)
def test_closed_or_unread_streams_cause_no_traceback(redirections: str, status: int):
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m flows plan {redirections}'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, "")


def test_a_full_disk_behind_standard_output_is_a_one_line_error():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flows", "plan", "--json"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_non_ascii_output_is_printed_in_a_locale_without_utf_8():
    done = subprocess.run(
        [sys.executable, "-m", "flows", "plan"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exit_waits_for_threads_runs_exit_handlers_and_prints_everything():
    code = (
        "import atexit, threading, time\n"
        "from flows.cli.stopping import exit_in_order\n"
        "atexit.register(print, 'handler')\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start()\n"
        "print('main')\n"
        "exit_in_order(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "main\nthread\nhandler\n", "")
