"""Claims about battle matrices and Bradley-Terry ratings."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from tpo.method.ratings import battle_matrix, bradley_terry, soft_battle_matrix

LN3_HALF = 0.549306
WINS_ALL = [[0, 2, 2], [0, 0, 1], [0, 1, 0]]


def likelihood_gradient(wins: NDArray[np.float64], ratings: NDArray[np.float64], ridge: float) -> list[float]:
    """The gradient written out as a sum, independently of the solver."""
    size = len(ratings)
    total = []
    for i in range(size):
        terms = [
            wins[i, j] / (1 + np.exp(ratings[i] - ratings[j])) - wins[j, i] / (1 + np.exp(ratings[j] - ratings[i]))
            for j in range(size)
            if j != i
        ]
        total.append(sum(terms) - ridge * ratings[i])
    return total


def wins_matrices(low: float, high: float) -> st.SearchStrategy[NDArray[np.float64]]:
    """Square matrices of 2 to 8 items with fractional wins."""
    return st.integers(2, 8).flatmap(
        lambda size: arrays(np.float64, (size, size), elements=st.floats(low, high, allow_subnormal=False))
    )


@st.composite
def balanced_wins(draw: st.DrawFn, fewest: int) -> NDArray[np.int64]:
    """Every pair meets four times, and each side wins at least `fewest` of them."""
    size = draw(st.integers(2, 8))
    upper = np.triu(draw(arrays(np.int64, (size, size), elements=st.integers(fewest, 4 - fewest))), 1)
    return np.asarray(upper + np.tril(4 - upper.T, -1))


def test_a_battle_counts_both_orders() -> None:
    verdicts = [[0, 1, -1], [-1, 0, 0], [1, 1, 0]]
    assert battle_matrix(verdicts).tolist() == [[0, 2, 0], [0, 0, 0], [2, 1, 0]]


def test_pure_position_bias_is_one_win_each() -> None:
    assert battle_matrix([[0, 1], [1, 0]]).tolist() == [[0, 1], [1, 0]]
    assert battle_matrix([[0, -1], [-1, 0]]).tolist() == [[0, 1], [1, 0]]


def test_the_diagonal_of_verdicts_is_ignored() -> None:
    assert battle_matrix([[np.nan, 1.0], [-1.0, 7.0]]).tolist() == [[0, 2], [0, 0]]


@given(arrays(np.int8, (3, 4, 4), elements=st.integers(-1, 1)))
def test_a_batch_of_battles_equals_one_at_a_time_and_no_pair_exceeds_two(verdicts: NDArray[np.int8]) -> None:
    battles = battle_matrix(verdicts)
    assert battles.shape == verdicts.shape
    assert (battles + battles.transpose(0, 2, 1)).max() <= 2
    assert all((battle_matrix(one) == both).all() for one, both in zip(verdicts, battles, strict=True))


@pytest.mark.parametrize("verdict", [0.5, 2, np.nan])
def test_a_soft_verdict_is_rejected_by_name(verdict: float) -> None:
    with pytest.raises(ValueError, match=r"verdicts\[0, 1\] is .*expected -1, 0 or 1"):
        battle_matrix([[0.0, verdict], [1.0, 0.0]])


@given(arrays(np.int8, (3, 4, 4), elements=st.sampled_from([-1, 1])))
def test_certain_soft_results_count_as_hard_verdicts(verdicts: NDArray[np.int8]) -> None:
    assert (soft_battle_matrix(verdicts) == battle_matrix(verdicts)).all()


@given(arrays(np.int8, (4, 4), elements=st.integers(-1, 1)))
def test_a_missing_soft_result_adds_nothing_like_a_hard_tie(verdicts: NDArray[np.int8]) -> None:
    assert (soft_battle_matrix(np.where(verdicts == 0, np.nan, verdicts)) == battle_matrix(verdicts)).all()


def test_a_soft_result_of_one_half_is_half_a_win_each() -> None:
    assert soft_battle_matrix([[0, 0.0], [np.nan, 0]]).tolist() == [[0, 0.5], [0.5, 0]]
    assert soft_battle_matrix(np.zeros((3, 3))).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_a_soft_battle_counts_both_orders() -> None:
    assert soft_battle_matrix([[0, 0.5], [0.25, 0]]) == pytest.approx(np.array([[0, 1.125], [0.875, 0]]))


@given(arrays(np.float64, (3, 4, 4), elements=st.floats(-1, 1) | st.just(np.nan)))
def test_every_soft_result_is_one_game_in_a_batch_or_alone(results: NDArray[np.float64]) -> None:
    battles = soft_battle_matrix(results)
    games = (~np.isnan(results) & ~np.eye(4, dtype=np.bool_)).astype(float)
    assert battles + battles.transpose(0, 2, 1) == pytest.approx(games + games.transpose(0, 2, 1))
    assert all((soft_battle_matrix(one) == both).all() for one, both in zip(results, battles, strict=True))


def test_the_diagonal_of_soft_results_is_ignored() -> None:
    assert soft_battle_matrix([[7.0, 1.0], [-1.0, np.nan]]).tolist() == [[0, 2], [0, 0]]


@pytest.mark.parametrize("result", [1.01, -2, np.inf, -np.inf])
def test_a_soft_result_out_of_range_is_rejected_by_name(result: float) -> None:
    with pytest.raises(ValueError, match=r"results\[0, 1\] is .*expected a number from -1 to 1"):
        soft_battle_matrix([[0.0, result], [1.0, 0.0]])


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3), (1, 1, 2, 2), (0, 0)])
def test_a_matrix_that_is_not_square_is_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        battle_matrix(np.zeros(shape))
    with pytest.raises(ValueError, match="expected"):
        soft_battle_matrix(np.zeros(shape))
    with pytest.raises(ValueError, match="expected"):
        bradley_terry(np.zeros(shape))


@pytest.mark.parametrize(
    ("wins", "ridge", "expected"),
    [
        ([[0, 3], [1, 0]], 0, [LN3_HALF, -LN3_HALF]),
        ([[0, 3], [1, 0]], 1, [0.341812, -0.341812]),
        (WINS_ALL, 0.01, [3.211178, -1.605589, -1.605589]),
        (WINS_ALL, 0.1, [1.972627, -0.986313, -0.986313]),
        (WINS_ALL, 1, [0.861693, -0.430847, -0.430847]),
    ],
)
def test_golden_ratings(wins: list[list[int]], ridge: float, expected: list[float]) -> None:
    assert bradley_terry(wins, ridge) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("wins", "reason"),
    [
        (WINS_ALL, r"items \[0\] win every decided game against items \[1, 2\]"),
        ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], r"items \[2\] and items \[0, 1\] have no decided game"),
        (np.zeros((2, 2)), r"no decided game"),
    ],
)
def test_without_ridge_a_group_without_optimum_is_rejected_with_reason_and_remedy(
    wins: list[list[int]], reason: str
) -> None:
    with pytest.raises(ValueError, match=rf"group 1 .*{reason}.*use a positive ridge"):
        bradley_terry(np.array([np.ones(np.shape(wins)), wins]), ridge=0)


@given(st.integers(2, 6).flatmap(lambda size: arrays(np.bool_, (size, size))))
def test_without_ridge_exactly_the_strongly_connected_groups_are_solved(won: NDArray[np.bool_]) -> None:
    reach = won | np.eye(len(won), dtype=np.bool_)
    for via in range(len(won)):
        reach |= reach[:, [via]] & reach[[via], :]
    if reach.all():
        assert np.isfinite(bradley_terry(won, ridge=0)).all()
    else:
        with pytest.raises(ValueError, match="no Bradley-Terry optimum"):
            bradley_terry(won, ridge=0)


def test_a_group_without_games_is_rated_zero() -> None:
    assert bradley_terry(np.zeros((2, 3, 3))).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_lone_item_is_rated_zero() -> None:
    assert bradley_terry([[5]], ridge=0).tolist() == [0]


@given(wins_matrices(0, 50), st.sampled_from([0.001, 0.1, 1.0]))
def test_the_gradient_vanishes_and_the_mean_is_zero(wins: NDArray[np.float64], ridge: float) -> None:
    ratings = bradley_terry(wins, ridge)
    assert likelihood_gradient(wins, ratings, ridge) == pytest.approx(np.zeros(len(wins)), abs=1e-9)
    assert ratings.mean() == pytest.approx(0, abs=1e-12)


@given(wins_matrices(0.01, 50))
def test_the_gradient_vanishes_without_ridge(wins: NDArray[np.float64]) -> None:
    ratings = bradley_terry(wins, ridge=0)
    assert likelihood_gradient(wins, ratings, 0) == pytest.approx(np.zeros(len(wins)), abs=1e-9)


@given(balanced_wins(fewest=0), st.sampled_from([0.01, 0.1, 1.0]))
def test_with_equal_games_ratings_rank_as_win_counts(wins: NDArray[np.int64], ridge: float) -> None:
    assert_same_ranking(bradley_terry(wins, ridge), wins.sum(axis=1))


@given(balanced_wins(fewest=1))
def test_with_equal_games_ratings_rank_as_win_counts_without_ridge(wins: NDArray[np.int64]) -> None:
    assert_same_ranking(bradley_terry(wins, ridge=0), wins.sum(axis=1))


def assert_same_ranking(ratings: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    """Each pair is ordered alike, ties included."""
    gap = ratings[:, None] - ratings[None, :]
    assert (np.where(np.abs(gap) < 1e-6, 0, np.sign(gap)) == np.sign(counts[:, None] - counts[None, :])).all()


@given(wins_matrices(0, 5), st.randoms(use_true_random=False))
def test_ratings_follow_a_permutation_of_items(wins: NDArray[np.float64], random: Random) -> None:
    order = list(range(len(wins)))
    random.shuffle(order)
    permuted = bradley_terry(wins[np.ix_(order, order)])
    assert permuted == pytest.approx(bradley_terry(wins)[order], abs=1e-8)


@given(arrays(np.float64, (5, 4, 4), elements=st.floats(0, 5, allow_subnormal=False)))
def test_a_batch_of_ratings_equals_one_at_a_time(wins: NDArray[np.float64]) -> None:
    assert bradley_terry(wins) == pytest.approx(np.stack([bradley_terry(group) for group in wins]), abs=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_without_ridge_only_the_proportion_of_wins_matters(scale: float) -> None:
    assert bradley_terry(scale * np.array([[0, 3], [1, 0]]), ridge=0) == pytest.approx([LN3_HALF, -LN3_HALF], abs=1e-6)


def test_five_thousand_groups_keep_their_shape() -> None:
    verdicts = np.random.default_rng(0).integers(-1, 2, size=(5000, 8, 8))
    ratings = bradley_terry(battle_matrix(verdicts))
    assert ratings.shape == (5000, 8)
    assert np.isfinite(ratings).all()


def test_no_groups_give_no_ratings() -> None:
    assert bradley_terry(np.zeros((0, 8, 8))).shape == (0, 8)


@pytest.mark.parametrize("value", [-1, np.nan, np.inf])
def test_invalid_win_counts_are_rejected_by_name(value: float) -> None:
    with pytest.raises(ValueError, match=r"wins\[1, 0\] is .*expected numbers from 0"):
        bradley_terry([[0.0, 1.0], [value, 0.0]])


@pytest.mark.parametrize("ridge", [-0.1, np.nan, np.inf, 1e-30])
def test_an_unusable_ridge_is_rejected(ridge: float) -> None:
    with pytest.raises(ValueError, match=r"ridge is .*expected 0 or at least"):
        bradley_terry(WINS_ALL, ridge)
