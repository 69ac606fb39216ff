"""The spending of a run: tokens, device time and money, appended to `ledger.jsonl` line by line.

Entries are never removed. A line is written before the work that it paid for is saved, so work lost in a crash is paid
for and counted twice, and so is a redone stage. The ledger is the only place where spending is counted, and no result
depends on it. Only the time since a killed process's last line is missing: at most a shard or half a minute.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tpo.config.resources import BudgetConfig
from tpo.console import say
from tpo.errors import BudgetError, StoreError
from tpo.run_context import run_context
from tpo.storage.journal import FoundLines, Lines, read_lines, write_lines

LEDGER = "ledger.jsonl"
"""The ledger's name in the run folder."""
API = "api"
"""Device name of a server's replies."""
MAX_LINES = 1000
"""Number of lines above which a ledger is compacted when it is opened."""
MIN_SHARDS = 3
"""Number of shards below which the start-up time can't be estimated."""
TICK_SECONDS = 30.0
"""Seconds after which `Meter.tick` books a line."""

WORK = (
    "generate", "short sample", "long sample", "sample", "judge", "train", "validation sample", "validation judge",
    "test sample", "test judge", "benchmark sample", "benchmark judge", "rate"
)  # fmt: skip
"""The kinds of work, in the order of an iteration."""
TOTAL = "total"
"""The line with their sum."""
_VERBS = {"generations": "generate", "samples": "sample", "judgments": "judge", "train": "train"}
_PURPOSES = {
    "validation": "validation ", "test": "test ", "direct": "test ", "against": "test ", "against_direct": "test ",
    "long": "long ", "short": "short ", "benchmarks": "benchmark ",
}  # fmt: skip
_RATINGS = "ratings"
_SECOND_JUDGES = ("second_judge", "verifier")


@dataclass(frozen=True)
class Entry:
    """An amount spent, or a sum of such amounts."""

    stage: str
    """Path of the stage below the run folder."""
    device: str
    """What it ran on: `cpu`, a GPU's name, or `api`."""
    devices: int = 0
    """GPUs, or engines or workers on CPUs, that were held; 0 for a server."""
    parameters: int = 0
    """Parameters of the model; 0 if unknown."""
    server: str = ""
    """The model and its server, such as `gpt-4.1 at https://…/v1`; empty on local devices."""
    prompts: int = 0
    """Prompts finished."""
    answers: int = 0
    """Outputs generated or sampled, responses read, comparisons made, or pairs trained on, each pass counted."""
    tokens_in: int = 0
    """Tokens read; in training, all tokens."""
    tokens_out: int = 0
    """Tokens written."""
    seconds: float = 0.0
    """Wall-clock time in seconds, engine starts included."""
    starts: int = 0
    """Number of the stage's starts whose `start_seconds` are known."""
    start_seconds: float = 0.0
    """Start-up time of engines and workers, in seconds: the estimated excess of the first shard over the others."""
    cost: float = 0.0
    """Cost, at the prices of that time."""

    @property
    def work(self) -> str:
        """The kind of work, one of `WORK`."""
        return work_of(self.stage)

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.tokens_in + self.tokens_out

    @property
    def device_seconds(self) -> float:
        """Seconds times devices held."""
        return self.seconds * self.devices


def work_of(stage: str) -> str:
    """The kind of work of a stage at this path below the run folder; one of `WORK` if it samples, judges or trains."""
    _, *purpose, last = stage.split("/")
    if last == _RATINGS:
        return "rate"  # whatever it is for
    if purpose[:1] == ["validation"] and purpose[-1] in _SECOND_JUDGES:
        purpose = ["test"]  # validation answers, but read by the judge of the test
    return next((_PURPOSES[name] for name in purpose if name in _PURPOSES), "") + _VERBS.get(last, last)


@dataclass(frozen=True)
class Spending:
    """A line in the table of spending."""

    work: str
    """The kind of work, or `TOTAL`."""
    prompts: int
    """Prompts finished."""
    answers: int
    """Outputs sampled, responses read, comparisons made, pairs trained on."""
    tokens_in: int
    """Tokens read."""
    tokens_out: int
    """Tokens written."""
    seconds: float
    """Wall-clock time."""
    gpu_seconds: float
    """Seconds times GPUs held."""
    engine_seconds: float
    """Seconds times engines or workers held on CPUs."""
    cost: float
    """Cost."""


@dataclass(frozen=True)
class Worker:
    """The model and devices of a stage, with prices."""

    device: str
    """As in `Entry`."""
    devices: int = 0
    """As in `Entry`."""
    parameters: int = 0
    """As in `Entry`."""
    server: str = ""
    """As in `Entry`."""
    at_once: int = 1
    """Shards in progress at the same time."""
    hour_price: float = 0.0
    """Price per hour of one device."""
    input_price: float = 0.0
    """Price of a million tokens read."""
    output_price: float = 0.0
    """Price of a million tokens written."""


def read_ledger(root: Path) -> list[Entry]:
    """All spending of the run in `root`, including earlier starts; damaged lines are skipped."""
    return _entries(root / LEDGER, read_lines(root / LEDGER))


def spending(entries: Iterable[Entry]) -> list[Spending]:
    """Spending by kind of work, with the total last; empty if nothing was spent."""
    listed = list(entries)
    by_work = {work: [entry for entry in listed if entry.work == work] for work in WORK}
    return [_line(work, found) for work, found in (*by_work.items(), (TOTAL, listed)) if found]


class Meter:
    """Books a stage's spending, each line with the time since the last; on exit, the remaining time.

    Args:
        root: The run folder.
        stage: The stage's path below it.
        worker: The model and devices.
        budget: The run's limits.
        beside: Whether another stage is shown meanwhile as the one at work.
        clock: Returns seconds since a fixed moment.
    """

    def __init__(
        self,
        root: Path,
        stage: str,
        worker: Worker,
        budget: BudgetConfig,
        *,
        beside: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = root / LEDGER
        self._stage = stage
        self._worker = worker
        self._budget = budget
        self._beside = beside
        self._clock = clock
        self._file = Lines(self._path)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        found = read_lines(self._path)
        entries = _entries(self._path, found)
        if found.dropped:
            say(f"{self._path}: {found.dropped} damaged lines, whose spending is not known")
        if found.dropped or len(entries) > MAX_LINES:
            entries = _summed(entries)
            write_lines(self._path, [_to_json(entry) for entry in entries])
        self._total = _sum(entries)
        self._last = self._began = self._clock()
        self._shards = list[float]()
        self._start_seconds: float | None = None
        if not self._beside:
            run_context().metrics.begin(self._work)
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            start = self._found_start()
            if start is not None or self._clock() - self._last >= 0.001:
                self._book(
                    Entry(
                        self._stage,
                        self._worker.device,
                        starts=int(start is not None),
                        start_seconds=round(start or 0.0, 3),
                    )
                )
            self._file.close()
        if not self._beside:
            run_context().metrics.end()

    @property
    def _work(self) -> str:
        """The kind of work as a label: one of few."""
        work = Entry(self._stage, "").work
        return work if work in WORK else "other"

    def book(self, *, prompts: int = 0, answers: int = 0, tokens_in: int = 0, tokens_out: int = 0) -> None:
        """Writes a line. Call it before saving the work that it paid for."""
        with self._lock:
            if prompts:
                self._shards.append(self._clock() - self._began)
            self._book(
                Entry(
                    self._stage,
                    self._worker.device,
                    prompts=prompts,
                    answers=answers,
                    tokens_in=tokens_in,
                    tokens_out=tokens_out,
                )
            )

    def started(self) -> None:
        """Mark start-up as finished for work that isn't sharded. Later calls are no-ops."""
        if self._start_seconds is None:
            self._start_seconds = self._clock() - self._began

    def tick(self) -> bool:
        """Whether work that isn't sharded is due for a line."""
        return self._clock() - self._last >= TICK_SECONDS

    def is_spent(self) -> bool:
        """Whether a limit is reached."""
        return self._excess() is not None

    def check(self) -> None:
        """Raises `BudgetError` if a limit is reached."""
        if (excess := self._excess()) is not None:
            raise excess

    def _excess(self) -> BudgetError | None:
        total, budget = self._total, self._budget
        hours = total.seconds / 3600
        for name, cap, spent, shown in (
            ("hours", budget.hours, hours, f"{hours:,.2f} hours of work"),
            ("tokens", budget.tokens, total.tokens, f"{total.tokens:,} tokens"),
            ("cost", budget.cost, total.cost, f"a cost of {total.cost:,.2f}"),
        ):
            if cap is not None and spent >= cap:
                return BudgetError(
                    f"budget.{name} = {cap:,} is reached at {self._stage}: {shown} spent so far (by stage in "
                    f"{self._path}). Completed work is saved: raise budget.{name} in the profile, or with "
                    f'SET="budget.{name}=…", and rerun the same command to resume'
                )
        return None

    def _found_start(self) -> float | None:
        """Estimated start-up time in seconds: the first shard's time less that of a later one; None if unknown.

        With n engines in parallel, a shard takes the time between the ends of shards i and i + n.
        """
        shards, at_once = self._shards, self._worker.at_once
        turns = (len(shards) - 1) // at_once
        if self._start_seconds is not None or len(shards) < MIN_SHARDS or not turns:
            return self._start_seconds
        return max(0.0, shards[0] - (shards[turns * at_once] - shards[0]) / turns)

    def _book(self, entry: Entry) -> None:
        now, worker = self._clock(), self._worker
        seconds = now - self._last
        cost = (entry.tokens_in * worker.input_price + entry.tokens_out * worker.output_price) / 1e6
        entry = dataclasses.replace(
            entry,
            devices=worker.devices,
            parameters=worker.parameters,
            server=worker.server,
            seconds=round(seconds, 3),
            cost=cost + seconds / 3600 * worker.devices * worker.hour_price,
        )
        self._last += entry.seconds  # Carry the rounding error over to the next line.
        self._file.write(_to_json(entry))
        self._total = _sum([self._total, entry])
        run_context().metrics.spent(
            self._work,
            answers=entry.answers,
            tokens_in=entry.tokens_in,
            tokens_out=entry.tokens_out,
            seconds=entry.seconds,
        )


def _entries(path: Path, found: FoundLines) -> list[Entry]:
    """The entries; raises `StoreError` if a line has an unknown format, e.g. from a newer version."""
    try:
        return [Entry(**values) for values in found.values]
    except TypeError as error:
        raise StoreError(
            f"{path} has a line that this version cannot read ({error}): use the newer version that wrote it"
        ) from error


def _summed(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, with those of the same stage, devices and model summed."""
    alike: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        alike.setdefault((entry.stage, entry.device, entry.devices, entry.parameters, entry.server), []).append(entry)
    return [_sum(found) for found in alike.values()]


def _sum(entries: Sequence[Entry]) -> Entry:
    """The sum of some entries, with the first one's description."""
    if not entries:
        return Entry("", "")
    amounts = ("prompts", "answers", "tokens_in", "tokens_out", "seconds", "starts", "start_seconds", "cost")
    return dataclasses.replace(entries[0], **{name: sum(getattr(entry, name) for entry in entries) for name in amounts})


def _line(work: str, entries: Sequence[Entry]) -> Spending:
    total = _sum(entries)
    on_cpus = [entry for entry in entries if entry.device == "cpu"]
    return Spending(
        work=work,
        prompts=total.prompts,
        answers=total.answers,
        tokens_in=total.tokens_in,
        tokens_out=total.tokens_out,
        seconds=total.seconds,
        gpu_seconds=sum(entry.device_seconds for entry in entries) - sum(entry.device_seconds for entry in on_cpus),
        engine_seconds=sum(entry.device_seconds for entry in on_cpus),
        cost=total.cost,
    )


def _to_json(entry: Entry) -> dict[str, object]:
    """The entry without zero values."""
    return {name: value for name, value in vars(entry).items() if value or name in ("stage", "device")}
