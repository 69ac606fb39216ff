"""Claims about metrics in memory: rates, what is absent, and the line at the terminal."""

import io
import sys
import time
from pathlib import Path

import pytest

from tpo.config.resources import BudgetConfig
from tpo.console import progress_bar
from tpo.metrics import catalog
from tpo.metrics.live import GpuReading, Metrics, Pace
from tpo.run_context import RunContext, using
from tpo.storage.ledger import Meter, Worker, read_ledger

GPU = GpuReading("node-1", "0", "NVIDIA H200", 0.9, 2**30, 2**37)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("reports", "rate"),
    [
        ([], None),
        ([(0, 500)], None),  # It took as long as the start of the engines.
        ([(0, 500), (10, 200)], 20),
        ([(0, 500), (10, 200), (20, 400)], 30),
        ([(0, 500), (0, 500), (10, 200)], 20),
        ([(0, 1), (1000, 100), (1001, 100), (1050, 0)], 2),  # What is older than a minute no longer counts.
        ([(0, 1), (600, 1200)], 2),
        ([(i / 10, 5) for i in range(1000)], 50),  # A server's replies come many at a time.
    ],
)
def test_a_rate_is_that_of_the_last_minute(reports: list[tuple[float, float]], rate: float | None):
    clock = Clock()
    pace = Pace(clock)
    for at, amount in reports:
        clock.now = 100.0 + at
        pace.add(amount)
    assert pace.per_second() == (None if rate is None else pytest.approx(rate, rel=0.02))


def test_sampling_counts_written_tokens_and_judging_all():
    clock = Clock()
    metrics = Metrics(clock)
    for work, rate in (("validation sample", 4), ("judge", 6)):
        metrics.begin(work)
        for clock.now in (200.0, 210.0):
            metrics.spent(work, answers=1, tokens_in=20, tokens_out=40, seconds=10)
        assert metrics.tokens_per_second() == rate
        metrics.end()


def test_counters_equal_the_ledger_line_by_line(tmp_path: Path):
    clock, context = Clock(), RunContext()
    with using(context), Meter(tmp_path, "iter_1/samples", Worker("cpu", 2), BudgetConfig(), clock=clock) as meter:
        for clock.now in (110.0, 125.5):
            meter.book(prompts=2, answers=8, tokens_in=30, tokens_out=400)
    shown, booked = context.metrics.snapshot(), read_ledger(tmp_path)
    assert shown == {
        catalog.TOKENS: {
            ("sample", "in"): sum(entry.tokens_in for entry in booked),
            ("sample", "out"): sum(entry.tokens_out for entry in booked),
        },
        catalog.ANSWERS: {("sample",): sum(entry.answers for entry in booked)},
        catalog.SECONDS: {("sample",): sum(entry.seconds for entry in booked)},
    }
    assert shown[catalog.TOKENS]["sample", "out"] == 800 and shown[catalog.SECONDS]["sample",] == 25.5


def test_what_is_left_to_do_is_that_of_the_current_stage():
    metrics = Metrics()
    with metrics.counting_down(64):
        assert catalog.REMAINING not in metrics.snapshot()
        metrics.begin("sample")
        assert metrics.snapshot()[catalog.REMAINING] == {("sample",): 64}
        metrics.remaining(16)
        assert metrics.snapshot()[catalog.REMAINING] == {("sample",): 16}
        metrics.end()
        assert catalog.REMAINING not in metrics.snapshot()
    metrics.begin("judge")
    assert catalog.REMAINING not in metrics.snapshot()


def test_without_a_gpu_its_metrics_are_absent_and_with_it_the_last_report_counts():
    metrics = Metrics()
    assert metrics.snapshot() == {}
    metrics.report_gpus("engine 0", [GPU])
    metrics.report_gpus("worker", [GpuReading("node-1", "0", "NVIDIA H200", None, 5, None)])
    assert metrics.snapshot() == {catalog.GPU_MEMORY_USED: {("node-1", "0"): 5}}
    metrics.forget_gpus("worker")
    assert metrics.snapshot()[catalog.GPU_UTILIZATION] == {("node-1", "0"): 0.9}
    metrics.report_gpus("engine 0", [])
    assert metrics.snapshot() == {}


def test_actors_of_several_pools_of_a_role_are_added_up():
    metrics = Metrics()
    metrics.show_actors("samplers", "engine", ["busy", "idle"])
    metrics.show_actors("judges", "engine", ["busy"])
    metrics.show_actors("training", "worker", ["busy"])
    assert metrics.snapshot()[catalog.ACTORS] == {("engine", "busy"): 2, ("engine", "idle"): 1, ("worker", "busy"): 1}
    metrics.show_actors("samplers", "engine", [])
    assert metrics.snapshot()[catalog.ACTORS] == {("engine", "busy"): 1, ("worker", "busy"): 1}
    assert metrics.snapshot()[catalog.ACTOR_FAILURES] == {("engine",): 0, ("worker",): 0}


def test_the_line_has_what_is_known_and_nothing_else():
    clock = Clock()
    metrics = Metrics(clock)
    metrics.begin("judge")
    assert metrics.line() == ""
    metrics.advanced(0)
    clock.now += 2
    metrics.advanced(2468)
    assert metrics.line() == "1,234 tokens/s"
    metrics.set(catalog.TRAINING_MFU, 0.412)
    metrics.report_gpus("engine 0", [GPU])
    metrics.failed_reply("timeout")
    assert metrics.line() == "1,234 tokens/s, MFU 41%, GPU 90%, 1 GiB, 1 error"
    metrics.begin("sample")
    metrics.report_gpus("engine 0", [])
    metrics.drop(catalog.TRAINING_MFU)
    assert metrics.line() == ""


def test_a_bar_at_a_terminal_shows_the_line(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    context = RunContext()
    with using(context), progress_bar("judge iter_1", 8, "prompts") as advance:
        context.metrics.begin("judge")
        context.metrics.failed_reply("timeout")
        time.sleep(0.15)  # A bar is drawn ten times a second at most.
        advance(8)
    assert "judge iter_1: 100%" in shown.getvalue() and ", 1 error]" in shown.getvalue()
