"""Compares mathematical answers in a process that may be killed, since `9**9**9**9` would keep ours forever.

The library's own time limits use signals, which work in a main thread alone; ours may be a task's thread. Calls from
several threads take turns. A process that has died is restarted; one that dies twice of the same comparison leaves
it undecided.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from judges.math_answers import read_answer, settle, to_compare
from tpo.errors import StageError
from tpo.sandbox import Sandbox, SandboxError

PROGRAM = Path(__file__).with_name("math_process.py")
START_SECONDS = 120
CHECK_SECONDS = 5
"""CPU time that a comparison may take; after that the process ends itself."""
WAIT_SECONDS = 60
"""Maximum wait for a comparison, however busy the machine is."""
MEMORY_BYTES = 4 << 30
"""Address space of the process, its libraries included."""
UNDECIDED = {
    "time": "comparison_timed_out",
    "memory": "comparison_out_of_memory",
    "died": "comparison_killed_its_checker",
}


@dataclass(frozen=True)
class Compared:
    """The comparison of two answers."""

    equal: bool | None
    """Whether they are equal; None if undecided."""
    undecided: str | None = None
    """Why it is undecided."""


class MathChecker:
    """Compares answers; its process starts with the first comparison, which raises if it can't start.

    Args:
        program: The program to run, for tests.
        wait_seconds: Maximum wait for a comparison, however busy the machine is.
        check_seconds: CPU time that a comparison may take.
    """

    def __init__(
        self, program: Path = PROGRAM, wait_seconds: float = WAIT_SECONDS, *, check_seconds: int = CHECK_SECONDS
    ) -> None:
        self._program = program
        self._wait_seconds = wait_seconds
        self._check_seconds = check_seconds
        self._sandbox: Sandbox | None = None
        self._started = False
        self._lock = threading.Lock()

    def equal(self, answer: str, reference: str) -> bool | None:
        """Whether two answers are equal; None if that could not be found out."""
        return self.compare(answer, reference).equal

    def compare(self, answer: str, reference: str) -> Compared:
        """Whether two answers are equal. Raises `StageError` if the checker's process can't be started."""
        with self._lock:
            if not self._started:
                self._sandbox = self._start()
        found, given = read_answer(answer), read_answer(reference)
        settled = settle(found, given)
        if settled is not None:
            return Compared(settled)
        with self._lock:
            result = self._ask(to_compare(found, given))
            if result == "died":  # perhaps before it was asked, for want of memory elsewhere
                result = self._ask(to_compare(found, given))
        if result in UNDECIDED:
            return Compared(None, UNDECIDED[result])
        return Compared(result == "equal")

    def _ask(self, pairs: Sequence[tuple[str, str]]) -> str:
        """The process's word for some pairs of expressions: `equal`, `unequal`, or why there is none."""
        self._sandbox = self._sandbox or self._start()
        try:
            return self._sandbox.ask(json.dumps(pairs), self._wait_seconds)
        except SandboxError as error:
            self._sandbox = None
            return error.reason

    def _start(self) -> Sandbox:
        sandbox = Sandbox(self._program, str(self._check_seconds), memory_bytes=MEMORY_BYTES, cpu_seconds=None)
        try:
            line = sandbox.line(START_SECONDS)
        except SandboxError as error:
            line = error.last_words or "it wrote nothing"
        if line != "ready":
            sandbox.close()
            raise StageError(
                f'the checker of mathematical answers did not start ({line}): match = "math" needs the packages '
                "math-verify and sympy, and about 300 MiB of memory"
            )
        self._started = True
        return sandbox
