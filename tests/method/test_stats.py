"""Claims about means and their intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.method import stats

numbers = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=100)


@given(numbers, st.sampled_from([0.1, 0.5, 0.95]), st.integers(0, 5))
def test_the_interval_contains_the_mean(values: list[float], confidence: float, seed: int) -> None:
    estimate = stats.mean(values, resamples=50, seed=seed, confidence=confidence)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.value == np.mean(values)
    assert estimate.n == len(values)


def test_a_draw_counts_half() -> None:
    assert stats.win_rate([1, 0.5, 0, 1]).value == 0.625


@given(st.lists(st.sampled_from([0, 0.5, 1]), min_size=1, max_size=50))
def test_a_win_rate_and_its_interval_stay_between_zero_and_one(outcomes: list[float]) -> None:
    estimate = stats.win_rate(outcomes, resamples=100)
    assert 0 <= estimate.low <= estimate.high <= 1


@pytest.mark.parametrize("distinct", ["few", "many"])
def test_the_interval_is_near_the_normal_one(distinct: str) -> None:
    random = np.random.default_rng(1)
    values = random.integers(0, 2, 2000).astype(float) if distinct == "few" else random.normal(size=2000)
    estimate = stats.mean(values, resamples=4000)
    reach = 1.96 * values.std() / np.sqrt(values.size)
    assert estimate.low == pytest.approx(estimate.value - reach, abs=0.1 * reach)
    assert estimate.high == pytest.approx(estimate.value + reach, abs=0.1 * reach)


def test_the_interval_has_about_its_nominal_coverage() -> None:
    random = np.random.default_rng(2)
    estimates = [stats.win_rate(random.random(200) < 0.6, resamples=400, seed=seed) for seed in range(400)]
    coverage = np.mean([estimate.low <= 0.6 <= estimate.high for estimate in estimates])
    assert 0.91 <= coverage <= 0.98


def test_the_same_seed_gives_the_same_interval_and_another_a_different_one() -> None:
    values = np.random.default_rng(3).normal(size=100)
    assert stats.mean(values, seed=4) == stats.mean(values, seed=4)
    assert stats.mean(values, seed=4) != stats.mean(values, seed=5)


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    outcomes = [0, 1] * 50
    wide, narrow = stats.win_rate(outcomes, confidence=0.99), stats.win_rate(outcomes, confidence=0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_prompt_has_an_interval_of_zero_width() -> None:
    assert stats.mean([2.5]) == stats.Estimate(2.5, 2.5, 2.5, 1)


def test_a_paired_difference_is_the_mean_of_differences() -> None:
    a, b = np.array([0.2, 0.9, 0.4]), np.array([0.1, 0.5, 0.6])
    assert stats.paired_difference(a, b) == stats.mean(a - b)


def test_pairing_removes_shared_prompt_effects() -> None:
    shared = np.random.default_rng(6).normal(size=500)
    estimate = stats.paired_difference(shared + 0.1, shared)
    assert estimate.high - estimate.low < 1e-9
    assert estimate.value == pytest.approx(0.1)


def test_many_prompts_are_resampled_in_bounded_memory() -> None:
    values = np.random.default_rng(7).normal(size=1000)
    in_batches = 2 * stats.DRAWS_AT_ONCE // values.size + 1
    assert stats.mean(values, resamples=in_batches).low == pytest.approx(values.mean() - 1.96 / 1000**0.5, abs=0.01)
    assert stats.win_rate(np.arange(100_000) % 3 / 2).value == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "n at least 1"), ([[1, 0]], "expected"), ([1, np.nan], "nan at index 1"), ([np.inf], "inf at index 0")],
)
def test_values_without_a_mean_are_rejected(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stats.mean(values)
    with pytest.raises(ValueError, match=message):
        stats.win_rate(values)
    with pytest.raises(ValueError, match=message):
        stats.paired_difference(values, values)


def test_an_invalid_outcome_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"outcomes hold 0.7; expected 1, 0.5 or 0"):
        stats.win_rate([1, 0.7])


def test_a_difference_needs_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="a has 2 values and b 1"):
        stats.paired_difference([1, 2], [1])


@pytest.mark.parametrize(("resamples", "confidence"), [(0, 0.95), (100, 0), (100, 1.0), (100, np.nan)])
def test_impossible_bootstrap_settings_are_rejected(resamples: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"2000 and 0\.95 are the defaults"):
        stats.mean([1, 2], resamples=resamples, confidence=confidence)


def test_a_ratio_of_means_weighs_prompts_by_what_they_hold():
    found = stats.function_of_means([[1, 1], [3, 3], [0, 2]], lambda means: means[0] / means[1])
    assert (found.value, found.n) == (4 / 6, 3) and found.low <= 4 / 6 <= found.high
    with pytest.raises(ValueError, match="expected finite numbers"):
        stats.function_of_means([[np.nan]], lambda means: means[0])
