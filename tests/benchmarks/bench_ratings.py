"""Times the method's arithmetic at the paper's size: 5,000 prompts of 8 responses.

Prints a line per step. Run with `python -m tests.benchmarks.bench_ratings`; it never fails, because timings on a shared
machine aren't a test.
"""

import time
from collections.abc import Callable

import numpy as np

from tpo.method import pairing, ratings, scoring, stats

GROUPS = 5000
SIZE = 8


def report(name: str, work: Callable[[], object]) -> None:
    """Prints the best of three timings of `work`, in seconds."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    print(f"{name:<48} {min(seconds):7.3f} s")


def main() -> None:
    """Times each step on seeded random data."""
    random = np.random.default_rng(0)
    wins = ratings.battle_matrix(random.integers(-1, 2, size=(GROUPS, SIZE, SIZE)))
    total_order = np.broadcast_to(2 * np.triu(np.ones((SIZE, SIZE)), 1), wins.shape)
    lengths = random.integers(100, 4000, size=(GROUPS, SIZE))
    scores = random.normal(size=(GROUPS, SIZE)) + 1e-4 * lengths
    outcomes, values = random.integers(0, 3, size=100_000) / 2, random.normal(size=100_000)
    report("bradley_terry, ridge 0.1", lambda: ratings.bradley_terry(wins))
    report("bradley_terry, ridge 0", lambda: ratings.bradley_terry(wins + 0.5, ridge=0))
    report("bradley_terry, ridge 0.01, total order", lambda: ratings.bradley_terry(total_order, ridge=0.01))
    report("choose_rho", lambda: scoring.choose_rho(list(scores), list(lengths)))
    report(
        "select_pair, one group at a time", lambda: [pairing.select_pair(*g) for g in zip(scores, lengths, strict=True)]
    )
    report("win_rate, 100,000 prompts, 2,000 resamples", lambda: stats.win_rate(outcomes))
    report("mean, 100,000 continuous values", lambda: stats.mean(values))


if __name__ == "__main__":
    main()
