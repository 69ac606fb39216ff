"""Claims about the ledger: spending is counted once, however a run was interrupted; a cap says how to continue."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.config.resources import BudgetConfig
from tpo.errors import BudgetError, StoreError
from tpo.planning.throughput import PastRun, past_rate
from tpo.storage.journal import write_lines
from tpo.storage.ledger import LEDGER, MAX_LINES, TICK_SECONDS, WORK, Entry, Meter, Worker, read_ledger, spending

NO_BUDGET = BudgetConfig()


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


CLOCK = Clock()


def a_meter(root: Path, stage: str = "iter_1/samples", budget: BudgetConfig = NO_BUDGET, **worker: Any) -> Meter:
    return Meter(root, stage, Worker(**{"device": "H100", "devices": 2, **worker}), budget, clock=CLOCK)


@pytest.mark.parametrize(
    ("stage", "work"),
    [
        ("iter_3/generations", "generate"),
        ("iter_3/samples", "sample"),
        ("iter_3/judgments", "judge"),
        ("iter_3/train", "train"),
        ("iter_0/validation/epoch_0/samples", "validation sample"),
        ("iter_3/validation/epoch_2/judgments", "validation judge"),
        ("iter_3/test/samples", "test sample"),
        ("iter_0/direct/judgments", "test judge"),
        ("iter_2/against_direct/judgments", "test judge"),
        ("iter_2/against/judgments", "test judge"),
        ("iter_2/sft/test/samples", "test sample"),
        ("iter_2/validation/second_judge/judgments", "test judge"),
        ("iter_0/ratings", "rate"),
        ("iter_0/benchmarks/mine/ratings", "rate"),
    ],
)
def test_a_stages_name_gives_its_kind_of_work(stage: str, work: str):
    assert Entry(stage, "cpu").work == work
    assert work in WORK


def test_tokens_time_and_money_add_up_over_starts(tmp_path: Path):
    for _ in range(2):
        with a_meter(tmp_path, hour_price=3600.0, input_price=2e6, output_price=3e6) as meter:
            CLOCK.seconds += 20
            meter.book(prompts=1, answers=2, tokens_in=3, tokens_out=4)
    sample, total = spending(read_ledger(tmp_path))
    assert (sample.work, total.work) == ("sample", "total")
    assert (total.prompts, total.answers, total.tokens_in, total.tokens_out) == (2, 4, 6, 8)
    assert (total.seconds, total.gpu_seconds, total.engine_seconds) == (40, 80, 0)
    assert total.cost == pytest.approx(6 * 2 + 8 * 3 + 80)


def test_time_without_a_result_is_spent_too(tmp_path: Path):
    def fails() -> None:
        with a_meter(tmp_path):
            CLOCK.seconds += 10
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    (entry,) = read_ledger(tmp_path)
    assert (entry.seconds, entry.tokens) == (10, 0)


def test_engines_on_cpus_do_not_count_as_gpus(tmp_path: Path):
    with a_meter(tmp_path, device="cpu", devices=3, parameters=7) as meter:
        CLOCK.seconds += 5
        meter.book(tokens_out=1)
    (line, _) = spending(read_ledger(tmp_path))
    assert (line.seconds, line.gpu_seconds, line.engine_seconds) == (5, 0, 15)


def test_an_entry_is_written_at_once(tmp_path: Path):
    with a_meter(tmp_path) as meter:
        meter.book(tokens_out=5)
        assert [entry.tokens_out for entry in read_ledger(tmp_path)] == [5]


@given(st.integers(0, 400))
def test_a_ledger_cut_anywhere_keeps_its_whole_lines_and_continues(tmp_path_factory: pytest.TempPathFactory, cut: int):
    root = tmp_path_factory.mktemp("cut")
    with a_meter(root) as meter:
        for _ in range(4):
            meter.book(tokens_out=1)
    whole = (root / LEDGER).read_bytes()
    (root / LEDGER).write_bytes(whole[:cut])
    kept = min(4, whole[:cut].count(b"\n"))
    with a_meter(root) as meter:
        meter.book(tokens_out=1)
    assert sum(entry.tokens_out for entry in read_ledger(root)) == kept + 1


def test_a_long_ledger_is_summed_up_when_opened_with_the_same_totals(tmp_path: Path):
    for stage, lines in (("iter_1/judgments", MAX_LINES), ("iter_2/judgments", 3)):
        with a_meter(tmp_path, stage, input_price=1.0) as meter:
            for _ in range(lines):
                meter.book(answers=1, tokens_in=10, tokens_out=1)
    before = spending(read_ledger(tmp_path))
    with a_meter(tmp_path, "iter_2/judgments"):
        entries = read_ledger(tmp_path)
    assert sorted((entry.stage, entry.answers) for entry in entries) == [
        ("iter_1/judgments", MAX_LINES),
        ("iter_2/judgments", 3),
    ]
    after = spending(entries)
    assert after[0].tokens_in == before[0].tokens_in == 10 * (MAX_LINES + 3)
    assert after[0].seconds == pytest.approx(before[0].seconds, abs=1e-3)
    assert after[0].cost == pytest.approx(before[0].cost)


def test_a_ledger_of_a_newer_version_is_refused_with_the_unknown_field(tmp_path: Path):
    write_lines(tmp_path / LEDGER, [{"stage": "iter_1/samples", "device": "cpu", "watts": 3}])
    with pytest.raises(StoreError, match=r"ledger.jsonl has a line that this version cannot read .*watts.*newer"):
        read_ledger(tmp_path)
    with pytest.raises(StoreError, match="newer"), a_meter(tmp_path):
        pass


@pytest.mark.parametrize(
    ("budget", "pattern"),
    [
        (BudgetConfig(tokens=10), r"budget.tokens = 10 is reached at iter_1/samples: 10 tokens spent"),
        (BudgetConfig(cost=5.0), r"budget.cost = 5.0 is reached .* a cost of 10.00"),
        (BudgetConfig(hours=1e-6), r"budget.hours = 1e-06 is reached .* hours of work"),
    ],
    ids=["tokens", "cost", "hours"],
)
def test_a_reached_cap_is_reported_with_the_spending_and_how_to_continue(
    tmp_path: Path, budget: BudgetConfig, pattern: str
):
    with a_meter(tmp_path, budget=budget, input_price=1e6) as meter:
        meter.check()
        CLOCK.seconds += 10
        meter.book(tokens_in=10)
        with pytest.raises(BudgetError, match=pattern) as stopped:
            meter.check()
    assert "Completed work is saved: raise budget." in str(stopped.value)
    with a_meter(tmp_path, budget=budget) as meter, pytest.raises(BudgetError):
        meter.check()
    with a_meter(tmp_path, budget=BudgetConfig(tokens=11)) as meter:
        meter.check()


def test_work_without_shards_learns_when_an_entry_is_due(tmp_path: Path):
    with a_meter(tmp_path) as meter:
        assert not meter.tick()
        CLOCK.seconds += TICK_SECONDS
        assert meter.tick()
        meter.book()
        assert not meter.tick()


@pytest.mark.parametrize(("at_once", "shards"), [(1, 3), (8, 8), (8, 16), (8, 60)])
def test_the_start_up_of_parallel_engines_is_told_apart_from_their_work(tmp_path: Path, at_once: int, shards: int):
    """Each takes 45 s to start and 60 s per shard of 600 tokens: 10 tokens per second."""
    with a_meter(tmp_path, devices=at_once, at_once=at_once) as meter:
        begun = CLOCK.seconds
        for i in range(shards):
            CLOCK.seconds = begun + 45 + 60 * (1 + i // at_once)
            meter.book(prompts=1, answers=100, tokens_out=600)
    rate = past_rate([PastRun("past", read_ledger(tmp_path))])
    assert rate is not None
    if shards > at_once:
        assert rate.start_seconds == pytest.approx(45)
        assert rate.tokens_per_second == pytest.approx(10, rel=0.07), "the last round of 60 shards is half empty"
    else:
        assert rate.start_seconds is None
        assert rate.tokens_per_second == pytest.approx(8 * 600 / (105 * 8)), "the start counts as work"
