"""What a run hands to all of its code: its engines, the mirror of its folder, and who looks on its progress.

A flow or command makes one `RunContext` and opens it by `using`; code far below asks `run_context()`. It is one for the
process and not a `contextvars.ContextVar`, since threads write to the run folder too (a judge's calls, Ray's
callbacks), and a change that doesn't reach the mirror would be lost. A test opens one with its own fakes.
"""

import contextlib
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpo.console import Onlooker
    from tpo.engines.engines import Engines
    from tpo.engines.inference.request_form import RequestForm
    from tpo.storage.disk import Mirror


@dataclass(frozen=True)
class RunContext:
    """What one run uses; outside of a run, everything is missing or empty."""

    engines: "Engines | None" = None
    """What samples, scores and trains."""
    mirror: "Mirror | None" = None
    """Receives every change of the run folder; None if the disk has everything."""
    onlookers: Sequence["Onlooker"] = ()
    """Progress listeners."""
    request_forms: MutableMapping[tuple[str, str], "RequestForm"] = field(default_factory=dict)
    """The form in which each endpoint and model was last called, if it isn't that of the settings."""


_current = RunContext()


def run_context() -> RunContext:
    """The open context; an empty one if there is none."""
    return _current


@contextlib.contextmanager
def using(context: RunContext) -> Iterator[None]:
    """Opens a context for all threads of this process; the one before returns at its end."""
    global _current  # noqa: PLW0603 -- as the disk, it is one for all that works in this process
    before, _current = _current, context
    try:
        yield
    finally:
        _current = before
