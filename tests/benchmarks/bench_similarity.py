"""Times the search for near-duplicates at the paper's size: 5,000 new instructions per iteration against 20,000.

Prints a line per threshold, with the number of near-duplicates found. Texts have 5 to 60 words with English word
frequencies; one new text in ten is a known one with some words changed. Run with `python -m
tests.benchmarks.bench_similarity`; it never fails, because timings on a shared machine aren't a test.
"""

import time

import numpy as np

from tpo.method.similarity import NearTexts

KNOWN, NEW = 20_000, 5_000
VOCABULARY = 20_000


def texts_of(random: np.random.Generator, count: int) -> list[list[str]]:
    """Texts of words whose frequency falls with their rank (Zipf)."""
    shares = 1 / np.arange(1, VOCABULARY + 1)
    lengths = random.integers(5, 61, size=count)
    drawn = random.choice(VOCABULARY, size=int(lengths.sum()), p=shares / shares.sum())
    return [[f"w{word}" for word in part] for part in np.split(drawn, np.cumsum(lengths)[:-1])]


def main() -> None:
    """Times the index and the search, adding each new text after it was searched for."""
    random = np.random.default_rng(0)
    known, new = texts_of(random, KNOWN), texts_of(random, NEW)
    for i in range(0, NEW, 10):
        copied = list(known[int(random.integers(KNOWN))])
        for place in random.choice(len(copied), size=len(copied) // 5, replace=False):
            copied[place] = "other"
        new[i] = copied
    for most in (0.7, 0.9):
        began = time.perf_counter()
        near = NearTexts(most, map(" ".join, known))
        built = time.perf_counter()
        found = 0
        for text in map(" ".join, new):
            found += near.first_near(text) is not None
            near.add(text)
        ended = time.perf_counter()
        print(
            f"above {most}: index of {KNOWN:,} in {built - began:5.1f} s, {NEW:,} more in {ended - built:5.1f} s, "
            f"{found} near"
        )


if __name__ == "__main__":
    main()
