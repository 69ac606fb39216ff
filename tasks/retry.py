"""Which errors of a stage are worth calling it again for.

In: how a task failed. Out: yes or no. How often and after how long is the operator's to say (`deploy/prefect.yaml`, by
`PREFECT_TASKS_DEFAULT_RETRIES`): at a terminal an error is told at once.

Every stage goes on from its shards, so calling it again is always safe, and worth it only where an error may pass by
itself: storage that is full or out of reach. Engines, servers of judges and training workers are tried again within
their stages; inputs, budgets and unsound judges stay as they are, and what is damaged is made again by the flow.
"""

from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from tpo.errors import DamagedError, StoreError


def may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether an error may pass by itself."""
    return isinstance(state.data, StoreError) and not isinstance(state.data, DamagedError)
