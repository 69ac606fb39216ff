"""Claims about tournaments: what is asked, in which order, and when asking stops."""

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpo.method.ratings import bradley_terry, soft_battle_matrix
from tpo.method.tournament import FOR_HARD_VERDICTS, Adaptive, AllPairs, Pair, Results, Tournament

SIZES = st.integers(2, 9)
DESIGNS = st.sampled_from(
    [AllPairs(), Adaptive(), FOR_HARD_VERDICTS, Adaptive(min_gain=0, round_share=1, calls_per_response=40)]
)
OUTCOMES = st.sampled_from([1.0, -1.0, 0.0, None]) | st.floats(-1, 1)
LEVEL_AND_UNREAD = [0.0, None, 1.0, -1.0]


@st.composite
def judges(draw: st.DrawFn) -> tuple[int, dict[Pair, float | None]]:
    """A group's size and its judge's result for every ordered pair."""
    k = draw(SIZES)
    return k, {(m, n): draw(OUTCOMES) for m in range(k) for n in range(k) if m != n}


def rounds(design: Tournament, k: int, say: Callable[[Pair], float | None]) -> list[list[Pair]]:
    """The rounds of a whole tournament; more than K(K - 1) would not end."""
    results: dict[Pair, float | None] = {}
    matches = []
    while pairs := design.next_round(k, results):
        matches.append(pairs)
        assert len(matches) <= k * (k - 1), "does not end"
        results.update({pair: say(pair) for pair in pairs})
    return matches


def by_quality(*quality: float, bias: float = 0.0) -> Callable[[Pair], float]:
    """A judge with a soft result for each pair by its difference in quality, in nats."""
    return lambda pair: float(np.tanh((quality[pair[0]] - quality[pair[1]] + bias) / 2))


@given(judges(), DESIGNS)
@settings(max_examples=50)
def test_each_pair_is_asked_at_most_once_and_never_a_response_against_itself(
    judge: tuple[int, dict[Pair, float | None]], design: Tournament
) -> None:
    k, says = judge
    matches = [pair for pairs in rounds(design, k, says.__getitem__) for pair in pairs]
    assert len(set(matches)) == len(matches)
    assert set(matches) <= set(says)


@given(judges(), DESIGNS)
@settings(max_examples=50)
def test_every_response_is_compared(judge: tuple[int, dict[Pair, float | None]], design: Tournament) -> None:
    k, says = judge
    pairs = rounds(design, k, says.__getitem__)[0]
    assert {m for m, _ in pairs} == {n for _, n in pairs} == set(range(k))


@given(judges(), DESIGNS)
@settings(max_examples=50)
def test_a_round_is_sorted_so_that_equal_first_responses_are_adjacent(
    judge: tuple[int, dict[Pair, float | None]], design: Tournament
) -> None:
    k, says = judge
    assert all(pairs == sorted(pairs) for pairs in rounds(design, k, says.__getitem__))


@given(judges(), DESIGNS, st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_a_replay_from_the_start_gives_the_same_rounds(
    judge: tuple[int, dict[Pair, float | None]], design: Tournament, random: Random
) -> None:
    k, says = judge
    adaptive = rounds(design, k, says.__getitem__)
    known: list[Pair] = []
    for pairs in adaptive:
        random.shuffle(known)  # the order in which results came in does not matter
        results = {pair: says[pair] for pair in known}
        before = dict(results)
        assert design.next_round(k, results) == pairs
        assert results == before
        known += pairs
    assert design.next_round(k, {pair: says[pair] for pair in known}) == []


@given(judges(), DESIGNS, st.data())
@settings(max_examples=50)
def test_every_tournament_ends_without_repeated_questions(
    judge: tuple[int, dict[Pair, float | None]], design: Tournament, data: st.DataObject
) -> None:
    k, says = judge
    results = {pair: says[pair] for pair in data.draw(st.sets(st.sampled_from(sorted(says))))}
    while pairs := design.next_round(k, results):
        assert not set(pairs) & set(results)
        results.update({pair: says[pair] for pair in pairs})


@given(st.lists(judges(), max_size=6), DESIGNS, st.data())
@settings(max_examples=50)
def test_a_batch_of_groups_is_asked_like_each_group_alone(
    drawn: list[tuple[int, dict[Pair, float | None]]], design: Tournament, data: st.DataObject
) -> None:
    k = min((k for k, _ in drawn), default=2)
    groups: list[dict[Pair, float | None]] = [{p: o for p, o in says.items() if max(p) < k} for _, says in drawn]
    for says in groups:
        for pair in data.draw(st.sets(st.sampled_from(sorted(says)))):
            del says[pair]
    assert design.next_rounds(k, groups) == [design.next_round(k, results) for results in groups]


def test_groups_keep_their_order_across_batches() -> None:
    groups: list[Results] = [dict.fromkeys([(0, 1), (1, 2), (2, 0)][: i % 4], 1.0) for i in range(1000)]
    rounds_ = Adaptive().next_rounds(3, groups)
    assert rounds_[:4] == [Adaptive().next_round(3, results) for results in groups[:4]]
    assert rounds_ == rounds_[:4] * 250


@pytest.mark.parametrize(("k", "calls"), [(2, 2), (3, 6), (8, 56), (32, 992)])
def test_all_pairs_are_every_ordered_pair_in_one_round(k: int, calls: int) -> None:
    (pairs,) = rounds(AllPairs(), k, lambda pair: 0.0)
    assert len(pairs) == calls == len({*pairs})
    assert pairs[:2] == [(0, 1), (0, 2)] if k > 2 else pairs == [(0, 1), (1, 0)]


def test_all_pairs_resumes_with_the_remaining_pairs() -> None:
    assert AllPairs().next_round(3, {(0, 1): 1.0, (1, 0): None, (2, 0): 0.5}) == [(0, 2), (1, 2), (2, 1)]


@pytest.mark.parametrize("design", [Adaptive(), FOR_HARD_VERDICTS])
def test_two_responses_are_asked_in_both_orders_at_once(design: Tournament) -> None:
    assert rounds(design, 2, lambda pair: 1.0) == [[(0, 1), (1, 0)]]


@given(judges())
def test_the_adaptive_opening_shows_each_response_first_once_and_second_once(
    judge: tuple[int, dict[Pair, float | None]],
) -> None:
    k, says = judge
    opening = rounds(Adaptive(), k, says.__getitem__)[0]
    assert sorted(m for m, _ in opening) == sorted(n for _, n in opening) == list(range(k))


def test_an_interrupted_opening_is_completed_before_anything_else() -> None:
    assert Adaptive().next_round(4, {(0, 1): 1.0, (2, 3): None}) == [(1, 2), (3, 0)]


@pytest.mark.parametrize("k", [2, 3, 8, 32])
@pytest.mark.parametrize("outcome", LEVEL_AND_UNREAD)
def test_the_budget_holds_for_any_verdicts(k: int, outcome: float | None) -> None:
    for design in (Adaptive(), FOR_HARD_VERDICTS, Adaptive(min_gain=0, calls_per_response=1)):
        calls = sum(len(pairs) for pairs in rounds(design, k, lambda pair: outcome))
        assert k <= calls <= min(k * design.calls_per_response, k * (k - 1))


def test_without_a_limit_the_adaptive_tournament_is_all_pairs() -> None:
    design = Adaptive(min_gain=0, calls_per_response=7)
    matches = [pair for pairs in rounds(design, 8, lambda pair: None) for pair in pairs]
    assert sorted(matches) == AllPairs().next_round(8, {})


@pytest.mark.parametrize("k", [5, 8, 12])
def test_a_round_after_the_opening_shows_no_response_twice(k: int) -> None:
    for pairs in rounds(Adaptive(round_share=1), k, by_quality(*np.linspace(-1, 1, k)))[1:]:
        shown = [index for pair in pairs for index in pair]
        assert len(set(shown)) == len(shown)


def test_a_clear_group_costs_fewer_calls_than_a_close_one() -> None:
    clear = rounds(Adaptive(), 8, by_quality(-4, 0, 4, 0, 0, 0, 0, 0))
    close = rounds(Adaptive(), 8, by_quality(*np.linspace(-0.1, 0.1, 8)))
    assert sum(map(len, clear)) + 4 <= sum(map(len, close)) <= 24


def test_a_response_known_to_be_in_the_middle_is_left_alone() -> None:
    quality = (-3, 3, 0.1, 0.3, 0, 0.2, -0.1, -0.2)
    late = [pair for pairs in rounds(Adaptive(), 8, by_quality(*quality))[1:] for pair in pairs]
    assert late
    assert all({0, 1} & set(pair) for pair in late)


@given(st.permutations(range(8)), st.floats(-0.5, 0.5))
@settings(max_examples=50)
def test_best_and_worst_of_a_noiseless_judge_are_found_despite_bias(order: list[int], bias: float) -> None:
    results: dict[Pair, float | None] = {}
    say = by_quality(*(1.5 * place for place in order), bias=bias)
    while pairs := Adaptive().next_round(8, results):
        results.update({pair: say(pair) for pair in pairs})
    ratings = bradley_terry(soft_battle_matrix(matrix(8, results)))
    assert [ratings.argmax(), ratings.argmin()] == [order.index(7), order.index(0)]


def matrix(k: int, results: Results) -> list[list[float]]:
    """Results as rows, NaN for no result."""
    return [[np.nan if (outcome := results.get((m, n))) is None else outcome for n in range(k)] for m in range(k)]


def test_a_smaller_lone_weight_asks_more_pairs_in_both_orders() -> None:
    def swapped(weight: float) -> float:
        matches = [
            p for pairs in rounds(Adaptive(lone_weight=weight), 8, by_quality(*np.linspace(-1, 1, 8))) for p in pairs
        ]
        return sum((n, m) in matches for m, n in matches) / len(matches)

    assert swapped(0.2) > swapped(0.5) > swapped(1.0)


@pytest.mark.parametrize("k", [1, 0, -1])
@pytest.mark.parametrize("design", [AllPairs(), Adaptive()])
def test_fewer_than_two_responses_are_rejected(design: Tournament, k: int) -> None:
    with pytest.raises(ValueError, match=r"a group of .*expected at least 2"):
        design.next_round(k, {})


@pytest.mark.parametrize("pair", [(0, 0), (0, 3), (-1, 0)])
@pytest.mark.parametrize("design", [AllPairs(), Adaptive()])
def test_a_result_for_an_invalid_pair_is_rejected_by_name(design: Tournament, pair: Pair) -> None:
    with pytest.raises(ValueError, match=r"a result of pair .*expected two different indices from 0 to 2"):
        design.next_round(3, {pair: 1.0})


@pytest.mark.parametrize("outcome", [1.5, -2, float("nan")])
@pytest.mark.parametrize("design", [AllPairs(), Adaptive()])
def test_a_result_out_of_range_is_rejected_by_name(design: Tournament, outcome: float) -> None:
    with pytest.raises(ValueError, match=r"result of pair \(0, 1\) is .*expected a number from -1 to 1, or None"):
        design.next_round(3, {(0, 1): outcome})


@pytest.mark.parametrize(
    "setting",
    [
        {"min_gain": -0.1},
        {"min_gain": float("nan")},
        {"evidence": 0},
        {"ridge": 0},
        {"ridge": float("inf")},
        {"lone_weight": 0},
        {"lone_weight": 1.1},
        {"round_share": 0},
        {"calls_per_response": 0},
    ],
)
def test_a_meaningless_setting_is_rejected_by_name(setting: dict[str, float]) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"{name} is .*expected .*(tested|defaults)"):
        Adaptive(**setting)  # type: ignore[arg-type]
