"""Claims about similar texts: the measure is ROUGE-L, and the index finds exactly what comparing all pairs finds."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.method.similarity import NearTexts, words_of

WORDS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "été", "海"]), max_size=12)
TEXTS = st.lists(WORDS.map(" ".join), max_size=12)
SHARES = st.sampled_from([0.1, 0.3, 0.5, 2 / 3, 0.7, 0.8, 0.9, 1.0])


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """ROUGE-L by the textbook's table."""
    row = [0] * (len(second) + 1)
    for left in first:
        above = row
        row = [0]
        for j, right in enumerate(second):
            row.append(above[j] + 1 if left == right else max(above[j + 1], row[j]))
    return row[-1]


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    total = len(first) + len(second)
    return 2 * longest_common(first, second) / total if total else 0.0


@given(TEXTS, TEXTS, SHARES)
def test_the_index_finds_what_comparing_all_pairs_finds(known: list[str], fresh: list[str], most: float):
    near = NearTexts(most, known)
    there = list(known)
    for text in fresh:
        above = [i for i, other in enumerate(there) if rouge_l(words_of(text), words_of(other)) > most]
        assert near.first_near(text) == (above[0] if above else None)
        near.add(text)
        there.append(text)
    assert len(near) == len(there)


@pytest.mark.parametrize(
    ("first", "second", "near"),
    [
        ("Write a poem about the sea.", "write a poem about the SEA", True),
        ("Write a poem about the sea.", "Write a short poem about the sea, please.", True),
        ("Write a poem about the sea.", "Write a poem about the moon.", True),
        ("Write a poem about the sea.", "What is the sea made of?", False),
        ("Ｗｒｉｔｅ　ａ　ｐｏｅｍ", "Write a poem", True),
        ("海についての詩を書いてください", "海についての短い詩を書いてください。", True),
        ("海についての詩を書いてください", "東京の人口は何人ですか", False),
        ("?!", "...", False),
    ],
)
def test_texts_are_near_if_a_reader_would_say_so(first: str, second: str, near: bool):
    assert (NearTexts(0.7, [first]).first_near(second) is not None) == near


def test_at_one_nothing_is_near():
    assert NearTexts(1.0, ["Say it."]).first_near("Say it.") is None


def test_the_first_of_several_near_texts_is_returned():
    assert NearTexts(0.7, ["Else.", "Say it to me now.", "Say it to me now!"]).first_near("Say it to me now") == 1
