"""Claims about a pool: an actor that dies, hangs, raises an error or returns too little is replaced while the others
continue, and nothing is lost or done twice; repeated failures stop the run with the cause and a remedy.

On real Ray actors of this machine; test_cluster.py has those of several."""

import itertools
import os
import resource
import signal
import threading
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
from tpo.metrics.catalog import ACTOR_FAILURES, ACTORS
from tpo.run_context import RunContext, run_context, using

pytestmark = [pytest.mark.drawn(10), pytest.mark.faults]
PIECES = [[i, i + 1, i + 2] for i in range(0, 30, 3)]
DOUBLED = {index: [2 * i for i in piece] for index, piece in enumerate(PIECES)}
Outcome = Callable[[str, str, str], None]


class Doubler:
    """Doubles numbers; misbehaves at start-up or at one of the numbers: always, once, or all actors but one."""

    def __init__(self, how: str, folder: str) -> None:
        self._when, _, self._how = how.rpartition(": ")
        self._once = Path(folder) / "once"
        self._starts = Path(folder) / "starts"
        self._task: str | None = None
        self._inside = threading.Condition()
        self._present = 0
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

    def meet(self, _: list[int]) -> int:
        """How many calls are in here at once; waits until there are three, or a second."""
        with self._inside:
            self._present += 1
            self._inside.notify_all()
            self._inside.wait_for(lambda: self._present >= 3, timeout=1)
            return self._present

    def report(self, _: list[int]) -> tuple[int, str | None]:
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
    if how == "freezes":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "raises an error":
        raise ValueError("engine core is dead")
    return [2 * i for i in piece][: {"looks healthy but returns nothing": 0, "returns too little": 2}[how]]


HOWS = (
    "dies",
    "runs out of memory",
    "hangs",
    "freezes",
    "raises an error",
    "looks healthy but returns nothing",
    "returns too little",
)


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
    """Makes pools, and closes them at the end."""
    made = []

    def call(
        how: str = "", count: int = 2, cpus: float = 0, concurrency: int = 1, one_by_one: bool = False
    ) -> ActorPool:
        role = Role(
            "doubler",
            Doubler,
            (how, str(tmp_path)),
            cpus=cpus,
            gpus=0,
            environment={},
            concurrency=concurrency,
            one_by_one=one_by_one,
        )
        made.append(ActorPool(role, count, room))
        return made[-1]

    yield call
    for pool in made:
        pool.close()


def orders(
    *, task: str = "", ask: str = "work", seconds: float = 2.0, start_seconds: float = 120.0, at_once: int = 1
) -> JobSpec[list[int]]:
    return JobSpec(
        prepare=lambda doubler: doubler.load.remote(task),
        submit=lambda doubler, piece: getattr(doubler, ask).remote(piece),
        fault=lambda piece, result: (
            None if ask in ("report", "meet") or len(result) == len(piece) else f"{len(result)} of {len(piece)} outputs"
        ),
        seconds=seconds,
        start_seconds=start_seconds,
        model="numbers",
        remedies=Remedies(memory="Lower what it holds", late="Give it longer"),
        at_once=at_once,
    )


def doubled(pool: ActorPool, how: JobSpec[list[int]]) -> dict[int, list[int]]:
    results = list(pool.work(iter(PIECES), how))
    assert sorted(index for index, _ in results) == list(range(len(PIECES)))
    return dict(results)


@pytest.mark.parametrize("how", HOWS)
def test_an_actor_that_fails_once_is_replaced_and_nothing_is_lost_or_done_twice(make: Make, how: str, outcome: Outcome):
    with using(RunContext()):
        assert doubled(make(f"{how}, once"), orders()) == DOUBLED
        shown = run_context().metrics.snapshot()
    assert shown[ACTOR_FAILURES] == {("doubler",): 1} and sum(shown[ACTORS].values()) == 2
    outcome(f"an engine {how}, once", "sample, judge", "replaced; its shard is redone")


@pytest.mark.parametrize(
    ("how", "pattern"),
    [
        ("runs out of memory", r"MemoryError.*\. Lower what it holds$"),
        ("hangs", r"no answer within 2 s\. Give it longer$"),
        ("returns too little", r"2 of 3 outputs$"),
        ("dies", r"died.*\. Lower what it holds$"),
    ],
)
def test_a_job_on_which_actors_keep_failing_stops_the_run_with_its_cause_and_a_remedy(
    make: Make, how: str, pattern: str, outcome: Outcome
):
    done = list[tuple[int, Any]]()
    started = time.monotonic()
    with pytest.raises(
        StageError, match=rf"(?s)doubler \d of numbers failed on a job that had failed before: .*{pattern}"
    ):
        done.extend(make(how).work(iter(PIECES), orders()))
    assert time.monotonic() - started < 120
    indices = [index for index, _ in done]
    assert len(indices) == len(set(indices)) and PIECES.index([12, 13, 14]) not in indices
    outcome(f"an engine {how}, repeatedly", "sample, judge", "stops, names the cause and what to do")


@pytest.mark.parametrize("how", HOWS)
def test_an_actor_that_fails_with_several_jobs_loses_none_of_them(make: Make, how: str, outcome: Outcome):
    pool = make(f"{how}, once", concurrency=4)
    assert doubled(pool, orders(at_once=3)) == DOUBLED
    outcome(f"an engine with several shards {how}, once", "sample, judge", "replaced; its shards are redone")


def test_an_actor_works_on_as_many_jobs_as_it_may_hold(make: Make):
    pool = make(count=1, concurrency=4)
    found = [count for _, count in pool.work(iter(PIECES[:3]), orders(ask="meet", at_once=3, seconds=30))]
    assert max(found) == 3


def test_actors_that_start_early_are_those_that_work(make: Make):
    import ray

    pool = make(count=2)
    pool.start_early(lambda doubler: doubler.load.remote("early"), 120.0)
    early = pool.actors
    assert ray.get([actor.report.remote([]) for actor in early])[0][1] == "early"
    assert doubled(pool, orders()) == DOUBLED
    assert pool.actors == early


def test_actors_that_start_one_by_one_do_so_while_the_first_works(make: Make):
    pool = make(count=3, one_by_one=True)
    pool.start_early(lambda doubler: doubler.load.remote("early"), 120.0)
    (first,) = pool.actors
    assert doubled(pool, orders()) == DOUBLED
    assert first in pool.actors and len(pool.actors) > 1
    while len(pool.actors) < 3:
        assert doubled(pool, orders()) == DOUBLED


def test_work_continues_while_an_actor_is_replaced(make: Make, outcome: Outcome):
    started = time.monotonic()
    assert doubled(make("dies, two start"), orders(start_seconds=600)) == DOUBLED
    assert time.monotonic() - started < 300
    outcome("an engine dies and its replacement hangs at start-up", "sample, judge", "the others continue without it")


@pytest.mark.parametrize("how", ["dies", "raises an error", "hangs"])
def test_an_actor_that_fails_to_start_once_is_restarted(make: Make, how: str, outcome: Outcome):
    assert doubled(make(f"start: {how}, once", 1), orders(start_seconds=15)) == DOUBLED
    outcome(f"an engine {how} at start-up, once", "sample, judge", "restarted")


def test_an_actor_that_freezes_before_it_is_ready_gives_its_cpus_back(make: Make, outcome: Outcome):
    import ray

    # It takes all CPUs, so that the next one can be placed only if they are released.
    pool = make("arrival: freezes, once", 1, cpus=ray.cluster_resources()["CPU"])
    assert doubled(pool, orders(start_seconds=15)) == DOUBLED
    outcome("an engine freezes before it is ready, once", "sample, judge", "restarted")


def test_a_slot_whose_actors_never_start_is_given_up_with_a_message_and_the_others_continue(
    make: Make, capsys: pytest.CaptureFixture[str], outcome: Outcome
):
    pool = make("start: raises an error, all but one")
    # Work continues until the slot has been given up, however long its actors take to fail.
    pieces = itertools.takewhile(lambda _: len(pool.actors) != 1, itertools.repeat([0]))
    list(pool.work(pieces, orders(ask="report")))
    assert len(pool.actors) == 1
    assert "failed to start; continuing with the others: ValueError: engine core is dead" in capsys.readouterr().err
    outcome(
        "an engine raises an error at start-up, repeatedly",
        "sample, judge",
        "given up with a message; the others continue",
    )


def test_if_no_actor_starts_the_run_stops_with_the_cause(make: Make, outcome: Outcome):
    with pytest.raises(StageError, match=r"(?s)no doubler of numbers could be started: .*engine core is dead\s*$"):
        list(make("start: raises an error").work(iter(PIECES), orders()))
    outcome("no engine starts", "sample, judge", "stops, names the cause and what to do")


def test_if_ray_can_place_no_actor_the_run_stops_and_says_what_is_needed_and_available(make: Make, outcome: Outcome):
    message = (
        r"Ray has placed no doubler of numbers within 3 s: each of 2 needs 99 CPUs, and Ray has "
        r"0 of 0 GPUs and \d+ of \d+ CPUs free"
    )
    with pytest.raises(StageError, match=message):
        list(make(cpus=99).work(iter(PIECES), orders(start_seconds=3)))
    outcome("Ray has no room for any engine", "sample, judge", "stops, says what it needs and what is available")


def test_ready_actors_work_while_ray_has_no_room_for_the_others(make: Make, outcome: Outcome):
    import ray

    pool = make(count=3, cpus=ray.cluster_resources()["CPU"])
    assert doubled(pool, orders(start_seconds=60)) == DOUBLED
    assert pool.holds("CPU") == ray.cluster_resources()["CPU"]
    outcome("Ray has room for some engines only", "sample, judge", "those work; others join when there is room")


def test_an_actor_that_died_while_idle_does_not_count_as_an_attempt(
    make: Make, capsys: pytest.CaptureFixture[str], outcome: Outcome
):
    import ray

    pool = make(count=5)
    doubled(pool, orders())
    pids = {pid for _, (pid, _) in pool.work(iter(PIECES * 3), orders(ask="report"))}
    assert len(pids) > 1
    for actor in pool.actors:
        ray.kill(actor)
        while answers(actor):
            pass
    capsys.readouterr()
    assert doubled(pool, orders()) == DOUBLED
    assert "replaced" not in capsys.readouterr().err
    outcome("engines die between two stages", "sample, judge", "restarted")


def test_an_actor_loads_what_the_current_work_needs(make: Make):
    pool = make(count=2)
    for task in ("a", "b"):
        found = dict(pool.work(iter(PIECES), orders(task=task, ask="report")))
        assert {loaded for _, loaded in found.values()} == {task}


def test_no_actor_starts_if_there_is_nothing_to_do(make: Make):
    pool = make()
    assert list(pool.work(iter([]), orders())) == [] and pool.actors == []


def test_the_pool_idle_longest_makes_room_and_a_working_one_does_not(make: Make, room: Room):
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


def test_a_starting_pool_makes_idle_ones_give_up_their_room(make: Make):
    import ray

    cpus = ray.cluster_resources()["CPU"]
    first, second = make(count=2, cpus=cpus / 2), make(count=1, cpus=cpus)
    doubled(first, orders())
    assert doubled(second, orders(start_seconds=60)) == DOUBLED
    assert not first.actors
    assert doubled(first, orders(start_seconds=60)) == DOUBLED
    assert not second.actors
