"""A judge that knows the right answer: finds the answer in a response and compares it with the reference.

In: groups with references. Out: a reading a response, 1 for right and 0 for wrong; the score adds the configured
liking for length. A prompt without a reference leaves its responses unscored, never at 0.
"""

import json
import re
import string
from collections.abc import Iterator, Sequence

from judges.base import Group
from tpo.config import VerifierJudge
from tpo.records import Judgment, Score


class Verifier:
    """Compares answers with references, as text or as mathematics."""

    def __init__(self, config: VerifierJudge) -> None:
        self._config = config
        self._pattern = re.compile(config.answer_pattern)

    def judge(self, groups: Sequence[Group]) -> Iterator[list[Judgment]]:
        """One reading a response: 1 right, 0 wrong, None without a reference."""
        for group in groups:
            yield [self._read(group, response.index, response.text) for response in group.responses]

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        """The reading plus `length_bias` for every 100 characters."""
        readings = {judgment.index: judgment.outcome for judgment in judgments}
        scores = []
        for response in group.responses:
            outcome = readings[response.index]
            length = len(response.text)
            scores.append(
                Score(
                    prompt_id=group.prompt_id,
                    index=response.index,
                    value=None if outcome is None else outcome + self._config.length_bias * length / 100,
                    unscored="no_reference" if outcome is None else None,
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
        outcome = None if group.reference is None else float(self._equal(answer, group.reference))
        detail = json.dumps({"answer": answer, "reference": group.reference}, ensure_ascii=False)
        return Judgment(group.prompt_id, index, None, outcome, detail)

    def _equal(self, answer: str, reference: str) -> bool:
        if _normal(answer) == _normal(reference):
            return True
        return self._config.match == "math" and _math_equal(answer, reference)


def _normal(text: str) -> str:
    """Without case and outer punctuation; a sign, a leading decimal point, and text that is nothing else stay."""
    plain = " ".join(text.split()).casefold()
    return _OUTER.sub("", plain) or plain


_MARKS = re.escape(string.punctuation.replace("-", "") + "“”‘’«»„…¡¿ ")
_OUTER = re.compile(rf"^(?:(?!\.\d)[{_MARKS}])+|[{_MARKS}]+$")


def _math_equal(answer: str, reference: str) -> bool:
    from math_verify import parse, verify

    # Its time-outs use signals, which work in a main thread only; ours may be a task's thread.
    gold, found = (parse(text, parsing_timeout=None) for text in (reference, answer))
    return bool(gold) and bool(found) and bool(verify(gold, found, timeout_seconds=None))
