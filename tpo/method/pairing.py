"""Pair selection: which response of a group is chosen, which is rejected, and how many pairs reject a parse error.

Works on length-controlled scores and answer lengths of a group's valid responses (2410.10630, "Preference pairs"). A
group may yield no pair.

Scores within 1e-9 are a tie, and ties are broken against length (chosen: the shorter; rejected: the longer), because
coarse judges tie often and length control shouldn't stop there.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

TIE_TOLERANCE: Final = 1e-9


class ScoreGroup(NamedTuple):
    """One prompt's valid candidates."""

    scores: NDArray[np.float64]
    """Shape (K,)."""
    lengths: NDArray[np.float64]
    """Shape (K,), characters of the answer."""


class PairIndices(NamedTuple):
    """A pair within one group."""

    chosen: int
    rejected: int


class PairArrays(NamedTuple):
    """A pair in each of G groups; both indices are -1 if a group yields none."""

    chosen: NDArray[np.int64]
    """Shape (G,)."""
    rejected: NDArray[np.int64]
    """Shape (G,)."""


class ErrorQuota(NamedTuple):
    """Numbers of pairs whose rejected output has a parse error."""

    replaced: int
    """k1: regular pairs whose rejected output is replaced by an erroneous one."""
    added: int
    """k2: prompts without a regular pair that are added with an erroneous rejected output."""


def read_group(scores: ArrayLike, lengths: ArrayLike) -> ScoreGroup:
    """Returns both as float arrays (K,); raises ValueError for mismatched shapes, non-finite values or negative
    lengths."""
    group = ScoreGroup(np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64))
    if group.scores.ndim != 1 or group.scores.shape != group.lengths.shape:
        raise ValueError(
            f"scores have shape {group.scores.shape} and lengths {group.lengths.shape}; expected one shape (K,): "
            "give one length for each score of the group"
        )
    if not np.isfinite(group.scores).all():
        raise ValueError(f"scores are {group.scores.tolist()}; expected finite numbers: leave out unscored candidates")
    if not (np.isfinite(group.lengths) & (group.lengths >= 0)).all():
        raise ValueError(f"lengths are {group.lengths.tolist()}; expected finite numbers, 0 or more: count characters")
    return group


def select_pair(scores: ArrayLike, lengths: ArrayLike, *, texts: Sequence[str] | None = None) -> PairIndices | None:
    """Chosen = argmax, rejected = argmin of one group's length-controlled scores (2410.10630; the tie rule is ours).

    `scores` and `lengths` (characters of the answer) have shape (K,); `texts`, if given, are the K full outputs. Of
    scores within 1e-9 of the best the shortest is chosen, of those within 1e-9 of the worst the longest is rejected;
    remaining ties go to the lower index. None for fewer than two candidates, equal scores, or two identical texts.

    Raises ValueError for mismatched shapes, non-finite values or negative lengths.
    """
    group = read_group(scores, lengths)
    size = len(group.scores)
    if texts is not None and len(texts) != size:
        raise ValueError(f"{len(texts)} texts for {size} scores; expected one text for each score")
    if size < 2:
        return None
    pairs = select_pairs(group.scores[None], group.lengths[None], np.ones((1, size), dtype=np.bool_))
    pair = PairIndices(int(pairs.chosen[0]), int(pairs.rejected[0]))
    if pair.chosen < 0 or (texts is not None and texts[pair.chosen] == texts[pair.rejected]):
        return None
    return pair


def select_pairs(scores: NDArray[np.float64], lengths: NDArray[np.float64], valid: NDArray[np.bool_]) -> PairArrays:
    """`select_pair` over G groups padded to K candidates; all three arrays have shape (G, K), K at least 1.

    Entries where `valid` is False are padding; they must be finite and are otherwise ignored. Inputs aren't checked
    again (see `read_group`).
    """
    best = np.where(valid, scores, -np.inf).max(axis=1, keepdims=True)
    worst = np.where(valid, scores, np.inf).min(axis=1, keepdims=True)
    regular = (best - worst >= TIE_TOLERANCE)[:, 0]
    top = valid & (best - scores < TIE_TOLERANCE)
    chosen = np.where(top, lengths, np.inf).argmin(axis=1)
    # If best and worst are less than two tolerances apart, one candidate can tie with both.
    bottom = valid & (scores - worst < TIE_TOLERANCE) & (np.arange(scores.shape[1]) != chosen[:, None])
    rejected = np.where(bottom, lengths, -np.inf).argmax(axis=1)
    return PairArrays(np.where(regular, chosen, -1), np.where(regular, rejected, -1))


def has_margin(raw_scores: ArrayLike, min_margin: float) -> bool:
    """Whether one group's raw scores (K,), before length control, spread (max - min) at least `min_margin`.

    A tolerance of 1e-9 lets 0.3 - 0.1 reach 0.2; fewer than two scores have spread 0. Raises ValueError for scores that
    are non-finite or of another shape, or a negative or NaN margin.
    """
    scores = read_group(raw_scores, np.zeros(np.shape(raw_scores))).scores
    spread = float(np.ptp(scores)) if scores.size else 0.0
    return spread >= _least_spread(min_margin)


def have_margin(raw_scores: NDArray[np.float64], valid: NDArray[np.bool_], min_margin: float) -> NDArray[np.bool_]:
    """`has_margin` over G groups padded to K candidates (G, K); returns (G,), False for a group without candidates."""
    best = np.where(valid, raw_scores, -np.inf).max(axis=1)
    worst = np.where(valid, raw_scores, np.inf).min(axis=1)
    return np.asarray(best - worst >= _least_spread(min_margin))


def _least_spread(min_margin: float) -> float:
    """The spread that counts as `min_margin`, allowing for rounding; raises ValueError for a negative or NaN margin."""
    if not min_margin >= 0:
        raise ValueError(f"min_margin is {min_margin}; expected 0 or more, in units of the judge's raw score")
    return max(0.0, min_margin - TIE_TOLERANCE)


def error_quota(regular: int, regular_with_errors: int, only_errors: int, cap: float | Fraction = 0.1) -> ErrorQuota:
    """Numbers of error pairs that keep them within `cap` of all pairs (2410.10630 reports <= 10%; the rule is ours).

    `regular` = |R|, prompts with a regular pair; `regular_with_errors` = |E∩R|, those that also have an erroneous
    sample; `only_errors` = |E minus R|, prompts with a valid and an erroneous sample but no regular pair. k1 replaces
    rejected outputs within R; k2 adds prompts only once E∩R is used up. Exact: cap 0.1 means one tenth.

    Raises ValueError for negative counts, |E∩R| > |R|, or a cap outside [0, 1).
    """
    if min(regular, regular_with_errors, only_errors) < 0 or regular_with_errors > regular:
        raise ValueError(
            f"counts are |R|={regular}, |E∩R|={regular_with_errors}, |E-R|={only_errors}; expected none negative and "
            "|E∩R| at most |R|: count prompts, not samples"
        )
    if not 0 <= cap < 1:
        raise ValueError(f"cap is {cap}; expected a share of all pairs, at least 0 and below 1: the paper's is 0.1")
    share = Fraction(str(cap))
    allowed = share * regular
    replaced = min(regular_with_errors, int(allowed))
    if replaced < regular_with_errors:
        return ErrorQuota(replaced, 0)
    return ErrorQuota(replaced, min(only_errors, int((allowed - replaced) / (1 - share))))
