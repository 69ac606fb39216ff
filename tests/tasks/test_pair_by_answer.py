"""Claims about how right and wrong outputs become preference pairs."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.handles import JudgedSamples
from tasks.pair_by_answer import PairsByAnswer, make_pairs
from tasks.pair_by_answer import pair_by_answer as pair_stage
from tasks.solutions import Question, Written
from tests.rows import a_config, a_demonstration, some_answers, stored
from tpo.config.run import RunConfig
from tpo.errors import StageError
from tpo.method.diversity import jaccard
from tpo.records import Pair
from tpo.storage.store import read_rows

some_outputs = st.lists(st.text("abcdef", min_size=1, max_size=5), max_size=6, unique=True)
some_questions = st.lists(st.tuples(some_outputs, some_outputs), max_size=8)


def written(text: str, *, given: bool = False, broken: bool = False) -> Written:
    """An output whose tokens are its letters."""
    return Written([ord(letter) for letter in text], text, "given" if given else "sampled", broken=broken)


def question(name: str, right: Sequence[Written], wrong: Sequence[Written]) -> Question:
    return Question(name, [1, 2], {each.text: each for each in right}, {each.text: each for each in wrong})


def paired(*questions: tuple[Sequence[str], Sequence[str]], most: int = 3, max_tokens: int = 100) -> PairsByAnswer:
    made = [
        question(f"q{i}", [*map(written, right)], [*map(written, wrong)]) for i, (right, wrong) in enumerate(questions)
    ]
    return make_pairs(made, most=most, max_tokens=max_tokens)


def texts(pair: Pair) -> tuple[str, str]:
    chosen, rejected = ("".join(map(chr, side)) for side in (pair.chosen_token_ids, pair.rejected_token_ids))
    return chosen, rejected


def test_the_least_similar_pairs_are_taken():
    made = paired((["abc", "def"], ["abd", "xyz"]), most=2)
    assert [texts(pair) for pair in made.pairs] == [("abc", "xyz"), ("def", "xyz")]
    assert made.account.dropped == {"more_alike": 2}


def test_a_question_without_a_wrong_or_without_a_right_output_gives_no_pair_and_is_counted():
    made = paired((["a"], []), ([], ["b"]), ([], []), (["a"], ["b"]))
    assert [pair.prompt_id for pair in made.pairs] == ["q3"]
    assert made.account.dropped == {"no_wrong_output": 1, "no_right_output": 2}
    assert made.questions == 1


def test_an_output_that_is_both_right_and_wrong_is_not_paired_with_itself():
    assert paired((["a"], ["a"])).pairs == []


def test_an_output_that_breaks_the_format_is_wrong():
    made = make_pairs([question("q", [written("a")], [written("b", broken=True)])], most=3, max_tokens=9)
    assert [pair.kind for pair in made.pairs] == ["error_rejected"]


def test_no_output_is_cut_to_fit():
    made = paired((["abcd", "a"], ["bcde", "b"]), most=9, max_tokens=3)
    assert [texts(pair) for pair in made.pairs] == [("a", "b")]
    assert made.account.dropped == {"too_long": 3}
    assert paired((["abcd"], ["b"]), max_tokens=3).account.dropped == {"too_long": 1}


@given(questions=some_questions, most=st.integers(1, 4))
def test_a_question_has_its_least_similar_pairs_and_every_pair_is_accounted_for(
    questions: list[tuple[list[str], list[str]]], most: int
):
    made = paired(*questions, most=most)
    for i, (right, wrong) in enumerate(questions):
        own = [texts(pair) for pair in made.pairs if pair.prompt_id == f"q{i}"]
        possible = [(a, b) for a in right for b in wrong if b not in right]
        alike = sorted(jaccard({*map(ord, a)}, {*map(ord, b)}) for a, b in possible)
        assert len(set(own)) == len(own) == min(most, len(possible))
        assert sorted(jaccard({*map(ord, a)}, {*map(ord, b)}) for a, b in own) == alike[: len(own)]
    assert made.account.rows_out == len(made.pairs)


def a_self_training(folder: Path) -> RunConfig:
    return RunConfig.model_validate(a_config(folder).model_dump() | {"recipe": {"kind": "self_train"}})


def test_the_demonstration_is_the_first_right_output_and_all_models_answers_are_pooled(tmp_path: Path):
    config = a_self_training(tmp_path)
    gold = stored(config.root, "gold", [a_demonstration("p", "gold")])
    first = some_answers(config.root, "one", {"p": [("first right", True), ("first wrong", False)]})
    second = some_answers(config.root, "two", {"p": [("second wrong", False), ("gold", True)], "q": [("lost", False)]})
    artifact = pair_stage.fn(config, "iter_2/dpo", gold, [first, second])
    pairs = read_rows(artifact, Pair)
    assert {pair.prompt_id for pair in pairs} == {"p"}
    assert len(pairs) == 3
    assert {pair.chosen_index for pair in pairs} <= {-1, 0}
    assert pair_stage.fn(config, "iter_2/dpo", gold, [first, second]) == artifact


def test_without_any_pair_the_run_stops_and_says_why(tmp_path: Path):
    config = a_self_training(tmp_path)
    gold = stored(config.root, "gold", [a_demonstration("p", "gold")])
    answers: JudgedSamples = some_answers(config.root, "one", {"p": [("gold", True)]})
    with pytest.raises(StageError, match=r"0 pairs from 1 questions \(1 no_wrong_output\): raise recipe.pair"):
        pair_stage.fn(config, "iter_1/dpo", gold, [answers])
