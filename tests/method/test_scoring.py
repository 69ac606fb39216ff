"""Claims about length control and the choice of rho."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tpo.method.pairing import select_pair
from tpo.method.scoring import RHO_GRID, choose_rho, length_controlled

Groups = tuple[list[list[float]], list[list[int]]]

SCORES = [1.0, 2.0, 4.0, 3.0]
LENGTHS = [10, 50, 30, 20]


@st.composite
def ragged_groups(draw: st.DrawFn) -> Groups:
    """Up to six groups of up to five candidates, with coarse scores so that ties occur."""
    sizes = draw(st.lists(st.integers(0, 5), max_size=6))
    scores = [draw(st.lists(st.integers(-4, 4).map(float), min_size=k, max_size=k)) for k in sizes]
    lengths = [draw(st.lists(st.integers(0, 40), min_size=k, max_size=k)) for k in sizes]
    return scores, lengths


def excess_at(rho: float, groups: Groups, min_margin: float = 0.0) -> int:
    """Total chosen minus total rejected length, one group at a time through the public functions."""
    excess = 0
    for scores, lengths in zip(*groups, strict=True):
        if not scores or max(scores) - min(scores) < min_margin:
            continue
        pair = select_pair(length_controlled(scores, lengths, rho), lengths)
        if pair is not None:
            excess += lengths[pair.chosen] - lengths[pair.rejected]
    return excess


def z(values: list[float]) -> NDArray[np.float64]:
    """The definition, for values that differ."""
    return np.asarray((np.array(values) - np.mean(values)) / np.std(values))


def test_a_score_is_its_z_minus_rho_times_the_z_of_its_length() -> None:
    expected = z(SCORES) - 0.3 * z([float(n) for n in LENGTHS])
    assert length_controlled(SCORES, LENGTHS, 0.3) == pytest.approx(expected)


def test_thought_length_is_penalized_like_response_length_with_its_own_coefficient() -> None:
    scores, lengths, thoughts = [1.0, 3.0, 2.0], [5.0, 1.0, 9.0], [30.0, 10.0, 80.0]
    found = length_controlled(scores, lengths, 0.2, thoughts=thoughts, thought_penalty=0.7)
    assert found == pytest.approx(z(scores) - 0.2 * z(lengths) - 0.7 * z(thoughts))
    assert length_controlled(scores, lengths, 0.2, thoughts=thoughts) == pytest.approx(z(scores) - 0.2 * z(lengths))


def test_rho_is_chosen_after_the_thought_penalty() -> None:
    # The longer response is better just as its thought is longer: with that subtracted, nothing favors it.
    scores, lengths, thoughts = [[1.0, 0.0]], [[9.0, 5.0]], [[80.0, 20.0]]
    with pytest.warns(UserWarning, match=r"at rho 0.5"):
        assert choose_rho(scores, lengths) == 0.5
    assert choose_rho(scores, lengths, thoughts=thoughts, thought_penalty=1.5) == 0.0


def test_a_negative_penalty_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"thought_penalty is -0\.1; expected 0 or more"):
        length_controlled([1.0, 2.0], [1.0, 2.0], 0.1, thoughts=[1.0, 2.0], thought_penalty=-0.1)


def test_the_standard_deviation_is_of_the_population() -> None:
    assert length_controlled([0, 2], [5, 5], 0).tolist() == [-1, 1]


def test_equal_values_have_z_zero_even_up_to_rounding() -> None:
    nearly = [0.3, 0.1 + 0.2, 0.3]
    assert length_controlled(nearly, [7, 7, 7], 0.5).tolist() == [0, 0, 0]
    assert length_controlled(nearly, [1, 2, 3], 0.5) == pytest.approx(-0.5 * z([1, 2, 3]))


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_extreme_units_neither_overflow_nor_underflow(scale: float) -> None:
    assert length_controlled([scale, 3 * scale], [1, 1], 0) == pytest.approx([-1, 1])


def test_no_candidates_give_no_scores() -> None:
    assert length_controlled([], [], 0.1).shape == (0,)


@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 4000)), min_size=1, max_size=8),
    st.floats(0.01, 100),
    st.floats(-100, 100),
    st.sampled_from(RHO_GRID),
)
def test_an_affine_change_of_scores_changes_nothing(
    candidates: list[tuple[int, int]], slope: float, offset: float, rho: float
) -> None:
    scores, lengths = np.array(candidates, dtype=np.float64).T
    changed = length_controlled(slope * scores + offset, lengths, rho)
    assert changed == pytest.approx(length_controlled(scores, lengths, rho), abs=1e-8)


@given(st.permutations(range(4)))
def test_controlled_scores_follow_a_permutation_of_candidates(order: list[int]) -> None:
    permuted = length_controlled(np.array(SCORES)[order], np.array(LENGTHS)[order], 0.2)
    assert permuted == pytest.approx(length_controlled(SCORES, LENGTHS, 0.2)[order])


@pytest.mark.parametrize("rho", [-0.01, 0.51, np.nan])
def test_a_rho_outside_the_papers_range_is_rejected(rho: float) -> None:
    with pytest.raises(ValueError, match=r"rho is .*expected a number from 0.0 to 0.5"):
        length_controlled(SCORES, LENGTHS, rho)


@pytest.mark.parametrize(
    ("scores", "lengths", "message"),
    [
        ([1, 2], [1], "expected one shape"),
        ([[1, 2]], [[1, 2]], "expected one shape"),
        ([1, np.nan], [1, 2], "leave out unscored candidates"),
        ([1, 2], [1, -2], "count characters"),
    ],
)
def test_an_invalid_group_is_rejected(scores: list[float], lengths: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        length_controlled(scores, lengths, 0.1)
    with pytest.raises(ValueError, match=message):
        choose_rho([scores], [lengths])


def test_rho_is_zero_if_chosen_answers_are_already_shorter() -> None:
    assert choose_rho([[1, 2]], [[20, 10]]) == 0


def test_rho_is_the_first_grid_value_that_flips_the_pair() -> None:
    # z(score) = -1.408, 0.815, 0.593 and z(length) = 0, 1.225, -1.225: the third overtakes the second at rho 0.091.
    assert choose_rho([[0, 10, 9]], [[20, 30, 10]]) == 0.1


def test_a_group_of_equal_scores_counts_once_length_orders_it() -> None:
    assert choose_rho([[0, 1], [5, 5, 5]], [[10, 12], [10, 40, 40]]) == 0.05


def test_if_length_and_score_agree_rho_is_the_largest_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"10.0 characters longer .* over 1 pairs"):
        assert choose_rho([[1, 2]], [[10, 20]]) == 0.5


@given(ragged_groups(), st.sampled_from([0.0, 2.0]))
def test_rho_is_the_smallest_that_meets_the_goal(groups: Groups, min_margin: float) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rho = choose_rho(*groups, min_margin=min_margin)
    smaller = [candidate for candidate in RHO_GRID if candidate < rho]
    assert all(excess_at(candidate, groups, min_margin) > 0 for candidate in smaller)
    assert bool(caught) == (excess_at(rho, groups, min_margin) > 0)
    assert rho == 0.5 or not caught


def test_groups_below_the_margin_are_ignored() -> None:
    scores, lengths = [[1.0, 1.1], [0.0, 3.0]], [[10, 900], [30, 20]]
    with pytest.warns(UserWarning, match="longer"):
        assert choose_rho(scores, lengths) == 0.5
    assert choose_rho(scores, lengths, min_margin=0.5) == 0


@pytest.mark.parametrize("groups", [[], [[]], [[1.0]], [[2.0, 2.0]]])
def test_without_a_pair_rho_is_zero(groups: list[list[float]]) -> None:
    assert choose_rho(groups, [[5] * len(group) for group in groups]) == 0


def test_scores_and_lengths_need_equally_many_groups() -> None:
    with pytest.raises(ValueError, match="2 groups of scores and 1 of lengths"):
        choose_rho([[1], [2]], [[1]])


def test_five_thousand_groups_give_one_rho() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(100, 4000, size=(5000, 8))
    scores = random.normal(size=(5000, 8)) + 1e-4 * lengths
    assert choose_rho(list(scores), list(lengths)) in RHO_GRID[1:]
