"""Claims about a running batch: requests join it between steps, answers go to who asked, and an error reaches everyone.

The engine here imitates vLLM's, one token a step for each request; tests/end_to_end has the real one."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tpo.engines.inference.running_batch import Call, Caller, DroppedError, RunningBatch


@dataclass(frozen=True)
class Finished:
    """An answer of the engine."""

    request_id: str
    finished: bool
    length: int


@dataclass
class FakeEngine:
    """Answers a request after as many steps as it has tokens; waits for `go` before each step."""

    go: threading.Event = field(default_factory=threading.Event)
    left: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    dies: bool = False

    def add_request(self, name: str, prompt: dict[str, Any], _: Any) -> None:
        self.threads.add(threading.get_ident())
        if not prompt["prompt_token_ids"]:
            raise ValueError("an empty prompt")
        self.left[name] = self.lengths[name] = len(prompt["prompt_token_ids"])

    def step(self) -> list[Finished]:
        self.threads.add(threading.get_ident())
        self.go.wait(10)
        if self.dies:
            raise RuntimeError("the engine is dead")
        self.batches.append(len(self.left))
        self.left = {name: count - 1 for name, count in self.left.items()}
        done = [name for name, count in self.left.items() if count == 0]
        for name in done:
            del self.left[name]
        return [Finished(name, True, self.lengths[name]) for name in done]

    def abort_request(self, names: Sequence[str]) -> None:
        for name in names:
            del self.left[name]


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    found = FakeEngine()
    yield found
    found.go.set()


@pytest.fixture
def batch(engine: FakeEngine) -> RunningBatch:
    found = RunningBatch()
    found.run(lambda: found.attach(engine))
    return found


def calls(**lengths: int) -> list[Call]:
    return [Call(key, [1] * length, None) for key, length in lengths.items()]


def answers(caller: Caller, count: int) -> dict[str, int]:
    return {key: answer.length for key, answer in (caller.next_answer() for _ in range(count))}


def test_answers_go_to_who_asked(batch: RunningBatch, engine: FakeEngine):
    one, other = Caller(), Caller()
    batch.add(calls(a=3, b=1), one)
    batch.add(calls(a=2), other)
    engine.go.set()
    assert answers(one, 2) == {"a": 3, "b": 1}
    assert answers(other, 1) == {"a": 2}


def test_requests_join_while_others_are_running(batch: RunningBatch, engine: FakeEngine):
    caller = Caller()
    batch.add(calls(long=50), caller)
    batch.add(calls(late=1), caller)
    engine.go.set()
    assert caller.next_answer()[0] == "late"
    assert max(engine.batches) == 2
    assert caller.next_answer()[0] == "long"


def test_one_thread_touches_the_engine(batch: RunningBatch, engine: FakeEngine):
    engine.go.set()
    callers = [Caller() for _ in range(5)]
    adders = [threading.Thread(target=batch.add, args=(calls(a=4), caller)) for caller in callers]
    for adder in adders:
        adder.start()
    assert all(answers(caller, 1) == {"a": 4} for caller in callers)
    assert len(engine.threads) == 1


def test_an_engine_that_dies_fails_everyone_who_waits(batch: RunningBatch, engine: FakeEngine):
    one, other = Caller(), Caller()
    batch.add(calls(a=3), one)
    batch.add(calls(a=3), other)
    engine.dies = True
    engine.go.set()
    for caller in (one, other):
        with pytest.raises(RuntimeError, match="the engine is dead"):
            caller.next_answer()


def test_a_refused_request_fails_its_caller_alone(batch: RunningBatch, engine: FakeEngine):
    one, other = Caller(), Caller()
    batch.add(calls(a=2), one)
    batch.add(calls(bad=0), other)
    engine.go.set()
    with pytest.raises(ValueError, match="an empty prompt"):
        other.next_answer()
    assert answers(one, 1) == {"a": 2}


def test_dropped_requests_fail_and_later_ones_are_answered(batch: RunningBatch, engine: FakeEngine):
    one, other = Caller(), Caller()
    batch.add(calls(a=1000), one)
    engine.go.set()
    batch.run(batch.drop)
    with pytest.raises(DroppedError):
        one.next_answer()
    batch.add(calls(a=2), other)
    assert answers(other, 1) == {"a": 2}
    assert not engine.left
