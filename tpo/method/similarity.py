"""Near-duplicate detection by ROUGE-L, without comparing every text with every other.

Similarity is that of Self-Instruct (2212.10560, §2.2): by the longest common subsequence of words, 2·LCS / (m + n),
which tolerates a changed name or number, or an omitted clause. The result is exact. Texts that share too few words for
the threshold are never compared: a pair above it shares some of its rarest words (the prefix filter of
similarity joins, Chaudhuri et al. 2006; several of them, Wang et al. 2012), so an index of those finds every partner.
Words that aren't in the initial texts count as rarest.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from rapidfuzz.distance import LCSseq

_SINGLE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts without spaces between words: each character counts as a word."""
_WORD = re.compile(rf"[{_SINGLE}]|[^\W_{_SINGLE}]+")
_SHARED = 3
"""Rare words that a pair must share to be compared; more means fewer comparisons and a longer index."""
_SLACK = 1e-9
"""Allowance for rounding in a bound; it lets a few more pairs through the filter to be compared."""


def words_of(text: str) -> list[str]:
    """The words of a text, without case and punctuation, and with look-alike characters unified (NFKC)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class NearTexts:
    """A growing collection of texts, with which each new one can be compared.

    Args:
        threshold: Similarity above which two texts are near-duplicates; at 1 none are.
        texts: The initial texts; they also determine which words are rare.
    """

    def __init__(self, threshold: float, texts: Iterable[str] = ()) -> None:
        self._threshold = threshold
        self._words: list[list[str]] = []
        self._holders: dict[tuple[str, int], list[int]] = {}
        known = [words_of(text) for text in texts]
        self._frequency = Counter(word for words in known for word in set(words))
        for words in known:
            self._add(words)

    def __len__(self) -> int:
        return len(self._words)

    def add(self, text: str) -> None:
        """Appends a text."""
        self._add(words_of(text))

    def first_near(self, text: str) -> int | None:
        """Index of the first text that this one is too similar to, or None."""
        words = words_of(text)
        length = len(words)
        shared: Counter[int] = Counter()
        for part in self._rarest(words):
            shared.update(self._holders.get(part, ()))
        needed = min(_SHARED, self._minimum(length))
        for holder in sorted(holder for holder, count in shared.items() if count >= needed):
            other = self._words[holder]
            total = length + len(other)
            possible = 2 * min(length, len(other)) > self._threshold * total - _SLACK
            if possible and 2 * LCSseq.similarity(words, other) / total > self._threshold:
                return holder
        return None

    def _add(self, words: list[str]) -> None:
        for part in self._rarest(words):
            self._holders.setdefault(part, []).append(len(self._words))
        self._words.append(words)

    def _rarest(self, words: Sequence[str]) -> list[tuple[str, int]]:
        """The rarest words of a text, repeats numbered: enough of them that any near text shares some."""
        minimum = self._minimum(len(words))
        if minimum > len(words):
            return []
        uses: Counter[str] = Counter()
        parts = []
        for word in words:
            parts.append((self._frequency[word], word, uses[word]))
            uses[word] += 1
        return [(word, use) for _, word, use in sorted(parts)[: len(words) - minimum + min(_SHARED, minimum)]]

    def _minimum(self, length: int) -> int:
        """Minimum number of words that a text of m words shares with any near one.

        With threshold t, a near text has more than m·t / (2 - t) words, since the LCS is no longer than it; so the two
        share more than that many.
        """
        return int(length * self._threshold / (2 - self._threshold) - _SLACK) + 1
