"""A pool of Ray actors that share work: idle ones take the next job, failed ones are replaced, and no job is lost.

Results come as soon as they are ready, in any order. Actors don't wait for each other: each starts as soon as it is
ready, also one that Ray can only place once a node joins, and one that fails is restarted while the others continue. An
actor fails by dying, by an error, by an incomplete result (fewer outputs than prompts), or by a timeout: an engine that
hangs looks alive to Ray.

Actors with a GPU that can sleep give it to others without ending: they keep their process, and wake up when they get a
GPU again, each on its own.

An actor may hold several jobs at once: an engine with one shard would idle while the shard's longest output ends.

A failed job goes to another actor, and one that keeps failing stops the run, with completed work kept. A death counts
half as much as other failures, since a dying node takes all its actors with it and the job isn't at fault; but a job
that kills every actor must eventually fail. A death counts for all jobs that the actor held, any other failure only for
the one that failed.
"""

import contextlib
import math
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

from tpo.console import say
from tpo.engines.cluster.placement import (
    Place,
    PoolActor,
    Role,
    is_placed,
    start_actor,
    start_at,
    start_holder,
    stop_actor,
)
from tpo.engines.cluster.room import Room
from tpo.errors import StageError
from tpo.metrics.live import GpuReading
from tpo.run_context import run_context

Job = TypeVar("Job")

FAILURE_WEIGHT, DEATH_WEIGHT = 2, 1
"""How much a failed attempt counts against its job: an error, a timeout or an incomplete result; a dead actor."""
MAX_FAILURE_WEIGHT = 4
"""The total weight that stops the run."""
_STARTS = 2
"""Number of failed starts after which an actor's slot is given up."""
_SLEEP_SECONDS = 300.0
"""Timeout for actors that are asked to sleep, which some do after they have loaded a model; those that don't are
stopped."""
_LATE_START = "If the model is large, raise start_seconds (of engine or judge_engine)"
_NO_PLACE = "Check whether other work holds Ray's CPUs or GPUs, or request fewer"


@dataclass(frozen=True)
class Remedies:
    """Remedies for a failure that stops a run; which one is shown depends on the cause."""

    memory: str
    """If an actor died, or its error mentions memory."""
    late: str
    """If a job timed out."""
    cache: str = ""
    """If vLLM lacks memory for its KV cache."""


@dataclass(frozen=True)
class JobSpec(Generic[Job]):
    """How a pool's actors run one kind of job."""

    prepare: Callable[[Any], Any]
    """Gets an actor ready, unless it is; returns Ray's reference to an error message or None."""
    submit: Callable[[Any, Job], Any]
    """Submits a job to an actor; returns Ray's reference to the result."""
    fault: Callable[[Job, Any], str | None]
    """Returns what is wrong with a result, or None."""
    seconds: float
    """Timeout of one job, in seconds; an actor with n jobs has n times as long until the first of them is done."""
    start_seconds: float
    """Timeout of a start, in seconds."""
    model: str
    """The model that they use; human-readable."""
    remedies: Remedies
    """What to suggest if a job keeps failing."""
    at_once: int = 1
    """How many jobs an actor holds at once; its role must have at least that `concurrency`."""


@dataclass
class _Slot:
    """A slot of a pool, and its pending tasks."""

    number: int
    state: Literal["empty", "requested", "preparing", "ready"] = "empty"
    """No actor; one that Ray hasn't placed; getting ready; ready, with jobs or without."""
    actor: PoolActor | None = None
    start: Any = None
    """Ray's reference to the pending start: placement, or getting ready."""
    jobs: dict[Any, int] = field(default_factory=dict)
    """Ray's references to the results of its jobs, with the jobs' indices."""
    due: float = math.inf
    """When what is pending times out, by `time.monotonic`."""
    spec: Any = None
    """The jobs that it got ready for."""
    place: Place | None = None
    """Its GPU, if its actor can sleep."""
    was_ready: bool = False
    failed_starts: int = 0
    readings: Any = None
    """Ray's reference to what it is asked about its GPUs; None if it isn't asked."""

    @property
    def pending(self) -> list[Any]:
        """Ray's references to everything that it is waited for."""
        return [*self.jobs] if self.start is None else [self.start]

    @property
    def shown_as(self) -> str:
        """Its state in the metrics."""
        return self.state if self.state != "ready" else "busy" if self.jobs else "idle"

    def set_starting(self, state: Literal["requested", "preparing"], start: Any, seconds: float) -> None:
        """Sets what it is waited for until it can take jobs."""
        self.state, self.start, self.due = state, start, time.monotonic() + seconds

    def set_ready(self) -> None:
        """Makes it ready to take jobs."""
        self.state, self.start, self.due = "ready", None, math.inf

    def restart_clock(self, seconds: float) -> None:
        """Sets when its jobs time out: they share it, so the first to end may take as long as all of them."""
        self.due = time.monotonic() + seconds * len(self.jobs) if self.jobs else math.inf


@dataclass(frozen=True)
class _Outcome:
    """How a task ended."""

    result: Any = None
    cause: str | None = None
    """Why there is no result."""
    died: bool = False
    """Whether the actor itself died."""
    late: bool = False
    """Whether it timed out."""

    def with_remedy(self, late: str, remedies: Remedies) -> str:
        """The cause, with a remedy unless the actor's own message has one."""
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


class _JobQueue(Generic[Job]):
    """The queue of jobs."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._source = enumerate(jobs)
        self._retries: list[int] = []
        self.in_progress: dict[int, Job] = {}
        """Jobs that were taken and aren't done, by index."""
        self._failures = Counter[int]()

    def take(self) -> int | None:
        """Index of the next job: one to retry, otherwise a new one; None if there is none."""
        if self._retries:
            return self._retries.pop()
        for index, job in self._source:
            self.in_progress[index] = job
            return index
        return None

    def put_back(self, index: int, weight: int) -> bool:
        """Returns a job for a retry; False if it has failed too often."""
        self._retries.append(index)
        self._failures[index] += weight
        return self._failures[index] < MAX_FAILURE_WEIGHT


class ActorPool:
    """Actors that share work, each in a slot; started when there is work, and alive until `close`."""

    def __init__(self, role: Role, count: int, room: Room) -> None:
        self._role = role
        self._room = room
        self._slots = [_Slot(number) for number in range(count)]
        self._asleep: dict[Place, Any] = {}
        """Actors that sleep, by the GPU that they need."""
        self._lock = threading.Lock()
        self.used = time.monotonic()
        room.register(self)

    @property
    def actors(self) -> list[Any]:
        """The existing actors of all slots."""
        return [slot.actor.handle for slot in self._slots if slot.actor is not None]

    def work(self, jobs: Iterable[Job], spec: JobSpec[Job]) -> Iterator[tuple[int, Any]]:
        """The index and result of every job, as they are done.

        Raises `StageError` if actors keep failing on the same job, if none can be started, or if Ray places none within
        `start_seconds`.
        """
        queue = _JobQueue(jobs)
        with self._lock:
            if (first := queue.take()) is None:
                return
            queue.put_back(first, 0)
            self._fill_slots(spec)
            last_progress = time.monotonic()
            try:
                while self._assign_jobs(queue, spec):
                    self._show()
                    slot, task = self._next_event(last_progress, spec)
                    if task not in slot.jobs:
                        self._handle_start(slot, spec)
                    else:
                        index, outcome = slot.jobs[task], self._finish_job(slot, task, queue, spec)
                        if outcome.cause is None:
                            yield index, outcome.result
                    last_progress = time.monotonic()
            finally:
                self.used = time.monotonic()
                for slot in self._slots:
                    if slot.jobs:  # The caller stopped early; an actor ends or drops its jobs when it gets others.
                        slot.jobs.clear()
                        slot.set_ready()
                self._show()

    def start_early(self, call: Callable[[Any], Any], seconds: float) -> None:
        """Requests actors from Ray ahead of their first work, and calls each, without waiting for anything: all, or the
        first if they start one by one.

        `seconds` is the timeout of a start, which counts once there is work.
        """
        with self._lock:
            for slot in self._slots:
                if slot.state == "empty" and self._may_start():
                    self._request_actor(slot, seconds)
                    if slot.actor is not None and slot.actor.handle is not None:
                        call(slot.actor.handle)

    def holds(self, resource: str) -> float:
        """How much of a resource its placed actors hold."""
        placed = sum(slot.state not in ("empty", "requested") for slot in self._slots)
        return placed * self._role.amount(resource)

    def make_way(self, resource: str) -> bool:
        """Stops all actors, or has them sleep if they hold that resource and can, unless they are working."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._role.sleeps and resource == "GPU":
                self._fall_asleep()
            else:
                self.close()
        finally:
            self._lock.release()
        return True

    def _fall_asleep(self) -> None:
        """Has all actors sleep, once they are ready, and frees their GPUs; those that can't are stopped."""
        import ray

        falling = {}
        for slot in self._slots:
            if slot.actor is not None and slot.place is not None:
                falling[slot.actor.handle.sleep.remote()] = slot
        done, _ = ray.wait([*falling], num_returns=len(falling), timeout=_SLEEP_SECONDS) if falling else ([], [])
        for task in done:
            slot = falling[task]
            if _collect(task, _SLEEP_SECONDS).cause is None:
                assert slot.actor is not None and slot.place is not None
                self._asleep[slot.place] = slot.actor.handle
                slot.actor = replace(slot.actor, handle=None)
        for slot in self._slots:
            self._clear(slot)
        self._show()

    def close(self) -> None:
        """Stops all actors and releases their resources."""
        for slot in self._slots:
            self._clear(slot)
        for actor in self._asleep.values():
            stop_actor(PoolActor(actor, None))
        self._asleep.clear()
        self._show()

    def _show(self) -> None:
        """Updates the metrics: the actors' states, and what those with GPUs have reported by now."""
        metrics = run_context().metrics
        metrics.show_actors(id(self), self._role.name, [slot.shown_as for slot in self._slots if slot.state != "empty"])
        for slot in self._slots:
            if slot.readings is not None and (found := _collect_readings(slot.readings)) is not None:
                metrics.report_gpus(id(slot), found)
                slot.readings = None

    def _fill_slots(self, spec: JobSpec[Any]) -> None:
        """Requests actors for empty slots and prepares the existing ones, some of which may have died unnoticed."""
        waiting = sum(
            slot.state == "empty" or (slot.state == "requested" and not is_placed(slot.actor)) for slot in self._slots
        )
        for resource in ("GPU", "CPU"):
            self._room.make(resource, waiting * self._role.amount(resource), self)
        for slot in self._slots:
            slot.failed_starts = 0
            if slot.state == "empty" and self._may_start():
                self._request_actor(slot, spec.start_seconds)
            elif slot.state == "requested":  # ahead of this work
                slot.due = time.monotonic() + spec.start_seconds
            elif slot.state == "ready":
                self._prepare(slot, spec)

    def _may_start(self) -> bool:
        """Whether another actor may start now."""
        starting = [slot for slot in self._slots if slot.state in ("requested", "preparing") and not slot.was_ready]
        return not (self._role.one_by_one and starting)

    def _assign_jobs(self, queue: _JobQueue[Job], spec: JobSpec[Job]) -> bool:
        """Gives jobs to ready actors, the one with the fewest first; False if all jobs are done."""
        while ready := [slot for slot in self._slots if slot.state == "ready" and len(slot.jobs) < spec.at_once]:
            if (index := queue.take()) is None:
                break
            slot = min(ready, key=lambda slot: len(slot.jobs))
            assert slot.actor is not None
            slot.jobs[spec.submit(slot.actor.handle, queue.in_progress[index])] = index
            slot.restart_clock(spec.seconds)
        return bool(queue.in_progress)

    def _next_event(self, last_progress: float, spec: JobSpec[Any]) -> tuple[_Slot, Any]:
        """A slot and its task that is done or has timed out; waiting to be placed doesn't count against a single actor.

        Raises `StageError` if Ray has placed none of the actors within `start_seconds` of `last_progress`.
        """
        import ray

        while True:
            pending = {task: slot for slot in self._slots for task in slot.pending}
            first = min(pending.values(), key=lambda slot: slot.due)
            done, _ = ray.wait(list(pending), num_returns=1, timeout=max(0.0, first.due - time.monotonic()))
            if done:
                return pending[done[0]], done[0]
            if first.state != "requested" or is_placed(first.actor):
                return first, first.pending[0]
            some_are_placed, now = any(is_placed(slot.actor) for slot in pending.values()), time.monotonic()
            if not some_are_placed and now >= last_progress + spec.start_seconds:
                raise StageError(
                    f"Ray has placed no {self._role.name} of {spec.model} within {spec.start_seconds:g} s: each of "
                    f"{len(pending)} needs {self._role.needs}, and {_free_resources()}. {_NO_PLACE}"
                )
            first.due = (now if some_are_placed else last_progress) + spec.start_seconds

    def _handle_start(self, slot: _Slot, spec: JobSpec[Any]) -> None:
        """Handles an actor that was placed or got ready, or failed to."""
        outcome = _collect(slot.start, spec.start_seconds)
        if outcome.cause is None and slot.state == "preparing":
            outcome = _Outcome(cause=outcome.result)
        elif outcome.cause is None and self._role.sleeps:
            self._take_place(slot, outcome.result)
        if outcome.cause is None and slot.state == "preparing":
            slot.was_ready, slot.failed_starts = True, 0
            slot.set_ready()
            for other in self._slots:
                if other.state == "empty" and not other.failed_starts and self._may_start():
                    self._request_actor(other, spec.start_seconds)
        if outcome.cause is None:
            if slot.spec is not spec:
                self._prepare(slot, spec)
        elif slot.was_ready:
            if outcome.died:  # Otherwise it is replaced because it can't take another model.
                run_context().metrics.failed_actor(self._role.name)
            self._request_actor(slot, spec.start_seconds)
        else:
            self._retry_start(slot, outcome, spec)

    def _retry_start(self, slot: _Slot, outcome: _Outcome, spec: JobSpec[Any]) -> None:
        """Handles an actor that failed to start. Raises `StageError` if no slot is left."""
        slot.failed_starts += 1
        run_context().metrics.failed_actor(self._role.name)
        if slot.failed_starts < _STARTS:
            self._request_actor(slot, spec.start_seconds)
            return
        self._clear(slot)
        if all(other.state == "empty" for other in self._slots):
            cause = outcome.with_remedy(_LATE_START, spec.remedies)
            raise StageError(f"no {self._role.name} of {spec.model} could be started: {cause}")
        say(f"{self._name(slot, spec)} failed to start; continuing with the others: {_line(str(outcome.cause))}")

    def _finish_job(self, slot: _Slot, task: Any, queue: _JobQueue[Job], spec: JobSpec[Job]) -> _Outcome:
        """Handles a job that is done or has failed. Raises `StageError` if one has failed too often."""
        outcome = _collect(task, spec.seconds * len(slot.jobs))
        index = slot.jobs.pop(task)
        if outcome.cause is None and (fault := spec.fault(queue.in_progress[index], outcome.result)) is not None:
            outcome = _Outcome(cause=fault)
        if outcome.cause is None:
            del queue.in_progress[index]
            slot.restart_clock(spec.seconds)
            if self._role.gpus and slot.actor is not None:
                slot.readings = slot.actor.handle.read_gpus.remote()  # It answers before it begins the next job.
            return outcome
        run_context().metrics.failed_actor(self._role.name)
        # Once all that it held are back, the one that failed is the first to be retried.
        held = [queue.put_back(other, DEATH_WEIGHT if outcome.died else 0) for other in slot.jobs.values()]
        if not queue.put_back(index, DEATH_WEIGHT if outcome.died else FAILURE_WEIGHT) or not all(held):
            cause = outcome.with_remedy(spec.remedies.late, spec.remedies)
            raise StageError(f"{self._name(slot, spec)} failed on a job that had failed before: {cause}")
        say(f"{self._name(slot, spec)} failed and is replaced, its job is retried: {_line(outcome.cause)}")
        self._request_actor(slot, spec.start_seconds)
        if outcome.died:  # If a node is gone, idle actors on it would fail jobs that aren't at fault.
            for other in self._slots:
                if other.state == "ready" and not other.jobs:
                    self._prepare(other, spec)
        return outcome

    def _request_actor(self, slot: _Slot, seconds: float) -> None:
        """Requests a new actor from Ray."""
        self._clear(slot)
        if self._role.sleeps:
            holder = start_holder()
            slot.actor = PoolActor(None, None, holder)
            slot.set_starting("requested", holder.place.remote(), seconds)
        else:
            slot.actor = start_actor(self._role)
            slot.set_starting("requested", slot.actor.handle.__ray_ready__.remote(), seconds)

    def _take_place(self, slot: _Slot, place: Place) -> None:
        """Puts the actor that sleeps on a GPU, or a new one, into the slot that has it now."""
        asleep = self._asleep.pop(place, None)
        assert slot.actor is not None
        slot.actor = replace(slot.actor, handle=asleep or start_at(self._role, place))
        slot.place, slot.was_ready = place, asleep is not None

    def _prepare(self, slot: _Slot, spec: JobSpec[Any]) -> None:
        assert slot.actor is not None
        slot.spec = spec
        slot.set_starting("preparing", spec.prepare(slot.actor.handle), spec.start_seconds)

    def _name(self, slot: _Slot, spec: JobSpec[Any]) -> str:
        return f"{self._role.name} {slot.number} of {spec.model}"

    def _clear(self, slot: _Slot) -> None:
        if slot.actor is not None:
            stop_actor(slot.actor)
        run_context().metrics.forget_gpus(id(slot))
        slot.jobs.clear()
        slot.state, slot.start, slot.due = "empty", None, math.inf
        slot.actor, slot.spec, slot.was_ready, slot.readings, slot.place = None, None, False, None, None


def _collect(task: Any, seconds: float) -> _Outcome:
    """The outcome of a task that is done or has timed out."""
    import ray

    try:
        return _Outcome(ray.get(task, timeout=0))
    except ray.exceptions.GetTimeoutError:
        return _Outcome(cause=f"no answer within {seconds:g} s", late=True)
    except ray.exceptions.RayTaskError as error:
        return _Outcome(cause=str(error))
    except ray.exceptions.RayError as error:
        return _Outcome(cause=str(error), died=True)


def _collect_readings(task: Any) -> list[GpuReading] | None:
    """An actor's readings of its GPUs; None while it has not answered, empty if it never will."""
    import ray

    if not ray.wait([task], timeout=0)[0]:
        return None
    with contextlib.suppress(ray.exceptions.RayError):
        found: list[GpuReading] = ray.get(task)
        return found
    return []


def _free_resources() -> str:
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    had = [f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s" for name in ("GPU", "CPU")]
    return f"Ray has {' and '.join(had)} free"


def _line(cause: str) -> str:
    """An error's last line, shortened."""
    return textwrap.shorten(_last_line(cause), 200, placeholder=" …")


def _last_line(cause: str) -> str:
    """The line of a Ray error that names the cause."""
    return next((line for line in reversed(cause.splitlines()) if line.strip()), cause)
