"""Compares mathematical answers in a process that may be killed, since `9**9**9**9` would keep ours for ever.

The library's own time limits use signals, which work in a main thread alone; ours may be a task's thread. Calls from
several threads take turns. A process that has died is started again; one that dies twice of the same comparison leaves
it undecided.
"""

import contextlib
import json
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from judges.math_answers import read_answer, settle, to_compare
from tpo.errors import StageError

PROGRAM = Path(__file__).with_name("math_process.py")
START_SECONDS = 120
CHECK_SECONDS = 5
"""Time of a CPU that a comparison may take; the process ends itself then."""
WAIT_SECONDS = 60
"""Longest wait for a comparison, whatever else takes the machine."""
MEMORY_BYTES = 4 << 30
"""Address space of the process, its libraries included."""
UNDECIDED = {
    "timeout": "comparison_timed_out",
    "memory": "comparison_out_of_memory",
    "died": "comparison_killed_its_checker",
}


@dataclass(frozen=True)
class Compared:
    """What is known of two answers."""

    equal: bool | None
    """Whether they are equal; None if that could not be found out."""
    undecided: str | None = None
    """Why it could not."""


class MathChecker:
    """Compares answers; its process starts with the first comparison, so that one that cannot start is found then.

    Args:
        program: What the process runs, for tests.
    """

    def __init__(self, program: Path = PROGRAM) -> None:
        self._program = program
        self._process: subprocess.Popen[str] | None = None
        self._started = False
        self._lock = threading.Lock()

    def equal(self, answer: str, reference: str) -> bool | None:
        """Whether two answers are equal; None if that could not be found out."""
        return self.compare(answer, reference).equal

    def compare(self, answer: str, reference: str) -> Compared:
        """Whether two answers are equal. Raises `StageError` if the checker's process cannot be started."""
        with self._lock:
            if not self._started:
                self._start()
        found, given = read_answer(answer), read_answer(reference)
        settled = settle(found, given)
        if settled is not None:
            return Compared(settled)
        with self._lock:
            said = self._ask(to_compare(found, given))
            if said == "died":  # perhaps before it was asked, for want of memory elsewhere
                said = self._ask(to_compare(found, given))
        if said in UNDECIDED:
            return Compared(None, UNDECIDED[said])
        return Compared(said == "equal")

    def _ask(self, pairs: Sequence[tuple[str, str]]) -> str:
        """The process's word for some pairs of expressions: `equal`, `unequal`, or why there is none."""
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(pairs) + "\n")
            self._process.stdin.flush()
        except OSError:
            self._end()
            return "died"
        return self._line(WAIT_SECONDS)

    def _start(self) -> None:
        limits = (str(CHECK_SECONDS), str(MEMORY_BYTES))
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-u", str(self._program), *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
            )
            if self._line(START_SECONDS) != "ready":
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["it wrote nothing"])[-1]
                raise StageError(
                    f'the checker of mathematical answers did not start ({last}): match = "math" needs the packages '
                    "math-verify and sympy, and about 300 MiB of memory"
                )
        self._started = True

    def _line(self, seconds: float) -> str:
        """The process's next line; `timeout` or `died`, and the process gone, if there is none."""
        assert self._process is not None and self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline().strip() if ready else ""
        if line:
            return line
        if not ready:
            self._end()
            return "timeout"
        return "timeout" if self._end() == -signal.SIGPROF else "died"

    def _end(self) -> int:
        """Ends the process, if it has not ended itself; its exit status."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # one that has closed its output is about to end, with a status of its own
        self._process.kill()
        status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # a pipe to a process that is gone may still hold a line
                pipe.close()
        self._process = None
        return status
