"""Claims about AlpacaEval's win rates: the fit is the documented objective's, whoever solves it."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rows import SHARED_DATA
from tpo.method.length_controlled import GAMED_WEIGHT, STRENGTHS, GamedRows, lc_interval
from tpo.method.stats import lc_win_rate

ANNOTATIONS = SHARED_DATA / "alpaca_eval_annotations.jsonl"
Floats = NDArray[np.float64]
AGREEMENT = 1e-3
"""In percent. With AlpacaEval's tolerance liblinear stops up to 3e-4 short of the minimum, and so do we."""


def solved(features: Floats, target: Floats, weight: Floats, strength: float) -> Floats:
    """The minimum of |w|₁ + C Σ weight · cross-entropy, by proximal coordinate descent in NumPy."""
    w = np.zeros(features.shape[1])
    curvature = strength * (weight[:, None] * features**2).sum(axis=0) / 4
    for _ in range(20_000):
        before = w.copy()
        for j, bound in enumerate(curvature):
            predicted = 1 / (1 + np.exp(-features @ w))
            gradient = strength * (weight * (predicted - target)) @ features[:, j]
            moved = w[j] - gradient / bound
            w[j] = np.sign(moved) * max(abs(moved) - 1 / bound, 0.0)
        if np.abs(w - before).max() < 1e-12:
            break
    return w


def independently(
    preference: Floats,
    model: Floats,
    baseline: Floats,
    difficulty: Floats | None = None,
    gamed: GamedRows | None = None,
) -> float:
    """The length-controlled win rate without scikit-learn; folds are GroupKFold's for groups of one size."""
    difference = baseline - model
    columns = [np.tanh(difference / difference.std(ddof=1)), *([] if difficulty is None else [difficulty])]
    x, y, own = np.column_stack([*columns, np.ones(len(preference))]), preference - 1, len(preference)
    weight = np.ones(own)
    if gamed is not None:
        x = np.vstack([x, np.column_stack([np.tanh(gamed.length), gamed.difficulty, np.zeros(len(gamed.length))])])
        y = np.concatenate([y, gamed.preference])
        weight = np.concatenate([weight, np.full(len(gamed.length), GAMED_WEIGHT)])
    fold = fold_of(len(y))
    losses = []
    for strength in STRENGTHS:
        each = []
        for k in range(5):
            w = solved(x[fold != k], y[fold != k], weight[fold != k], strength)
            p = np.clip(1 / (1 + np.exp(-x[fold == k] @ w)), 1e-15, 1 - 1e-15)
            t = y[fold == k]
            each.append(-np.mean(weight[fold == k] * (t * np.log(p) + (1 - t) * np.log(1 - p))))
        losses.append(np.mean(each))
    w = solved(x, y, weight, STRENGTHS[int(np.argmin(losses))])
    level = x[:own].copy()
    level[:, 0] = 0
    return float(100 * np.mean(1 / (1 + np.exp(-level @ w))))


def fold_of(count: int) -> NDArray[np.intp]:
    """Groups in descending order (all are equally large), each to the smallest fold so far: 0, 1, … 4, 0, …"""
    fold = np.empty(count, dtype=np.intp)
    fold[np.argsort(np.ones(count), kind="quicksort")[::-1]] = np.arange(count) % 5
    return fold


def some(count: int = 120, seed: int = 0) -> dict[str, Any]:
    draws = np.random.default_rng(seed)
    baseline = draws.integers(200, 3000, count).astype(float)
    model = np.maximum(1, baseline + draws.normal(150, 700, count))
    p = 1 / (1 + np.exp(-((model - baseline) / 900 + draws.normal(-0.3, 1.5, count))))
    return {"preference": 1 + p, "model_chars": model.round(), "baseline_chars": baseline}


def test_golden_values_of_a_synthetic_set():
    found = lc_win_rate(**some())
    assert found == pytest.approx((43.492978, 40.002221), abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fit_in_numpy_agrees(seed: int):
    rows = some(60, seed)
    expected = independently(rows["preference"], rows["model_chars"], rows["baseline_chars"])
    assert lc_win_rate(**rows).lc_win_rate == pytest.approx(expected, abs=AGREEMENT)


def test_so_it_does_with_difficulty_and_gamed_rows():
    rows, draws = some(60, 2), np.random.default_rng(3)
    difficulty = draws.normal(size=60)
    length = draws.normal(size=80)
    gamed = GamedRows(1 / (1 + np.exp(2 * length)), length, draws.normal(size=80))
    expected = independently(rows["preference"], rows["model_chars"], rows["baseline_chars"], difficulty, gamed)
    assert lc_win_rate(**rows, difficulty=difficulty, gamed=gamed).lc_win_rate == pytest.approx(expected, abs=AGREEMENT)


def test_the_folds_are_those_of_group_k_fold():
    from sklearn.model_selection import GroupKFold

    groups = np.arange(23)
    for k, (_, test) in enumerate(GroupKFold(5).split(np.r_[groups, groups], groups=np.r_[groups, groups])):
        assert set(np.r_[groups, groups][test]) == set(groups[fold_of(23) == k])


def test_a_model_that_wins_because_it_is_longer_loses_the_gain():
    draws = np.random.default_rng(5)
    difference = draws.normal(400, 500, 400)
    p = 1 / (1 + np.exp(-difference / 300))
    found = lc_win_rate(1 + p, 2000 + difference, np.full(400, 2000.0))
    assert found.win_rate > 65 and abs(found.lc_win_rate - 50) < 5


def test_zero_is_a_draw():
    rows = some()
    rows["preference"][:3] = 0
    drawn = {**rows, "preference": np.where(rows["preference"] == 0, 1.5, rows["preference"])}
    assert lc_win_rate(**rows) == lc_win_rate(**drawn)


def test_the_interval_holds_the_value():
    rows = some()
    low, high = lc_interval(**rows, resamples=30)
    assert low < lc_win_rate(**rows).lc_win_rate < high


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preference": [1.0, np.nan, 1, 1, 1, 2]}, "holds nan at index 1"),
        ({"preference": [1.0, 2.5, 1, 1, 1, 2]}, "holds 2.5, expected 1"),
        ({"preference": [1.0, 0.5, 1, 1, 1, 2]}, "holds 0.5, expected 1"),
        ({"preference": [1.0, 2.0]}, "at least 5"),
        ({"preference": [[1.0] * 6]}, "shape"),
        ({"model_chars": [1.0, 2, 3]}, "6 preferences"),
        ({"model_chars": [1.0, 2, 3, 4, 5, np.inf]}, "model_chars holds inf"),
        ({"model_chars": [1.0, 2, 3, 4, 5, -6]}, "negative length"),
        ({"model_chars": [7.0] * 6, "baseline_chars": [9.0] * 6}, "differ from the baseline's by 2 characters"),
        ({"difficulty": [1.0]}, "difficulty has shape"),
        ({"gamed": GamedRows(np.ones(2), np.ones(2), np.ones(2))}, "neither"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change: Mapping[str, object], says: str):
    rows = {"preference": [1.0, 2, 1, 1.5, 1, 2], "model_chars": [1.0, 2, 3, 4, 5, 7], "baseline_chars": [2.0] * 6}
    with pytest.raises(ValueError, match=says):
        lc_win_rate(**{**rows, **change})  # type: ignore[arg-type]


@pytest.mark.skipif(not ANNOTATIONS.is_file(), reason=f"{ANNOTATIONS} is not here")
@pytest.mark.parametrize(
    ("model", "minimal"),
    [("FuseChat-Llama-3.1-8B-Instruct", 65.003221), ("FuseChat-Qwen-2.5-7B-Instruct", 63.407009)],
)
def test_two_models_of_the_leaderboard_get_their_numbers(model: str, minimal: float):
    """`minimal` is what alpaca_eval 0.6.6 computes as length_controlled_minimal; its full form needs two more files."""
    rows = [row for row in map(json.loads, ANNOTATIONS.read_text().splitlines()) if row["model"] == model]
    found = lc_win_rate(*([row[name] for row in rows] for name in ("preference", "model_chars", "baseline_chars")))
    assert found.win_rate == pytest.approx(rows[0]["leaderboard_win_rate"], abs=1e-9)
    assert found.lc_win_rate == pytest.approx(minimal, abs=1e-6)
    assert abs(found.lc_win_rate - rows[0]["leaderboard_lc_win_rate"]) < 0.5
