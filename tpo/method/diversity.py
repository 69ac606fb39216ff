"""Diversity of solutions: which of a question's are kept, which pairs differ most, and how many a question may have.

From DPO-ST (2407.18248); its paper says that solutions are deduplicated and leaves the rest to its code.

From the code [C]: the Jaccard index of token *sets*, above 0.7 is a duplicate, greedy over the sorted distinct texts
with the gold solution first; three pairs of lowest similarity; a cap at the 90th percentile, rounded down.

If pairs are equally similar, the paper's code picks one at random; here the first in the given order wins, so that a
repeated run has the same pairs [D].
"""

import itertools
from collections.abc import Collection, Iterable, Sequence, Set
from fractions import Fraction
from typing import Final, NamedTuple

DUPLICATE_ABOVE: Final = 0.7
"""Solutions more similar than this are duplicates [C]."""
PAIRS_PER_QUESTION: Final = 3
"""Maximum number of pairs per question [C]."""
CAP_QUANTILE: Final = 0.9
"""The quantile of solutions per question that is the cap [C]."""


class Solution(NamedTuple):
    """One solution of a question."""

    text: str
    """As written; equal texts are one solution."""
    token_ids: frozenset[int]
    """The set of its tokens; order and repetition don't count."""


class Contrast(NamedTuple):
    """A right solution paired with a wrong one."""

    chosen: Solution
    """The right one."""
    rejected: Solution
    """The wrong one."""


def jaccard(first: Set[int], second: Set[int]) -> float:
    """Shared tokens of two sets over all their tokens, 0 to 1 [C]; two empty sets are equal, 1 [D]."""
    either = len(first | second)
    return len(first & second) / either if either else 1.0


def deduplicated(
    items: Iterable[Solution], first: Solution | None = None, threshold: float = DUPLICATE_ABOVE
) -> list[Solution]:
    """The distinct ones among `items`: drops each whose similarity to one kept before is above `threshold`.

    Items are visited in the code-point order of their texts, after `first`, the gold solution, which is always kept
    [C]. The result is in that order, so a cap keeps its beginning. Of equal texts, the first counts.

    Raises ValueError for a threshold outside 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"threshold is {threshold}; expected a similarity from 0 to 1: the paper's code uses {DUPLICATE_ABOVE}"
        )
    by_text: dict[str, Solution] = {}
    for item in items:
        by_text.setdefault(item.text, item)
    kept = [] if first is None else [first]
    for _, item in sorted(by_text.items()):
        is_gold = first is not None and item.text == first.text
        if not is_gold and all(jaccard(item.token_ids, other.token_ids) <= threshold for other in kept):
            kept.append(item)
    return kept


def least_alike(
    chosen: Sequence[Solution], rejected: Sequence[Solution], count: int = PAIRS_PER_QUESTION
) -> list[Contrast]:
    """The `count` least similar pairs of a chosen and a rejected solution, lowest similarity first [C].

    Pairs of equal similarity follow the order of `chosen`, then of `rejected` [D]. A solution can be in several pairs;
    if either side is empty, there are none. Raises ValueError for a negative count.
    """
    if count < 0:
        raise ValueError(
            f"count is {count}; expected 0 or more pairs per question: the paper's code takes {PAIRS_PER_QUESTION}"
        )
    pairs = itertools.starmap(Contrast, itertools.product(chosen, rejected))
    return sorted(pairs, key=lambda pair: jaccard(pair.chosen.token_ids, pair.rejected.token_ids))[:count]


def cap_per_question(counts: Collection[int], quantile: float = CAP_QUANTILE) -> int:
    """Maximum number of solutions that a question keeps: a quantile of `counts`, rounded down [C].

    `counts` has the number of deduplicated solutions of each question that has any, the gold one included [C]. The
    quantile is interpolated linearly, as in NumPy, but exactly: 0.9 means nine tenths [D].

    Raises ValueError for no counts, a count below 1, or a quantile outside 0 to 1.
    """
    if not counts or min(counts) < 1:
        raise ValueError(
            f"{len(counts)} counts, the smallest {min(counts, default=None)}; expected one of at least 1 for each "
            "question with solutions: leave out questions that have none"
        )
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; expected a share from 0 to 1: the paper's code uses {CAP_QUANTILE}")
    ordered = sorted(counts)
    place = Fraction(str(quantile)) * (len(ordered) - 1)
    below, above = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
    return int(below + (above - below) * (place - int(place)))
