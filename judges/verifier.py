"""A judge that knows what is right: it compares a response's answer with the reference, or checks instructions.

A reading is 1 for a right answer and 0 for a wrong one or, with `match = "instructions"`, the share of the prompt's
verifiable instructions that the response follows; the score adds the configured liking for length. Without a reference
or constraints, or if a comparison of expressions takes too long, a response is unscored, never at 0.
"""

import json
import re
import select
import string
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

from judges.base import Group, Spend, uncounted
from tpo.config import VerifierJudge
from tpo.journal import Journal
from tpo.method.instructions import parse_constraints, strict_verdicts
from tpo.records import Judgment, Score


class Verifier:
    """Compares answers with references, as text or as mathematics, or checks verifiable instructions."""

    def __init__(self, config: VerifierJudge) -> None:
        self._config = config
        self._pattern = re.compile(config.answer_pattern)

    def judge(
        self, groups: Sequence[Group], journal: Journal | None = None, spend: Spend = uncounted
    ) -> Iterator[list[Judgment]]:
        """One reading a response: 1 right, 0 wrong, or a share of instructions; None without anything to check."""
        if self._config.match == "instructions":
            yield from map(_check_instructions, groups)
            return
        for group in groups:
            yield [self._read(group, response.index, response.text) for response in group.responses]

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        """The reading plus `length_bias` for every 100 characters."""
        readings = {judgment.index: judgment.outcome for judgment in judgments}
        unknown = self._why_unknown(group)
        scores = []
        for response in group.responses:
            outcome = readings[response.index]
            length = len(response.text)
            scores.append(
                Score(
                    prompt_id=group.prompt_id,
                    index=response.index,
                    value=None if outcome is None else outcome + self._config.length_bias * length / 100,
                    unscored=unknown if outcome is None else None,
                    correct=None if outcome is None else outcome == 1.0,
                    response_chars=length,
                )
            )
        return scores

    def _why_unknown(self, group: Group) -> str:
        if self._config.match == "instructions":
            return "no_constraints"
        return "no_reference" if group.reference is None else "comparison_timed_out"

    def answer(self, response: str) -> str:
        """The answer that a response gives: the pattern's last match, or the whole response."""
        found = self._pattern.findall(response)
        return str(found[-1]).strip() if found else response.strip()

    def _read(self, group: Group, index: int, response: str) -> Judgment:
        answer = self.answer(response)
        equal = None if group.reference is None else self.equal(answer, group.reference)
        outcome = None if equal is None else float(equal)
        detail = json.dumps({"answer": answer, "reference": group.reference}, ensure_ascii=False)
        return Judgment(group.prompt_id, index, None, outcome, detail)

    def equal(self, answer: str, reference: str) -> bool | None:
        """Whether two answers are equal; None where that is not known within the time limit."""
        if _normal(answer) == _normal(reference):
            return True
        return _MATH.equal(answer, reference) if self._config.match == "math" else False


def _check_instructions(group: Group) -> list[Judgment]:
    """The share of its prompt's instructions that each response follows, and which ones."""
    constraints = () if group.constraints is None else parse_constraints(group.constraints)
    readings = []
    for response in group.responses:
        followed = strict_verdicts(constraints, response.text)
        checked = [{"id": each.id, "followed": one} for each, one in zip(constraints, followed, strict=True)]
        outcome = sum(followed) / len(followed) if followed else None
        readings.append(Judgment(group.prompt_id, response.index, None, outcome, json.dumps({"instructions": checked})))
    return readings


def _normal(text: str) -> str:
    """Without case and outer punctuation; a sign, a leading decimal point, and text that is nothing else stay."""
    plain = " ".join(text.split()).casefold()
    return _OUTER.sub("", plain) or plain


_MARKS = re.escape(string.punctuation.replace("-", "") + "“”‘’«»„…¡¿ ")
_OUTER = re.compile(rf"^(?:(?!\.\d)[{_MARKS}])+|[{_MARKS}]+$")


class _MathChecker:
    """Compares mathematics in a process of its own, since `9**9**9**9` in a response would keep ours for ever.

    The library's own time-outs use signals, which work in a main thread only; ours may be a task's thread.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, answer: str, reference: str) -> bool | None:
        """Whether two expressions are equal; None where that is not known within the time limit."""
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-u", "-c", _CHECKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                self._answer(_START_SECONDS)
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps([reference, answer]) + "\n")
            self._process.stdin.flush()
            found = self._answer(_CHECK_SECONDS)
            return None if found is None else found == "True"

    def _answer(self, seconds: float) -> str | None:
        """The process's next line; None, and the process gone, where it takes longer than `seconds` or has died."""
        assert self._process is not None and self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline().strip() if ready else ""
        if not line:
            self._process.kill()
            self._process.wait()
            self._process = None
        return line or None


_START_SECONDS, _CHECK_SECONDS = 120, 5
_CHECKER = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from math_verify import parse, verify
print("ready")
for line in sys.stdin:
    gold, found = (parse(text, parsing_timeout=None) for text in json.loads(line))
    print(bool(gold) and bool(found) and bool(verify(gold, found, timeout_seconds=None)))
"""
_MATH = _MathChecker()
