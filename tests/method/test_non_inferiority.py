"""Claims about the paired test of non-inferiority, on cases computed by hand and on its chance of passing too much."""

import math

import numpy as np
import pytest

from tpo.method.non_inferiority import Outcome, can_pass, least_margin, least_prompts, paired_test

LOST_10_WON_5 = [-1.0] * 10 + [1.0] * 5 + [0.0] * 85
"""A mean of -0.05; its standard error is √((0.15 - 0.0025) / 100) = 0.0384, and the bound at 95 % about -0.113."""


def test_the_bound_is_the_normal_one_of_a_sample_with_one_more_loss():
    found = paired_test(LOST_10_WON_5, margin=0.1).difference
    added = [*LOST_10_WON_5, -1.0]
    assert found.value == pytest.approx(-0.05) and found.n == 100
    by_hand = float(np.mean(added)) - 1.645 * float(np.std(added)) / math.sqrt(101)
    assert found.low == pytest.approx(by_hand, abs=0.006)
    assert found.high == pytest.approx(-0.05 + 1.645 * 0.0384, abs=0.006)


@pytest.mark.parametrize(
    ("differences", "margin", "outcome"),
    [
        (LOST_10_WON_5, 0.15, "not_worse"),
        (LOST_10_WON_5, 0.1, "unclear"),
        ([-1.0] * 40 + [0.0] * 60, 0.02, "worse"),
        ([1.0] * 40 + [0.0] * 60, 0.0, "not_worse"),
        ([0.0] * 148, 0.02, "unclear"),
        ([0.0] * 150, 0.02, "not_worse"),
        ([-0.01] * 1000, 0.02, "not_worse"),
    ],
)
def test_a_model_passes_if_its_lower_bound_is_within_the_margin(
    differences: list[float], margin: float, outcome: Outcome
):
    assert paired_test(differences, margin=margin).outcome == outcome


@pytest.mark.parametrize(("prompts", "won", "margin"), [(30, 0.0, 0.02), (200, 0.0, 0.02), (100, 0.02, 0.05)])
def test_a_model_that_is_worse_by_the_margin_seldom_passes(prompts: int, won: float, margin: float):
    draws = np.random.default_rng(0)
    shares = [won + margin, 1 - 2 * won - margin, won]
    samples = [draws.choice([-1.0, 0.0, 1.0], size=prompts, p=shares) for _ in range(200)]
    passed = [paired_test(each, margin=margin).outcome == "not_worse" for each in samples]
    assert np.mean(passed) < 0.1


def test_the_numbers_of_prompts_that_equal_scores_need_follow_the_rule_of_three():
    assert least_prompts(margin=0.02, confidence=0.95, loss=1.0) == 150
    assert least_prompts(margin=0.0, confidence=0.95, loss=1.0) is None
    assert least_margin(149, confidence=0.95, loss=1.0) == pytest.approx(0.02)
    assert [can_pass(n, margin=0.02, confidence=0.95, loss=1.0) for n in (148, 150)] == [False, True]
    assert [can_pass(n, margin=0.02, confidence=0.95, loss=0.5) for n in (60, 75)] == [False, True]


def test_what_is_unclear_comes_with_the_number_of_prompts_that_would_do():
    found = paired_test(LOST_10_WON_5, margin=0.1)
    assert found.needed is not None and 100 < found.needed < 300
    more = paired_test(LOST_10_WON_5 * math.ceil(found.needed / 100), margin=0.1)
    assert more.outcome == "not_worse"
    assert paired_test(LOST_10_WON_5, margin=0.04).needed is None


@pytest.mark.parametrize(("margin", "confidence", "loss"), [(-0.1, 0.95, 1.0), (0.1, 0.5, 1.0), (0.1, 0.95, -1.0)])
def test_settings_out_of_range_are_refused(margin: float, confidence: float, loss: float):
    with pytest.raises(ValueError, match="one-sided"):
        paired_test([0.0], margin=margin, confidence=confidence, loss=loss)
