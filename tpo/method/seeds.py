"""Means over training runs that differ in their seed, with intervals over runs, and over runs and prompts.

With three or five runs a bootstrap over runs is far too narrow: it can only draw what it has seen (ten different means
of three runs, all between the lowest and the highest), and its variance is too small by (n − 1)/n. So runs count as a
small sample of a normal population, and the interval is Student's t: 4.3 standard errors for three runs, 12.7 for two.

Prompts are many, but runs may share them: with a test file all do, and generated test sets overlap between seeds. What
runs share doesn't average out over runs, and t over runs can't see it. The variance of a mean over n runs is s²/n, from
the spread of the runs' means, plus C, the mean covariance of two runs' means that comes from their common prompts:

    C = mean over pairs (i, k) of cov_ik · |S_i ∩ S_k| / (|S_i| · |S_k|),

where cov_ik is the covariance of both runs' values over common prompts. If all runs have all prompts, this is the usual
estimate for two crossed random effects, (MS_runs + MS_prompts − MS_residual) / (n · P); without common prompts C is 0,
and t over runs is already right. Degrees of freedom are Satterthwaite's. Since few runs may be close together by
chance, and more degrees of freedom mean a smaller t, the interval is never narrower than that over runs or over prompts
alone.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

MIN_RUNS = 2
"""Runs below which there is no interval over runs."""


@dataclass(frozen=True)
class OverRuns:
    """The mean of some runs with two intervals."""

    value: float
    """Mean of the runs' means; each run has the same weight."""
    runs: tuple[float, float]
    """Interval over training runs, for test prompts like these: Student's t over the runs' means."""
    both: tuple[float, float]
    """Interval over training runs and prompts."""
    n: int
    """Number of runs."""


def student_quantile(confidence: float, degrees: float) -> float:
    """The number t for which Student's distribution with `degrees` ≥ 1 of freedom has mass `confidence` in [−t, t].

    Raises ValueError for a confidence outside (0, 1) or fewer degrees.
    """
    from scipy.special import stdtrit  # takes a quarter of a second

    if not 0 < confidence < 1 or degrees < 1:
        raise ValueError(f"confidence is {confidence} and degrees {degrees}; expected one in (0, 1), and at least 1")
    return float(stdtrit(degrees, (1 + confidence) / 2))


def t_interval(means: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean of a normal population, from at least two values.

    Raises ValueError for fewer.
    """
    if len(means) < MIN_RUNS:
        raise ValueError(f"there is {len(means)} run; expected at least {MIN_RUNS}: one says nothing about others")
    value, error = float(np.mean(means)), float(np.std(means, ddof=1)) / math.sqrt(len(means))
    half = student_quantile(confidence, len(means) - 1) * error
    return value - half, value + half


def over_runs(runs: Sequence[Mapping[str, float]], *, confidence: float = 0.95) -> OverRuns:
    """The mean over runs, each given as its values by prompt: scores, or paired differences.

    Raises ValueError for fewer than two runs, or one without prompts.
    """
    if not all(runs):
        raise ValueError("a run has no scored prompt; expected at least one in each")
    means = [float(np.mean(list(values.values()))) for values in runs]
    low, high = t_interval(means, confidence=confidence)
    value, n = float(np.mean(means)), len(runs)
    between = float(np.var(means, ddof=1)) / n
    common, shared = _common_variance(runs)
    degrees = _satterthwaite((between, n - 1), (common, shared - 1))
    half = student_quantile(confidence, degrees) * math.sqrt(between + common)
    # Two runs of n are the same one with probability 1/n: the variance over prompts alone, with these very runs.
    alone = sum(_variance(values) / len(values) for values in runs) / n**2 + common * (n - 1) / n
    half = max(half, high - value, NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(alone))
    return OverRuns(value, (low, high), (value - half, value + half), n)


def shared_share(runs: Sequence[Mapping[str, float]]) -> float:
    """Share of prompts that two runs have in common, of the smaller one's, on average over pairs of runs."""
    pairs = list(itertools.combinations(runs, 2))
    return sum(len(a.keys() & b.keys()) / min(len(a), len(b)) for a, b in pairs) / len(pairs)


def _common_variance(runs: Sequence[Mapping[str, float]]) -> tuple[float, int]:
    """C, at least 0, and the smallest number of common prompts that contributes to it."""
    found, least = 0.0, 0
    pairs = list(itertools.combinations(runs, 2))
    for a, b in pairs:
        shared = sorted(a.keys() & b.keys())
        if len(shared) > 1:
            covariance = float(np.cov([a[key] for key in shared], [b[key] for key in shared], ddof=1)[0, 1])
            found += covariance * len(shared) / (len(a) * len(b)) / len(pairs)
            least = min(least or len(shared), len(shared))
    return max(0.0, found), least


def _satterthwaite(*parts: tuple[float, int]) -> float:
    """Degrees of freedom of a sum of variances, each with its own."""
    known = [(variance, degrees) for variance, degrees in parts if variance > 0 and degrees > 0]
    if not known:
        return max(1.0, parts[0][1])
    return max(1.0, sum(v for v, _ in known) ** 2 / sum(v**2 / degrees for v, degrees in known))


def _variance(values: Mapping[str, float]) -> float:
    return float(np.var(list(values.values()), ddof=1)) if len(values) > 1 else 0.0
