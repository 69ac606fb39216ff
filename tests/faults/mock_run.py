"""Whole runs through the stages themselves, on mock engines and without Prefect, each broken somewhere on purpose.

A run is a forked process that does what the flow does. It is stopped at one of the changes that it makes to its folder
(`tpo.storage.disk` announces each of them), at one of the files that it reads, or within a shard of the engine; then
the folder may be damaged too; then the run is started again as a user would, until it ends.
"""

import contextlib
import errno
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

from tests.faults.compare import Difference, difference

CHANGES = ("tpo.write", "tpo.append", "tpo.sync", "tpo.rename", "tpo.mkdir", "tpo.remove", "tpo.link", "tpo.copy")
IN_BUCKET = ("tpo.storage.bucket.put", "tpo.storage.bucket.copy", "tpo.storage.bucket.delete")
STAGES = ("load_prompts", "sample", "judge", "pair", "train", "validate", "report")
_FOLDERS = {
    "prompts": "load_prompts",
    "generations": "synthesize",
    "samples": "sample",
    "judgments": "judge",
    "scores": "judge",
    "pairs": "pair",
    "train": "train",
    "model": "validate",
    "summary.json": "report",
    "report.html": "report",
    "finished.json": "report",
}
Damage = Callable[[random.Random, Path, str], None]
Counts = Mapping[str, int]
"""How many changes a run makes, in its bucket if it is in one, by stage, and `all` of them."""
ATTEMPTS = 6
"""Times that a user starts a run again before giving up on it."""


@dataclass(frozen=True)
class Blow:
    """What happens to a process, and when."""

    event: str
    """`change`, `read` or `shard`, or `put` for a change in a bucket."""
    stage: str
    """Whose files the event must be about; `all` for any."""
    at: int
    """At which of these events."""
    strike: Callable[[tuple[Any, ...]], None]
    """What happens then; it is given the event's arguments."""
    again: bool = False
    """Whether it happens at every later event too."""


@dataclass(frozen=True)
class Fault:
    """One way to break a run."""

    name: str
    """What the table calls it."""
    blow: Callable[[random.Random, Counts, str], Blow] | None = None
    """What happens to the first process, in which stage."""
    damage: Damage | None = None
    """What then happens to the folder, to the files of which stage."""
    says: str = ""
    """What the process must say of it; empty where it dies without a word."""
    again: bool = False
    """Whether the second process gets the same."""
    everywhere: bool = False
    """Whether it is tried in every stage by itself."""
    clock: float = 0.0
    """Seconds that the clock is set back by for the processes that follow."""


@dataclass(frozen=True)
class Plan:
    """Which run is broken."""

    judge: str
    """`verifier` or `pairwise`."""
    iterations: int = 2
    """T."""
    url: str | None = None
    """The bucket that the run is in, `cache` in the run's folder being the working copies; None for a folder."""
    storage: Mapping[str, Any] = field(default_factory=dict)
    """How the bucket is reached."""
    synthetic: bool = False
    """Whether a model writes the iterations' prompts; only where the judge needs no references."""

    def root(self, folder: Path) -> Path:
        """The run's files on this machine."""
        root: Path = config_of(folder, self).root
        return root


@dataclass(frozen=True)
class Example:
    """A run that nothing broke."""

    root: Path
    """Its folder."""
    plan: Plan
    """What it is a run of."""
    changes: Counts
    """What it took."""


@dataclass(frozen=True)
class Broken:
    """How a run that was broken ended."""

    recovered: bool
    """Whether it ended."""
    difference: Difference
    """What it then had not as an uninterrupted one."""
    stopped: bool
    """Whether the fault stopped a process, or found nothing to break."""
    log: str
    """What the processes said."""
    stale: Difference = field(default_factory=Difference)
    """What it had not as an uninterrupted one when it was called finished before its end, if it was."""
    known: bool = True
    """Whether it was called finished at its end, so that the next start does nothing."""


class _Listener:
    """Hears every audit event of this process; deals the blow where there is one."""

    def __init__(self) -> None:
        self.blow: Blow | None = None
        self.root = ""
        self.counts: Counter[tuple[str, str]] = Counter()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        kind = self._kind(event, arguments)
        if kind is None:
            return
        about_two = event in ("tpo.rename", "tpo.link", "tpo.copy")
        stage = stage_of(str(arguments[1 if about_two else 0])) if arguments else None
        self.counts[kind, "all"] += 1
        self.counts[kind, stage or "flow"] += 1
        blow = self.blow
        if (
            blow is not None
            and blow.event == kind
            and blow.stage in ("all", stage)
            and self.counts[kind, blow.stage] >= blow.at
        ):
            if not blow.again:
                self.blow = None
            blow.strike(arguments)

    def _kind(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if not self.root:
            return None
        if event in CHANGES:
            return "change"
        if event in IN_BUCKET:
            return "put"
        if event == "tests.shard":
            return "shard"
        reads = event == "open" and str(arguments[0]).startswith(self.root) and arguments[1] in ("r", "rb")
        return "read" if reads and str(arguments[0]).endswith((".parquet", ".json", ".jsonl")) else None


_listener = _Listener()


def stage_of(path: str) -> str | None:
    """The stage whose file a path in a run's folder names."""
    parts = path.partition("/run/")[2].split("/")
    names = {part.removeprefix(".").split(".old-")[0].split(".tmp")[0] for part in parts}
    found = [stage for name, stage in _FOLDERS.items() if names & {name, f"{name}.{os.getpid()}"}]
    return found[-1] if found else None


@contextlib.contextmanager
def prepared(*, forks: bool = True) -> Iterator[None]:
    """Makes this process one that can run: on mock engines, without Prefect, and for forks with everything imported.

    Pages have no plots, and nothing waits for the disk, which the death of a process does no harm: both take more than
    all else that such a run does. What a disk may forget is for test_crash_states.py.
    """
    import tempfile

    import pyarrow as pa

    from flows.iterate import iterate
    from tests.faults.mock_engines import MockEngines
    from tests.without_prefect import without_prefect
    from tpo.run_context import RunContext, using

    pa.set_cpu_count(1)
    with (
        without_prefect(),
        without_drawing(),
        mock.patch("os.fsync", return_value=None),
        using(RunContext(engines=MockEngines())),
    ):
        if forks:
            with tempfile.TemporaryDirectory() as folder:
                make_seed(Path(folder) / "seed")
                for judge in ("verifier", "pairwise"):
                    iterate(config_of(Path(folder) / judge, Plan(judge)), 1)
            sys.addaudithook(_listener)
        yield


@contextlib.contextmanager
def without_drawing() -> Iterator[None]:
    """Leaves plots empty: matplotlib takes more than all else that such a run does."""
    axes = mock.MagicMock()
    axes.get_ylim.return_value = (0.0, 1.0)
    figure = mock.MagicMock()
    figure.add_subplot.return_value = axes
    figure.savefig.side_effect = lambda file, **_: file.write('<svg viewBox="0 0 1 1"></svg>')
    with mock.patch("matplotlib.figure.Figure", return_value=figure):
        yield


def break_run(fault: Fault, dice: random.Random, folder: Path, example: Example, stage: str = "all") -> Broken:
    """Breaks one run, starts it again until it ends, and compares it with the one in `expected`."""
    root, log, plan = folder / "run", folder / "log.txt", example.plan
    blow = fault.blow(dice, example.changes, stage) if fault.blow else None
    status = attempt(folder, plan, log, blow=blow)
    stopped = status != 0 or (fault.blow is None and fault.damage is not None)
    if fault.damage is not None:
        fault.damage(dice, root, stage)
    stale = difference(example.root, root) if _called_finished(folder, plan) else Difference()
    if fault.again and fault.blow:
        status = attempt(folder, plan, log, blow=fault.blow(dice, example.changes, stage))
    for _ in range(ATTEMPTS):
        status = attempt(folder, plan, log, clock=fault.clock)
        if status == 0:
            break
    said = log.read_text(encoding="utf-8", errors="replace")
    told = not (stopped and fault.says) or fault.says in said
    sound = status == 0 and told and "Traceback" not in said
    at_end = difference(example.root, root) if status == 0 else Difference(lost=1)
    return Broken(sound, at_end, stopped, said, stale, plan.url is not None or _called_finished(folder, plan))


def _called_finished(folder: Path, plan: Plan) -> bool:
    """Whether a start would find nothing to do; not asked of a run in a bucket."""
    from flows.recipes import finished

    return plan.url is None and finished(config_of(folder, plan), plan.iterations) is not None


def attempt(folder: Path, plan: Plan, log: Path, *, blow: Blow | None = None, clock: float = 0.0) -> int:
    """Starts a run in a process of its own and waits for its end; its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        _be_a_run(folder, plan, log, blow, clock)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def an_example(folder: Path, plan: Plan) -> Example:
    """Makes an uninterrupted run."""
    folder.mkdir()
    if (status := attempt(folder, plan, folder / "log.txt")) != 0:
        raise RuntimeError(f"the uninterrupted run ended with {status}:\n{(folder / 'log.txt').read_text()}")
    return Example(folder / "run", plan, json.loads((folder / "changes.json").read_text()))


def _be_a_run(folder: Path, plan: Plan, log: Path, blow: Blow | None, clock: float) -> None:
    """What a forked process does; it never returns."""
    status = 1
    with log.open("a", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGTERM, _terminate)
    if clock:
        now = time.time
        time.time = lambda: now() - clock
    _listener.blow, _listener.root, _listener.counts = blow, str(folder), Counter()
    try:
        from flows.cli.main import ended

        status = ended(lambda: _run(folder, plan))
    except BaseException:  # noqa: BLE001 - whatever it is, it is told, and the run has failed
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _run(folder: Path, plan: Plan) -> int:
    """Makes the run; counts its changes."""
    from flows.iterate import iterate

    iterate(config_of(folder, plan), plan.iterations)
    counted = "put" if plan.url else "change"
    changes = {stage: count for (kind, stage), count in _listener.counts.items() if kind == counted}
    (folder / "changes.json").write_text(json.dumps(changes))
    return 0


def config_of(folder: Path, plan: Plan) -> Any:
    """The small run that is broken."""
    from tpo.config.run import RunConfig

    judges: dict[str, dict[str, object]] = {
        "verifier": {"kind": "verifier", "length_bias": 0.3},
        "pairwise": {"kind": "pairwise", "tournament": "all_pairs"},
    }
    synthetic = {"shots": 2, "pool": 20, "min_words": 2, "max_similarity": 0.6}
    return RunConfig.model_validate(
        {
            "name": "run",
            "folder": plan.url or folder,
            "storage": {**plan.storage, "cache": folder / "cache"} if plan.url else {},
            "model": {"path": str(folder.parent / "seed")},
            "data": {
                "per_iteration": 9,
                "validation": 5,
                "test": 5,
                "synthetic": synthetic if plan.synthetic else None,
            },
            "sample": {"k": 3, "evaluation_max_attempts": 2},
            "judge": judges[plan.judge],
            "pair": {"min_margin": 0.0},
            "train": {"epochs": 2},
            "health": {"max_unscored": 1.0, "max_unparsable": 1.0, "min_swap_kappa": -1.0, "min_pairs": 0.0},
            "engine": {"shard_prompts": 2},
            "judge_engine": {"shard_prompts": 2},
        }
    )


def make_seed(folder: Path) -> None:
    """A seed model with the miniature's tokenizer and next to no weights."""
    from tpo.config.base import SHIPPED_SEED_MODEL

    folder.mkdir(parents=True)
    for path in SHIPPED_SEED_MODEL.iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.safetensors").write_bytes(b"M_0")


def _terminate(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _kill(_: tuple[Any, ...]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_in_a_write(arguments: tuple[Any, ...]) -> None:
    """Half of what was to be written is written, then the process is gone."""
    if len(arguments) == 2 and isinstance(arguments[1], bytes):
        with Path(arguments[0]).open("ab") as file:
            file.write(arguments[1][: len(arguments[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def _fail_with(number: int) -> Callable[[tuple[Any, ...]], None]:
    def strike(arguments: tuple[Any, ...]) -> None:
        raise OSError(number, os.strerror(number), str(arguments[0]) if arguments else None)

    return strike


def _run_out_of_memory(_: tuple[Any, ...]) -> None:
    """The process meets a limit of what it may hold."""
    resource.setrlimit(resource.RLIMIT_AS, (2**35, resource.RLIM_INFINITY))
    bytearray(2**36)


def _fail_engine(_: tuple[Any, ...]) -> None:
    from tpo.errors import StageError

    raise StageError("engine 0 failed on a job that had failed before: it is a mock")


def _at_a_change(strike: Callable[[tuple[Any, ...]], None], *, again: bool = False) -> Callable[..., Blow]:
    return lambda dice, changes, stage: Blow("change", stage, dice.randint(1, changes[stage]), strike, again)


def _at(event: str, strike: Callable[[tuple[Any, ...]], None], most: int) -> Callable[..., Blow]:
    return lambda dice, _, stage: Blow(event, stage, dice.randint(1, most if stage == "all" else 3), strike)


def _some_file(dice: random.Random, root: Path, stage: str) -> Path | None:
    """A file of the run, or of one stage of it; not what marks its holder, nor what was set aside."""
    files = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and ".old-" not in str(path) and path.stat().st_size
        if stage in ("all", stage_of(str(path)))
    ]
    return dice.choice(files) if files else None


def _damaged(change: Callable[[random.Random, bytearray], bytes]) -> Damage:
    def damage(dice: random.Random, root: Path, stage: str) -> None:
        if (path := _some_file(dice, root, stage)) is not None:
            path.write_bytes(change(dice, bytearray(path.read_bytes())))

    return damage


def _cut(dice: random.Random, data: bytearray) -> bytes:
    return bytes(data[: dice.randrange(len(data))])


def _flip(dice: random.Random, data: bytearray) -> bytes:
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


def _lose(dice: random.Random, root: Path, stage: str) -> None:
    if (path := _some_file(dice, root, stage)) is not None:
        path.unlink()


def _lose_stage(dice: random.Random, root: Path, stage: str) -> None:
    import shutil

    if (path := _some_file(dice, root, stage)) is not None and path.parent != root:
        shutil.rmtree(path.parent)


_KILL = _at_a_change(_kill)
FAULTS = (
    Fault("kill -9", _KILL, everywhere=True),
    Fault("kill -9 within a write", _at_a_change(_kill_in_a_write), everywhere=True),
    Fault("kill -9, and again while it resumes", _KILL, again=True),
    Fault("kill -9 between an engine's shards", _at("shard", _kill, 60)),
    Fault("SIGTERM", _at_a_change(lambda _: os.kill(os.getpid(), signal.SIGTERM)), everywhere=True),
    Fault("the disk is full, once", _at_a_change(_fail_with(errno.ENOSPC)), says="the disk is full"),
    Fault(
        "the disk stays full",
        _at_a_change(_fail_with(errno.ENOSPC), again=True),
        says="the disk is full",
        everywhere=True,
    ),
    Fault("the disk fails at a write", _at_a_change(_fail_with(errno.EIO)), says="the disk failed", everywhere=True),
    Fault("the disk fails at a read", _at("read", _fail_with(errno.EIO), 300), says="the disk failed", everywhere=True),
    Fault(
        "the folder becomes read-only",
        _at_a_change(_fail_with(errno.EROFS), again=True),
        says="not accessible",
        everywhere=True,
    ),
    Fault("memory runs out", _at_a_change(_run_out_of_memory), says="out of memory", everywhere=True),
    Fault("an engine fails for good", _at("shard", _fail_engine, 60), says="it is a mock"),
    Fault("kill -9, then the clock is set back", _KILL, clock=86400.0, everywhere=True),
    Fault("kill -9, then a file is cut", _KILL, damage=_damaged(_cut)),
    Fault("kill -9, then a bit flips", _KILL, damage=_damaged(_flip)),
    Fault("kill -9, then a file is gone", _KILL, damage=_lose),
    Fault("kill -9, then a stage is gone", _KILL, damage=_lose_stage),
    Fault("a file is cut after the end", damage=_damaged(_cut), everywhere=True),
    Fault("a bit flips after the end", damage=_damaged(_flip), everywhere=True),
    Fault("a file is gone after the end", damage=_lose, everywhere=True),
    Fault("a stage is gone after the end", damage=_lose_stage, everywhere=True),
)


@contextlib.contextmanager
def folder_for_runs(parent: Path) -> Iterator[Path]:
    """A new folder for one run, removed afterwards."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
