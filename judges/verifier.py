"""The verifier: compares a response's answer with the reference, or checks the prompt's instructions.

A reading is 1 for a correct answer and 0 for a wrong one or, with `match = "instructions"`, the share of the prompt's
verifiable instructions that the response follows; the score adds the configured length bias. A response without a
reference or constraints, or whose comparison exceeds its time or memory or kills its checker, is unscored with that
reason, never 0.
"""

import json
import re
import string
from collections.abc import Iterator, Sequence

from judges.base import Group, Spend, uncounted
from judges.math_checker import Compared, MathChecker
from tpo.config.judges import VerifierJudge
from tpo.method.instructions import parse_constraints, strict_verdicts
from tpo.records import Judgment, Score
from tpo.storage.journal import Journal

_MATH = MathChecker()
"""Shared by all verifiers of this process: it takes seconds to start."""


class Verifier:
    """Compares answers with references, as text or as mathematics, or checks verifiable instructions."""

    def __init__(self, config: VerifierJudge, *, math: MathChecker = _MATH) -> None:
        self._config = config
        self._math = math
        self._pattern = re.compile(config.answer_pattern)

    def judge(
        self, groups: Sequence[Group], journal: Journal | None = None, spend: Spend = uncounted
    ) -> Iterator[list[Judgment]]:
        """One reading per response: 1 correct, 0 wrong, or a share of instructions; None if there is nothing to
        check."""
        if self._config.match == "instructions":
            yield from map(_check_instructions, groups)
            return
        for group in groups:
            yield [self._read(group, response.index, response.text) for response in group.responses]

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        """The reading plus `length_bias` for every 100 characters."""
        readings = {judgment.index: judgment.outcome for judgment in judgments}
        unscored = {judgment.index: self._why_unscored(group, judgment) for judgment in judgments}
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

    def _why_unscored(self, group: Group, judgment: Judgment) -> str:
        """Why there is no verdict; judgments of earlier versions, which record no reason, timed out."""
        if self._config.match == "instructions":
            return "no_constraints"
        undecided = json.loads(judgment.detail).get("undecided", "comparison_timed_out")
        return "no_reference" if group.reference is None else str(undecided)

    def answer(self, response: str) -> str:
        """A response's answer: the pattern's last match, or the whole response."""
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
        """Whether two answers are equal; None if that couldn't be determined."""
        return self._compare(answer, reference).equal

    def _compare(self, answer: str, reference: str) -> Compared:
        if self._config.match == "math":
            return self._math.compare(answer, reference)
        return Compared(_normal(answer) == _normal(reference))


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
