"""Claims about a pool: an actor that dies, hangs, errs or gives less than it was asked for is replaced while the others
go on, and nothing is lost or done twice; what fails again and again stops the run with its cause and what to do. On
real Ray actors of this machine; test_cluster.py has those of several."""

import itertools
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tpo.config.resources import ClusterConfig
from tpo.engines.cluster.actor_pool import ActorPool, JobSpec, Remedies
from tpo.engines.cluster.placement import Role
from tpo.engines.cluster.processes import start_ray
from tpo.engines.cluster.room import Room
from tpo.errors import StageError

pytestmark = pytest.mark.faults
PIECES = [[i, i + 1, i + 2] for i in range(0, 30, 3)]
DOUBLED = {index: [2 * i for i in piece] for index, piece in enumerate(PIECES)}
Outcome = Callable[[str, str, str], None]


class Doubler:
    """Doubles numbers; misbehaves at its start or at one of the numbers: always, once, or all but one of its kind."""

    def __init__(self, how: str, folder: str) -> None:
        self._when, _, self._how = how.rpartition(": ")
        self._once = Path(folder) / "once"
        self._starts = Path(folder) / "starts"
        self._task: str | None = None
        if self._when == "arrival":
            self._misbehave([])

    def load(self, task: str) -> str | None:
        if self._when == "start":
            self._misbehave([])
        self._starts.mkdir(exist_ok=True)
        (self._starts / str(os.getpid())).touch()
        if self._how.endswith(", two start") and len(list(self._starts.iterdir())) > 2:
            misbehave("hangs", [])
        self._task = task
        return None

    def work(self, piece: list[int]) -> list[int]:
        if 13 in piece and self._how and not self._when:
            return self._misbehave(piece)
        return [2 * i for i in piece]

    def told(self, _: list[int]) -> tuple[int, str | None]:
        time.sleep(0.2)
        return os.getpid(), self._task

    def _misbehave(self, piece: list[int]) -> list[int]:
        how, _, often = self._how.partition(", ")
        first = self._first()
        if often and first == (often == "all but one"):
            return [2 * i for i in piece]
        return misbehave(how, piece)

    def _first(self) -> bool:
        try:
            self._once.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def misbehave(how: str, piece: list[int]) -> list[int]:
    if how == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "runs out of memory":
        resource.setrlimit(resource.RLIMIT_AS, (2**36, resource.RLIM_INFINITY))
        bytearray(2**37)
    if how == "hangs":
        time.sleep(600)
    if how == "stops dead":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "errs":
        raise ValueError("engine core is dead")
    return [2 * i for i in piece][: {"looks healthy and gives nothing": 0, "gives less": 2}[how]]


HOWS = ("dies", "runs out of memory", "hangs", "stops dead", "errs", "looks healthy and gives nothing", "gives less")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> None:
    start_ray(ClusterConfig())


def answers(actor: Any) -> bool:
    import ray

    try:
        ray.get(actor.__ray_ready__.remote())
    except ray.exceptions.RayActorError:
        return False
    return True


Make = Callable[..., ActorPool]


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
def make(tmp_path: Path, room: Room) -> Iterator[Make]:
    """Makes pools, and stops them in the end."""
    made = []

    def call(how: str = "", count: int = 2, cpus: float = 0) -> ActorPool:
        role = Role("doubler", Doubler, (how, str(tmp_path)), cpus=cpus, gpus=0, environment={})
        made.append(ActorPool(role, count, room))
        return made[-1]

    yield call
    for pool in made:
        pool.close()


def orders(
    *, task: str = "", ask: str = "work", seconds: float = 2.0, start_seconds: float = 120.0
) -> JobSpec[list[int]]:
    return JobSpec(
        prepare=lambda doubler: doubler.load.remote(task),
        submit=lambda doubler, piece: getattr(doubler, ask).remote(piece),
        fault=lambda piece, result: (
            None if ask == "told" or len(result) == len(piece) else f"{len(result)} of {len(piece)} outputs"
        ),
        seconds=seconds,
        start_seconds=start_seconds,
        model="numbers",
        remedies=Remedies(memory="Lower what it holds", late="Give it longer"),
    )


def doubled(pool: ActorPool, how: JobSpec[list[int]]) -> dict[int, list[int]]:
    results = list(pool.work(iter(PIECES), how))
    assert sorted(index for index, _ in results) == list(range(len(PIECES)))
    return dict(results)


@pytest.mark.parametrize("how", HOWS)
def test_an_actor_that_fails_once_is_replaced_and_nothing_is_lost_or_done_twice(make: Make, how: str, outcome: Outcome):
    assert doubled(make(f"{how}, once"), orders()) == DOUBLED
    outcome(f"an engine {how}, once", "sample, judge", "replaced, its shard done again")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("runs out of memory", r"MemoryError.*\. Lower what it holds$"),
        ("hangs", r"no answer within 2 s\. Give it longer$"),
        ("gives less", r"2 of 3 outputs$"),
        ("dies", r"died.*\. Lower what it holds$"),
    ],
)
def test_a_piece_on_which_actors_fail_again_and_again_stops_the_run_with_cause_and_what_helps_against_it(
    make: Make, how: str, said: str, outcome: Outcome
):
    done = list[tuple[int, Any]]()
    started = time.monotonic()
    with pytest.raises(
        StageError, match=rf"(?s)doubler \d of numbers failed on a job that had failed before: .*{said}"
    ):
        done.extend(make(how).work(iter(PIECES), orders()))
    assert time.monotonic() - started < 120
    indices = [index for index, _ in done]
    assert len(indices) == len(set(indices)) and PIECES.index([12, 13, 14]) not in indices
    outcome(f"an engine {how}, again and again", "sample, judge", "stops, names the cause and what to do")


def test_nobody_waits_for_an_actor_that_is_replaced(make: Make, outcome: Outcome):
    started = time.monotonic()
    assert doubled(make("dies, two start"), orders(start_seconds=600)) == DOUBLED
    assert time.monotonic() - started < 300
    outcome("an engine dies, and the new one hangs as it starts", "sample, judge", "the others go on without it")


@pytest.mark.parametrize("how", ["dies", "errs", "hangs"])
def test_an_actor_that_fails_to_start_once_is_started_again(make: Make, how: str, outcome: Outcome):
    assert doubled(make(f"start: {how}, once", 1), orders(start_seconds=15)) == DOUBLED
    outcome(f"an engine {how} as it starts, once", "sample, judge", "started again")


def test_an_actor_that_stops_dead_before_it_arrives_is_no_actor_that_waits_for_a_place(make: Make, outcome: Outcome):
    import ray

    # It takes all there is, so that the next one has a place only if what it held is given back.
    pool = make("arrival: stops dead, once", 1, cpus=ray.cluster_resources()["CPU"])
    assert doubled(pool, orders(start_seconds=15)) == DOUBLED
    outcome("an engine stops dead before it arrives, once", "sample, judge", "started again")


def test_a_place_in_which_none_starts_is_given_up_with_a_line_and_the_others_go_on(
    make: Make, capsys: pytest.CaptureFixture[str], outcome: Outcome
):
    pool = make("start: errs, all but one")
    # Work goes on until the place has been given up, however long its actors take to fail.
    pieces = itertools.takewhile(lambda _: len(pool.actors) != 1, itertools.repeat([0]))
    list(pool.work(pieces, orders(ask="told")))
    assert len(pool.actors) == 1
    assert "failed to start; continuing with the others: ValueError: engine core is dead" in capsys.readouterr().err
    outcome("an engine errs as it starts, again and again", "sample, judge", "given up with a line, the others go on")


def test_where_none_starts_the_run_stops_with_the_cause(make: Make, outcome: Outcome):
    with pytest.raises(StageError, match=r"(?s)no doubler of numbers could be started: .*engine core is dead\s*$"):
        list(make("start: errs").work(iter(PIECES), orders()))
    outcome("no engine starts", "sample, judge", "stops, names the cause and what to do")


def test_where_ray_can_place_none_the_run_stops_and_says_what_is_asked_and_what_is_there(make: Make, outcome: Outcome):
    message = (
        r"Ray has placed no doubler of numbers within 3 s: each of 2 needs 99 CPUs, and Ray has "
        r"0 of 0 GPUs and \d+ of \d+ CPUs free"
    )
    with pytest.raises(StageError, match=message):
        list(make(cpus=99).work(iter(PIECES), orders(start_seconds=3)))
    outcome("Ray has no room for any engine", "sample, judge", "stops, says what is asked for and what is there")


def test_who_is_ready_works_while_ray_has_no_place_for_the_others(make: Make, outcome: Outcome):
    import ray

    pool = make(count=3, cpus=ray.cluster_resources()["CPU"])
    assert doubled(pool, orders(start_seconds=60)) == DOUBLED
    assert pool.holds("CPU") == ray.cluster_resources()["CPU"]
    outcome("Ray has room for some engines only", "sample, judge", "those work; others join when there is room")


def test_actors_that_died_while_they_were_idle_cost_no_piece_a_try(
    make: Make, capsys: pytest.CaptureFixture[str], outcome: Outcome
):
    import ray

    pool = make(count=5)
    doubled(pool, orders())
    pids = {pid for _, (pid, _) in pool.work(iter(PIECES * 3), orders(ask="told"))}
    assert len(pids) > 1
    for actor in pool.actors:
        ray.kill(actor)
        while answers(actor):
            pass
    capsys.readouterr()
    assert doubled(pool, orders()) == DOUBLED
    assert "replaced" not in capsys.readouterr().err
    outcome("engines die between two stages", "sample, judge", "started again")


def test_what_an_actor_gets_ready_for_is_what_the_work_at_hand_needs(make: Make):
    pool = make(count=2)
    for task in ("a", "b"):
        found = dict(pool.work(iter(PIECES), orders(task=task, ask="told")))
        assert {said for _, said in found.values()} == {task}


def test_nobody_is_started_where_there_is_nothing_to_do(make: Make):
    pool = make()
    assert list(pool.work(iter([]), orders())) == [] and pool.actors == []


def test_who_was_idle_longest_makes_room_for_what_needs_it_and_who_works_does_not(make: Make, room: Room):
    import ray

    cpus = ray.cluster_resources()["CPU"]
    older, newer = make(count=1, cpus=cpus - 1), make(count=1, cpus=1)
    doubled(older, orders())
    doubled(newer, orders())
    room.make("CPU", 0)
    assert older.actors and newer.actors
    room.make("CPU", 1)
    assert not older.actors and newer.actors
    room.make("CPU", cpus - 1)
    assert newer.actors
    at_work = newer.work(iter(PIECES), orders())
    next(at_work)
    room.make("CPU", cpus)
    assert newer.actors
    list(at_work)
    room.make("CPU", cpus)
    assert not newer.actors and ray.available_resources()["CPU"] == cpus


def test_a_pool_that_starts_has_idle_ones_make_room(make: Make):
    import ray

    cpus = ray.cluster_resources()["CPU"]
    first, second = make(count=2, cpus=cpus / 2), make(count=1, cpus=cpus)
    doubled(first, orders())
    assert doubled(second, orders(start_seconds=60)) == DOUBLED
    assert not first.actors
    assert doubled(first, orders(start_seconds=60)) == DOUBLED
    assert not second.actors
