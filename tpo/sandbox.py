"""A Python program in its own process, with limits on memory, CPU time and wall time.

For untrusted input: a template can loop forever, a kilobyte can unpack to a terabyte, and a parser in C can crash.
The program is a script that reads lines from standard input and writes lines to standard output. It starts isolated
from this project's code, the environment and the working directory, and its limits are set before its first line runs.
Exceeding one ends the process, and `SandboxError` says which it was.

This protects the machine and the caller from crashes. It isn't a jail: the program can read its user's files.

That process also runs this file first, so it only imports the standard library.
"""

import contextlib
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

_OUT_OF_MEMORY = 77
"""Exit status of a program that ended with a `MemoryError`."""
_OUT_OF_TIME = (-signal.SIGXCPU, -signal.SIGPROF)
"""Exit statuses of a program that used up its CPU time: by the limit, or by a timer that it set itself."""


Reason = Literal["memory", "time", "died"]
"""What ended a program: a limit on memory, one on CPU or wall time, or something else."""


class SandboxError(Exception):
    """A program ended without the requested output; its process is gone."""

    def __init__(self, reason: Reason, status: int, last_words: str) -> None:
        super().__init__(f"a sandboxed program ended with {status} ({reason}): {last_words}")
        self.reason = reason
        """What ended it."""
        self.status = status
        """Its exit status; negative for a signal."""
        self.last_words = last_words
        """The last line of its standard error; empty if there is none."""


class Sandbox:
    """A running program; close it, or use it in a `with` statement.

    Args:
        program: The script to run.
        arguments: Its arguments.
        memory_bytes: Address space of the process, libraries included.
        cpu_seconds: CPU time of the process from start to end. None for one that answers many questions and limits
            each, with `signal.setitimer(signal.ITIMER_PROF, …)`.
    """

    def __init__(self, program: Path, *arguments: str, memory_bytes: int, cpu_seconds: int | None) -> None:
        limits = (str(memory_bytes), str(cpu_seconds or 0))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, *limits, str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._late = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, question: str, wall_seconds: float) -> str:
        """The program's answer to one line."""
        with self._deadline(wall_seconds):
            with contextlib.suppress(BrokenPipeError):  # Then there is no answer either.
                self._input.write(question + "\n")
                self._input.flush()
            answer = self._output.readline()
        return self._whole(answer)

    def line(self, wall_seconds: float) -> str:
        """The next line that the program writes."""
        with self._deadline(wall_seconds):
            line = self._output.readline()
        return self._whole(line)

    def lines(self, wall_seconds: float) -> Iterator[str]:
        """All lines until the program ends, as it should with status 0."""
        with self._deadline(wall_seconds):
            yield from (line for line in self._output if line.endswith("\n"))
        if error := self._end():
            raise error

    def close(self) -> None:
        """Kills the process if it hasn't ended."""
        self._process.kill()
        self._process.wait()
        for file in (self._input, self._output, self._errors):
            with contextlib.suppress(OSError):  # A pipe to a dead process may still contain a line.
                file.close()

    @contextlib.contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self._kill_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # A timer that fires late must not count against the next question.

    def _kill_late(self) -> None:
        self._late = True
        self._process.kill()

    def _whole(self, line: str) -> str:
        if self._late or not line.endswith("\n"):
            raise self._end() or SandboxError("died", 0, "")
        return line.removesuffix("\n")

    def _end(self) -> SandboxError | None:
        """Closes a program that has stopped writing; returns the error, or None if it was done."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)  # It is about to end, with its own status.
        self._process.kill()
        status = self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        if status == 0 and not self._late:
            return None
        late = self._late or status in _OUT_OF_TIME
        reason: Reason = "time" if late else "memory" if status == _OUT_OF_MEMORY else "died"
        return SandboxError(reason, status, "".join(words[-1:]))


def _confine(kind: int, limit: int) -> None:
    """Sets a limit, or leaves a stricter one. The hard limit, whose signal is SIGKILL, is one above the soft one."""
    _, hard = resource.getrlimit(kind)
    ceiling = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(kind, (min(limit, ceiling), min(limit + 1, ceiling)))


def _run(memory_bytes: int, cpu_seconds: int, program: str) -> None:
    """The subprocess: sets its limits, then runs the program."""
    _confine(resource.RLIMIT_AS, memory_bytes)
    _confine(resource.RLIMIT_CORE, 0)
    if cpu_seconds:
        _confine(resource.RLIMIT_CPU, cpu_seconds)
    sys.argv = sys.argv[3:]
    try:
        runpy.run_path(program, run_name="__main__")
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)


if __name__ == "__main__":
    _run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
