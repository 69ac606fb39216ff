"""What Prefect does for an operator: names and graphs of runs, keys from its blocks, a message when a run stops.

A message goes to the run's page and its log, and to the notification block that the Prefect variable `tpo_alert` names
(`slack-webhook/<name>`, `custom-webhook/<name>`, …), whose secrets stay in the block.
"""

import contextlib
import logging
import os
import textwrap
from typing import Any
from uuid import UUID

import psutil
from prefect import Flow, get_client
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.client.schemas.actions import ArtifactCreate, WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, RunType, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectAlreadyExists
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run as this_run
from prefect.states import Crashed
from prefect.variables import Variable
from prefect.workers.process import ProcessWorker

from tpo.config.fine_grained import FineGrainedConfig
from tpo.config.judges import ServedJudge
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.errors import InputError

ALERT_VARIABLE = "tpo_alert"
_AT_WORK = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
_NEXT = "Completed work is saved. Fix the cause; the next trigger resumes."


def entitle(name: str, *tags: str) -> None:
    """Gives the current flow run a descriptive name and tags."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(this_run.get_id()), name=name, tags=[*this_run.get_tags(), *tags])


def name_subflows_as_tasks() -> None:
    """Records the results of this run's subflows as inputs of the kind that Prefect's pages know.

    Then they draw an edge from an iteration to the users of its model. Prefect 3.7.7 records the kind `flow_run`, which
    its own pages don't know: they draw the edge and then show no task of that run at all. Edges are drawn by the id
    alone, so the kind is changed.
    """
    context = FlowRunContext.get()
    if context is None:
        return
    for key, (state, kind, reference) in list(context.run_results.items()):
        if kind is RunType.FLOW_RUN:
            details = state.state_details
            details = details.model_copy(update={"task_run_id": details.flow_run_id})
            renamed = state.model_copy(update={"state_details": details})
            context.run_results[key] = (renamed, RunType.TASK_RUN, reference)


def fetch_keys(config: RunConfig) -> None:
    """Puts the keys of the judges' and the rater's servers into the environment, from Secret blocks if the worker
    doesn't have them.

    The block of `JUDGE_KEY` is called `judge-key`, since block names can't hold capitals and underscores.
    """
    for asked in (*config.single_judges, config.evaluation.fine_grained):
        if isinstance(asked, ServedJudge | FineGrainedConfig) and asked.endpoint is not None:
            variable = asked.endpoint.key_variable
            if variable not in os.environ and (key := _secret(variable.lower().replace("_", "-"))) is not None:
                os.environ[variable] = key


def _secret(name: str) -> str | None:
    try:
        block = Block.load(f"secret/{name}")
    except ValueError:
        return None
    assert isinstance(block, Secret)
    return str(block.get())


def alert(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - as Prefect calls it
    """Prefect's hook for a run that fails or crashes."""
    tell(flow_run, state)


def tell(flow_run: FlowRun, state: State[Any]) -> None:
    """Reports that a run has stopped and why: in its log, on its page, and through `tpo_alert`.

    Everything it was doing has stopped, too, though no process was left to tell Prefect: its subflows are marked as
    crashed.
    """
    why = (state.message or "").removeprefix("Flow run encountered an exception: ")
    with get_client(sync_client=True) as client:
        name = client.read_flow_run(flow_run.id).name  # A hook gets the name that the run began with.
        subject = f"{name} {(state.name or 'stopped').lower()}"
        below = FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run.id]), state=FlowRunFilterState(type=_AT_WORK)
        )
        for subflow in client.read_flow_runs(flow_run_filter=below):
            client.set_flow_run_state(subflow.id, Crashed(message=subject), force=True)
        client.create_artifact(
            ArtifactCreate(
                key="tpo-stopped",
                type="markdown",
                description=subject,
                data=f"**{subject}**\n\n```\n{_as_it_is(why)}\n```\n\n{_NEXT}",
                flow_run_id=flow_run.id,
            )
        )
    logger = flow_run_logger(flow_run)
    logger.error("%s: %s. %s", subject, why.removesuffix("."), _NEXT)
    if (block := Variable.get(ALERT_VARIABLE)) is not None:
        _notify(str(block), subject, f"{why}\n\n{_NEXT}", logger)


def _as_it_is(text: str) -> str:
    """Text for a code block, in lines that fit a page; it may quote prompts, and nothing in it is markup."""
    return "\n".join(textwrap.fill(line, width=100) for line in text.replace("`", "'").splitlines())


def _notify(name: str, subject: str, body: str, logger: "logging.LoggerAdapter[Any]") -> None:
    try:
        block = Block.load(name)
        if not isinstance(block, NotificationBlock):
            raise InputError(
                f"{name} is not a notification block: set {ALERT_VARIABLE} to one, as in slack-webhook/ops"
            )
        block.notify(body=body, subject=subject)  # type: ignore[unused-coroutine]  # isn't one without an event loop
    except Exception as error:  # noqa: BLE001 - a failed notification must not hide the run's own error
        # Not the error's text: it may contain the webhook's address, which is a secret.
        logger.error("%s could not be notified: %s; check block %s", ALERT_VARIABLE, type(error).__name__, name)


def make_pool(name: str) -> None:
    """Creates a work pool of processes; an existing one is left as its operator has configured it."""
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template))


def end_orphans(pool: str, worker: str) -> None:
    """Marks runs as crashed that a worker of this name left running on this machine when it was killed with all of
    them.

    A worker sees its runs end; if the worker is killed too, no process tells Prefect, which would take its run to be
    running and keep the next one waiting.
    """
    at_work = FlowRunFilter(state=FlowRunFilterState(type=_AT_WORK))
    of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=at_work, work_pool_filter=of_pool):
            if run.labels.get("prefect.worker.name") == worker and not _is_alive(run):
                state: State[Any] = Crashed(message="Its worker was killed, and the run with it.")
                client.set_flow_run_state(run.id, state, force=True)
                tell(run, state)
                say(f"{run.name}: marked as crashed, its worker was killed")


def _is_alive(run: FlowRun) -> bool:
    """Whether this machine has the process of a flow run; what that started may outlive it by seconds."""
    return any(
        "prefect.engine" in " ".join(process.info["cmdline"] or ())
        and (process.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == str(run.id)
        for process in psutil.process_iter(["cmdline", "environ"])
    )
