"""Claims about a crew: an actor that dies, hangs, errs or gives less than it was asked for is replaced, and nothing is
lost or done twice; what fails twice stops the run with its cause and what to do. On real Ray actors."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tpo.config import ClusterConfig
from tpo.engines.crew import Orders, share
from tpo.engines.processes import start_ray
from tpo.errors import StageError

pytestmark = pytest.mark.faults
PIECES = [[i, i + 1, i + 2] for i in range(0, 30, 3)]
Outcome = Callable[[str, str, str], None]


class Doubler:
    """Doubles numbers, and misbehaves on one of them as long as a file of its own is not there."""

    def __init__(self, how: str, once: str) -> None:
        self._how = how
        self._once = once

    def pid(self) -> int:
        return os.getpid()

    def work(self, piece: list[int]) -> list[int]:
        if 13 in piece and not os.path.exists(self._once):  # noqa: PTH110 - in a worker, as plain as can be
            if self._how.endswith("once"):
                open(self._once, "w").close()  # noqa: PTH123
            return misbehave(self._how.removesuffix(" once"), piece)
        return [2 * i for i in piece]


def misbehave(how: str, piece: list[int]) -> list[int]:
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "runs out of memory":
        raise MemoryError("cannot allocate 137 GiB")
    if how == "hangs":
        time.sleep(600)
    if how == "stops dead":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "errs":
        raise ValueError("engine core is dead")
    return [2 * i for i in piece][: {"looks healthy and gives nothing": 0, "gives less": 2}[how]]


HOWS = ("dies", "runs out of memory", "hangs", "stops dead", "errs", "looks healthy and gives nothing", "gives less")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    import ray

    start_ray(ClusterConfig())
    yield
    ray.shutdown()


def orders_of(crew: list[Any], how: str, once: str) -> Orders[list[int]]:
    import ray

    actor = ray.remote(Doubler).options(num_cpus=0)

    def replace(place: int) -> None:
        if crew[place] is not None:
            ray.kill(crew[place])
        crew[place] = actor.remote(how, once)
        ray.get(crew[place].pid.remote())

    crew.extend([None, None])
    for place in range(2):
        replace(place)
    return Orders(
        hand=lambda doubler, piece: doubler.work.remote(piece),
        replace=replace,
        fault=lambda piece, result: None if len(result) == len(piece) else f"{len(result)} of {len(piece)} outputs",
        seconds=2.0,
        who="doubler",
        remedy="Lower what it holds",
    )


@pytest.mark.parametrize("how", HOWS)
def test_an_actor_that_fails_once_is_replaced_and_nothing_is_lost_or_done_twice(
    tmp_path: Any, how: str, outcome: Outcome
):
    crew: list[Any] = []
    results = list(share(crew, iter(PIECES), orders_of(crew, f"{how} once", str(tmp_path / "once"))))
    assert sorted(index for index, _ in results) == list(range(len(PIECES)))
    assert all(result == [2 * i for i in PIECES[index]] for index, result in results)
    outcome(f"an engine {how}, once", "sample, judge", "replaced, its shard done again")


@pytest.mark.parametrize(
    ("how", "cause"),
    [("runs out of memory", "cannot allocate 137 GiB"), ("hangs", "no answer within 2 s"), ("gives less", "2 of 3")],
)
def test_a_piece_on_which_two_actors_fail_stops_the_run_with_cause_and_remedy(
    tmp_path: Any, how: str, cause: str, outcome: Outcome
):
    crew, done = list[Any](), list[tuple[int, Any]]()
    orders = orders_of(crew, how, str(tmp_path / "never"))
    started = time.monotonic()
    with pytest.raises(StageError, match=rf"(?s)doubler \d failed where one had failed before: .*{cause}.*Lower what"):
        done.extend(share(crew, iter(PIECES), orders))
    assert time.monotonic() - started < 60
    indices = [index for index, _ in done]
    assert len(indices) == len(set(indices)) and PIECES.index([12, 13, 14]) not in indices
    outcome(f"an engine {how}, again and again", "sample, judge", "stops, names the cause and what to do")
