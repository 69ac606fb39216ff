"""Progress of long stages in Prefect: one progress artifact per bar of `tpo.console`, updated at most every ten
seconds.

A stage that ends sooner gets none. Failures to update are ignored: no stage stops because of its bar.
"""

import time
from collections.abc import Callable
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import TaskRunContext
from prefect.exceptions import PrefectException

from tpo.console import Advance

SECONDS_BETWEEN = 10.0


def show_progress(label: str, total: int, unit: str) -> Advance:
    """An observer that shows a bar as an artifact of the current task run; None outside of one."""
    context = TaskRunContext.get()
    if context is None:
        return lambda _: None
    run = context.task_run
    return ProgressArtifact(label, total, unit, flow_run_id=run.flow_run_id, task_run_id=run.id)


class ProgressArtifact:
    """One bar. It uses Prefect's synchronous client, since bars advance in threads and in event loops of all kinds."""

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        *,
        flow_run_id: UUID | None,
        task_run_id: UUID,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._flow_run_id, self._task_run_id = flow_run_id, task_run_id
        self._clock = clock
        self._shown = clock()
        self._artifact: UUID | None = None

    def __call__(self, done: int) -> None:
        """Shows the amount done, if that was last shown a while ago or is everything."""
        now = self._clock()
        if now - self._shown < SECONDS_BETWEEN and not (done >= self._total and self._artifact):
            return
        self._shown = now
        try:
            self._show(done)
        except (httpx.HTTPError, PrefectException):
            return

    def _show(self, done: int) -> None:
        share = 100 * min(1.0, done / max(1, self._total))
        description = f"{self._label}: {done:,} of {self._total:,} {self._unit}"
        with get_client(sync_client=True) as client:
            if self._artifact is not None:
                client.update_artifact(self._artifact, ArtifactUpdate(data=share, description=description))
                return
            self._artifact = client.create_artifact(
                ArtifactCreate(
                    type="progress",
                    data=share,
                    description=description,
                    flow_run_id=self._flow_run_id,
                    task_run_id=self._task_run_id,
                )
            ).id
