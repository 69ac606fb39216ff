"""Claims about sentences and capital words, where NLTK's counts, which published numbers rest on, are not obvious."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.method.instructions.words import capital_words, split_sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["One.", "Two?", "Three!", "Four"],
        ["Mr. Fox, of the U.S. firm, paid $3.50 on Oct. 3, e.g.", "in cash."],
        ['He said "No!"', "And left... slowly."],
        ["Really?!", "Yes."],
        ["Steps:\n\n1.", "Boil water.", "2.", "**Stir** it."],
        ["It costs 5. dollars"],
        ["Options:\nA.", "First answer\nB.", "Second answer"],
        ["J. Smith met J.K. Rowling.", "They talked."],
        ["P.S.", "I love you."],
        ["The U.S.", "The end."],
        ["Wait...", "The end."],
        ["It's at *o*.", "Well, at o.", "Let's go."],
        ["no capital.", "none here"],
        ["See a.b.c/d.html?e=f for more."],
        ["Say “yes.”", "Or no."],
    ],
)
def test_sentences_end_where_punkt_ends_them(sentences: list[str]):
    assert split_sentences(" ".join(sentences)) == sentences


@given(st.text(alphabet="aB.?!\"')* \n”1", max_size=40))
def test_splitting_loses_nothing_but_space(text: str):
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I am A NASA-TV fan", ["I", "A", "NASA-TV"]),
        ("DON'T! IT'S mine", ["DO", "N'T", "IT", "'S"]),
        ("IT’S", ["IT", "S"]),
        ("NASA's CEO, (USA) A/B", ["NASA", "CEO", "USA", "A/B"]),
        ("CANNOT GONNA", ["CAN", "NOT", "GON", "NA"]),
        ("YES—NO YES--NO YES…NO", ["YES", "NO", "YES", "NO", "YES…NO"]),
        ("R&D 3D 42 iOS", ["R", "D", "3D"]),
        ("10:30PM A:B", ["10:30PM", "A", "B"]),
    ],
)
def test_words_in_capitals_are_split_as_in_the_penn_treebank(text: str, expected: list[str]):
    assert capital_words(text) == expected
