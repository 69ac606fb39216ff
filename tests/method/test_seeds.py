"""Claims about intervals over training runs, against tables, computations by hand, the analysis of variance and a
trial of many studies."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from tpo.method.seeds import over_runs, shared_share, student_quantile, t_interval


@pytest.mark.parametrize(
    ("confidence", "degrees", "quantile"),
    [(0.95, 1, 12.7062), (0.95, 2, 4.30265), (0.95, 4, 2.77645), (0.99, 2, 9.92484), (0.9, 2.5, 2.55822),
     (0.95, 1e6, 1.95997)],
)  # fmt: skip
def test_quantiles_of_students_distribution_are_those_of_its_tables(confidence: float, degrees: float, quantile: float):
    assert student_quantile(confidence, degrees) == pytest.approx(quantile, rel=1e-5)


def runs_of(*rows: Sequence[float], shared: bool = True) -> list[dict[str, float]]:
    """Runs with their values by prompt, of the same prompts or of different ones."""
    return [{f"{'' if shared else i}p{j}": value for j, value in enumerate(row)} for i, row in enumerate(rows)]


def test_the_interval_over_runs_is_students():
    # Means 0.5, 0.6, 0.7: s = 0.1, the error is 0.1 / √3, and t with two degrees of freedom is 4.30265.
    low, high = t_interval([0.5, 0.6, 0.7])
    assert (low, high) == pytest.approx((0.6 - 0.248414, 0.6 + 0.248414), abs=1e-5)


def test_with_different_prompts_the_interval_over_both_is_the_one_over_runs():
    found = over_runs(runs_of([0, 1, 0, 1], [0.5, 0.7, 0.6, 0.6], [0, 0, 1, 0], shared=False))
    assert found.value == pytest.approx((0.5 + 0.6 + 0.25) / 3)
    assert found.both == pytest.approx(found.runs)


def test_common_prompts_add_their_covariance():
    # Two runs, means 4 and 4.5, s² = 1/8: s²/n is 1/16, with one degree of freedom. The covariance of [8, 0, 8, 0] and
    # [8.5, 0.5, 8.5, 0.5] is 64/3: over four prompts 16/3, with three. Together 259/48, with 3.0695 degrees of freedom,
    # for which t is 3.1421.
    found = over_runs(runs_of([8, 0, 8, 0], [8.5, 0.5, 8.5, 0.5]))
    half = 3.1421 * (259 / 48) ** 0.5
    assert found.value == 4.25
    assert found.both == pytest.approx((4.25 - half, 4.25 + half), abs=1e-3)


def test_more_degrees_of_freedom_do_not_make_it_narrower_than_the_interval_over_runs():
    found = over_runs(runs_of([1, 0, 1, 0], [1, 0.5, 1, 0.5]))
    assert found.both == pytest.approx(found.runs)


def test_with_all_prompts_in_common_the_variance_is_that_of_two_crossed_random_effects():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(3, 6)) + 4 * rng.normal(size=(1, 6)) + 0.2 * rng.normal(size=(3, 1))
    n, prompts = values.shape
    by_run, by_prompt = values.mean(1), values.mean(0)
    rest = values - by_run[:, None] - by_prompt + values.mean()
    of_runs = prompts * by_run.var(ddof=1)
    of_prompts = n * by_prompt.var(ddof=1)
    of_rest = (rest**2).sum() / ((n - 1) * (prompts - 1))
    variance = (of_runs + of_prompts - of_rest) / (n * prompts)
    between = of_runs / (n * prompts)
    degrees = variance**2 / (between**2 / (n - 1) + (variance - between) ** 2 / (prompts - 1))
    half = student_quantile(0.95, degrees) * variance**0.5
    found = over_runs(runs_of(*values.tolist()))
    assert half > found.runs[1] - found.value
    assert found.both == pytest.approx((values.mean() - half, values.mean() + half))


def test_runs_that_agree_by_chance_leave_the_interval_over_prompts():
    found = over_runs(runs_of([0, 1, 0, 1], [1, 0, 0, 1], shared=False))
    assert found.runs == (0.5, 0.5)
    # Each mean has the variance (1/3) / 4, and theirs half of that.
    half = 1.959964 * (1 / 3 / 4 / 2) ** 0.5
    assert found.both == pytest.approx((0.5 - half, 0.5 + half))


def test_more_common_prompts_never_narrow_the_interval():
    rng = np.random.default_rng(0)
    easy, runs = rng.normal(size=60), list[list[dict[str, float]]]()
    noise = rng.normal(scale=0.2, size=(3, 60))
    for common in (0, 20, 60):
        runs.append([{f"{'' if j < common else i} {j}": easy[j] + noise[i, j] for j in range(60)} for i in range(3)])
    widths = [high - low for low, high in (over_runs(each).both for each in runs)]
    assert all(a <= b for a, b in pairwise(widths))
    assert [shared_share(each) for each in runs] == pytest.approx([0, 1 / 3, 1])


def test_studies_of_three_runs_cover_the_truth_about_as_often_as_they_say_and_a_bootstrap_over_runs_does_not():
    rng = np.random.default_rng(1)
    covered, bootstrap, trials = 0, 0, 120
    for _ in range(trials):
        values = rng.normal(0, 0.02, (3, 1)) + rng.normal(0, 0.3, (1, 100)) + rng.normal(0, 0.3, (3, 100))
        found = over_runs(runs_of(*values.tolist()))
        covered += found.both[0] <= 0 <= found.both[1]
        draws = values.mean(1)[rng.integers(3, size=(500, 3))].mean(1)
        low, high = np.quantile(draws, [0.025, 0.975])
        bootstrap += low <= 0 <= high
    assert covered / trials > 0.9 > 0.8 > bootstrap / trials


@pytest.mark.parametrize(
    ("runs", "told"),
    [([{"a": 1.0}], "expected at least 2"), ([{"a": 1.0}, {}], "no scored prompt")],
)
def test_one_run_and_runs_without_scores_are_refused(runs: list[dict[str, float]], told: str):
    with pytest.raises(ValueError, match=told):
        over_runs(runs)
