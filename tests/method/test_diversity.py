"""Claims about what is a duplicate, which pairs differ most, and the cap of solutions per question."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.method.diversity import Contrast, Solution, cap_per_question, deduplicated, jaccard, least_alike

A, B, C, D, E = range(5)


def solution(text: str, *tokens: int) -> Solution:
    return Solution(text, frozenset(tokens))


token_sets = st.frozensets(st.integers(0, 12), max_size=8)
solutions = st.lists(st.builds(Solution, st.text("xyz", max_size=3), token_sets), max_size=8)
thresholds = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])


def test_golden_similarities_keep_at_three_fifths_and_drop_at_four() -> None:
    assert jaccard({A, B, C, D}, {B, C, D, E}) == pytest.approx(0.6)
    assert jaccard({A, B, C, D}, {A, B, C, D, E}) == pytest.approx(0.8)
    first = solution("1", A, B, C, D)
    assert deduplicated([first, solution("2", B, C, D, E)]) == [first, solution("2", B, C, D, E)]
    assert deduplicated([first, solution("2", A, B, C, D, E)]) == [first]


@given(st.integers(1, 60))
def test_a_similarity_of_seven_tenths_is_not_a_duplicate(tenth: int) -> None:
    whole, part = frozenset(range(10 * tenth)), frozenset(range(7 * tenth))
    assert len(deduplicated([Solution("1", whole), Solution("2", part)])) == 2
    assert len(deduplicated([Solution("1", whole), Solution("2", part | {7 * tenth})])) == 1


@given(token_sets, token_sets)
def test_similarity_is_symmetric_and_one_only_between_equals(first: frozenset[int], second: frozenset[int]) -> None:
    assert jaccard(first, second) == jaccard(second, first)
    assert 0 <= jaccard(first, second) <= 1
    assert (jaccard(first, second) == 1) is (first == second)
    assert first & second or not first | second or jaccard(first, second) == 0


@given(solutions, st.none() | st.builds(Solution, st.text("xyz", max_size=3), token_sets), thresholds)
def test_kept_solutions_differ_and_dropped_ones_resemble_a_kept_one(
    items: list[Solution], first: Solution | None, threshold: float
) -> None:
    kept = deduplicated(items, first, threshold)
    texts = [item.text for item in kept]
    assert len(set(texts)) == len(texts)
    assert all(jaccard(one.token_ids, other.token_ids) <= threshold for n, one in enumerate(kept) for other in kept[:n])
    distinct = {item.text: item for item in reversed(items)}
    for text, item in distinct.items():
        before = [other for other in kept if other is first or other.text < text]
        alike = any(jaccard(item.token_ids, other.token_ids) > threshold for other in before)
        assert text in texts or alike


@given(solutions, st.randoms())
def test_the_order_of_the_samples_does_not_matter(items: list[Solution], drawn) -> None:
    items = list({item.text: item for item in items}.values())
    shuffled = drawn.sample(items, len(items))
    assert deduplicated(shuffled) == deduplicated(items)


@given(solutions)
def test_deduplication_is_idempotent(items: list[Solution]) -> None:
    assert deduplicated(deduplicated(items)) == deduplicated(items)


def test_the_gold_solution_comes_first_and_is_always_kept() -> None:
    gold, copy, near = solution("z", A, B, C, D), solution("a", A, B, C, D), solution("b", A, B, E)
    assert deduplicated([near, copy, gold], first=gold) == [gold, near]
    assert deduplicated([], first=gold) == [gold]


def test_of_similar_solutions_the_first_by_text_is_kept() -> None:
    assert [item.text for item in deduplicated([solution("b", A), solution("a", A), solution("c", B)])] == ["a", "c"]


def test_the_pairs_of_lowest_similarity_come_first() -> None:
    right = [solution("r1", A, B), solution("r2", C)]
    wrong = [solution("w1", A, B), solution("w2", B, C), solution("w3", D)]
    pairs = least_alike(right, wrong, 4)
    assert [(pair.chosen.text, pair.rejected.text) for pair in pairs] == [
        ("r1", "w3"),
        ("r2", "w1"),
        ("r2", "w3"),
        ("r1", "w2"),
    ]


@given(solutions, solutions, st.integers(0, 9))
def test_no_omitted_pair_is_less_similar_than_a_chosen_one(
    chosen: list[Solution], rejected: list[Solution], count: int
) -> None:
    taken = least_alike(chosen, rejected, count)
    similarities = sorted(jaccard(one.token_ids, other.token_ids) for one in chosen for other in rejected)
    assert [jaccard(pair.chosen.token_ids, pair.rejected.token_ids) for pair in taken] == similarities[:count]
    assert all(pair in [Contrast(one, other) for one in chosen for other in rejected] for pair in taken)


def test_a_question_without_a_wrong_solution_has_no_pair() -> None:
    assert least_alike([solution("r", A)], []) == []


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]))
def test_the_cap_is_the_quantile_that_numpy_gives(counts: list[int], quantile: float) -> None:
    # NumPy can be off by a rounding error, which would turn a whole number into the one below.
    assert cap_per_question(counts, quantile) == int(np.quantile(counts, quantile) + 1e-9)


def test_rounding_does_not_lower_a_whole_cap() -> None:
    # NumPy's percentile is 3.9999999999999982.
    assert cap_per_question([1] * 7 + [11]) == 4


def test_values_out_of_range_are_rejected() -> None:
    with pytest.raises(ValueError, match="leave out questions that have none"):
        cap_per_question([3, 0])
    with pytest.raises(ValueError, match="0 counts, the smallest None"):
        cap_per_question([])
    with pytest.raises(ValueError, match="quantile is 90"):
        cap_per_question([1], 90)
    with pytest.raises(ValueError, match=r"threshold is 70"):
        deduplicated([], threshold=70)
    with pytest.raises(ValueError, match="count is -1"):
        least_alike([], [], -1)
