"""Claims about what a judge's scores of preferences say of it."""

from collections.abc import Mapping

import pytest

from judges.attacks import Attack
from tasks.judge_numbers import Attacked, Opinions, attack_rows, compared, judge_row
from tasks.preferences import responses_of, scores_of
from tpo.config.judges import ArmoRMJudge, PairwiseJudge, VerifierJudge
from tpo.data.preference_files import Preference
from tpo.records import Judgment, Score
from tpo.storage.ledger import Entry


def a_row(
    asked: str, better: tuple[str, ...] = ("right",), worse: tuple[str, ...] = ("no",), **other: str
) -> Preference:
    return Preference(asked, better, worse, **other)


def said(rows: Mapping[Preference, Mapping[str, float | None]], *, compares: bool = False) -> Opinions:
    """A judge that gives each text of a prompt this score."""
    scores, judgments = [], []
    for row, values in rows.items():
        for index, text in enumerate(responses_of(row)):
            value = values[text]
            scores.append(Score(row.key, index, value, None if value is not None else "too_long", None, len(text)))
            judgments.append(Judgment(row.key, index, None, value, "{}"))
    return Opinions([] if compares else judgments, scores)


def comparisons(row: Preference, better_first: float | None, worse_first: float | None) -> list[Judgment]:
    """Both orders of a pair: the outcome with the better response first, and with the worse one first."""
    better = responses_of(row).index(row.better[0])
    return [
        Judgment(row.key, better, 1 - better, better_first, "{}"),
        Judgment(row.key, 1 - better, better, worse_first, "{}"),
    ]


def test_scores_come_back_by_response_whatever_the_order():
    row = a_row("x", ("a", "b"), ("c", "d", "e"))
    values = {index: float("abcde".index(text)) for index, text in enumerate(responses_of(row))}
    assert scores_of(row, values) == ([0, 1], [2, 3, 4])
    del values[2]
    assert scores_of(row, values) is None


def test_the_better_response_is_first_about_half_the_time():
    rows = [a_row(str(i)) for i in range(400)]
    assert 150 < sum(responses_of(row)[0] == "right" for row in rows) < 250


def test_accuracy_ties_and_unscored_prompts_by_subset():
    rows: dict[Preference, dict[str, float | None]] = {
        a_row("1", subset="x"): {"right": 2.0, "no": 1.0},
        a_row("2", subset="x"): {"right": 1.0, "no": 1.0},
        a_row("3", subset="y"): {"right": 0.0, "no": 1.0},
        a_row("4", subset="y"): {"right": 1.0, "no": None},
    }
    found = judge_row(ArmoRMJudge(), [*rows], said(rows), [])
    assert found.overall.items == 4 and found.overall.unscored == 1
    assert found.overall.accuracy is not None and found.overall.accuracy.value == 0.5
    assert found.overall.ties == pytest.approx(1 / 3)
    assert found.subsets["x"].accuracy is not None and found.subsets["x"].accuracy.value == 0.75
    assert found.unscored == {"too_long": 1} and found.cost is None and found.swapped is None


def test_the_length_gap_shows_a_judge_that_likes_length():
    rows = {a_row(str(i), ("longer text",), ("short",)): {"longer text": 1.0, "short": 0.0} for i in range(20)}
    rows |= {a_row(f"{i}'", ("short",), ("longer text",)): {"longer text": 1.0, "short": 0.0} for i in range(20)}
    found = judge_row(ArmoRMJudge(), [*rows], said(rows), [])
    assert found.longer_better is not None and found.longer_better.value == 1
    assert found.shorter_better is not None and found.shorter_better.value == 0
    assert found.length_gap is not None and (found.length_gap.value, found.length_gap.low) == (1, 1)


def test_a_verdict_that_changes_with_the_order_is_a_position_bias():
    rows = [a_row(str(i)) for i in range(4)]
    outcomes = [(1.0, -1.0), (1.0, 1.0), (0.0, -1.0), (1.0, None)]
    judgments = [each for row, both in zip(rows, outcomes, strict=True) for each in comparisons(row, *both)]
    scores = said({row: {"right": 1.0, "no": 0.0} for row in rows}).scores
    found = judge_row(PairwiseJudge(), rows, Opinions(judgments, scores), [])
    assert found.swapped is not None and found.swapped.n == 3
    assert found.swapped.value == pytest.approx(2 / 3)  # one by place, one that is a tie in one order
    assert found.first_rate == pytest.approx(4 / 6)
    assert found.calibration is None


def test_soft_verdicts_are_calibrated_by_their_log_odds_over_both_orders():
    rows = [a_row(str(i)) for i in range(3)]
    judgments = [each for row in rows for each in comparisons(row, 0.6, -0.6)]
    scores = said({row: {"right": 1.0, "no": 0.0} for row in rows}).scores
    found = judge_row(PairwiseJudge(mode="probability"), rows, Opinions(judgments, scores), [])
    assert found.calibration is not None
    (only,) = found.calibration.bins
    assert only.pairs == 3 and only.right == 1
    assert only.expected == pytest.approx(0.8)  # 0.6 = 2p - 1, in either order


def test_a_verifiers_scores_are_no_degrees_of_belief():
    row = a_row("1")
    assert judge_row(VerifierJudge(), [row], said({row: {"right": 1.0, "no": 0.0}}), []).calibration is None


def test_cost_is_per_thousand_prompts_over_all_that_was_spent():
    row = a_row("1")
    spent = [Entry("x/judgments", "cpu", prompts=4, answers=8, tokens_in=100, seconds=2.0, cost=0.5) for _ in range(2)]
    found = judge_row(ArmoRMJudge(), [row], said({row: {"right": 1.0, "no": 0.0}}), spent).cost
    assert found is not None
    assert (found.calls, found.tokens_in, found.seconds, found.price) == (2000, 25_000, 500, 125)


def test_reward_bench_2_counts_ties_by_their_own_rule_and_leaves_them_out_of_accuracy():
    rows = {
        a_row("1", ("right",), ("no", "never", "not"), subset="Math"): {"right": 1.0, "no": 0, "never": 0, "not": 0},
        a_row("2", subset="Ties", name="ref:1"): {"right": 1.0, "no": 0.0},
        a_row("3", ("right", "red"), subset="Ties", name="tied:1"): {"right": 1.0, "red": 1.0, "no": 0.0},
    }
    found = judge_row(ArmoRMJudge(), [*rows], said(rows), [])
    assert found.overall.items == 1 and [*found.subsets] == ["Math"]
    assert found.totals == pytest.approx({"Ties": 1.01})
    names = ("Factuality", "Precise IF", "Math", "Safety", "Focus")
    rows |= {a_row(name, subset=name): {"right": 1.0, "no": 0.0} for name in names}
    whole = judge_row(ArmoRMJudge(), [*rows], said(rows), [])
    assert whole.totals["mean of the subsets"] == pytest.approx((5 + 1.01) / 6)


def an_attack(row: Preference, text: str, variant: str) -> Attacked:
    attack = Attack("length", variant, lambda _, __: text)
    pair = Preference(row.instruction, row.better, (text,))
    return Attacked(row, attack, pair, row, pair)


def test_only_pairs_that_are_right_without_it_can_be_turned_around():
    rows = [a_row(str(i)) for i in range(4)]
    before = said({row: {"right": 1.0, "no": 0.0 if i else 2.0} for i, row in enumerate(rows)})
    attacked = [an_attack(row, "no no", "twice" if i < 2 else "filler") for i, row in enumerate(rows)]
    after = said(
        {each.pair: {"right": 1.0, "no no": value} for each, value in zip(attacked, (9.0, 3.0, 0.0, None), strict=True)}
    )
    found = attack_rows(attacked, before, after)
    assert [*found] == ["length"]
    row = found["length"]
    assert row.turned is not None and (row.turned.value, row.turned.n, row.unscored) == (0.5, 2, 1)
    assert row.variants == {"filler": [0.0, 1.0], "twice": [1.0, 1.0]}
    assert row.shift is not None and row.shift.value > 1


def test_attacks_in_one_group_count_each_for_itself():
    row = a_row("1")
    attack = Attack("length", "twice", lambda _, __: "")
    group = Preference("1", ("right",), ("no", "no no", "no, no", "lost"))
    attacked = [Attacked(row, attack, Preference("1", ("right",), (text,)), group, group) for text in group.worse[1:]]
    after = said({group: {"right": 1.0, "no": 0.0, "no no": 2.0, "no, no": 0.5, "lost": None}})
    found = attack_rows(attacked, after, after)["length"]
    assert found.turned is not None and (found.turned.value, found.turned.n, found.unscored) == (0.5, 2, 1)


def test_two_judges_are_paired_over_the_prompts_that_both_score():
    rows = [a_row(str(i)) for i in range(10)]
    good = said({row: {"right": 1.0, "no": 0.0} for row in rows})
    bad = said({row: {"right": 0.0 if i < 6 else 1.0, "no": 0.5 if i else None} for i, row in enumerate(rows)})
    found = compared(rows, good, bad)
    assert found is not None
    assert (found.only_first, found.only_second, found.difference.n) == (5, 0, 9)
    assert found.p_value == pytest.approx(2 * 0.5**5)
    assert found.difference.value == pytest.approx(5 / 9)
    assert compared(rows, good, said({row: {"right": None, "no": None} for row in rows})) is None
