"""A pool of Ray actors that share work: idle ones take the next job, failed ones are replaced, and no job is lost.

Results come as soon as they are ready, in any order. Actors don't wait for each other. The first that is ready begins;
one that Ray can only place later, because a node joins, begins then; one that fails is restarted while the others
continue. An actor fails by dying, by an error, by an incomplete result (fewer outputs than prompts), or by a timeout:
an engine that hangs looks alive to Ray.

A failed job is given to another actor, and one that keeps failing stops the run, with completed work kept. A death
counts half as much as other failures, since a dying node takes all its actors with it and the job isn't at fault; but a
job that kills every worker must eventually fail.
"""

import math
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from tpo.console import say
from tpo.engines.cluster.placement import Member, Role, dismiss, hire, is_placed
from tpo.engines.cluster.room import Room
from tpo.errors import StageError

Piece = TypeVar("Piece")

FAILURE, DEATH = 2, 1
"""The weight of a failed attempt against a job: one that ended in an error, late or incomplete; one whose actor
died."""
TOO_MUCH = 4
"""The total weight that stops the run."""
_STARTS = 2
"""Number of failed starts after which an actor's slot is given up."""
_LATE_START = "If the model is large, raise start_seconds (of engine or judge_engine)"
_NO_PLACE = "Look whether other work holds Ray's CPUs or GPUs, or ask for fewer"


@dataclass(frozen=True)
class Remedies:
    """Remedies for a failure that stops a run; which one is shown depends on the cause."""

    memory: str
    """An actor died, or its error speaks of memory."""
    late: str
    """A job took too long."""
    cache: str = ""
    """vLLM found too little room for its KV cache."""


@dataclass(frozen=True)
class Orders(Generic[Piece]):
    """What a pool does with its actors."""

    prepare: Callable[[Any], Any]
    """Readies an actor, if it isn't yet; returns Ray's reference to a fault or None."""
    hand: Callable[[Any, Piece], Any]
    """Hands a job to an actor; returns Ray's reference to the result."""
    fault: Callable[[Piece, Any], str | None]
    """Returns a result's fault, or None."""
    seconds: float
    """Timeout of one job, in seconds."""
    start_seconds: float
    """Timeout of getting ready, in seconds."""
    model: str
    """The model that they work with; human-readable."""
    remedies: Remedies
    """The remedy if it keeps failing."""


@dataclass
class _Place:
    """A slot of a pool, and what is in progress there."""

    number: int
    state: Literal["empty", "called", "preparing", "idle", "busy"] = "empty"
    """No actor; one that Ray has not placed; getting ready; ready; working."""
    member: Member | None = None
    task: Any = None
    """Ray's reference to what is in progress: arrival, getting ready, or a job."""
    due: float = math.inf
    """The time at which that has taken too long."""
    orders: Any = None
    """The model that it got ready for."""
    was_ready: bool = False
    failed_starts: int = 0
    piece: int = -1
    """Its job."""

    def wait_for(self, state: Literal["called", "preparing", "busy"], task: Any, seconds: float) -> None:
        """Sets what is in progress."""
        self.state, self.task, self.due = state, task, time.monotonic() + seconds

    def rest(self) -> None:
        """Sets that nothing is in progress."""
        self.state, self.task, self.due = "idle", None, math.inf


@dataclass(frozen=True)
class _End:
    """How something in progress ended."""

    result: Any = None
    cause: str | None = None
    """Why there is no result."""
    died: bool = False
    """Whether the actor itself is gone, and not only its task failed."""
    late: bool = False
    """Whether it took too long."""

    def with_remedy(self, late: str, remedies: Remedies) -> str:
        """The cause and the remedy; an actor's own message already names it."""
        cause = str(self.cause).rstrip()
        last = _last_line(cause)  # The lines above are a traceback, in which any word may occur.
        if self.late:
            remedy = late
        elif "KV cache" in last:
            remedy = remedies.cache
        elif self.died or "memory" in last.lower():
            remedy = remedies.memory
        else:
            remedy = ""
        return f"{cause}. {remedy}" if remedy else cause


class _Pile(Generic[Piece]):
    """The queue of jobs."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._source = enumerate(pieces)
        self._again: list[int] = []
        self.held: dict[int, Piece] = {}
        """Jobs that were taken and aren't done."""
        self._strikes = Counter[int]()

    def take(self) -> int | None:
        """The next job: one to be repeated, or a new one."""
        if self._again:
            return self._again.pop()
        for index, piece in self._source:
            self.held[index] = piece
            return index
        return None

    def put_back(self, index: int, weight: int) -> bool:
        """Puts a job back; False if it failed too often."""
        self._again.append(index)
        self._strikes[index] += weight
        return self._strikes[index] < TOO_MUCH


class ActorPool:
    """Actors that share work, each in a slot; started when there is work, and alive until `close`."""

    def __init__(self, role: Role, count: int, room: Room) -> None:
        self._role = role
        self._room = room
        self._places = [_Place(number) for number in range(count)]
        self._lock = threading.Lock()
        self.used = time.monotonic()
        room.register(self)

    @property
    def actors(self) -> list[Any]:
        """The existing actors of all slots."""
        return [place.member.actor for place in self._places if place.member is not None]

    def work(self, pieces: Iterable[Piece], orders: Orders[Piece]) -> Iterator[tuple[int, Any]]:
        """The index and result of every piece, as the pool gets them done.

        Raises `StageError` if actors fail on the same piece again and again, if none can be started, and if
        Ray places none within `start_seconds`.
        """
        pile = _Pile(pieces)
        with self._lock:
            if (first := pile.take()) is None:
                return
            pile.put_back(first, 0)
            self._gather(orders)
            heard = time.monotonic()
            try:
                while self._hand_out(pile, orders):
                    place = self._first_done(heard, orders)
                    if place.state != "busy":
                        self._arrive(place, orders)
                    elif (end := self._end(place, pile, orders)).cause is None:
                        yield place.piece, end.result
                    heard = time.monotonic()
            finally:
                self.used = time.monotonic()
                for place in self._places:
                    if (
                        place.state == "busy"
                    ):  # Left by the caller: whatever it does next waits until the jobs in progress are done.
                        place.rest()

    def holds(self, resource: str) -> float:
        """How much of a resource its placed actors hold."""
        placed = sum(place.state not in ("empty", "called") for place in self._places)
        return placed * self._role.amount(resource)

    def close_if_idle(self) -> bool:
        """Stops all actors, unless they are working."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self.close()
        finally:
            self._lock.release()
        return True

    def close(self) -> None:
        """Stops all actors and releases their resources."""
        for place in self._places:
            self._empty(place)

    def _gather(self, orders: Orders[Any]) -> None:
        """Requests actors for empty slots, and has existing ones get ready: some may have died unnoticed."""
        waiting = sum(place.state in ("empty", "called") for place in self._places)
        for resource in ("GPU", "CPU"):
            self._room.make(resource, waiting * self._role.amount(resource), self)
        for place in self._places:
            place.failed_starts = 0
            if place.state == "empty":
                self._call(place, orders)
            elif place.state == "idle":
                self._prepare(place, orders)

    def _hand_out(self, pile: _Pile[Piece], orders: Orders[Piece]) -> bool:
        """Gives jobs to idle actors; False if all jobs are done."""
        for place in self._places:
            if place.state == "idle" and (index := pile.take()) is not None:
                assert place.member is not None
                place.piece = index
                place.wait_for("busy", orders.hand(place.member.actor, pile.held[index]), orders.seconds)
        return bool(pile.held)

    def _first_done(self, heard: float, orders: Orders[Any]) -> _Place:
        """A place where what was under way is done, or has taken too long: an actor that Ray has placed takes too long
        where it doesn't arrive, one that waits for a place doesn't.

        Raises `StageError` if all have waited for a place since `heard`, for too long.
        """
        import ray

        while True:
            under = {place.task: place for place in self._places if place.task is not None}
            first = min(under.values(), key=lambda place: place.due)
            done, _ = ray.wait(list(under), num_returns=1, timeout=max(0.0, first.due - time.monotonic()))
            if done:
                return under[done[0]]
            if first.state != "called" or is_placed(first.member):
                return first
            some_are_placed, now = any(is_placed(place.member) for place in under.values()), time.monotonic()
            if not some_are_placed and now >= heard + orders.start_seconds:
                raise StageError(
                    f"Ray has placed no {self._role.name} of {orders.model} within {orders.start_seconds:g} s: each of "
                    f"{len(under)} asks for {self._role.asks}, and {_what_ray_has()}. {_NO_PLACE}"
                )
            first.due = (now if some_are_placed else heard) + orders.start_seconds

    def _arrive(self, place: _Place, orders: Orders[Any]) -> None:
        """Handles an actor that was placed, got ready, or failed to."""
        end = _collect(place, orders.start_seconds)
        if end.cause is None and place.state == "preparing":
            end = _End(cause=end.result)
        if end.cause is None and place.state == "preparing":
            place.was_ready, place.failed_starts = True, 0
            place.rest()
        if end.cause is None:
            if place.orders is not orders:
                self._prepare(place, orders)
        elif place.was_ready:
            self._call(place, orders)
        else:
            self._call_once_more(place, end, orders)

    def _call_once_more(self, place: _Place, end: _End, orders: Orders[Any]) -> None:
        """Handles an actor that failed to start. Raises `StageError` if no slot is left."""
        place.failed_starts += 1
        if place.failed_starts < _STARTS:
            self._call(place, orders)
            return
        self._empty(place)
        if all(other.state == "empty" for other in self._places):
            said = end.with_remedy(_LATE_START, orders.remedies)
            raise StageError(f"no {self._role.name} of {orders.model} starts: {said}")
        say(f"{self._name(place, orders)} does not start and is given up, others go on: {_line(str(end.cause))}")

    def _end(self, place: _Place, pile: _Pile[Piece], orders: Orders[Piece]) -> _End:
        """Handles a job that is done or has failed. Raises `StageError` if it has failed too often."""
        end = _collect(place, orders.seconds)
        if end.cause is None and (fault := orders.fault(pile.held[place.piece], end.result)) is not None:
            end = _End(cause=fault)
        if end.cause is None:
            del pile.held[place.piece]
            place.rest()
            return end
        if not pile.put_back(place.piece, DEATH if end.died else FAILURE):
            said = end.with_remedy(orders.remedies.late, orders.remedies)
            raise StageError(f"{self._name(place, orders)} failed where one had failed before: {said}")
        say(f"{self._name(place, orders)} is replaced, what it had is done again: {_line(end.cause)}")
        self._call(place, orders)
        if end.died:  # A node may be gone, and idle actors on it would fail at jobs that aren't at fault.
            for other in self._places:
                if other.state == "idle":
                    self._prepare(other, orders)
        return end

    def _call(self, place: _Place, orders: Orders[Any]) -> None:
        """Requests a new actor from Ray."""
        self._empty(place)
        place.member = hire(self._role)
        place.wait_for("called", place.member.actor.__ray_ready__.remote(), orders.start_seconds)

    def _prepare(self, place: _Place, orders: Orders[Any]) -> None:
        assert place.member is not None
        place.orders = orders
        place.wait_for("preparing", orders.prepare(place.member.actor), orders.start_seconds)

    def _name(self, place: _Place, orders: Orders[Any]) -> str:
        return f"{self._role.name} {place.number} of {orders.model}"

    def _empty(self, place: _Place) -> None:
        if place.member is not None:
            dismiss(place.member)
        place.rest()
        place.state, place.member, place.orders, place.was_ready = "empty", None, None, False


def _collect(place: _Place, seconds: float) -> _End:
    """The outcome of a task that is done, or has taken too long."""
    import ray

    try:
        return _End(ray.get(place.task, timeout=0))
    except ray.exceptions.GetTimeoutError:
        return _End(cause=f"no answer within {seconds:g} s", late=True)
    except ray.exceptions.RayTaskError as error:
        return _End(cause=str(error))
    except ray.exceptions.RayError as error:
        return _End(cause=str(error), died=True)


def _what_ray_has() -> str:
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    had = [f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s" for name in ("GPU", "CPU")]
    return f"Ray has {' and '.join(had)} free"


def _line(cause: str) -> str:
    """An error's last line, shortened."""
    return textwrap.shorten(_last_line(cause), 200, placeholder=" …")


def _last_line(cause: str) -> str:
    """The line of a Ray error that tells what it was."""
    return next((line for line in reversed(cause.splitlines()) if line.strip()), cause)
