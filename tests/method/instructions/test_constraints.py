"""Claims about a prompt's constraints: what is read, what is refused and how, and the four numbers."""

import json
import re
from typing import Any

import pytest

from tpo.method.instructions import (
    Accuracy,
    ConstraintError,
    loose_verdicts,
    measure_accuracy,
    parse_constraints,
    strict_verdicts,
    write_constraints,
)
from tpo.method.instructions.constraints import loose_versions

NO_COMMA = '[{"id": "punctuation:no_comma", "kwargs": {}}]'
SENTENCES = {"num_sentences": 3, "relation": "less than"}


@pytest.mark.parametrize(
    ("ids", "kwargs"),
    [
        (["punctuation:no_comma", "length_constraints:number_sentences"], [{}, SENTENCES]),
        (["punctuation:no_comma", "length_constraints:number_sentences"], [None, {**SENTENCES, "num_words": None}]),
        ('["punctuation:no_comma", "length_constraints:number_sentences"]', json.dumps([{}, SENTENCES])),
        (["punctuation:no_comma", "length_constraints:number_sentences"], ["{}", json.dumps(SENTENCES)]),
        (["punctuation:no_comma", "length_constraints:number_sentences"], [{}, {**SENTENCES, "num_sentences": 3.0}]),
    ],
    ids=["lists", "nulls", "JSON text", "objects as JSON text", "whole numbers as floats"],
)
def test_every_form_of_the_two_columns_becomes_the_same_text(ids: Any, kwargs: Any):
    text = write_constraints(ids, kwargs)
    assert text is not None and json.loads(text) == [
        {"id": "punctuation:no_comma", "kwargs": {}},
        {"id": "length_constraints:number_sentences", "kwargs": SENTENCES},
    ]
    assert [dict(each.kwargs) for each in parse_constraints(text)] == [{}, SENTENCES]


@pytest.mark.parametrize(("ids", "kwargs"), [(None, None), ([], []), ("", ""), ("[]", None), (float("nan"), None)])
def test_a_row_without_instructions_has_no_constraints(ids: Any, kwargs: Any):
    assert write_constraints(ids, kwargs) is None


@pytest.mark.parametrize(
    ("ids", "kwargs", "message"),
    [
        (["keywords:poetry"], [{}], "'keywords:poetry' is unknown, expected one of keywords:existence, "),
        ([3], [{}], "instruction id 3 is unknown"),
        ("no_comma", None, "the instruction ids are 'no_comma', expected a list"),
        ({"a": 1}, None, "the instruction ids are {'a': 1}, expected a list"),
        (["punctuation:no_comma"], [{}, {}], "expected a list of 1 objects, one per id"),
        (["punctuation:no_comma"], {}, "expected a list of 1 objects, one per id"),
        (["punctuation:no_comma"], [3], "the arguments of punctuation:no_comma are 3, expected an object with none"),
        (["punctuation:no_comma"], [{"n": 3}], "punctuation:no_comma has the arguments n, expected none"),
        (
            ["keywords:frequency"],
            [{"keyword": "a"}],
            "has the arguments keyword, expected keyword, frequency, relation",
        ),
        (["keywords:frequency"], None, "has the arguments none, expected keyword, frequency, relation"),
        (["language:response_language"], [{"language": "klingon"}], "is 'klingon', expected the code of a language"),
        (["language:response_language"], [{"language": ["de"]}], "is ['de'], expected the code of a language"),
        (["keywords:existence"], [{"keywords": "cat"}], "is 'cat', expected a list of 1 to 50 texts"),
        (["keywords:existence"], [{"keywords": []}], "is [], expected a list of 1 to 50 texts"),
        (["keywords:existence"], [{"keywords": ["a" * 201]}], "expected a list of 1 to 50 texts of up to 200"),
        (["detectable_format:number_bullet_lists"], [{"num_bullets": -1}], "is -1, expected a whole number from 0"),
        (["detectable_format:number_bullet_lists"], [{"num_bullets": True}], "is True, expected a whole number"),
        (["detectable_format:number_bullet_lists"], [{"num_bullets": 1.5}], "is 1.5, expected a whole number"),
        (
            ["length_constraints:number_words"],
            [{"num_words": 3, "relation": "at most"}],
            'expected "at least" or "less',
        ),
        (
            ["keywords:letter_frequency"],
            [{"letter": "ab", "let_frequency": 1, "let_relation": "at least"}],
            "letter of keywords:letter_frequency is 'ab', expected one character",
        ),
        (
            ["length_constraints:nth_paragraph_first_word"],
            [{"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"}],
            "nth_paragraph of length_constraints:nth_paragraph_first_word is 3, expected up to num_paragraphs, 2",
        ),
        (["punctuation:no_comma"] * 51, [{}] * 51, "there are 51 instructions, expected at most 50"),
        (["punctuation:no_comma"], "[{", "the kwargs are '[{', expected a list"),
        ("[" * 100_000, None, "expected a list, or one as JSON text"),
    ],
)
def test_invalid_constraints_are_rejected_with_what_was_expected(ids: Any, kwargs: Any, message: str):
    with pytest.raises(ConstraintError, match=re.escape(message)):
        write_constraints(ids, kwargs)


@pytest.mark.parametrize(
    "text", ["", "{}", '["punctuation:no_comma"]', '[{"id": "punctuation:no_comma"}]', "[" * 100_000]
)
def test_text_that_is_not_constraints_is_rejected(text: str):
    with pytest.raises(ConstraintError, match="the constraints are not"):
        parse_constraints(text)


def test_a_loose_verdict_forgives_first_and_last_lines_and_asterisks():
    plain = ["Sure,\nOne\nBye,", "One\nBye,", "Sure,\nOne", "One"]
    assert loose_versions("Sure,\n*One*\nBye,") == [*(text.replace("One", "*One*") for text in plain), *plain]
    constraints = parse_constraints(NO_COMMA)
    for response in ("Sure,\nOne", "One\nBye,", "Sure,\nOne\nBye,"):
        assert (strict_verdicts(constraints, response), loose_verdicts(constraints, response)) == ([False], [True])
    quoted = parse_constraints('[{"id": "startend:quotation", "kwargs": {}}]')
    assert loose_verdicts(quoted, '*"One"*') == [True]


def test_the_four_numbers_are_over_prompts_and_over_instructions():
    one = parse_constraints(NO_COMMA)
    two = one + parse_constraints('[{"id": "detectable_format:title", "kwargs": {}}]')
    responses = [(two, "<<A>>"), (two, "<<B>>, b"), (one, "Sure,\nc"), (one, "d"), ((), "no constraints")]
    assert measure_accuracy(responses) == Accuracy(
        prompt_strict=2 / 4, instruction_strict=4 / 6, prompt_loose=3 / 4, instruction_loose=5 / 6
    )


def test_accuracy_needs_a_response_with_constraints():
    with pytest.raises(ValueError, match="no response with constraints"):
        measure_accuracy([((), "text")])
