"""Claims about what a progress bar reports to its listeners."""

import io
import sys

import pytest

from tpo.console import Advance, progress_bar, say
from tpo.run_context import RunContext, using


def test_listeners_receive_every_bar_and_all_of_its_progress():
    events: list[object] = []

    def onlooker(label: str, total: int, unit: str) -> Advance:
        events.append((label, total, unit))
        return events.append

    with using(RunContext(onlookers=[onlooker])), progress_bar("sample iter_1", 64, "outputs") as advance:
        advance(16)
        advance(64)
    assert events == [("sample iter_1", 64, "outputs"), 16, 64]


def test_output_that_is_no_longer_read_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch):
    class Unread(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Unread())
    say("iter_1/samples: 96 outputs")
