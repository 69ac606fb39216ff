"""Claims about single instructions: what follows each of the 25 types, and what doesn't."""

import string
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.method.instructions import INSTRUCTION_TYPES, Constraint, loose_verdicts, strict_verdicts

LEAST, LESS = "at least", "less than"
ENGLISH = "the quick brown fox jumps over the lazy dog while everyone in the village is watching"


def words(count: int, relation: str) -> dict[str, Any]:
    return {"num_words": count, "relation": relation}


def often(keyword: str, count: int, relation: str) -> dict[str, Any]:
    return {"keyword": keyword, "frequency": count, "relation": relation}


def letters(letter: str, count: int, relation: str) -> dict[str, Any]:
    return {"letter": letter, "let_frequency": count, "let_relation": relation}


def capitals(count: int, relation: str) -> dict[str, Any]:
    return {"capital_frequency": count, "capital_relation": relation}


def sentences(count: int, relation: str) -> dict[str, Any]:
    return {"num_sentences": count, "relation": relation}


def nth(paragraphs: int, position: int, word: str) -> dict[str, Any]:
    return {"num_paragraphs": paragraphs, "nth_paragraph": position, "first_word": word}


Case = tuple[str, Mapping[str, Any], str]

FOLLOWED: list[Case] = [
    ("keywords:existence", {"keywords": ["cat", "Dog"]}, "Concatenate DOGs."),  # in words, in any case
    ("keywords:existence", {"keywords": ["C++"]}, "I like c++."),
    ("keywords:frequency", often("war", 2, LEAST), "Warm wars"),
    ("keywords:frequency", often("war ", 2, LESS), "one war"),
    ("keywords:frequency", often("a.c", 1, LESS), "abc"),
    ("keywords:forbidden_words", {"forbidden_words": ["can"]}, "A candle, a scan"),
    ("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "C, and C+"),
    ("keywords:letter_frequency", letters("E", 3, LEAST), "Eel eE"),
    ("keywords:letter_frequency", letters("#", 2, LESS), "one #"),
    ("language:response_language", {"language": "de"}, "Das ist ein ganz gewöhnlicher Satz über das Wetter von heute."),
    ("language:response_language", {"language": "th"}, "วันนี้อากาศดีมากและฉันอยากออกไปเดินเล่น"),
    ("language:response_language", {"language": "de"}, "12 + 30 = 42"),  # nothing to identify it by
    ("length_constraints:number_sentences", sentences(3, LEAST), "Is it? It is! Mr. Fox, of the U.S., says so."),
    ("length_constraints:number_sentences", sentences(2, LESS), "One sentence, no more"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo\n***"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "One\n\nstill one"),
    ("length_constraints:number_words", words(4, LEAST), "It's well-known"),  # It, s, well, known
    ("length_constraints:number_words", words(3, LESS), "über_alles 42"),
    ("length_constraints:nth_paragraph_first_word", nth(2, 2, "Elm"), "Oak.\n\n'\"elm', she said."),
    ("length_constraints:nth_paragraph_first_word", nth(2, 1, "oak"), "Oak's.\n\nElm.\n\n"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [] [half"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. one more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye. P. P.S: one more"),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, "NOTE: one more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "* one\n  - two\n- three\n**bold**\n* "[:-2]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "*\n* the line above takes this one with it"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "*Emphasis* at the start of a line counts"),
    ("detectable_format:constrained_response", {}, "Well: My answer is maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**"),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1 a SECTION2"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1, null]}\n```'),
    ("detectable_format:json_format", {}, " 42 "),
    ("detectable_format:title", {}, "Here: <<A title>>\ntext"),
    ("combination:two_responses", {}, "One\n******\nTwo"),
    ("combination:two_responses", {}, "******\nOne******Two\n******"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, "\nSAY IT.\nIt."),
    ("startend:end_checker", {"end_phrase": "The End."}, 'So it went. "the end." \n'),
    ("startend:quotation", {}, ' "All of it" '),
    ("change_case:capital_word_frequency", capitals(3, LEAST), "NASA-TV can't SAY. DON'T!"),  # DO and N'T are two
    ("change_case:capital_word_frequency", capitals(2, LESS), "Only ONE iPhone"),
    ("change_case:english_capital", {}, ENGLISH.upper() + "!"),
    ("change_case:english_lowercase", {}, ENGLISH),
    ("punctuation:no_comma", {}, "one; two、three"),
]
BROKEN: list[Case] = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "A cat."),
    ("keywords:existence", {"keywords": ["a.c"]}, "abc"),  # not a pattern
    ("keywords:frequency", often("war", 2, LEAST), "one war"),
    ("keywords:frequency", often("aa", 2, LEAST), "aaa"),  # without overlap
    ("keywords:forbidden_words", {"forbidden_words": ["no", "yes"]}, "I say YES."),
    ("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "I write c++17."),
    ("keywords:letter_frequency", letters("!", 2, LESS), "Oh! No!"),
    ("language:response_language", {"language": "de"}, ENGLISH),
    ("length_constraints:number_sentences", sentences(3, LEAST), "Mr. Fox, of the U.S., pays 3.50. It is so."),
    ("length_constraints:number_sentences", sentences(2, LESS), "One. Two."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\n \n***\nTwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n\nTwo"),
    ("length_constraints:number_words", words(3, LEAST), "one two"),
    ("length_constraints:nth_paragraph_first_word", nth(2, 2, "elm"), "Elm.\n\nOak."),
    ("length_constraints:nth_paragraph_first_word", nth(2, 1, "oak"), "Oak.\n\nElm.\n\nAsh."),
    ("length_constraints:nth_paragraph_first_word", nth(2, 2, "elm"), "Oak.\n\n\n\nElm."),  # the second is blank
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[over two\nlines]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "PS: one more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.S. one more"),
    ("detectable_content:postscript", {"postscript_marker": "N.B."}, "numbers"),  # not a pattern
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n* two\n---"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "1. one\n• two\n*"),
    ("detectable_format:constrained_response", {}, "my answer is yes"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*over two\nlines, ** ** and ****"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 1},
        "Section one, SECTION 1",
    ),
    ("detectable_format:json_format", {}, "Here you go: {}"),
    ("detectable_format:json_format", {}, "[" * 100_000),
    ("detectable_format:json_format", {}, '{"a": 1,}'),
    ("detectable_format:title", {}, "<< >>\n<<over two\nlines>>\n>>wrong<<"),
    ("combination:two_responses", {}, "Same\n******\n Same"),
    ("combination:two_responses", {}, "One******Two******Three"),
    ("combination:two_responses", {}, "One************Two"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Sure: say it."),
    ("startend:end_checker", {"end_phrase": "The End."}, "The End. Or not."),
    ("startend:quotation", {}, '"'),
    ("startend:quotation", {}, "“All of it”"),
    ("change_case:capital_word_frequency", capitals(3, LEAST), "NASA-TV, ONE"),
    ("change_case:english_capital", {}, "Das IST NICHT ALLES GROSS"),
    ("change_case:english_capital", {}, "DAS IST EIN GANZ GEWÖHNLICHER SATZ ÜBER DAS WETTER VON HEUTE"),
    ("change_case:english_lowercase", {}, ENGLISH.capitalize()),
    ("punctuation:no_comma", {}, "1,000"),
]


@pytest.mark.parametrize(("type_id", "kwargs", "response"), FOLLOWED)
def test_a_response_follows_an_instruction(type_id: str, kwargs: Mapping[str, Any], response: str):
    assert Constraint(type_id, kwargs).followed_by(response)


@pytest.mark.parametrize(("type_id", "kwargs", "response"), BROKEN)
def test_a_response_breaks_an_instruction(type_id: str, kwargs: Mapping[str, Any], response: str):
    assert not Constraint(type_id, kwargs).followed_by(response)


def test_every_type_has_examples_followed_and_broken():
    assert len(INSTRUCTION_TYPES) == 25
    assert {case[0] for case in FOLLOWED} == {case[0] for case in BROKEN} == INSTRUCTION_TYPES.keys()


@pytest.mark.parametrize("constraint", [Constraint(type_id, kwargs) for type_id, kwargs, _ in FOLLOWED])
def test_a_blank_response_follows_nothing(constraint: Constraint):
    assert strict_verdicts([constraint], " \n\t") == loose_verdicts([constraint], " \n\t") == [False]


LOOKS_LIKE_A_RESPONSE = st.lists(
    st.sampled_from([*string.printable, "***", "P.S. ", "<<a>>", "SECTION 1", "[x]", '"', "My answer is yes.", "\n\n"])
).map("".join)


@pytest.mark.parametrize(
    "constraint",
    [Constraint(type_id, kwargs) for type_id, kwargs, _ in FOLLOWED if not type_id.startswith(("language", "change"))],
)
@given(response=LOOKS_LIKE_A_RESPONSE)
def test_a_strict_verdict_implies_a_loose_one(constraint: Constraint, response: str):
    (strict,), (loose,) = strict_verdicts([constraint], response), loose_verdicts([constraint], response)
    assert loose or not strict


HOSTILE = [
    *(
        unit * (50_000 // len(unit))
        for unit in ("a", "A'S", "*", "* ", "[", "<", "<<a\n", "\n", " \n", "\r", ".", "p. ")
    ),
    *(
        unit * (50_000 // len(unit))
        for unit in ('".', "'", "[{", '{"a":', "http://", "a@", "1", "-", "é. B! 中 ", "\n*")
    ),
    "a" * 50_000 + "@" + "a" * 50_000,
    "\ud800" * 50_000,
]


@pytest.mark.parametrize("type_id", INSTRUCTION_TYPES)
def test_checks_end_quickly_on_fifty_thousand_characters(type_id: str):
    (kwargs,) = [kwargs for other, kwargs, _ in FOLLOWED if other == type_id][:1]
    assert {Constraint(type_id, kwargs).followed_by(text) for text in HOSTILE} <= {True, False}
