"""Claims about sandboxes: a program that exceeds a limit is killed, and its caller learns which limit it was."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tpo.sandbox import Sandbox, SandboxError

pytestmark = pytest.mark.drawn(6)

MEMORY_BYTES = 512 << 20
ECHO = "import sys\nfor line in sys.stdin: print(eval(line), flush=True)\n"
"""A program that answers each line with its value."""


class Start:
    """Starts programs, and makes sure that their processes are gone at the end."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "program.py"
        self.started: list[Sandbox] = []

    def __call__(self, text: str, *arguments: str, cpu_seconds: int | None = 30) -> Sandbox:
        self._program.write_text(text, encoding="utf-8")
        sandbox = Sandbox(self._program, *arguments, memory_bytes=MEMORY_BYTES, cpu_seconds=cpu_seconds)
        self.started.append(sandbox)
        return sandbox


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started = Start(tmp_path)
    yield started
    for sandbox in started.started:
        sandbox.close()


def is_gone(sandbox: Sandbox) -> bool:
    return not Path(f"/proc/{sandbox._process.pid}").exists()


def test_a_program_answers_line_by_line_until_it_is_closed(start: Start):
    with start(ECHO) as sandbox:
        assert [sandbox.ask(question, 60) for question in ("1 + 1", "'x' * 100_000")] == ["2", "x" * 100_000]
        assert not is_gone(sandbox)
    assert is_gone(sandbox)


@pytest.mark.parametrize(
    ("question", "cpu_seconds", "wall_seconds", "reason"),
    [
        ("'x' * (1 << 30)", 30, 60, "memory"),
        ("all(True for _ in iter(int, 1))", 1, 60, "time"),
        ("9**9**9**9", 1, 60, "time"),
        ("__import__('time').sleep(60)", 30, 0.5, "time"),
        (
            "sys.stdout.write('no end of a line') and sys.stdout.flush() or __import__('time').sleep(60)",
            30,
            0.5,
            "time",
        ),
        ("__import__('signal').setitimer(2, 0.1) and all(True for _ in iter(int, 1))", None, 60, "time"),
        ("__import__('os').kill(__import__('os').getpid(), 11)", 30, 60, "died"),
        ("__import__('os')._exit(0)", 30, 60, "died"),
    ],
)
def test_a_program_that_exceeds_a_limit_or_dies_is_gone_and_its_caller_learns_why(
    start: Start, question: str, cpu_seconds: int | None, wall_seconds: float, reason: str
):
    sandbox = start(ECHO, cpu_seconds=cpu_seconds)
    assert sandbox.ask("1", 60) == "1"
    with pytest.raises(SandboxError) as caught:
        sandbox.ask(question, wall_seconds)
    assert caught.value.reason == reason
    assert is_gone(sandbox)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("r.setrlimit(r.RLIMIT_AS, (r.getrlimit(r.RLIMIT_AS)[1],) * 2) or 'x' * (1 << 30)", "memory"),
        ("s.signal(s.SIGXCPU, s.SIG_IGN) or all(True for _ in iter(int, 1))", "died"),
    ],
    ids=["memory", "cpu"],
)
def test_a_program_that_lifts_its_soft_limit_meets_the_hard_one(start: Start, question: str, reason: str):
    """Without a hard limit it would take all the memory, or run until its caller's timeout ends: "time"."""
    sandbox = start(f"import resource as r, signal as s\n{ECHO}", cpu_seconds=1)
    with pytest.raises(SandboxError) as caught:
        sandbox.ask(question, 20)
    assert caught.value.reason == reason
    assert is_gone(sandbox)


def test_a_program_that_does_not_start_leaves_its_error_output(start: Start):
    with pytest.raises(SandboxError, match="No module named 'nothing_of_this_name'") as caught:
        start("import nothing_of_this_name").ask("1", 60)
    assert (caught.value.reason, caught.value.status) == ("died", 1)


def test_all_lines_are_read_until_the_program_ends(start: Start):
    sandbox = start("import sys\nfor i in range(3): print(sys.argv[1:], i)", "a b", "c")
    assert list(sandbox.lines(60)) == [f"['a b', 'c'] {i}\n" for i in range(3)]
    assert is_gone(sandbox)


@pytest.mark.parametrize(
    ("end", "reason"), [("import os; os.kill(os.getpid(), 9)", "died"), ("import time; time.sleep(60)", "time")]
)
def test_half_a_line_is_never_returned(start: Start, end: str, reason: str):
    lines = start(f"print('whole'); print('half', end='', flush=True); {end}").lines(2)
    assert next(lines) == "whole\n"
    with pytest.raises(SandboxError) as caught:
        next(lines)
    assert caught.value.reason == reason


def test_the_wait_for_one_answer_does_not_count_against_the_next(start: Start):
    sandbox = start(ECHO)
    assert sandbox.ask("1", 60) == "1"
    for _ in range(3):
        assert sandbox.ask("__import__('time').sleep(0.8)", 2) == "None"


def test_a_program_sees_neither_this_project_nor_the_environment_of_python(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    sandbox = start("import importlib.util as u, sys\nprint([u.find_spec(n) is None for n in ('tests', 'program')])")
    assert sandbox.line(60) == "[True, True]"


def test_a_stricter_limit_of_the_machine_is_kept(tmp_path: Path):
    """In a subprocess that has such a limit, since a hard limit can't be raised again."""
    (tmp_path / "program.py").write_text("import resource; print(resource.getrlimit(resource.RLIMIT_AS))")
    code = (
        "import resource, sys; from pathlib import Path; from tpo.sandbox import Sandbox\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))\n"
        "print(Sandbox(Path(sys.argv[1]), memory_bytes=1 << 30, cpu_seconds=None).line(60))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"({MEMORY_BYTES}, {MEMORY_BYTES})", done.stderr
