"""What every stage begins with: the Prefect task that it is, and the folder that it fills.

Every stage resumes from its shards, so calling one again is always safe, and worth it only if the error may pass by
itself: storage that is full or out of reach. Engines, judges' servers and training workers are retried within their
stages; inputs, budgets and unsound judges stay as they are, and the flow remakes what is damaged. How often
and after how long Prefect retries is the operator's choice (`PREFECT_TASKS_DEFAULT_RETRIES` in `deploy/prefect.yaml`);
at a terminal an error is shown at once.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from tpo.console import say
from tpo.errors import DamagedError, StoreError
from tpo.records import Artifact
from tpo.storage.store import Stage

P = ParamSpec("P")
R = TypeVar("R")


def stage_task(name: str, *, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Makes a function a Prefect task without Prefect's own cache: the manifests say what is complete.

    `run_name` may hold the function's parameters in braces.
    """
    return task(name=name, task_run_name=run_name, cache_policy=NO_CACHE, retry_condition_fn=may_pass)


def complete_or_begun(stage: Stage, *, shard_size: int | None = None) -> Artifact | None:
    """The stage's artifact if it is complete; otherwise None, with its folder ready to be written."""
    if (done := stage.complete()) is None:
        begin(stage, shard_size=shard_size)
    return done


def begin(stage: Stage, *, shard_size: int | None = None) -> None:
    """Readies a stage's folder, and says why if an earlier result was moved aside."""
    for change in stage.begin(shard_size=shard_size):
        say(f"{stage.name}: remade, {change}")


def may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether an error may pass by itself."""
    return isinstance(state.data, StoreError) and not isinstance(state.data, DamagedError)
