"""A judge that knows the right answer: finds the answer in a response and compares it with the reference.

A reading is 1 for right and 0 for wrong; the score adds the configured liking for length. A response without a
reference, or whose comparison takes too long, too much memory or its checker's life, is unscored with that reason,
never at 0.
"""

import json
import re
import string
from collections.abc import Iterator, Sequence

from judges.base import Group, Spend, uncounted
from judges.math_checker import Compared, MathChecker
from tpo.config import VerifierJudge
from tpo.journal import Journal
from tpo.records import Judgment, Score


class Verifier:
    """Compares answers with references, as text or as mathematics."""

    def __init__(self, config: VerifierJudge) -> None:
        self._config = config
        self._pattern = re.compile(config.answer_pattern)

    def judge(
        self, groups: Sequence[Group], journal: Journal | None = None, spend: Spend = uncounted
    ) -> Iterator[list[Judgment]]:
        """One reading a response: 1 right, 0 wrong, None without a reference."""
        for group in groups:
            yield [self._read(group, response.index, response.text) for response in group.responses]

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        """The reading plus `length_bias` for every 100 characters."""
        readings = {judgment.index: judgment.outcome for judgment in judgments}
        unscored = {judgment.index: _why_undecided(judgment) for judgment in judgments}
        scores = []
        for response in group.responses:
            outcome = readings[response.index]
            length = len(response.text)
            scores.append(
                Score(
                    prompt_id=group.prompt_id,
                    index=response.index,
                    value=None if outcome is None else outcome + self._config.length_bias * length / 100,
                    unscored=unscored[response.index] if outcome is None else None,
                    correct=None if outcome is None else outcome == 1.0,
                    response_chars=length,
                )
            )
        return scores

    def answer(self, response: str) -> str:
        """The answer that a response gives: the pattern's last match, or the whole response."""
        found = self._pattern.findall(response)
        return str(found[-1]).strip() if found else response.strip()

    def _read(self, group: Group, index: int, response: str) -> Judgment:
        answer = self.answer(response)
        compared = Compared(None) if group.reference is None else self._compare(answer, group.reference)
        outcome = None if compared.equal is None else float(compared.equal)
        detail = {"answer": answer, "reference": group.reference}
        if compared.undecided is not None:
            detail["undecided"] = compared.undecided
        return Judgment(group.prompt_id, index, None, outcome, json.dumps(detail, ensure_ascii=False))

    def equal(self, answer: str, reference: str) -> bool | None:
        """Whether two answers are equal; None if that could not be found out."""
        return self._compare(answer, reference).equal

    def _compare(self, answer: str, reference: str) -> Compared:
        if self._config.match == "math":
            return _MATH.compare(answer, reference)
        return Compared(_normal(answer) == _normal(reference))


def _why_undecided(judgment: Judgment) -> str:
    """Why a comparison has no outcome; a judgment of an earlier version, which gave no reason, had timed out."""
    detail = json.loads(judgment.detail)
    return "no_reference" if detail.get("reference") is None else detail.get("undecided", "comparison_timed_out")


def _normal(text: str) -> str:
    """Without case and outer punctuation; a sign, a leading decimal point, and text that is nothing else stay."""
    plain = " ".join(text.split()).casefold()
    return _OUTER.sub("", plain) or plain


_MARKS = re.escape(string.punctuation.replace("-", "") + "“”‘’«»„…¡¿ ")
_OUTER = re.compile(rf"^(?:(?!\.\d)[{_MARKS}])+|[{_MARKS}]+$")
_MATH = MathChecker()
"""All verifiers of this process share one: it takes seconds to start."""
