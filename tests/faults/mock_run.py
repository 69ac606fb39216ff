"""Whole runs of the real stages, on mock engines and without Prefect, each broken somewhere on purpose.

A run is a forked process that does what the flow does. It is stopped at one of its changes to its folder
(`tpo.storage.disk` announces each of them), at a file that it reads, or within a shard of the engine. Then its folder
may be damaged. Then it is restarted, as a user would, until it ends.
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
    "replay": "replay",
    "train": "train",
    "model": "validate",
    "gate": "gate",
    "summary.json": "report",
    "report.html": "report",
    "finished.json": "report",
}
Damage = Callable[[random.Random, Path, str], None]
Counts = Mapping[str, int]
"""Number of changes that a run makes, in its bucket if it has one, by stage, and in `all`."""
ATTEMPTS = 6
"""Number of times that a run is restarted."""


@dataclass(frozen=True)
class Injection:
    """What is done to a process, and when."""

    event: str
    """`change`, `read` or `shard`, or `put` for a change in a bucket."""
    stage: str
    """The stage whose files the event must concern; `all` for any."""
    at: int
    """The number of the event, from 1."""
    inject: Callable[[tuple[Any, ...]], None]
    """What is done then; receives the event's arguments."""
    again: bool = False
    """Whether it is done at every later event too."""


@dataclass(frozen=True)
class Fault:
    """One way to break a run."""

    name: str
    """Its name in the table."""
    injection: Callable[[random.Random, Counts, str], Injection] | None = None
    """Makes what is done to the first process in a stage."""
    damage: Damage | None = None
    """What is then done to a stage's files in the folder."""
    says: str = ""
    """What the process must say; empty if it can't say anything."""
    again: bool = False
    """Whether the second process is broken too."""
    everywhere: bool = False
    """Whether it is tested in each stage separately."""
    clock: float = 0.0
    """Seconds by which the clock is set back for later processes."""


@dataclass(frozen=True)
class Plan:
    """The run to break."""

    judge: str
    """`verifier` or `pairwise`."""
    iterations: int = 2
    """T."""
    url: str | None = None
    """The bucket of the run, whose working copies are in `cache` in the run's folder; None for a folder."""
    storage: Mapping[str, Any] = field(default_factory=dict)
    """The storage config of the bucket."""
    synthetic: bool = False
    """Whether a model writes the iterations' prompts; the judge mustn't need references then."""
    rounds: int = 1
    """Rounds an iteration; with several, pairs of earlier iterations are replayed too."""
    gate: bool = False
    """Whether there is a gate, which promotes every model."""

    def root(self, folder: Path) -> Path:
        """The run's files on this machine."""
        root: Path = config_of(folder, self).root
        return root


@dataclass(frozen=True)
class Example:
    """An uninterrupted run."""

    root: Path
    """Its folder."""
    plan: Plan
    """Its plan."""
    changes: Counts
    """The changes that it made."""


@dataclass(frozen=True)
class Broken:
    """The end of a broken run."""

    recovered: bool
    """Whether it ended well."""
    difference: Difference
    """How it then differed from an uninterrupted one."""
    stopped: bool
    """Whether the fault took effect."""
    log: str
    """What the processes printed."""
    stale: Difference = field(default_factory=Difference)
    """How it differed, before its restart, if a start would have found nothing to do; else empty."""
    known: bool = True
    """Whether the next start would find nothing to do."""


class _Listener:
    """Receives every audit event of this process, and breaks it at the one chosen."""

    def __init__(self) -> None:
        self.injection: Injection | None = None
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
        injection = self.injection
        if (
            injection is not None
            and injection.event == kind
            and injection.stage in ("all", stage)
            and self.counts[kind, injection.stage] >= injection.at
        ):
            if not injection.again:
                self.injection = None
            injection.inject(arguments)

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
    """The stage that a path in a run's folder belongs to."""
    parts = path.partition("/run/")[2].split("/")
    names = {part.removeprefix(".").split(".old-")[0].split(".tmp")[0] for part in parts}
    found = [stage for name, stage in _FOLDERS.items() if names & {name, f"{name}.{os.getpid()}"}]
    return found[-1] if found else None


@contextlib.contextmanager
def prepared(*, forks: bool = True) -> Iterator[None]:
    """Prepares this process for runs: on mock engines, without Prefect, and with everything imported if it `forks`.

    Pages have no plots and nothing is synced to disk, since both take longer than the rest of such a run. Without a
    crash of the machine nothing that was written is lost; test_crash_states.py tests what such a crash can lose.
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
    """Leaves plots empty: matplotlib takes longer than the rest of such a run."""
    axes = mock.MagicMock()
    axes.get_ylim.return_value = (0.0, 1.0)
    figure = mock.MagicMock()
    figure.add_subplot.return_value = axes
    figure.savefig.side_effect = lambda file, **_: file.write('<svg viewBox="0 0 1 1"></svg>')
    with mock.patch("matplotlib.figure.Figure", return_value=figure):
        yield


def break_run(fault: Fault, dice: random.Random, folder: Path, example: Example, stage: str = "all") -> Broken:
    """Breaks one run, restarts it until it ends, and compares it with `example`."""
    root, log, plan = folder / "run", folder / "log.txt", example.plan
    injection = fault.injection(dice, example.changes, stage) if fault.injection else None
    status = attempt(folder, plan, log, injection=injection)
    stopped = status != 0 or (fault.injection is None and fault.damage is not None)
    if fault.damage is not None:
        fault.damage(dice, root, stage)
    stale = difference(example.root, root) if _called_finished(folder, plan) else Difference()
    if fault.again and fault.injection:
        status = attempt(folder, plan, log, injection=fault.injection(dice, example.changes, stage))
    for _ in range(ATTEMPTS):
        status = attempt(folder, plan, log, clock=fault.clock)
        if status == 0:
            break
    output = log.read_text(encoding="utf-8", errors="replace")
    explained = not (stopped and fault.says) or fault.says in output
    sound = status == 0 and explained and "Traceback" not in output
    at_end = difference(example.root, root) if status == 0 else Difference(lost=1)
    return Broken(sound, at_end, stopped, output, stale, plan.url is not None or _called_finished(folder, plan))


def _called_finished(folder: Path, plan: Plan) -> bool:
    """Whether a start would find nothing to do; False for a run in a bucket."""
    from flows.recipes import finished

    return plan.url is None and finished(config_of(folder, plan), plan.iterations) is not None


def attempt(folder: Path, plan: Plan, log: Path, *, injection: Injection | None = None, clock: float = 0.0) -> int:
    """Runs in a forked process; returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        _be_a_run(folder, plan, log, injection, clock)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def an_example(folder: Path, plan: Plan) -> Example:
    """Makes an uninterrupted run."""
    folder.mkdir()
    if (status := attempt(folder, plan, folder / "log.txt")) != 0:
        raise RuntimeError(f"the uninterrupted run ended with {status}:\n{(folder / 'log.txt').read_text()}")
    return Example(folder / "run", plan, json.loads((folder / "changes.json").read_text()))


def _be_a_run(folder: Path, plan: Plan, log: Path, injection: Injection | None, clock: float) -> None:
    """The forked process; never returns."""
    status = 1
    with log.open("a", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGTERM, _terminate)
    if clock:
        now = time.time
        time.time = lambda: now() - clock
    _listener.injection, _listener.root, _listener.counts = injection, str(folder), Counter()
    try:
        from flows.cli.main import ended

        status = ended(lambda: _run(folder, plan))
    except BaseException:  # noqa: BLE001 - any exception is printed, and the run has failed
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _run(folder: Path, plan: Plan) -> int:
    """Makes the run and counts its changes."""
    from flows.iterate import iterate

    iterate(config_of(folder, plan), plan.iterations)
    counted = "put" if plan.url else "change"
    changes = {stage: count for (kind, stage), count in _listener.counts.items() if kind == counted}
    (folder / "changes.json").write_text(json.dumps(changes))
    return 0


def config_of(folder: Path, plan: Plan) -> Any:
    """The config of the small run that is broken."""
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
                "per_iteration": 9 if plan.rounds == 1 else 5 * plan.rounds,
                "validation": 5,
                "test": 5,
                "synthetic": synthetic if plan.synthetic else None,
            },
            "sample": {"k": 3, "evaluation_max_attempts": 2},
            "judge": judges[plan.judge],
            "pair": {"min_margin": 0.0, "replay_share": 0.3 if plan.rounds > 1 else 0.0},
            "train": {"epochs": 2, "rounds": plan.rounds},
            "gate": {"scores": ["validation", "second_judge"], "margin": 9.0} if plan.gate else {},
            "health": {"max_unscored": 1.0, "max_unparsable": 1.0, "min_swap_kappa": -1.0, "min_pairs": 0.0},
            "engine": {"shard_prompts": 2},
            "judge_engine": {"shard_prompts": 2},
        }
    )


def make_seed(folder: Path) -> None:
    """A seed model with the miniature's tokenizer and almost no weights."""
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
    """Writes half of the bytes, then kills the process."""
    if len(arguments) == 2 and isinstance(arguments[1], bytes):
        with Path(arguments[0]).open("ab") as file:
            file.write(arguments[1][: len(arguments[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def _fail_with(number: int) -> Callable[[tuple[Any, ...]], None]:
    def inject(arguments: tuple[Any, ...]) -> None:
        raise OSError(number, os.strerror(number), str(arguments[0]) if arguments else None)

    return inject


def _run_out_of_memory(_: tuple[Any, ...]) -> None:
    """Allocates beyond a limit on the process's memory."""
    resource.setrlimit(resource.RLIMIT_AS, (2**35, resource.RLIM_INFINITY))
    bytearray(2**36)


def _fail_engine(_: tuple[Any, ...]) -> None:
    from tpo.errors import StageError

    raise StageError("engine 0 failed on a job that had failed before: it is a mock")


def _at_a_change(inject: Callable[[tuple[Any, ...]], None], *, again: bool = False) -> Callable[..., Injection]:
    return lambda dice, changes, stage: Injection("change", stage, dice.randint(1, changes[stage]), inject, again)


def _at(event: str, inject: Callable[[tuple[Any, ...]], None], most: int) -> Callable[..., Injection]:
    return lambda dice, _, stage: Injection(event, stage, dice.randint(1, most if stage == "all" else 3), inject)


def _some_file(dice: random.Random, root: Path, stage: str) -> Path | None:
    """A file of the run or of one stage; none that marks its holder or was moved aside."""
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
    Fault("kill -9 during a write", _at_a_change(_kill_in_a_write), everywhere=True),
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
    Fault("an engine fails permanently", _at("shard", _fail_engine, 60), says="it is a mock"),
    Fault("kill -9, then the clock is set back", _KILL, clock=86400.0, everywhere=True),
    Fault("kill -9, then a file is cut", _KILL, damage=_damaged(_cut)),
    Fault("kill -9, then a bit flips", _KILL, damage=_damaged(_flip)),
    Fault("kill -9, then a file is deleted", _KILL, damage=_lose),
    Fault("kill -9, then a stage is deleted", _KILL, damage=_lose_stage),
    Fault("a file is cut after the end", damage=_damaged(_cut), everywhere=True),
    Fault("a bit flips after the end", damage=_damaged(_flip), everywhere=True),
    Fault("a file is deleted after the end", damage=_lose, everywhere=True),
    Fault("a stage is deleted after the end", damage=_lose_stage, everywhere=True),
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
