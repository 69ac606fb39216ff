"""The metrics of this process, kept in memory; no result depends on them.

Everything is counted in the driver: spending as it is booked in the ledger, the states of actors as the pools see
them, GPUs as the actors report them. So nothing is lost or counted twice if an actor is replaced. The cost is a few
dictionary entries per shard, reply or step. A gauge that has nothing to say is absent, not zero.
"""

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from tpo.metrics import catalog
from tpo.metrics.catalog import REPLY_ERROR_KINDS, Metric

Series = Mapping[tuple[str, ...], float]
"""A metric's values by those of its labels."""
_WINDOW_SECONDS = 60.0
"""How far back a rate looks, if there was more than one report in that time."""
_GIB = 2**30


@dataclass(frozen=True)
class GpuReading:
    """What an actor reports about one GPU; None for what its driver doesn't tell."""

    node: str
    """Host name of the node."""
    gpu: str
    """Its number there."""
    name: str
    """Its model."""
    utilization: float | None
    """Mean share of time in which a kernel ran, since the last report."""
    memory_used: int | None
    """Bytes in use, by all processes."""
    memory_total: int | None
    """Bytes."""


@dataclass
class _Point:
    """Reports within a second: when the first and the last came, and their sum."""

    first: float
    last: float
    amount: float


class Pace:
    """A rate over the last minute, or since the last two reports if they are further apart."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._points = deque[_Point]()

    def add(self, amount: float) -> None:
        """Adds what was done since the last report; reports within a second count as one."""
        now = self._clock()
        if self._points and now - self._points[-1].first < 1.0:
            self._points[-1].last = now
            self._points[-1].amount += amount
        else:
            self._points.append(_Point(now, now, amount))
        while len(self._points) > 2 and now - self._points[0].last > _WINDOW_SECONDS:
            self._points.popleft()

    def per_second(self) -> float | None:
        """The rate; None after fewer than two reports, the first of which includes the start of engines."""
        if len(self._points) < 2:
            return None
        first, *later = self._points
        seconds = later[-1].last - first.last
        return sum(point.amount for point in later) / seconds if seconds > 0 else None


class Metrics:
    """Counters and gauges, from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._actors: dict[Hashable, list[tuple[str, str]]] = {}
        self._gpus: dict[Hashable, tuple[GpuReading, ...]] = {}
        self._work = ""
        self._pace = Pace(clock)
        self._errors = 0
        self._errors_of: dict[str, int] = {}
        self._left: int | None = None
        self._messages = set[str]()

    # Any metric.

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Adds to a counter; 0 makes it appear."""
        with self._lock:
            series = self._values.setdefault(metric, {})
            series[labels] = series.get(labels, 0.0) + amount

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Sets a gauge."""
        with self._lock:
            self._values.setdefault(metric, {})[labels] = value

    def drop(self, metric: Metric, *first: str) -> None:
        """Removes a gauge's values whose labels begin with these."""
        with self._lock:
            series = self._values.get(metric, {})
            for labels in [labels for labels in series if labels[: len(first)] == first]:
                del series[labels]

    def total(self, metric: Metric, *first: str) -> float:
        """The sum of a metric's values whose labels begin with these."""
        with self._lock:
            series = self._values.get(metric, {})
            return sum(value for labels, value in series.items() if labels[: len(first)] == first)

    def snapshot(self) -> dict[Metric, Series]:
        """Everything at this moment, by the catalog's order; metrics without a value are left out."""
        with self._lock:
            found = {metric: dict(self._values.get(metric, {})) for metric in catalog.METRICS}
            for reading in self._readings():
                labels = reading.node, reading.gpu
                for metric, value in (
                    (catalog.GPU_UTILIZATION, reading.utilization),
                    (catalog.GPU_MEMORY_USED, reading.memory_used),
                    (catalog.GPU_MEMORY, reading.memory_total),
                ):
                    if value is not None:
                        found[metric][labels] = value
        return {metric: series for metric, series in found.items() if series}

    # A stage's work, from its meter and its progress bar.

    def begin(self, work: str) -> None:
        """A stage begins to work."""
        with self._lock:
            self._work, self._pace, self._errors = work, Pace(self._clock), 0
            self._count(work, answers=0, tokens_in=0, tokens_out=0, seconds=0)  # `rate` can't see a counter appear.
            self.remaining(self._left)

    def end(self) -> None:
        """It ends."""
        with self._lock:
            self._errors_of[self._work] = self._errors
            self._work = ""
            self.remaining(None)

    def spent(self, work: str, *, answers: int, tokens_in: int, tokens_out: int, seconds: float) -> None:
        """A line of the ledger."""
        with self._lock:
            self._count(work, answers=answers, tokens_in=tokens_in, tokens_out=tokens_out, seconds=seconds)
            # A training reports every step, see `advanced`; a judge may work beside the stage that is shown.
            if work == self._work != "train" and (tokens_in or tokens_out):
                self.advanced(tokens_out if work.endswith("sample") else tokens_in + tokens_out)

    def _count(self, work: str, *, answers: int, tokens_in: int, tokens_out: int, seconds: float) -> None:
        self.add(catalog.TOKENS, tokens_in, work, "in")
        self.add(catalog.TOKENS, tokens_out, work, "out")
        self.add(catalog.ANSWERS, answers, work)
        self.add(catalog.SECONDS, seconds, work)

    def advanced(self, tokens: float) -> None:
        """Tokens done by the current stage since the last report, for its rate."""
        with self._lock:
            self._pace.add(tokens)

    @contextlib.contextmanager
    def counting_down(self, items: int) -> Iterator[None]:
        """The context of a stage with that many items to do."""
        self.remaining(items)
        try:
            yield
        finally:
            self.remaining(None)

    def remaining(self, items: int | None) -> None:
        """How many items are left; shown while the stage's work is known."""
        with self._lock:
            self._left = items
            self.drop(catalog.REMAINING)
            if self._work and items is not None:
                self.set(catalog.REMAINING, max(0, items), self._work)

    def tokens_per_second(self) -> float | None:
        """The current stage's rate: tokens written if it samples, otherwise all."""
        with self._lock:
            return self._pace.per_second()

    def expect_replies(self) -> None:
        """The current stage asks a model whose replies may fail; an alert can't see a counter appear, only grow."""
        for error in REPLY_ERROR_KINDS:
            self.add(catalog.REPLY_ERRORS, 0, self._work or "other", error)

    def failed_reply(self, error: str) -> None:
        """A call that failed, or a reply that is no use; `error` is one of `REPLY_ERROR_KINDS`."""
        with self._lock:
            self._errors += 1
            self.add(catalog.REPLY_ERRORS, 1, self._work or "other", error)

    def errors_of(self, work: str) -> int | None:
        """Failed replies in the last stage of that kind of work, once; None if this process had none since."""
        with self._lock:
            return self._errors_of.pop(work, None)

    @contextlib.contextmanager
    def calling(self) -> Iterator[Callable[[int, int], None]]:
        """The context of calls to a server; yields a function that takes how many are under way and how many wait."""

        def show(in_flight: int, waiting: int) -> None:
            self.set(catalog.CALLS, in_flight, "in_flight")
            self.set(catalog.CALLS, waiting, "waiting")

        try:
            yield show
        finally:
            self.drop(catalog.CALLS)

    # Training.

    @contextlib.contextmanager
    def training(self, peak: float | None) -> Iterator[Callable[[float, float | None], None]]:
        """The context of a training on GPUs with that peak; yields a function that takes the operations done since it
        was last called, and the MFU so far."""

        def show(flops: float, mfu: float | None) -> None:
            self.add(catalog.TRAINING_FLOPS, flops)
            if mfu is not None:
                self.set(catalog.TRAINING_MFU, mfu)

        if peak is not None:
            self.set(catalog.TRAINING_PEAK, peak)
        try:
            yield show
        finally:
            self.drop(catalog.TRAINING_MFU)
            self.drop(catalog.TRAINING_PEAK)

    def is_new(self, message: str) -> bool:
        """Whether a message is new to this process."""
        with self._lock:
            known = message in self._messages
            self._messages.add(message)
            return not known

    # Actors.

    def show_actors(self, pool: Hashable, role: str, states: Iterable[str]) -> None:
        """The states of a pool's actors at this moment; pools of one role are added up."""
        with self._lock:
            self._actors[pool] = [(role, state) for state in states]
            self.drop(catalog.ACTORS, role)
            for (name, state), count in Counter(chain.from_iterable(self._actors.values())).items():
                if name == role:
                    self.set(catalog.ACTORS, count, name, state)
            self.add(catalog.ACTOR_FAILURES, 0, role)

    def failed_actor(self, role: str) -> None:
        """An actor died, hung or failed."""
        self.add(catalog.ACTOR_FAILURES, 1, role)

    # GPUs, by the actor that holds them.

    def report_gpus(self, holder: Hashable, readings: Iterable[GpuReading]) -> None:
        """Replaces what an actor reported before."""
        with self._lock:
            self._gpus.pop(holder, None)  # Among holders of one GPU, the last report counts.
            if found := tuple(readings):
                self._gpus[holder] = found

    def forget_gpus(self, holder: Hashable) -> None:
        """An actor is gone."""
        with self._lock:
            self._gpus.pop(holder, None)

    def _readings(self) -> list[GpuReading]:
        latest = {(each.node, each.gpu): each for readings in self._gpus.values() for each in readings}
        return list(latest.values())

    # The line at the terminal.

    def line(self) -> str:
        """How the current stage is doing, in a few words; empty if nothing is known yet."""
        with self._lock:
            rate, mfu = self._pace.per_second(), self._values.get(catalog.TRAINING_MFU, {}).get(())
            readings, errors = self._readings(), self._errors
        parts = [] if rate is None else [f"{rate:,.0f} tokens/s"]
        if mfu is not None:
            parts.append(f"MFU {mfu:.0%}")
        if busy := [reading.utilization for reading in readings if reading.utilization is not None]:
            parts.append(f"GPU {sum(busy) / len(busy):.0%}")
        if memory := [reading.memory_used for reading in readings if reading.memory_used is not None]:
            parts.append(f"{max(memory) / _GIB:.0f} GiB")
        if errors:
            parts.append(f"{errors} error{'s' * (errors != 1)}")
        return ", ".join(parts)
