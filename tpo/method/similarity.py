"""Which texts say nearly the same as one before: ROUGE-L, without comparing every text with every other.

In: texts, one after the other, and a threshold. Out: the first earlier text that a new one is too similar to, or None.

Similar is what Self-Instruct (2212.10560, §2.2) calls so: the longest common subsequence of words, 2·LCS / (m + n),
which doesn't mind a name or a number changed, nor a clause left out. It is exact. Texts that share too few words for
the threshold are never compared: a pair above it has some of its rarest words in common (the prefix filter of
similarity joins, Chaudhuri et al. 2006; that several are shared, Wang et al. 2012), so an index of those finds all
partners. Words that none of the first texts holds count as rarest.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from rapidfuzz.distance import LCSseq

_SINGLE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts that put no space between words: each letter counts as one."""
_WORD = re.compile(rf"[{_SINGLE}]|[^\W_{_SINGLE}]+")
_SHARED = 3
"""Rare words that a pair must share to be compared; more make fewer pairs and a longer index."""
_SLACK = 1e-9
"""What rounding may take from a bound; the filter then lets a few pairs more through to be compared."""


def words_of(text: str) -> list[str]:
    """The words of a text, without case, punctuation and forms of letters that look alike."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class NearTexts:
    """Texts, of which each new one can be held against all before it.

    Args:
        most: Similarity above which two texts are near; at 1 none are.
        texts: Those that are there from the first on; they also tell which words are rare.
    """

    def __init__(self, most: float, texts: Iterable[str] = ()) -> None:
        self._most = most
        self._words: list[list[str]] = []
        self._holders: dict[tuple[str, int], list[int]] = {}
        known = [words_of(text) for text in texts]
        self._frequency = Counter(word for words in known for word in set(words))
        for words in known:
            self._add(words)

    def __len__(self) -> int:
        return len(self._words)

    def add(self, text: str) -> None:
        """Puts a text after all others."""
        self._add(words_of(text))

    def first_near(self, text: str) -> int | None:
        """The place, from 0, of the first text that this one is too similar to."""
        words = words_of(text)
        length = len(words)
        shared: Counter[int] = Counter()
        for part in self._rarest(words):
            shared.update(self._holders.get(part, ()))
        needed = min(_SHARED, self._least(length))
        for holder in sorted(holder for holder, count in shared.items() if count >= needed):
            other = self._words[holder]
            total = length + len(other)
            possible = 2 * min(length, len(other)) > self._most * total - _SLACK
            if possible and 2 * LCSseq.similarity(words, other) / total > self._most:
                return holder
        return None

    def _add(self, words: list[str]) -> None:
        for part in self._rarest(words):
            self._holders.setdefault(part, []).append(len(self._words))
        self._words.append(words)

    def _rarest(self, words: Sequence[str]) -> list[tuple[str, int]]:
        """The rarest words of a text, its n-th use of a word told apart: so many that any near text shares some."""
        least = self._least(len(words))
        if least > len(words):
            return []
        uses: Counter[str] = Counter()
        parts = []
        for word in words:
            parts.append((self._frequency[word], word, uses[word]))
            uses[word] += 1
        return [(word, use) for _, word, use in sorted(parts)[: len(words) - least + min(_SHARED, least)]]

    def _least(self, length: int) -> int:
        """Words that a text of m words shares with any near one at least.

        That one has over m·t / (2 - t) words, since their LCS is no longer than it, and they share as many.
        """
        return int(length * self._most / (2 - self._most) - _SLACK) + 1
