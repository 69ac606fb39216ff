"""Length control: scores minus a multiple of length, and the smallest multiple that keeps chosen answers from growing.

Works on raw scores and answer lengths of a group's valid candidates (2410.10630, "Length control").

The paper gives the range of ρ and the goal (chosen no longer than rejected), not how to choose it. We take the smallest
ρ on a grid that meets the goal on average, because a larger one only trades away score.

Thoughts play no part in the paper's score, and it names control of their length as missing. A separate coefficient, 0
by default, penalizes the length of thoughts in the same way.
"""

import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tpo.method.pairing import PairArrays, have_margin, read_group, select_pairs

RHO_GRID: Final = tuple(step / 20 for step in range(11))
"""0, 0.05, …, 0.5."""
FLAT_TOLERANCE: Final = 1e-12
"""A standard deviation below this share of the largest value is rounding error and counts as 0."""


def length_controlled(
    scores: ArrayLike,
    lengths: ArrayLike,
    rho: float,
    *,
    thoughts: ArrayLike | None = None,
    thought_penalty: float = 0.0,
) -> NDArray[np.float64]:
    """s = z(score) - rho·z(length) within one group, z(v) = (v - mean)/std with ddof 0 (2410.10630, Length control).

    `scores` and `lengths` (characters of the answer) have shape (K,), valid candidates only; so has the result, in
    standard deviations. z is 0 if the values are all equal up to rounding. If `thoughts` are given (characters of the
    thoughts, (K,)), thought_penalty·z(thoughts) is subtracted too; that is ours.

    Raises ValueError for rho outside [0, 0.5], a negative penalty, mismatched shapes, non-finite values or negative
    lengths.
    """
    if not RHO_GRID[0] <= rho <= RHO_GRID[-1]:
        raise ValueError(f"rho is {rho}; expected a number from {RHO_GRID[0]} to {RHO_GRID[-1]}: see choose_rho()")
    group = read_group(scores, lengths)
    if not group.scores.size:
        return group.scores
    valid = np.ones((1, len(group.scores)), dtype=np.bool_)
    score_z, length_z = _standardise(group.scores[None], valid)[0], _standardise(group.lengths[None], valid)[0]
    thought_z = np.zeros_like(score_z)
    if thoughts is not None:
        thought_z = _standardise(read_group(scores, thoughts).lengths[None], valid)[0]
    return np.asarray(score_z - rho * length_z - _checked(thought_penalty) * thought_z)


def choose_rho(
    scores: Sequence[ArrayLike],
    lengths: Sequence[ArrayLike],
    *,
    min_margin: float = 0.0,
    thoughts: Sequence[ArrayLike] | None = None,
    thought_penalty: float = 0.0,
) -> float:
    """Smallest rho of 0, 0.05, …, 0.5 at which mean chosen length <= mean rejected length (goal: 2410.10630).

    `scores` and `lengths` (characters of the answer) hold one array (K_g,) for each of G groups, valid candidates only;
    the means are over all regular pairs at that rho. Groups whose raw scores spread less than `min_margin` are left
    out. Pairs of identical texts needn't be: they add the same to both means. Without a pair there is nothing to
    control, and rho is 0. If no rho suffices, warns and returns 0.5. `thoughts` and `thought_penalty` are as in
    `length_controlled`, by group.

    Raises ValueError if the number of groups differs, and whenever `length_controlled` does.
    """
    if len(scores) != len(lengths):
        raise ValueError(f"{len(scores)} groups of scores and {len(lengths)} of lengths; expected equal numbers")
    score, length, valid = _padded(scores, lengths)
    valid &= have_margin(score, valid, min_margin)[:, None]
    score_z, length_z = _standardise(score, valid), _standardise(length, valid)
    if thoughts is not None:
        score_z = score_z - _checked(thought_penalty) * _standardise(_padded(scores, thoughts)[1], valid)
    for rho in RHO_GRID:
        pairs = select_pairs(score_z - rho * length_z, length, valid)
        excess, count = _excess_length(pairs, length)
        if excess <= 0:
            return rho
    warnings.warn(
        f"at rho {RHO_GRID[-1]}, the largest allowed, chosen answers are still {excess:.1f} characters longer than "
        f"rejected ones on average over {count} pairs: the judge favors length; expect answers to grow",
        stacklevel=2,
    )
    return RHO_GRID[-1]


def _checked(thought_penalty: float) -> float:
    if not thought_penalty >= 0:
        raise ValueError(
            f"thought_penalty is {thought_penalty}; expected 0 or more: it lowers the scores of long thoughts"
        )
    return thought_penalty


def _excess_length(pairs: PairArrays, length: NDArray[np.float64]) -> tuple[float, int]:
    """Mean chosen minus mean rejected length over the pairs (0 if there are none), and the number of pairs."""
    groups = np.flatnonzero(pairs.chosen >= 0)
    if not groups.size:
        return 0.0, 0
    chosen, rejected = length[groups, pairs.chosen[groups]], length[groups, pairs.rejected[groups]]
    return float(chosen.sum() - rejected.sum()) / groups.size, groups.size


def _padded(
    scores: Sequence[ArrayLike], lengths: Sequence[ArrayLike]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Ragged groups as scores, lengths and validity of shape (G, K), K the largest group (at least 1), zero-padded."""
    groups = [read_group(s, n) for s, n in zip(scores, lengths, strict=True)]
    sizes = np.array([len(group.scores) for group in groups], dtype=np.int64)
    valid = np.arange(sizes.max(initial=1)) < sizes[:, None]
    score, length = np.zeros(valid.shape), np.zeros(valid.shape)
    if groups:
        score[valid] = np.concatenate([group.scores for group in groups])
        length[valid] = np.concatenate([group.lengths for group in groups])
    return score, length, valid


def _standardise(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Row-wise z-scores of the valid entries of (G, K), ddof 0; 0 in flat rows and in padding."""
    kept = np.where(valid, values, 0.0)
    largest = np.abs(kept).max(axis=1, keepdims=True)
    kept = kept / np.where(largest > 0, largest, 1.0)  # so that the squares neither overflow nor underflow
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    deviation = np.where(valid, kept - kept.sum(axis=1, keepdims=True) / count, 0.0)
    std = np.sqrt((deviation**2).sum(axis=1, keepdims=True) / count)
    flat = std < FLAT_TOLERANCE
    return np.where(flat, 0.0, deviation / np.where(flat, 1.0, std))
