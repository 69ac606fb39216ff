"""The context of a run, available to all of its code: its engines, the mirror of its folder, and progress listeners.

A flow or command creates a `RunContext` and opens it with `using`; code far below calls `run_context()`. There is one
per process rather than a `contextvars.ContextVar`, since threads write to the run folder, too (a judge's calls, Ray's
callbacks), and a change that doesn't reach the mirror would be lost. Tests open one with their own fakes.
"""

import contextlib
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tpo.metrics.live import Metrics

if TYPE_CHECKING:
    from tpo.console import Onlooker
    from tpo.engines.engines import Engines
    from tpo.engines.inference.request_form import RequestForm
    from tpo.storage.disk import Mirror


@dataclass(frozen=True)
class RunContext:
    """The context of one run; outside of a run, everything is None or empty."""

    engines: "Engines | None" = None
    """Samplers, scorers and the trainer."""
    mirror: "Mirror | None" = None
    """Receives every change of the run folder; None if the run isn't in a bucket."""
    onlookers: Sequence["Onlooker"] = ()
    """Progress listeners."""
    metrics: Metrics = field(default_factory=Metrics)
    """What is measured meanwhile; outside of a run, nobody looks at it."""
    request_forms: MutableMapping[tuple[str, str], "RequestForm"] = field(default_factory=dict)
    """The last form of requests for each endpoint and model, if it differs from the settings."""


_current = RunContext()


def run_context() -> RunContext:
    """The open context; an empty one if there is none."""
    return _current


@contextlib.contextmanager
def using(context: RunContext) -> Iterator[None]:
    """Opens a context for all threads of this process; restores the previous one on exit."""
    global _current  # noqa: PLW0603 -- like the disk, it is shared by the whole process
    before, _current = _current, context
    try:
        yield
    finally:
        _current = before
