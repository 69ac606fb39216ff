"""Claims about ThinkPO's pairs: the long output is chosen, answers are compared, and every prompt without a pair is
counted."""

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.pair_by_length import LengthContrast, PairsByLength, TokenizedOutput, make_pairs
from tpo.config.recipes import ThinkPo

BOXED = ThinkPo(match="exact")


def output(text: str, tokens: int) -> TokenizedOutput:
    return TokenizedOutput(list(range(tokens)), text)


def contrast(name: str, long: TokenizedOutput | None, short: TokenizedOutput | None) -> LengthContrast:
    return LengthContrast(name, [1, 2, 3], long, short)


def boxed(answer: str, tokens: int) -> TokenizedOutput:
    return output(rf"so \boxed{{{answer}}}", tokens)


def equal(one: str, other: str) -> bool | None:
    return None if "?" in one + other else one == other


def made(contrasts: list[LengthContrast], max_tokens: int = 1000, seed: int = 0, **values: Any) -> PairsByLength:
    config = BOXED.model_copy(update=values)
    return make_pairs(contrasts, config, max_tokens=max_tokens, seed=seed, equal=equal)


def test_the_long_output_is_chosen_or_with_swap_the_short_one():
    one = contrast("a", boxed("7", 30), boxed("7", 9))
    (plain,), (swapped,) = made([one]).pairs, made([one], swap=True).pairs
    assert (len(plain.chosen_token_ids), len(plain.rejected_token_ids)) == (30, 9)
    assert (len(swapped.chosen_token_ids), len(swapped.rejected_token_ids)) == (9, 30)
    assert plain.chosen_score is None and plain.margin is None


@pytest.mark.parametrize(
    ("long", "short", "reason"),
    [
        (boxed("7", 30), boxed("8", 9), "answers_differ"),
        (boxed("?", 30), boxed("8", 9), "undecided"),
        (output("it is 7", 30), boxed("7", 9), "no_answer"),
        (boxed("7", 30), output("it is 7", 9), "no_answer"),
        (None, boxed("7", 9), "no_long_output"),
        (boxed("7", 30), None, "no_short_output"),
        (boxed("7", 9), boxed("7", 9), "not_longer"),
        (boxed("7", 9), boxed("7", 30), "not_longer"),
        (boxed("7", 19), boxed("7", 9), "long_output_too_short"),
        (boxed("7", 61), boxed("7", 9), "too_long"),
        (boxed("7", 98), boxed("7", 9), "too_long"),
    ],
)
def test_a_contrast_that_makes_no_pair_is_counted_by_reason(long: TokenizedOutput, short: TokenizedOutput, reason: str):
    found = made([contrast("a", long, short)], max_tokens=100, min_chosen_tokens=20, max_chosen_tokens=60)
    assert found.pairs == [] and dict(found.account.dropped) == {reason: 1}


def test_a_prompt_that_comes_twice_is_paired_once():
    rows = [contrast("a", boxed("7", 30), boxed("7", n)) for n in (9, 8)]
    found = made(rows)
    assert [len(pair.rejected_token_ids) for pair in found.pairs] == [9]
    assert dict(found.account.dropped) == {"duplicate": 1}


@given(same=st.integers(0, 40), different=st.integers(0, 40), share=st.floats(0, 0.9), seed=st.integers(0, 3))
def test_pairs_with_differing_answers_are_at_most_their_share(same: int, different: int, share: float, seed: int):
    rows = [contrast(f"s{i}", boxed("7", 30), boxed("7", 9)) for i in range(same)]
    rows += [contrast(f"d{i}", boxed("7", 30), boxed("8", 9)) for i in range(different)]
    found = made(rows, seed=seed, mismatched_answer_ratio=share)
    assert len(found.pairs) == same + found.differing
    assert found.differing <= share * len(found.pairs) + 1e-9
    enough = int(share / (1 - share) * same)
    assert found.differing == min(different, enough)


@given(gaps=st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_the_thirds_by_gap_are_all_pairs_each_once_and_in_order(gaps: list[int]):
    rows = [contrast(f"p{i}", boxed("7", 9 + gap), boxed("7", 9)) for i, gap in enumerate(gaps)]
    thirds = [made(rows, gap=gap).pairs for gap in ("small", "middle", "large")]
    assert sorted(pair.prompt_id for third in thirds for pair in third) == sorted(f"p{i}" for i in range(len(gaps)))
    lengths = [[len(pair.chosen_token_ids) for pair in third] for third in thirds if third]
    for one, other in itertools.pairwise(lengths):
        assert max(one) <= min(other)


def test_up_to_max_pairs_are_drawn_by_the_seed_in_the_order_of_the_prompts():
    rows = [contrast(f"p{i}", boxed("7", 30), boxed("7", 9)) for i in range(50)]
    first, second = ([pair.prompt_id for pair in made(rows, max_pairs=20, seed=seed).pairs] for seed in (0, 1))
    assert len(first) == 20 and first != second
    assert first == sorted(first, key=lambda name: int(name[1:]))
    assert [pair.prompt_id for pair in made(rows, max_pairs=20).pairs] == first


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"thus \boxed{7}.", "7"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\frac{\sqrt{3}}{2}}", r"\frac{\sqrt{3}}{2}"),
        (r"\boxed{}", ""),
        (r"boxed{7}", None),
    ],
)
def test_a_boxed_answer_is_found_with_the_braces_in_it(text: str, answer: str | None):
    found = re.findall(BOXED.answer_pattern, text)
    assert (found[-1] if found else None) == answer


def test_equal_mathematics_is_an_equal_answer():
    from judges.verifier import Verifier
    from tpo.config.judges import VerifierJudge

    judge = Verifier(VerifierJudge(match="math"))
    half = contrast("a", boxed(r"\frac{1}{2}", 30), boxed("0.5", 9))
    third = contrast("b", boxed(r"\frac{1}{3}", 30), boxed("0.5", 9))
    found = make_pairs([half, third], ThinkPo(), max_tokens=99, seed=0, equal=judge.equal)
    assert [pair.prompt_id for pair in found.pairs] == ["a"]


@pytest.mark.parametrize("pattern", ["answer", "(a)(b)", "("])
def test_an_answer_pattern_without_its_one_group_is_refused(pattern: str):
    with pytest.raises(ValueError, match="answer_pattern"):
        ThinkPo(answer_pattern=pattern)
