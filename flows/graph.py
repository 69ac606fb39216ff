"""Has Prefect draw an edge from an iteration to what uses its model, in a form that its pages can read.

Prefect 3.7.7 notes what a subflow made as an input of the kind `flow_run`, and its own pages know no such kind: they
draw the edge and then show no task of that run at all. Edges are drawn by the id alone, so the kind is changed.
"""

from prefect.client.schemas.objects import RunType
from prefect.context import FlowRunContext


def name_subflows_as_tasks() -> None:
    """Notes what the subflows of this run have made as inputs of the kind that Prefect's pages know."""
    context = FlowRunContext.get()
    if context is None:
        return
    for key, (state, kind, reference) in list(context.run_results.items()):
        if kind is RunType.FLOW_RUN:
            details = state.state_details
            details = details.model_copy(update={"task_run_id": details.flow_run_id})
            renamed = state.model_copy(update={"state_details": details})
            context.run_results[key] = (renamed, RunType.TASK_RUN, reference)
