"""Claims about the subprocess that compares mathematics: it is restarted if killed, and no answer raises an
exception."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from judges.math_checker import Compared, MathChecker
from tpo.errors import StageError

EQUAL, UNEQUAL = (r"\sqrt{8}", r"2\sqrt{2}"), (r"\sqrt{8}", r"2\sqrt{3}")


def kill(checker: MathChecker) -> None:
    assert checker._sandbox is not None
    pid = checker._sandbox._process.pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def program(folder: Path, answer: str) -> Path:
    """A subprocess that is ready and applies `answer` to each line; it counts its starts."""
    path = folder / "program.py"
    starts = folder / "starts"
    path.write_text(
        f"import os, sys\nopen({str(starts)!r}, 'a').write('x')\nprint('ready', flush=True)\n"
        f"for line in sys.stdin:\n    {answer}\n",
        encoding="utf-8",
    )
    return path


def test_a_killed_process_is_restarted():
    checker = MathChecker()
    assert checker.equal(*EQUAL) is True
    kill(checker)
    assert checker.equal(*EQUAL) is True
    assert checker.equal(*UNEQUAL) is False


def test_a_comparison_that_keeps_killing_its_process_is_undecided_and_the_next_one_is_made(tmp_path: Path):
    kills = "os.kill(os.getpid(), 9) if 'sqrt' in line else print('equal', flush=True)"
    checker = MathChecker(program(tmp_path, kills))
    assert checker.compare(*EQUAL) == Compared(None, "comparison_killed_its_checker")
    assert (tmp_path / "starts").read_text() == "xx"
    assert checker.equal("x+y", "y+x") is True


def test_a_comparison_that_takes_too_long_is_undecided_and_not_tried_again(tmp_path: Path):
    checker = MathChecker(program(tmp_path, "import time; time.sleep(60)"), wait_seconds=0.2)
    assert checker.compare(*EQUAL) == Compared(None, "comparison_timed_out")
    assert (tmp_path / "starts").read_text() == "x"


def test_a_comparison_that_takes_too_much_time_of_the_cpu_ends_its_own_process(tmp_path: Path):
    checker = MathChecker(program(tmp_path, "import signal; os.kill(os.getpid(), signal.SIGPROF)"))
    assert checker.compare(*EQUAL) == Compared(None, "comparison_timed_out")
    assert (tmp_path / "starts").read_text() == "x"


def test_a_comparison_without_memory_is_undecided(tmp_path: Path):
    checker = MathChecker(program(tmp_path, "print('memory', flush=True)"))
    assert checker.compare(*EQUAL) == Compared(None, "comparison_out_of_memory")


def test_a_process_that_cannot_start_is_reported_before_any_comparison(tmp_path: Path):
    path = tmp_path / "program.py"
    path.write_text("import nothing_of_this_name\n", encoding="utf-8")
    checker = MathChecker(path)
    for _ in range(2):
        with pytest.raises(
            StageError, match=r"did not start \(ModuleNotFoundError: .*nothing_of_this_name.*math-verify"
        ):
            checker.equal("1", "1")


def test_threads_that_compare_at_the_same_time_get_their_own_verdicts():
    checker = MathChecker()
    barrier = threading.Barrier(4)

    def verdicts(n: int) -> list[bool | None]:
        barrier.wait()
        return [checker.equal(rf"\sqrt{{{n * n * k}}}", rf"{n + (k == 3)}\sqrt{{{k}}}") for k in (2, 3, 5)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(verdicts, (2, 3, 5, 7))) == [[True, False, True]] * 4
