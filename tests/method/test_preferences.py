"""Claims about the arithmetic of preferences: published rules, and numbers that are known."""

import math

import numpy as np
import pytest

from tpo.method.preferences import (
    SECTIONS,
    TieScores,
    calibration,
    credit,
    length_bias,
    section_scores,
    ties_score,
)
from tpo.method.stats import sign_test, wilson


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        ([2.0], [1.0], 1.0), ([1.0], [2.0], 0.0), ([1.0], [1.0], 0.5), ([3.0], [1.0, 2.0, 0.0], 1.0),
        ([2.0], [2.0, 2.0, 1.0], 1 / 3), ([1.0, 2.0], [2.0], 0.5), ([1.0, 2.0], [1.5], 1.0),
    ],
)  # fmt: skip
def test_a_better_response_at_the_top_counts_by_its_share_of_the_top(
    better: list[float], worse: list[float], expected: float
):
    assert credit(better, worse) == pytest.approx(expected)


def test_ties_score_as_in_reward_bench_2_computed_by_hand():
    one = {"1": TieScores((3.0,), (1.0, 0.0)), "2": TieScores((0.0,), (1.0,)), "9": TieScores((1.0,), (0.0,))}
    several = {"1": TieScores((3.0, 2.5), (1.0,)), "2": TieScores((4.0, 2.0), (1.0,))}
    # Leads 1.5 and 1, spreads 0.5 and 2; the smaller leads with the single answers' 2 and -1 are 1.5 and -1.
    margin = (math.tanh(1.5 / 0.5 - 1) + math.tanh(-1 / 2 - 1)) / 2
    expected = 0.3 * 2 / 2 + 0.3 * 2 / 3 + 0.2 * 1 / 2 + 0.2 * 1 / 2 + 0.01 * margin
    assert ties_score(one, several) == pytest.approx(expected)


def test_a_perfect_judge_gets_all_of_the_ties_and_their_hundredth():
    one, several = {"1": TieScores((1.0,), (0.0,))}, {"1": TieScores((1.0, 1.0), (0.0,))}
    assert ties_score(one, several) == pytest.approx(1.01)
    level = {"1": TieScores((1.0, 1.0), (1.0,))}
    assert ties_score(one, level) == pytest.approx(0.3)


def test_ties_without_counterparts_are_refused():
    with pytest.raises(ValueError, match="expected ids ref:N and tied:N"):
        ties_score({"1": TieScores((1.0,), (0.0,))}, {"2": TieScores((1.0,), (0.0,))})


def test_sections_weigh_math_as_much_as_code():
    accuracies = {name: 0.5 for section in SECTIONS.values() for name in section} | {"math-prm": 1.0}
    found = section_scores(accuracies)
    assert found["Reasoning"] == pytest.approx(0.75) and found["Chat"] == 0.5
    assert found["mean of the sections"] == pytest.approx((0.75 + 3 * 0.5) / 4)
    assert section_scores({"math-prm": 1.0}) == {}


def test_length_bias_is_the_difference_of_two_accuracies():
    won, longer = [1, 1, 1, 0] * 20 + [0, 1] * 20 + [1] * 5, [10] * 80 + [-10] * 40 + [0] * 5
    found = length_bias(won, longer, wilson)
    assert found.longer_better is not None and found.shorter_better is not None and found.difference is not None
    assert (found.longer_better.value, found.longer_better.n) == (0.75, 80)
    assert (found.shorter_better.value, found.shorter_better.n) == (0.5, 40)
    assert found.difference.value == pytest.approx(0.25)
    assert found.difference.low < 0.25 < found.difference.high


def test_without_shorter_better_responses_there_is_no_difference():
    found = length_bias([1.0, 0.0], [5, 6], wilson)
    assert found.shorter_better is None and found.difference is None and found.longer_better is not None


def test_log_odds_are_calibrated_and_doubled_ones_are_too_sure():
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, 40_000)
    leads = np.where(rng.random(40_000) < 1 / (1 + np.exp(-odds)), odds, -odds)
    right = np.abs(leads) * np.where(rng.random(40_000) < 1 / (1 + np.exp(-np.abs(leads))), 1, -1)
    found, doubled = calibration(right), calibration(2 * right)
    assert found.error < 0.01 and found.scale == pytest.approx(1, abs=0.05)
    assert doubled.error > 0.04 and doubled.scale == pytest.approx(2, abs=0.1)
    assert sum(each.pairs for each in found.bins) == 40_000


@pytest.mark.parametrize("leads", [[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0], [1e300, -1e300], [800.0, -1.0]])
def test_extreme_differences_have_a_finite_calibration(leads: list[float]):
    found = calibration(leads)
    assert math.isfinite(found.error) and (found.scale is None or math.isfinite(found.scale))


def test_wilsons_interval_is_the_textbooks():
    found = wilson([1] * 8 + [0] * 2)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-6)
    none = wilson([0] * 20)
    assert none.low == 0 and none.high == pytest.approx(0.161125, abs=1e-6)
    with pytest.raises(ValueError, match="expected shares"):
        wilson([2.0])


def test_the_sign_test_is_the_exact_binomial_one():
    assert sign_test(0, 0) == 1
    assert sign_test(5, 5) == 1
    assert sign_test(8, 2) == pytest.approx(0.109375)
    assert sign_test(2, 8) == sign_test(8, 2)
    assert sign_test(3000, 2000) < 1e-40
