"""Runs of the whole command on Prefect, Ray, vLLM and TRL, each broken at a random moment and restarted.

A run is `python -m flows iterate`, or another recipe, on the miniature with small numbers, in its own session. One of
its processes is killed or stopped, its files are damaged, or all of it ends at once, as by a reset. If the command ends
with an error, it must say what is wrong; then it is restarted, as a user would, until it ends well.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.compare import Difference, difference
from tests.faults.mock_run import Broken

ROOT = Path(__file__).parents[2]
SMALL = (
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "engine.shard_prompts=4",
    "engine.shard_seconds=30",
    "engine.start_seconds=240",
    "trainer.stall_seconds=120",
)
SFT = tuple(f"recipe.sft.{value}" for value in ("batch_size=8", "micro_batch_size=8", "epochs=4", "learning_rate=1e-3"))


@dataclass(frozen=True)
class Recipe:
    """A command on a run small enough to end in a minute or two."""

    name: str
    """Its name for `python -m flows`."""
    settings: Sequence[str]
    """Overrides of its profile, such as `sample.k=4`."""
    iterations: int | None = None
    """T, if it has iterations."""

    def command(self, settings: Sequence[str]) -> list[str]:
        """The whole command line, with extra settings."""
        to = [] if self.iterations is None else ["--to", str(self.iterations)]
        command = [sys.executable, "-m", "flows", self.name, *to, "--run-name", "run"]
        return [*command, *(word for setting in (*SMALL, *self.settings, *settings) for word in ("--set", setting))]


ITERATE = Recipe(
    "iterate",
    ("data.per_iteration=16", "data.validation=8", "data.test=8", "sample.k=4", "train.epochs=2"),
    iterations=1,
)
RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        ITERATE,
        Recipe("thinkpo", ("data.per_iteration=32", "data.test=8", *SFT, "recipe.mismatched_answer_ratio=0.8")),
        Recipe("self-train", ("data.per_iteration=32", "data.test=8", *SFT, "recipe.demonstrations=16"), 1),
    )
}
ATTEMPTS = 5
MAX_SECONDS = 900.0
"""Time limit for one process in seconds, with other work on the machine."""


@dataclass(frozen=True)
class Injection:
    """One way to break a run in progress."""

    name: str
    """Its name in the table."""
    hit: Callable[["Run", random.Random], bool]
    """Performs it; returns False if there is nothing to hit yet."""


class Run:
    """One start of the command; `settings` come last, and may move the run from `folder` to a bucket."""

    def __init__(self, folder: Path, log: Path, *settings: str, recipe: Recipe = ITERATE) -> None:
        self.folder = folder
        self.prefect = folder / "prefect"
        command = recipe.command([f'folder="{folder}"', *settings])
        with log.open("a") as out:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PREFECT_HOME": str(self.prefect)},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._seen: dict[int, psutil.Process] = {}

    def processes(self, *words: str) -> list[psutil.Process]:
        """Its current processes, the driver first, or those whose command line or name contains one of `words`."""
        with contextlib.suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self.process.pid)
            self._seen |= {process.pid: process for process in (driver, *driver.children(recursive=True))}
        return [process for process in self._seen.values() if _lives(process) and _is(process, words)]

    def end(self, seconds: float) -> int | None:
        """Its exit status; None while it runs."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def clear(self) -> int:
        """Waits for the driver's leftover processes to end, kills the rest, and returns how many those were."""
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return len(left)


def broken_runs(count: int, seed: int, parent: Path, recipe: Recipe = ITERATE) -> Iterator[tuple[str, Broken]]:
    """Breaks `count` runs, with each kind of fault in turn, at moments drawn by `seed`."""
    started = time.monotonic()
    expected = parent / "expected"
    expected.mkdir()
    run = Run(expected, parent / "expected.log", recipe=recipe)
    if run.end(MAX_SECONDS) != 0:
        raise RuntimeError(f"the uninterrupted run failed:\n{(parent / 'expected.log').read_text()[-4000:]}")
    run.clear()
    whole = time.monotonic() - started
    for i in range(count):
        injection = INJECTIONS[i % len(INJECTIONS)]
        folder = parent / f"run{i}"
        folder.mkdir()
        yield (
            injection.name,
            break_run(injection, random.Random(f"{seed} {i}"), folder, expected / "run", whole, recipe),
        )
        shutil.rmtree(folder, ignore_errors=True)


def break_run(
    injection: Injection, dice: random.Random, folder: Path, expected: Path, whole: float, recipe: Recipe
) -> Broken:
    """Breaks one run, restarts it until it ends, and compares it with the one in `expected`."""
    log = folder / "log.txt"
    run = Run(folder, log, recipe=recipe)
    status = run.end(dice.uniform(0.02, 0.95) * whole)
    struck = False
    while status is None and not struck:
        struck = injection.hit(run, dice)
        status = run.end(0.3)
    if status is None:
        status = run.end(MAX_SECONDS)
    quiet = status is not None
    for _ in range(ATTEMPTS):
        run.process.kill()
        run.clear()
        if status == 0:
            break
        run = Run(folder, log, recipe=recipe)
        status = run.end(MAX_SECONDS)
        quiet = quiet and status is not None
    output = log.read_text(encoding="utf-8", errors="replace")
    found = difference(expected, folder / "run") if status == 0 else Difference(lost=1)
    return Broken(status == 0 and quiet, found, struck, output)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    return False


def _is(process: psutil.Process, words: Sequence[str]) -> bool:
    with contextlib.suppress(psutil.Error):
        command = " ".join([process.name(), *process.cmdline()])
        return not words or any(word in command for word in words)
    return False


def _signal(number: int, *words: str) -> Callable[[Run, random.Random], bool]:
    """Sends a signal to a random one of the processes that `words` name."""

    def hit(run: Run, dice: random.Random) -> bool:
        if not (found := run.processes(*words)):
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            (found[0] if not words else dice.choice(found)).send_signal(number)
        return True

    return hit


def _interrupt(run: Run, _: random.Random) -> bool:
    """Acts like ^C in a terminal: the signal goes to the whole group."""
    os.killpg(run.process.pid, signal.SIGINT)
    return True


def _reset(run: Run, _: random.Random) -> bool:
    for process in run.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return True


def _database(run: Run, _: random.Random) -> bool:
    found = list(run.prefect.glob("prefect.db*"))
    for path in found:
        path.unlink(missing_ok=True)
    return bool(found)


def _damage(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Run, random.Random], bool]:
    """Kills the whole run at once, then changes one of its files."""

    def hit(run: Run, dice: random.Random) -> bool:
        root = run.folder / "run"
        _reset(run, dice)
        files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith(".")]
        if files:
            path = dice.choice(files)
            path.write_bytes(change(path.read_bytes(), dice))
        return True

    return hit


INJECTIONS = (
    Injection("kill -9 of the driver", _signal(signal.SIGKILL)),
    Injection("SIGTERM of the driver", _signal(signal.SIGTERM)),
    Injection("kill -9 of an engine", _signal(signal.SIGKILL, "ray::Engine")),
    Injection("an engine freezes (SIGSTOP)", _signal(signal.SIGSTOP, "ray::Engine")),
    Injection("kill -9 of a trainer", _signal(signal.SIGKILL, "RayTrainWorker")),
    Injection("kill -9 of any worker of Ray", _signal(signal.SIGKILL, "ray::")),
    Injection("kill -9 of the raylet", _signal(signal.SIGKILL, "raylet/raylet")),
    Injection("kill -9 of Ray's control server", _signal(signal.SIGKILL, "gcs_server")),
    Injection("kill -9 of Prefect's server", _signal(signal.SIGKILL, "uvicorn")),
    Injection("Prefect's database is deleted", _database),
    Injection("everything is killed at once", _reset),
    Injection(
        "everything is killed, a file is cut", _damage(lambda data, dice: data[: dice.randrange(len(data) or 1)])
    ),
    Injection(
        "everything is killed, a bit flips",
        _damage(
            lambda data, dice: (
                bytes([*data[: (at := dice.randrange(len(data) or 1))], data[at] ^ 16, *data[at + 1 :]])
                if data
                else b""
            )
        ),
    ),
    Injection("^C in the terminal", _interrupt),
)
BY_NAME: Mapping[str, Injection] = {injection.name: injection for injection in INJECTIONS}
