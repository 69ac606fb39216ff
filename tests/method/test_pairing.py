"""Claims about preference pairs and the quota of parse errors."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.method.pairing import error_quota, has_margin, have_margin, select_pair, select_pairs

TINY = 4e-10

candidates = st.lists(
    st.tuples(st.sampled_from([0, TINY, 3 * TINY, 1, 1 + TINY, 2]), st.integers(0, 3)), min_size=2, max_size=8
)


def test_the_best_is_chosen_and_the_worst_rejected() -> None:
    assert select_pair([0.2, 1.5, -0.7], [9, 9, 9]) == (1, 2)


def test_a_tie_at_the_top_goes_to_the_shorter_answer() -> None:
    assert select_pair([1, 1 + TINY, 0], [8, 9, 5]) == (0, 2)


def test_a_tie_at_the_bottom_goes_to_the_longer_answer() -> None:
    assert select_pair([0, TINY, 1], [8, 9, 5]) == (2, 1)


def test_a_tie_in_length_too_goes_to_the_lower_index() -> None:
    assert select_pair([0, 1, 1, 0], [5, 5, 5, 5]) == (1, 0)


def test_scores_that_differ_by_the_tolerance_are_not_a_tie() -> None:
    assert select_pair([0.0, 1e-9], [5, 900]) == (1, 0)
    assert select_pair([0.0, 0.9e-9], [5, 900]) is None


def test_a_tied_group_yields_no_pair() -> None:
    assert select_pair([0.5, 0.5, 0.5 + TINY], [1, 2, 3]) is None


@pytest.mark.parametrize("size", [0, 1])
def test_fewer_than_two_candidates_yield_no_pair(size: int) -> None:
    assert select_pair([1.0] * size, [5] * size) is None


def test_identical_texts_yield_no_pair() -> None:
    assert select_pair([0, 1], [2, 2], texts=["so", "so"]) is None
    assert select_pair([0, 1], [2, 2], texts=["so", "no"]) == (1, 0)


def test_a_candidate_that_ties_with_best_and_worst_is_not_both() -> None:
    assert select_pair([0, 2 * TINY, 4 * TINY], [1, 2, 3]) == (1, 0)


@given(candidates)
def test_a_pair_is_two_candidates_at_the_ends_of_the_scores(group: list[tuple[float, int]]) -> None:
    scores, lengths = zip(*group, strict=True)
    pair = select_pair(scores, lengths)
    if max(scores) - min(scores) < 1e-9:
        assert pair is None
    else:
        assert pair is not None
        assert pair.chosen != pair.rejected
        assert max(scores) - scores[pair.chosen] < 1e-9
        assert scores[pair.rejected] - min(scores) < 1e-9
        assert all(lengths[pair.chosen] <= n for s, n in group if max(scores) - s < 1e-9)


@given(st.lists(candidates, min_size=1, max_size=6))
def test_padded_groups_give_the_same_pairs_as_one_at_a_time(groups: list[list[tuple[float, int]]]) -> None:
    width = max(len(group) for group in groups)
    scores, lengths, valid = np.zeros((len(groups), width)), np.zeros((len(groups), width)), []
    for row, group in enumerate(groups):
        scores[row, : len(group)], lengths[row, : len(group)] = np.array(group).T
        valid.append([column < len(group) for column in range(width)])
    together = select_pairs(scores, lengths, np.array(valid))
    apart = [select_pair(*np.array(group).T) or (-1, -1) for group in groups]
    assert list(zip(together.chosen.tolist(), together.rejected.tolist(), strict=True)) == apart
    margins = have_margin(scores, np.array(valid), 1.0)
    assert margins.tolist() == [has_margin([s for s, _ in group], 1.0) for group in groups]


@pytest.mark.parametrize(
    ("scores", "lengths", "message"),
    [
        ([1, 2], [1, 2, 3], "expected one shape"),
        ([np.nan, 1], [1, 2], "leave out unscored candidates"),
        ([0, 1], [-1, 2], "count characters"),
    ],
)
def test_an_invalid_group_is_rejected(scores: list[float], lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_pair(scores, lengths)


def test_each_score_needs_a_text() -> None:
    with pytest.raises(ValueError, match="1 texts for 2 scores"):
        select_pair([0, 1], [1, 1], texts=["so"])


def test_a_margin_tolerates_rounding() -> None:
    assert has_margin([0.1, 0.3], 0.2)
    assert not has_margin([0.1, 0.3], 0.21)
    assert has_margin([2.0, 2.0], 0)
    assert not has_margin([], 0.5)


@pytest.mark.parametrize("margin", [-0.1, np.nan])
def test_an_invalid_margin_is_rejected(margin: float) -> None:
    with pytest.raises(ValueError, match="min_margin is"):
        has_margin([1, 2], margin)


@pytest.mark.parametrize(
    ("regular", "regular_with_errors", "only_errors", "expected", "pairs"),
    [(20, 5, 0, (2, 0), 20), (20, 5, 9, (2, 0), 20), (18, 1, 3, (1, 0), 18), (19, 0, 3, (0, 2), 21)],
)
def test_golden_quotas(
    regular: int, regular_with_errors: int, only_errors: int, expected: tuple[int, int], pairs: int
) -> None:
    quota = error_quota(regular, regular_with_errors, only_errors)
    assert quota == expected
    assert regular + quota.added == pairs


def test_a_tenth_is_exact() -> None:
    # In floats (0.1*86 - 5)/0.9 is 3.9999999999999996 and 0.29*100 is 28.999999999999996.
    assert error_quota(86, 5, 9) == (5, 4)
    assert error_quota(100, 50, 0, cap=0.29) == (29, 0)


counts = st.integers(0, 3000)
caps = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.9, Fraction(1, 3)])


@given(counts, counts, counts, caps)
def test_the_quota_never_exceeds_its_cap_nor_its_prompts(
    regular: int, with_errors: int, only_errors: int, cap: float | Fraction
) -> None:
    quota = error_quota(regular, min(with_errors, regular), only_errors, cap)
    assert quota.replaced + quota.added <= Fraction(str(cap)) * (regular + quota.added)
    assert 0 <= quota.replaced <= min(with_errors, regular)
    assert 0 <= quota.added <= only_errors


@given(counts, counts, counts, caps)
def test_prompts_are_added_only_after_all_replacements_and_the_quota_is_used_up(
    regular: int, with_errors: int, only_errors: int, cap: float | Fraction
) -> None:
    with_errors = min(with_errors, regular)
    quota, share = error_quota(regular, with_errors, only_errors, cap), Fraction(str(cap))
    if quota.replaced < with_errors:
        assert quota.added == 0
        assert quota.replaced + 1 > share * regular
    elif quota.added < only_errors:
        assert quota.replaced + quota.added + 1 > share * (regular + quota.added + 1)


@pytest.mark.parametrize("arguments", [(-1, 0, 0), (3, 4, 0), (3, 1, -2)])
def test_impossible_counts_are_rejected(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="count prompts, not samples"):
        error_quota(*arguments)


@pytest.mark.parametrize("cap", [-0.1, 1.0, np.nan])
def test_a_cap_outside_its_range_is_rejected(cap: float) -> None:
    with pytest.raises(ValueError, match="cap is"):
        error_quota(10, 1, 1, cap)
