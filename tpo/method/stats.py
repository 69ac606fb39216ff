"""Means with bootstrap intervals: win rates, plain means, functions of means, and differences over the same prompts.

Intervals are percentile bootstraps over prompts: easy to explain and never outside the range of a win rate, but a
little narrow below about 30 prompts. They don't cover variation between training runs. The scores of AlpacaEval and
Arena-Hard, with their own rules, are in separate modules.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tpo.method.arena_hard import arena_hard_score
from tpo.method.length_controlled import lc_interval, lc_win_rate

__all__ = [
    "Estimate",
    "arena_hard_score",
    "function_of_means",
    "lc_interval",
    "lc_win_rate",
    "mean",
    "paired_difference",
    "sign_test",
    "wilson",
    "win_rate",
]

DRAWS_AT_ONCE: Final = 1 << 21
"""Maximum number of values resampled at a time, to bound memory (16 MiB of indices, 16 MiB of values)."""
FEW_VALUES: Final = 64
"""Up to this many distinct values, resamples are drawn as counts of each value."""


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with its interval."""

    value: float
    """The mean, in the unit of the data."""
    low: float
    """Lower end of the interval, at most `value`."""
    high: float
    """Upper end of the interval, at least `value`."""
    n: int
    """Number of prompts."""


def win_rate(outcomes: ArrayLike, *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """Share of prompts won, draws counting half: `outcomes` (n,) is 1 win, 0.5 draw or contradiction, 0 loss.

    Raises ValueError for any other outcome, and whenever `mean` does.
    """
    results = _numbers(outcomes, name="outcomes")
    known = np.isin(results, (0.0, 0.5, 1.0))
    if not known.all():
        raise ValueError(f"outcomes hold {results[~known][0]}; expected 1, 0.5 or 0: use mean() for other values")
    return _estimate(results, resamples=resamples, seed=seed, confidence=confidence)


def mean(values: ArrayLike, *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """Mean of `values` (n,) with its percentile bootstrap interval of level `confidence` (Efron 1979).

    The same data and seed give the same interval. Raises ValueError for no values, another shape, non-finite values,
    `resamples` below 1, or a confidence outside (0, 1).
    """
    return _estimate(_numbers(values, name="values"), resamples=resamples, seed=seed, confidence=confidence)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """Mean of a - b with its interval; `a` and `b` have shape (n,), over the same prompts in the same order.

    Raises ValueError if the lengths differ, and whenever `mean` does.
    """
    first, second = _numbers(a, name="a"), _numbers(b, name="b")
    if first.shape != second.shape:
        raise ValueError(f"a has {first.size} values and b {second.size}; expected one of each per prompt")
    return _estimate(first - second, resamples=resamples, seed=seed, confidence=confidence)


def wilson(values: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Mean of `values` (n,) in [0, 1] with Wilson's score interval, which also covers shares of 0 and 1, where a
    bootstrap has no width. For halves among the values it is a little too wide.

    Raises ValueError for other values, and as `mean` does.
    """
    shares = _numbers(values, name="values")
    if shares.min() < 0 or shares.max() > 1:
        raise ValueError(f"values are from {shares.min()} to {shares.max()}; expected shares, from 0 to 1")
    n, share = shares.size, float(shares.mean())
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(share * (1 - share) * z2 / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return Estimate(share, max(0.0, min(center - half, share)), min(1.0, max(center + half, share)), n)


def sign_test(first: int, second: int) -> float:
    """Two-sided exact p-value of `first` cases against `second` if both were equally likely: McNemar's test, with the
    cases on which two judges differ; 1 without any."""
    n, most = first + second, max(first, second)
    tail = sum(math.comb(n, k) for k in range(most, n + 1))
    return min(1.0, 2 * float(Fraction(tail, 2**n)))


def function_of_means(
    columns: ArrayLike,
    function: Callable[[NDArray[np.float64]], ArrayLike],
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """A function of the means of `columns` (n, k), such as a ratio of two, with its interval. Prompts are resampled
    with all of their columns, since what is counted within one response isn't independent.

    `function` maps means (k, …) to values (…). Raises ValueError for other shapes and values that aren't finite.
    """
    rows = np.asarray(columns, dtype=np.float64)
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise ValueError(f"columns have shape {rows.shape}; expected finite numbers (n, k) with n at least 1")
    draws, each = np.random.default_rng(seed), max(1, DRAWS_AT_ONCE // rows.size)
    parts = [
        rows[draws.integers(len(rows), size=(min(each, resamples - start), len(rows)))].mean(axis=1)
        for start in range(0, resamples, each)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(function(np.concatenate(parts).T)), [tail, 1 - tail])
    value = float(np.asarray(function(rows.mean(axis=0))))
    return Estimate(value, min(float(low), value), max(float(high), value), len(rows))


def _numbers(values: ArrayLike, *, name: str) -> NDArray[np.float64]:
    """Returns a finite float array of shape (n,), n at least 1; raises ValueError otherwise."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} have shape {array.shape}; expected (n,) with n at least 1: was no prompt scored?")
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(
            f"{name} hold {array[~finite][0]} at index {int(np.flatnonzero(~finite)[0])}; expected finite numbers: "
            "leave out unscored prompts and report how many"
        )
    return array


def _estimate(values: NDArray[np.float64], *, resamples: int, seed: int, confidence: float) -> Estimate:
    """Mean and percentile interval, widened if necessary to contain the mean, which a coarse bootstrap can miss."""
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"resamples is {resamples} and confidence {confidence}; expected resamples of at least 1 and a "
            "confidence between 0 and 1: 2000 and 0.95 are the defaults"
        )
    means = _resampled_means(values, resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    value = float(values.mean())
    return Estimate(value, min(float(low), value), max(float(high), value), values.size)


def _resampled_means(values: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means (resamples,) of draws with replacement, drawn as counts of each value if few values are distinct."""
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size <= FEW_VALUES:
        drawn = rng.multinomial(values.size, counts / values.size, size=resamples)
        return np.asarray(drawn @ distinct) / values.size
    rows = max(1, DRAWS_AT_ONCE // values.size)
    return np.concatenate(
        [
            values[rng.integers(values.size, size=(min(rows, resamples - start), values.size))].mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
