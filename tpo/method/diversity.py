"""Diversity: which solutions of a question are kept, which pairs of them differ most, how many a question has.

In: solutions of one question, each a text and the set of its token ids; or the number of solutions of every question.
Out: solutions, pairs of solutions, a cap. Of DPO-ST (2407.18248); its paper says that solutions are deduplicated and
leaves the rest to its code.

From the code [C]: the Jaccard index of token *sets*, above 0.7 is a duplicate, greedy over the sorted distinct texts
with the gold solution first; three pairs of lowest similarity; a cap at the 90th percentile, rounded down.

If pairs are equally similar, the paper's code takes one at random; here it is the first in the given order, so that a
repeated run has the same pairs [D].
"""

import itertools
from collections.abc import Collection, Iterable, Sequence, Set
from fractions import Fraction
from typing import Final, NamedTuple

DUPLICATE_ABOVE: Final = 0.7
"""Solutions of a higher similarity are one [C]."""
PAIRS_PER_QUESTION: Final = 3
"""Pairs that a question gives at most [C]."""
CAP_QUANTILE: Final = 0.9
"""The quantile of solutions per question that is the cap [C]."""


class Solution(NamedTuple):
    """One solution of a question."""

    text: str
    """As written; equal texts are one solution."""
    token_ids: frozenset[int]
    """Which tokens are in it, however often and in whatever order."""


class Contrast(NamedTuple):
    """A right solution beside a wrong one."""

    chosen: Solution
    """The right one."""
    rejected: Solution
    """The wrong one."""


def jaccard(first: Set[int], second: Set[int]) -> float:
    """Shared tokens of two sets, over tokens of either: 0 to 1 [C]; two empty sets are the same, 1 [D]."""
    either = len(first | second)
    return len(first & second) / either if either else 1.0


def deduplicated(
    items: Iterable[Solution], first: Solution | None = None, threshold: float = DUPLICATE_ABOVE
) -> list[Solution]:
    """Those of `items` that aren't alike: each is dropped whose similarity to one kept before is above `threshold`.

    They are gone through by text, in order of code points, after `first`, the gold solution, which is always kept [C].
    The result is in that order, so that its beginning is what a cap keeps. Of equal texts the first counts.

    Raises ValueError for a threshold outside 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"threshold is {threshold}; expected a similarity from 0 to 1: the code's is {DUPLICATE_ABOVE}"
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
    """The `count` pairs of lowest similarity of all pairs of a chosen and a rejected solution, the lowest first [C].

    Pairs of one similarity stand as `chosen` does, then as `rejected` does [D]. A solution can be in several; where one
    side is empty there is none. Raises ValueError for a negative count.
    """
    if count < 0:
        raise ValueError(f"count is {count}; expected pairs per question from 0: the code takes {PAIRS_PER_QUESTION}")
    pairs = itertools.starmap(Contrast, itertools.product(chosen, rejected))
    return sorted(pairs, key=lambda pair: jaccard(pair.chosen.token_ids, pair.rejected.token_ids))[:count]


def cap_per_question(counts: Collection[int], quantile: float = CAP_QUANTILE) -> int:
    """The number of solutions that a question keeps at most: a quantile of `counts`, rounded down [C].

    `counts` are the deduplicated solutions of each question that has any, the gold one counted too [C]; the quantile
    lies on straight lines between them, as NumPy's does, but is exact: 0.9 means nine tenths [D].

    Raises ValueError without counts, for one below 1, or for a quantile outside 0 to 1.
    """
    if not counts or min(counts) < 1:
        raise ValueError(
            f"{len(counts)} counts, the least {min(counts, default=None)}; expected one from 1 for each question with "
            "solutions: leave out questions that have none"
        )
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}; expected a share from 0 to 1: the code's is {CAP_QUANTILE}")
    ordered = sorted(counts)
    place = Fraction(str(quantile)) * (len(ordered) - 1)
    below, above = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
    return int(below + (above - below) * (place - int(place)))
