"""Claims about kinds of instruction: what a file brings is used as it is, and win rates are what a hand computes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.estimates import Estimator
from tasks.kinds import by_kind, kind_row, wins_of, with_kinds
from tasks.rate import RATINGS, Brought, rate
from tests.rows import a_config, some_answers, stored
from tpo.config.fine_grained import FineGrainedConfig
from tpo.config.judges import PairwiseJudge
from tpo.records import Artifact, Prompt, Rating
from tpo.report.summary import FineGrained
from tpo.storage.store import read_rows

OF_ROWS = FineGrainedConfig()
RATED = FineGrainedConfig(model="m", endpoint={"base_url": "http://127.0.0.1:9/v1"})


def prompts_of(kinds: Sequence[tuple[str | None, int | None]]) -> list[Prompt]:
    return [Prompt(f"p{i}", f"Do {i}.", category=kind, difficulty=level) for i, (kind, level) in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "of_rows", "with_rater"),
    [
        ([("a", 1), ("b", None)], (True, True), (True, True)),
        ([("a", None), (None, None)], (True, False), (False, False)),
        ([("arena-hard-v0.1", None)] * 3, (True, False), (False, False)),
        ([(None, 2), (None, 2)], (False, True), (False, True)),
        ([(None, None)], (False, False), (False, False)),
    ],
)
def test_a_file_brings_categories_if_they_tell_its_rows_apart(
    kinds: Sequence[tuple[str | None, int | None]], of_rows: tuple[bool, bool], with_rater: tuple[bool, bool]
):
    rows = prompts_of(kinds)
    assert (Brought.of(rows, OF_ROWS), Brought.of(rows, RATED)) == (Brought(*of_rows), Brought(*with_rater))


@pytest.mark.parametrize("settings", [OF_ROWS, RATED], ids=["without a rater", "with one"])
def test_what_a_file_brings_is_used_as_it_is_and_no_model_is_asked(tmp_path: Path, settings: FineGrainedConfig):
    kinds = [("Poems & plays", 7), ("b", None), (None, 2), ("b", 1)]
    config = a_config(tmp_path, evaluation={"fine_grained": settings})
    ratings = rate.fn(config, RATINGS, stored(config.root, "prompts", prompts_of(kinds)))
    found = read_rows(ratings, Rating)
    assert [(each.category, each.complexity) for each in found] == kinds
    assert [(each.no_category, each.no_complexity) for each in found] == [
        (None, None), (None, "not_given"), ("not_given", None), (None, None)
    ]  # fmt: skip


def test_kinds_take_the_place_of_a_prompts_own(tmp_path: Path):
    rows = prompts_of([("a", 1), (None, None)])
    ratings = stored(
        tmp_path, "ratings", [Rating("p0", "x", None, 5, None, ""), Rating("p1", None, "e", None, "e", "")]
    )
    assert [(each.category, each.difficulty) for each in with_kinds(rows, ratings)] == [("x", 5), (None, None)]
    assert with_kinds(rows, None) == rows


def test_a_win_rate_is_the_mean_of_wins_and_half_the_ties_of_its_prompts():
    rows = prompts_of([("a", 1), ("a", 1), ("a", 2), ("b", 2), ("b", None), (None, 3), ("c", 3)])
    won = {"p0": 1.0, "p1": 0.5, "p2": 0.0, "p3": 1.0, "p4": 1.0, "p5": 0.0}  # p6 is unscored
    row = kind_row("M_1", won, rows, Estimator(0.95))
    assert {name: (each.value, each.n) for name, each in row.by_category.items()} == {"a": (0.5, 3), "b": (1.0, 2)}
    assert {name: (each.value, each.n) for name, each in row.by_complexity.items()} == {
        "1": (0.75, 2), "2": (0.5, 2), "3": (0.0, 1)
    }  # fmt: skip
    assert row.overall and row.no_category and row.no_complexity
    assert row.overall.value == pytest.approx(3.5 / 6) and row.overall.n == 6
    assert (row.no_category.value, row.no_category.n) == (0.0, 1)
    assert (row.no_complexity.value, row.no_complexity.n) == (1.0, 1)


def test_an_interval_is_that_of_a_bootstrap_over_the_kinds_own_prompts():
    """64 prompts, half of them won: a binomial's standard error is 1/16, and ±1.96 of it the interval."""
    rows = prompts_of([("a", None)] * 64 + [("b", None)] * 64)
    row = kind_row("M_1", {f"p{i}": float(i % 2 or i >= 64) for i in range(128)}, rows, Estimator(0.95))
    a, b = row.by_category["a"], row.by_category["b"]
    assert [a.low, a.high] == pytest.approx([0.5 - 1.96 / 16, 0.5 + 1.96 / 16], abs=0.02)
    assert (b.low, b.value, b.high) == (1.0, 1.0, 1.0)


def test_scores_win_if_they_are_higher_and_a_comparing_judges_are_wins_already(tmp_path: Path):
    config = a_config(tmp_path)
    ours = some_answers(tmp_path, "ours", {"a": [("x", True)], "b": [("x", False)], "c": [("x", True)]})
    theirs = some_answers(tmp_path, "theirs", {"a": [("y", False)], "b": [("y", False)], "d": [("y", True)]})
    assert wins_of(config, ours, theirs) == {"a": 1.0, "b": 0.5}
    pairwise = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"judge": PairwiseJudge()})})
    assert wins_of(pairwise, ours, theirs) == {"a": 1.0, "b": 0.0, "c": 1.0}


def found_in(
    tmp_path: Path, kinds: Any, won: Mapping[str, float], settings: FineGrainedConfig = OF_ROWS
) -> FineGrained:
    config = a_config(tmp_path, evaluation={"fine_grained": settings})
    prompts: Artifact = stored(config.root, "prompts", prompts_of(kinds))
    return by_kind(config, prompts, rate.fn(config, RATINGS, prompts), {"M_1": won}, against="M_0 direct")


def test_a_kind_is_ahead_or_behind_only_with_enough_prompts_and_a_clear_interval(tmp_path: Path):
    kinds = [(name, 1) for name in ("won", "lost", "even", "few") for _ in range(3 if name == "few" else 12)]
    won = {f"p{i}": {"won": 1.0, "lost": 0.0, "few": 1.0}.get(str(name), i % 2) for i, (name, _) in enumerate(kinds)}
    found = found_in(tmp_path, kinds, won)
    rates = found.rows[0].by_category
    assert {name: found.standing(rates[name]) for name in rates} == {
        "won": "ahead", "lost": "behind", "even": "not clear", "few": "few prompts"
    }  # fmt: skip
    assert found.groupings == ["category"], "one complexity tells nothing apart"
    assert found.kinds("category") == ["few", "won", "even", "lost"]
    assert (found.rater, found.rated, found.judge) == (None, [], "verifier (exact)")
