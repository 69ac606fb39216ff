"""The part of the large matrices that a commit tests: drawn with a seed that changes with the commit.

pytest's header shows the seed; TPO_TEST_SEED=<seed> repeats a draw. TPO_TEST_EXHAUSTIVE=1, as in `make exhaustive`,
tests everything. Both are environment variables because xdist's workers, and processes that tests start, must draw the
same.
"""

import os
import random
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
SEED_VARIABLE, EXHAUSTIVE_VARIABLE = "TPO_TEST_SEED", "TPO_TEST_EXHAUSTIVE"
STORY_SECONDS = 90.0
"""Time in seconds for tests marked `story` with `-m slow`."""


@cache
def seed() -> int:
    """TPO_TEST_SEED or, without it, the first eight hex digits of the commit; 0 outside a checkout."""
    if given := os.environ.get(SEED_VARIABLE):
        return int(given)
    command = ["git", "rev-parse", "--short=8", "HEAD"]
    try:
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    return int(commit.strip()[:8], 16)


def exhaustive() -> bool:
    """Whether to test everything."""
    return bool(os.environ.get(EXHAUSTIVE_VARIABLE))


def dice(what: str) -> random.Random:
    """Random numbers for one matrix, the same in every process of this session."""
    return random.Random(f"{seed()} {what}")


def sampled(what: str, cases: Sequence[T], count: int, *, always: Sequence[T] = ()) -> list[T]:
    """`always` and `count` of the other cases, in the order of `cases`; all of them if `exhaustive`."""
    others = [i for i, case in enumerate(cases) if case not in always]
    drawn = set(dice(what).sample(others, min(count, len(others))))
    return [case for i, case in enumerate(cases) if exhaustive() or case in always or i in drawn]


def drawn_stories(seconds: Mapping[str, float]) -> list[str]:
    """The stories to run with `-m slow`, chosen from the available ones by the seconds that each takes.

    The first one drawn runs however long it takes, so that each gets its turn; then those that fit in the remaining
    time.
    """
    names, drawn, left = sorted(seconds), list[str](), STORY_SECONDS
    for name in dice("stories").sample(names, len(names)):
        if exhaustive() or not drawn or seconds[name] <= left:
            drawn.append(name)
            left -= seconds[name]
    return sorted(drawn)


def header() -> str:
    """The line of pytest's header."""
    drawn = "everything is tested" if exhaustive() else "draws what is tested of large matrices"
    return f"{SEED_VARIABLE}={seed()} {drawn}"
