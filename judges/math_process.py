"""The program of `judges.math_checker`: reads a line of LaTeX pairs, writes whether any pair is equal.

Run by its path, in a process that may be killed, since an expression can take any time and any memory. Each line is a
JSON list of pairs; each answer is one of `equal`, `unequal`, `memory`. A comparison that takes too much CPU time ends
the process by the signal's default action, which works even inside a single multiplication, and even if the caller has
gone. Wall-clock time would make verdicts depend on what else runs.
"""

import json
import logging
import re
import signal
import sys
from collections.abc import Callable
from typing import Any


def serve(seconds: int) -> None:
    """Answers until standard input ends."""
    logging.disable(logging.CRITICAL)
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    # Units are taken off before; math-verify's own list of them has single letters in it that are variables here.
    normal = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")
    latex = [LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normal)]

    def equal(pair: list[str]) -> bool:
        found, gold = (
            parse(f"${side}$", latex, parsing_timeout=None, fallback_mode="no_fallback", raise_on_error=True)
            for side in pair
        )
        if not found or not gold or _far_apart(found[0], gold[0]):
            return False
        # An inequality and an interval are compared in one direction alone.
        ways = [(gold, found), (found, gold)] if _RELATION.search("".join(pair)) else [(gold, found)]
        return any(verify(*sides, timeout_seconds=None, raise_on_error=True) for sides in ways)

    equal([r"\sqrt{8}+x", r"x+2\sqrt{2}"])  # loads what the library loads late
    print("ready", flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            result = "equal" if any(map(_or_false(equal), json.loads(line))) else "unequal"
        except MemoryError:
            result = "memory"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(result, flush=True)


_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|ne|in)(?![a-z])")


def _far_apart(one: Any, other: Any) -> bool:
    """Whether two expressions are numbers that differ beyond all rounding, which takes no simplification to see."""
    try:
        a, b = complex(one), complex(other)
    except (TypeError, ValueError, OverflowError):  # no number, or none that a float holds
        return False
    return abs(a - b) > 1e-4 * max(abs(a), abs(b))


def _or_false(equal: Callable[[list[str]], bool]) -> Callable[[list[str]], bool]:
    """`equal`, except that it is False for what the library can't compare."""

    def compared(pair: list[str]) -> bool:
        try:
            return equal(pair)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 -- the library raises anything at all
            return False

    return compared


if __name__ == "__main__":
    serve(int(sys.argv[1]))
