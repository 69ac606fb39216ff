"""A crew of Ray actors that share work: who is free takes the next piece, who fails is replaced, no piece is lost.

In: pieces of work and how to hand one to an actor. Out: each piece's result as soon as it is there, in any order.

An actor fails by dying, by an error, by a result that is not what was asked for (fewer outputs than prompts), or by
taking longer than it may: an engine that hangs looks alive to Ray. What it had is given to another, once; a piece on
which two actors fail is a fault of the piece or of the machine, and stops the run with what is complete kept.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tpo.errors import StageError

Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Orders(Generic[Piece]):
    """How a crew does its work."""

    hand: Callable[[Any, Piece], Any]
    """Hands a piece to an actor; returns Ray's reference to the result."""
    replace: Callable[[int], None]
    """Puts a new actor in a place of the crew."""
    fault: Callable[[Piece, Any], str | None]
    """What is wrong with a result, or None."""
    seconds: float
    """Longest time for one piece."""
    who: str
    """What an actor of the crew is called in errors."""
    remedy: str
    """What to do about a piece that fails twice."""


@dataclass(frozen=True)
class _Under:
    """A piece under way."""

    index: int
    place: int
    since: float


def share(crew: list[Any], pieces: Iterable[Piece], orders: Orders[Piece]) -> Iterator[tuple[int, Any]]:
    """The index and result of every piece, as the crew gets them done.

    Raises `StageError` where two actors fail on the same piece.
    """
    import ray

    source, held, again = enumerate(pieces), dict[int, Piece](), list[int]()
    failed: set[int] = set()
    idle = list(range(len(crew)))[::-1]
    under: dict[Any, _Under] = {}
    while True:
        while idle and (index := _next(source, held, again)) is not None:
            place = idle.pop()
            under[orders.hand(crew[place], held[index])] = _Under(index, place, time.monotonic())
        if not under:
            return
        task = _first_done(under, orders.seconds)
        done = under.pop(task)
        try:
            result = ray.get(task, timeout=0)
            fault = orders.fault(held[done.index], result)
        except ray.exceptions.GetTimeoutError:
            fault = f"no answer within {orders.seconds:g} s"
        except ray.exceptions.RayError as error:
            fault = str(error)
        if fault is None:
            yield done.index, result
            del held[done.index]
        elif done.index in failed:
            raise StageError(f"{orders.who} {done.place} failed where one had failed before: {fault}. {orders.remedy}")
        else:
            failed.add(done.index)
            again.append(done.index)
            orders.replace(done.place)
        idle.append(done.place)


def _next(source: Iterator[tuple[int, Piece]], held: dict[int, Piece], again: list[int]) -> int | None:
    """The next piece to hand out: one that has to be done again, or a new one."""
    if again:
        return again.pop()
    for index, piece in source:
        held[index] = piece
        return index
    return None


def _first_done(under: dict[Any, _Under], seconds: float) -> Any:
    """A piece that is done, or has taken longer than it may."""
    import ray

    oldest = min(under, key=lambda task: under[task].since)
    left = under[oldest].since + seconds - time.monotonic()
    done, _ = ray.wait(list(under), num_returns=1, timeout=max(0.0, left))
    return done[0] if done else oldest
