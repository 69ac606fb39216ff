"""Ratings from comparisons: verdicts to a battle matrix, battles to Bradley-Terry ratings (2410.10630, "ELO scoring").

Each response of a group gets one rating, centered to mean 0.

The paper maximizes the plain likelihood, which has no finite optimum once a response wins or loses every game, and
among 8 responses that is common. We subtract (ridge/2)·Σε² by default, which makes the optimum unique and finite and
keeps the order if every pair met equally often. `ridge=0` is the paper's objective; a group for which it has no unique
optimum is an error.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

GRADIENT_TOLERANCE: Final = 1e-10
MIN_RIDGE: Final = 1e-10
"""Relative to the largest entry (or 1): below it, rounding outweighs the ridge between items that never met."""
MAX_WINS: Final = 1e15
"""Beyond 2^53 a float can't count in ones."""
MAX_NEWTON_STEPS: Final = 1000


def battle_matrix(verdicts: ArrayLike) -> NDArray[np.int64]:
    """Wins over both orders of showing a pair: B_mn = 1[r_mn = 1] + 1[r_nm = -1] (2410.10630, ELO scoring).

    `verdicts` has shape (K, K) or (G, K, K); entry [m, n] compares m, shown first, with n: 1 if the first wins, -1 if
    the second wins, 0 for a tie or an error. The diagonal is ignored. Returns counts 0, 1 or 2 of the same shape,
    diagonal 0. A judge that always picks the first gives every pair 1-1; ties add nothing. Fractional results belong in
    `soft_battle_matrix`.

    Raises ValueError for another shape, or for a verdict other than -1, 0, 1.
    """
    results = _without_diagonal(verdicts, name="verdicts")
    hard = (results == 1) | (results == -1) | (results == 0)
    if not hard.all():
        raise ValueError(
            f"{_first(~hard, results, name='verdicts')}; expected -1, 0 or 1: pass soft results to "
            "soft_battle_matrix(), and 0 for no result"
        )
    first_wins, second_wins = (results == 1).astype(np.int64), (results == -1).astype(np.int64)
    return np.asarray(first_wins + np.swapaxes(second_wins, -1, -2))


def soft_battle_matrix(results: ArrayLike) -> NDArray[np.float64]:
    """Expected wins over both orders of showing a pair: B_mn = p_mn + (1 - p_nm), p = (1 + result)/2.

    `results` has shape (K, K) or (G, K, K); entry [m, n] compares m, shown first, with n: 2p - 1, p being the judge's
    probability that the first wins, or NaN for no result, which adds nothing. The diagonal is ignored. Returns the same
    shape, diagonal 0. Results of 1 and -1 count as in `battle_matrix`; 0 is half a win each, whereas there it adds
    nothing.

    Raises ValueError for another shape, or for a result outside [-1, 1].
    """
    outcomes = _without_diagonal(results, name="results")
    given = ~np.isnan(outcomes)
    sound = ~given | (np.abs(outcomes) <= 1)
    if not sound.all():
        raise ValueError(
            f"{_first(~sound, outcomes, name='results')}; expected a number from -1 to 1, or NaN for no result: "
            "pass 2p - 1 for a probability p that the first wins"
        )
    given &= ~np.eye(outcomes.shape[-1], dtype=np.bool_)
    first_wins, second_wins = np.where(given, (1 + outcomes) / 2, 0.0), np.where(given, (1 - outcomes) / 2, 0.0)
    return np.asarray(first_wins + np.swapaxes(second_wins, -1, -2))


def bradley_terry(wins: ArrayLike, ridge: float = 0.1) -> NDArray[np.float64]:
    """Ratings ε that maximize Σ_{m≠n} wins_mn·log sigmoid(ε_m - ε_n) - (ridge/2)·Σε² (2410.10630).

    `wins` has shape (K, K) or (G, K, K): wins of m over n, fractions allowed, diagonal ignored. Returns shape (K,) or
    (G, K), in nats (times 400/ln 10 for Elo points), each group centered to mean 0; a group without games gets 0 (with
    a ridge). The final gradient is below 1e-10: relative to the largest entry if all wins are below 1, and no smaller
    than the rounding of its own sum if wins are very many.

    Raises ValueError for another shape; wins that are negative, NaN or above 1e15; a ridge that is negative or so small
    that rounding outweighs it; and, at `ridge=0`, a group whose win graph isn't strongly connected, which has no finite
    or no unique optimum.
    """
    counts = _without_diagonal(wins, name="wins")
    sound = (counts >= 0) & (counts <= MAX_WINS)
    if not sound.all():
        raise ValueError(
            f"{_first(~sound, counts, name='wins')}; expected numbers from 0 to {MAX_WINS:g}: count wins with "
            "battle_matrix(), which takes verdicts, or soft_battle_matrix()"
        )
    smallest = MIN_RIDGE * counts.max(initial=1.0)
    if not (ridge == 0 or smallest <= ridge < np.inf):
        raise ValueError(f"ridge is {ridge}; expected 0 or at least {smallest:g}, finite: 0.1 is the tested default")
    groups = counts.reshape(-1, *counts.shape[-2:])
    if ridge == 0:
        _require_optimum(groups)
    return _newton(groups, ridge).reshape(counts.shape[:-1])


def _without_diagonal(matrix: ArrayLike, *, name: str) -> NDArray[np.float64]:
    """Returns a float copy of shape (K, K) or (G, K, K) with a zero diagonal; raises ValueError for another shape."""
    array = np.array(matrix, dtype=np.float64)
    if array.ndim not in (2, 3) or array.shape[-1] != array.shape[-2] or array.shape[-1] == 0:
        raise ValueError(f"{name} has shape {array.shape}; expected (K, K) or (G, K, K) with K at least 1")
    diagonal = np.arange(array.shape[-1])
    array[..., diagonal, diagonal] = 0.0
    return array


def _first(where: NDArray[np.bool_], array: NDArray[np.float64], *, name: str) -> str:
    """Name and value of the first entry that `where` marks, for an error message."""
    index = tuple(int(i) for i in np.argwhere(where)[0])
    return f"{name}{list(index)} is {array[index]}"


def _newton(wins: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Damped Newton over groups (G, K, K) at once; converged groups drop out.

    The step is scaled by ln(1+R)/R, R being its range. Logistic losses are generalized self-concordant, so this never
    overshoots, needs no line search, and tends to the full step near the optimum (1703.04599).
    """
    ratings = np.zeros(wins.shape[:2])
    scaled = GRADIENT_TOLERANCE * np.minimum(1.0, wins.max(axis=(1, 2)))
    rounding = 4 * np.finfo(np.float64).eps * wins.sum(axis=(1, 2))
    tolerance = np.maximum(np.maximum(scaled, rounding), np.finfo(np.float64).tiny)
    active = np.arange(len(wins))
    for _ in range(MAX_NEWTON_STEPS):
        gradient, curvature = _derivatives(wins[active], ratings[active], ridge)
        moving = np.abs(gradient).max(axis=1) > tolerance[active]
        active = active[moving]
        if not active.size:
            return np.asarray(ratings - ratings.mean(axis=1, keepdims=True))
        step = np.linalg.solve(curvature[moving], gradient[moving, :, None])[..., 0]
        step_range = np.maximum(np.ptp(step, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        ratings[active] += step * (np.log1p(step_range) / step_range)
    raise ArithmeticError(
        f"{active.size} of {len(wins)} groups, the first at index {active[0]}, did not converge in "
        f"{MAX_NEWTON_STEPS} Newton steps at ridge {ridge}: raise ridge, or check for wins of very different sizes"
    )


def _derivatives(
    wins: NDArray[np.float64], ratings: NDArray[np.float64], ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradient (G, K) of the objective, and its negated Hessian (G, K, K) made nonsingular.

    Without a ridge the Hessian is singular along (1, …, 1), to which the gradient is orthogonal; adding a multiple of
    11ᵀ makes it nonsingular and doesn't change the Newton step.
    """
    gap = ratings[:, :, None] - ratings[:, None, :]
    tail = np.exp(-np.abs(gap))
    upset = np.where(gap >= 0, tail, 1.0) / (1.0 + tail)  # sigmoid(ε_n - ε_m), exact in both tails
    surplus = wins * upset
    gradient = (surplus - np.swapaxes(surplus, 1, 2)).sum(axis=2) - ridge * ratings
    pull = (wins + np.swapaxes(wins, 1, 2)) * tail / (1.0 + tail) ** 2
    own = pull.sum(axis=2)
    curvature = own.mean(axis=1)[:, None, None] - pull
    diagonal = np.arange(wins.shape[1])
    curvature[:, diagonal, diagonal] += own + ridge
    return gradient, curvature


def _require_optimum(wins: NDArray[np.float64]) -> None:
    """Raises ValueError unless in each group (G, K, K) a chain of wins leads from every item to every other."""
    reach = (wins > 0) | np.eye(wins.shape[1], dtype=np.bool_)
    for _ in range(int(wins.shape[1]).bit_length()):
        reach = reach.astype(np.float32) @ reach.astype(np.float32) > 0
    unreached = np.argwhere(~reach)
    if not unreached.size:
        return
    group, item = int(unreached[0, 0]), int(unreached[0, 1])
    below = reach[group, item]
    lower, upper = np.flatnonzero(below).tolist(), np.flatnonzero(~below).tolist()
    if wins[group][np.ix_(upper, lower)].any():
        reason = f"items {upper} win every decided game against items {lower}, so their gap grows without bound"
    else:
        reason = f"items {upper} and items {lower} have no decided game between them, so their gap is undefined"
    raise ValueError(
        f"group {group} has no Bradley-Terry optimum at ridge 0: {reason}; expected a chain of wins from every item to "
        "every other: use a positive ridge (0.1 is the default) or add virtual wins both ways"
    )
