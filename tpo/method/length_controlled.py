"""AlpacaEval 2's win rate, raw and length-controlled (2404.04475; the fit is that of `length_controlled_v1`).

A judge's preference for the model over the baseline is explained by an L1-regularized logistic regression on the
difference in length, the instruction's difficulty and a constant. The length-controlled win rate is the mean of what it
predicts for equal lengths. Difficulty and the "gamed" rows are in two public files, which aren't part of this package;
without them this is AlpacaEval's `length_controlled_minimal`.

The fit is scikit-learn's, so that the numbers are the official ones to the last digit. It is imported with the first
fit: that takes a second.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FOLDS: Final = 5
STRENGTHS: Final = np.logspace(-4, 4, 10)
"""The candidates for C, the inverse strength of the L1 penalty; cross-validation picks one."""
GAMED_WEIGHT: Final = 0.2 / 2
"""Weight of a gamed row: there are two sets of them."""
_SEED: Final = 123

_Floats = NDArray[np.float64]


class WinRates(NamedTuple):
    """Two win rates over the baseline, in percent."""

    win_rate: float
    """The mean preference."""
    lc_win_rate: float
    """The same if all responses were as long as the baseline's."""


@dataclass(frozen=True)
class GamedRows:
    """The rows of `df_gamed.csv`: the baseline against itself, told to be terse or verbose."""

    preference: _Floats
    """Preference for the gamed output, from 0 to 1."""
    length: _Floats
    """Difference in length in standard deviations, the column `std_delta_len`."""
    difficulty: _Floats
    """The instruction's difficulty."""


def lc_win_rate(
    preference: ArrayLike,
    model_chars: ArrayLike,
    baseline_chars: ArrayLike,
    difficulty: ArrayLike | None = None,
    *,
    gamed: GamedRows | None = None,
) -> WinRates:
    """Win rate and length-controlled win rate in percent.

    Args:
        preference: The judge's preferences (n,) from 1 (for the baseline) to 2 (for the model); 0 is a draw, as 1.5.
        model_chars: Lengths (n,) of the model's responses, in characters.
        baseline_chars: Those of the baseline's responses.
        difficulty: The instructions' difficulties (n,), from `instruction_difficulty.csv`; None leaves it out.
        gamed: Rows that tie the fit to equal outputs of different lengths; they need `difficulty`.

    Raises ValueError for other shapes, fewer than 5 rows, values that aren't finite or out of range, and differences in
    length that are all the same.
    """
    wins, rows = _rows(preference, model_chars, baseline_chars, difficulty, gamed)
    chosen = _choose_strength(rows)
    return WinRates(100 * float(wins.mean()), _controlled(rows, _fit(rows, chosen)))


def lc_interval(
    preference: ArrayLike,
    model_chars: ArrayLike,
    baseline_chars: ArrayLike,
    difficulty: ArrayLike | None = None,
    *,
    gamed: GamedRows | None = None,
    resamples: int = 200,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval over prompts of the length-controlled win rate; the penalty is chosen once, on all
    rows. Raises ValueError whenever `lc_win_rate` does."""
    wins, rows = _rows(preference, model_chars, baseline_chars, difficulty, gamed)
    chosen, draws = _choose_strength(rows), np.random.default_rng(seed)
    own = wins.size
    found = []
    for _ in range(resamples):
        drawn = draws.integers(own, size=own)
        sample = rows.take(np.concatenate([drawn, np.arange(own, rows.weight.size)]), own)
        found.append(_controlled(sample, _fit(sample, chosen)))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class _Rows:
    """Rows to fit, the gamed ones last."""

    features: _Floats
    """Length, difficulty if it is known, and the constant, which is 0 in gamed rows: (n, 2 or 3)."""
    target: _Floats
    """Preference from 0 to 1."""
    weight: _Floats
    """Weight of the row."""
    own: int
    """How many aren't gamed."""

    def take(self, which: NDArray[np.intp], own: int) -> "_Rows":
        return _Rows(self.features[which], self.target[which], self.weight[which], own)


def _rows(
    preference: ArrayLike,
    model_chars: ArrayLike,
    baseline_chars: ArrayLike,
    difficulty: ArrayLike | None,
    gamed: GamedRows | None,
) -> tuple[_Floats, _Rows]:
    wins = _preferences(preference)
    model, baseline = (
        _column(values, name, wins.size)
        for values, name in ((model_chars, "model_chars"), (baseline_chars, "baseline_chars"))
    )
    if min(model.min(), baseline.min()) < 0:
        raise ValueError("model_chars and baseline_chars hold a negative length: expected numbers of characters")
    difference = baseline - model
    spread = difference.std(ddof=1)
    if spread == 0:
        raise ValueError(
            f"all {wins.size} responses differ from the baseline's by {difference[0]:g} characters: without different "
            "lengths there is nothing to control for, so report the win rate alone"
        )
    columns = [np.tanh(difference / spread)]
    if difficulty is not None:
        columns.append(_column(difficulty, "difficulty", wins.size))
    own = np.column_stack([*columns, np.ones(wins.size)])
    if gamed is None:
        return wins, _Rows(own, wins, np.ones(wins.size), wins.size)
    if difficulty is None:
        raise ValueError("gamed rows are given but difficulty isn't: give both of AlpacaEval's files, or neither")
    count = len(gamed.preference)
    extra = np.column_stack([np.tanh(gamed.length), gamed.difficulty, np.zeros(count)])
    weight = np.concatenate([np.ones(wins.size), np.full(count, GAMED_WEIGHT)])
    return wins, _Rows(np.vstack([own, extra]), np.concatenate([wins, gamed.preference]), weight, wins.size)


def _preferences(preference: ArrayLike) -> _Floats:
    """Preferences from 0 to 1."""
    found = np.asarray(preference, dtype=np.float64)
    if found.ndim != 1 or found.size < FOLDS:
        raise ValueError(f"preference has shape {found.shape}, expected (n,) with n at least {FOLDS}: one per prompt")
    _check_finite(found, "preference")
    found = np.where(found == 0, 1.5, found)
    if ((found < 1) | (found > 2)).any():
        wrong = found[(found < 1) | (found > 2)][0]
        raise ValueError(
            f"preference holds {wrong:g}, expected 1 (the baseline wins) to 2 (the model wins), or 0: draw"
        )
    return found - 1


def _column(values: ArrayLike, name: str, size: int) -> _Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (size,):
        raise ValueError(f"{name} has shape {found.shape}, but there are {size} preferences: expected one for each")
    _check_finite(found, name)
    return found


def _check_finite(values: _Floats, name: str) -> None:
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{name} holds {values[at]} at index {at}: leave out prompts without a judgment, and say so")


def _choose_strength(rows: _Rows) -> float:
    """The C with the smallest log-loss in cross-validation, which never splits the two copies of a row."""
    from sklearn.model_selection import GroupKFold

    groups = np.arange(rows.target.size)
    losses = np.zeros(len(STRENGTHS))
    twice = np.concatenate([groups, groups])
    for train, test in GroupKFold(n_splits=FOLDS).split(twice, groups=twice):
        inside, outside = np.unique(twice[train]), np.unique(twice[test])
        fitted, held_out = rows.take(inside, 0), rows.take(outside, 0)
        losses += [_loss(held_out, _fit(fitted, strength)) for strength in STRENGTHS]
    return float(STRENGTHS[np.argmin(losses)])


def _fit(rows: _Rows, strength: float) -> _Floats:
    """The coefficients; a soft label p is a positive row of weight p and a negative one of weight 1 - p."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        l1_ratio=1, C=strength, solver="liblinear", fit_intercept=False, random_state=_SEED, dual=False
    )
    label = np.repeat([1, 0], rows.target.size)
    weight = np.concatenate([rows.target, 1 - rows.target]) * np.concatenate([rows.weight, rows.weight])
    model.fit(np.vstack([rows.features, rows.features]), label, sample_weight=weight)
    return np.asarray(model.coef_[0], dtype=np.float64)


def _loss(rows: _Rows, coefficients: _Floats) -> float:
    predicted = np.clip(_sigmoid(rows.features @ coefficients), 1e-15, 1 - 1e-15)
    each = rows.target * np.log(predicted) + (1 - rows.target) * np.log(1 - predicted)
    return -float(np.mean(each * rows.weight))


def _controlled(rows: _Rows, coefficients: _Floats) -> float:
    """Mean prediction for the model's own rows without a difference in length, in percent."""
    level = rows.features[: rows.own].copy()
    level[:, 0] = 0.0
    return 100 * float(_sigmoid(level @ coefficients).mean())


def _sigmoid(values: _Floats) -> _Floats:
    return np.asarray(np.exp(-np.logaddexp(0, -values)))
