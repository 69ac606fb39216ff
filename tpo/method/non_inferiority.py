"""A paired test of non-inferiority: whether a model is shown not to be worse than another by more than a margin.

The burden of proof is on the new model: it passes if the one-sided lower confidence bound of its mean difference, by
bootstrap over prompts (`tpo.method.stats`), is at least -margin. So a test with too few prompts fails rather than
passes. The bootstrap alone can't see what didn't occur: it takes 30 prompts without a single loss for a proof that none
is ever lost, and passes a model that loses 2 % of all prompts more often than not at a margin of 2 %. Therefore one
lost prompt is added to the sample before the lower bound is taken. Without losses the bound is then about 3 / n at 95 %
(the rule of three), and the test passes a model at the margin with a chance of 5 % to 7 %, as it should, or less.

If several scores must all pass, each is tested at the full confidence: a model that is worse on one of them passes with
at most the chance that it has in that one test (intersection-union test, Berger 1982), so nothing is corrected for
their number.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike

from tpo.method.stats import Estimate, mean

Outcome = Literal["not_worse", "worse", "unclear"]
"""`worse` if the upper bound is below 0 as well; `unclear` if the test can't tell."""
_ROUNDING: Final = 1e-12
MAX_NEEDED: Final = 1_000_000
"""Larger numbers of prompts aren't given."""


@dataclass(frozen=True)
class PairedTest:
    """The result of one test."""

    difference: Estimate
    """Mean difference, new minus old, with bounds that each hold with the test's confidence."""
    margin: float
    """The margin of the test."""
    outcome: Outcome
    """What the test says."""

    @property
    def needed(self) -> int | None:
        """About how many prompts would pass if the mean and the spread of the differences stayed as they are; None if
        no number would, or more than `MAX_NEEDED`."""
        room = self.difference.value + self.margin
        if room <= 0:
            return None
        needed = self.difference.n * ((self.difference.value - self.difference.low) / room) ** 2
        return math.ceil(needed) if needed <= MAX_NEEDED else None


def paired_test(
    differences: ArrayLike, *, margin: float, confidence: float = 0.95, loss: float = 1.0, seed: int = 0
) -> PairedTest:
    """Tests differences (n,) of two models' scores, new minus old, over the same prompts.

    `loss` is what a lost prompt costs: 1 for right and wrong answers, 0.5 for wins around one half. Raises ValueError
    for a negative margin or loss, a `confidence` outside (0.5, 1), and whenever `mean` does.
    """
    if margin < 0 or loss < 0 or not 0.5 < confidence < 1:
        raise ValueError(
            f"margin is {margin}, loss {loss} and confidence {confidence}; expected the first two to be at least 0, "
            "and the confidence between 0.5 and 1, since the test is one-sided"
        )
    values = np.asarray(differences, dtype=np.float64)
    # Both ends of such a two-sided interval are one-sided bounds of the wanted confidence.
    found = mean(values, confidence=2 * confidence - 1, seed=seed)
    low = mean(np.append(values, -loss), confidence=2 * confidence - 1, seed=seed).low
    found = Estimate(found.value, min(low, found.value), found.high, found.n)
    if found.low >= -margin - _ROUNDING:
        return PairedTest(found, margin, "not_worse")
    return PairedTest(found, margin, "worse" if found.high < 0 else "unclear")


def can_pass(prompts: int, *, margin: float, confidence: float, loss: float) -> bool:
    """Whether a model passes whose scores on so many prompts are all the same as the old one's."""
    test = paired_test(np.zeros(max(1, prompts)), margin=margin, confidence=confidence, loss=loss)
    return test.outcome == "not_worse"


def least_prompts(*, margin: float, confidence: float, loss: float) -> int | None:
    """About how many prompts such a model needs; None for a margin of 0, which no number is enough for."""
    if margin <= 0:
        return None
    return math.ceil(_most_losses(confidence) * loss / margin)


def least_margin(prompts: int, *, confidence: float, loss: float) -> float:
    """About the smallest margin that such a model passes at."""
    return _most_losses(confidence) * loss / (prompts + 1)


def _most_losses(confidence: float) -> int:
    """How often the added prompt is drawn at most, with this confidence: a quantile of the Poisson distribution of mean
    1."""
    k, term = 0, math.exp(-1)
    total = term
    while total < confidence:
        k += 1
        term /= k
        total += term
    return k
