"""The arithmetic of several judges as one: scores standardized within a prompt, combined, and compared.

`scores` have shape (M, K): M judges, K responses to one prompt, all of them scored by all. The paper has one judge; all
of this is ours. Within-prompt z-scores make judges comparable whose units differ, and are all that pair selection uses
(2410.10630, Length control).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tpo.method.scoring import length_controlled

Combine = Literal["mean", "worst", "veto"]
VETO_STEP = 1.0
"""How far below the prompt's worst response a vetoed one is put, in standard deviations."""


def standardized(scores: ArrayLike) -> NDArray[np.float64]:
    """z-scores, (M, K), of each judge over the K responses, with ddof 0; 0 for a judge without spread."""
    table = np.asarray(scores, dtype=np.float64)
    rows = [length_controlled(row, np.zeros(table.shape[1]), 0.0) for row in table]
    return np.asarray(rows).reshape(table.shape)


def combined(
    z: ArrayLike, weights: ArrayLike, how: Combine, vetoed: Sequence[bool] | NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """One score, (K,), for each response from its z-scores, (M, K).

    `mean` is weighted by `weights`, (M,); `worst` is the smallest z, whatever the weights; `veto` is the mean, and
    `VETO_STEP` below the smallest mean for all responses that are `vetoed`, (K,).
    """
    table, by = np.asarray(z, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if how == "worst":
        return np.asarray(table.min(axis=0))
    mean = np.asarray(by @ table / by.sum())
    if how == "veto" and vetoed is not None and np.any(vetoed):
        mean = np.where(vetoed, mean.min() - VETO_STEP, mean)
    return np.asarray(mean)


def disagreement(z: ArrayLike) -> NDArray[np.float64]:
    """How far the judges are apart about each response, (K,): the standard deviation of its z-scores, with ddof 0."""
    return np.asarray(np.std(np.asarray(z, dtype=np.float64), axis=0))


def lead(scores: ArrayLike, texts: Sequence[str]) -> float | None:
    """By how many standard deviations the best of K responses leads the best one with another text; None if there are
    no two different texts. 0 if all scores are equal."""
    values = np.asarray(scores, dtype=np.float64)
    if len(set(texts)) < 2:
        return None
    (z,) = standardized(values[None])
    best = int(np.argmax(z))
    return float(z[best] - max(z[i] for i in range(len(z)) if texts[i] != texts[best]))
