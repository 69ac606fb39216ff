"""One vLLM engine that works on the requests of several callers at once.

`LLM.generate` returns when the longest output of its call ends, and until then the engine runs ever emptier. Here
requests join the running batch whenever they come: the next shard's, or another attempt at an output that was rejected.

Everything that touches vLLM happens in one thread, step by step; requests are taken in between two steps.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DroppedError(Exception):
    """The engine was given other work before it had answered."""


@dataclass(frozen=True)
class Call:
    """One request to the engine."""

    key: Any
    """By what its caller knows it."""
    prompt_token_ids: Sequence[int]
    """The prompt."""
    params: Any
    """vLLM's `SamplingParams`."""


@dataclass(frozen=True)
class Caller:
    """Where the answers to one caller's requests arrive."""

    answers: "SimpleQueue[tuple[Any, Any]]" = field(default_factory=SimpleQueue)
    """Each request's key with its `RequestOutput`, or with the exception that ended it."""

    def next_answer(self) -> tuple[Any, Any]:
        """Waits for the next answer: a request's key and vLLM's `RequestOutput`; raises what ended the request."""
        key, answer = self.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return key, answer


class RunningBatch:
    """An engine's requests in progress, and the thread that works on them."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "vllm")
        self._engine: Any = None
        self._waiting: dict[str, tuple[Caller, Any]] = {}
        self._numbers = itertools.count()
        self._is_stepping = False

    def run(self, work: Callable[[], T]) -> T:
        """Runs something in the engine's thread, between two steps; returns its result."""
        return self._thread.submit(work).result()

    def attach(self, engine: Any) -> None:
        """Takes vLLM's `LLMEngine` that works on the requests; to be called in the thread."""
        self._engine = engine

    def add(self, calls: Sequence[Call], caller: Caller) -> None:
        """Has the engine work on these requests, too; the answers come to `caller`, in any order."""
        self._submit(lambda: self._add(calls, caller), on_error=lambda error: caller.answers.put((None, error)))

    def drop(self) -> None:
        """Ends all requests in progress, with `DroppedError` for their callers; to be called in the thread."""
        if self._waiting:
            self._engine.abort_request([*self._waiting])
            self._fail(DroppedError("the engine was given other work"))

    def _add(self, calls: Sequence[Call], caller: Caller) -> None:
        for call in calls:
            name = str(next(self._numbers))
            self._engine.add_request(name, {"prompt_token_ids": [*call.prompt_token_ids]}, call.params)
            self._waiting[name] = (caller, call.key)
        self._keep_stepping()

    def _keep_stepping(self) -> None:
        if self._waiting and not self._is_stepping:
            self._is_stepping = True
            self._submit(self._step, on_error=self._fail)

    def _step(self) -> None:
        self._is_stepping = False
        for output in self._engine.step():
            if output.finished and (found := self._waiting.pop(output.request_id, None)) is not None:
                caller, key = found
                caller.answers.put((key, output))
        self._keep_stepping()

    def _fail(self, error: BaseException) -> None:
        for caller, key in self._waiting.values():
            caller.answers.put((key, error))
        self._waiting.clear()

    def _submit(self, work: Callable[[], None], *, on_error: Callable[[BaseException], None]) -> None:
        def ended(future: "Future[None]") -> None:
            if (error := future.exception()) is not None:
                on_error(error)

        self._thread.submit(work).add_done_callback(ended)
