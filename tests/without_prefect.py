"""Flows and tasks as plain functions: Prefect has no such mode, and takes longer than a mock run does."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from prefect import Flow, Task

Around = Callable[[str, Callable[..., Any]], Callable[..., Any]]


@contextlib.contextmanager
def without_prefect(around: Around = lambda name, function: function) -> Iterator[None]:
    """Turns calls of flows and tasks into calls of their functions; `around` may wrap a task's function, given its
    name."""

    def call_task(task: "Task[..., Any]", *arguments: Any, **options: Any) -> Any:
        return around(task.name, task.fn)(*arguments, **options)

    def call_flow(flow: "Flow[..., Any]", *arguments: Any, **options: Any) -> Any:
        return flow.fn(*arguments, **options)

    with mock.patch.object(Task, "__call__", call_task), mock.patch.object(Flow, "__call__", call_flow):
        yield
