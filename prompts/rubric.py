"""Rubric prompts: show a judge one response and what it has to do, and read the score that the judge gives it.

Two layouts are shipped: a score at the end of an explanation, and points that are added up criterion by criterion, as
in Self-Rewarding Language Models (2401.10020, figure 2; wording ours). A third asks for the score alone, whose
probabilities are then read instead of a text.

Only the judge's own reply is read, and its last score counts. In what is shown, text that could pass for a part of the
layout or for a score in brackets is defused (`prompts.quoting`).
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from prompts import quoting
from prompts.quoting import LIKE_HEADINGS, Forgeries, check_fences, shown_conversation, taken_apart
from prompts.template import read_template, shipped_template
from tpo.config.judges import RubricJudge
from tpo.engines.inference.reply import without_thinking
from tpo.errors import InputError
from tpo.records import Message

SLOTS = ("rubric", "instruction", "response")
"""The slots of a user template, in this order."""
SCORE_BEGINS = "[[Score:"
"""How a score in brackets begins."""


class Unread(StrEnum):
    """Why a reply has no score."""

    CUT = "cut_by_length"
    """The token limit, or a filter, ended it: a score so far may be a quotation."""
    EMPTY = "empty"
    """It has no text, or reasoning alone."""
    NO_SCORE = "no_score"
    """The score isn't there, or is followed by more arithmetic."""
    OUT_OF_RANGE = "out_of_range"
    """Its last score isn't in the range, or is out of another number."""


@dataclass(frozen=True)
class RubricPrompt:
    """One way to ask for a score."""

    system_template: str
    """The system turn, with the range in it."""
    user_template: str
    """The user turn: text with `{{ rubric }}`, `{{ instruction }}` and `{{ response }}`, in this order, and nothing
    else of Jinja's."""
    rubric: str
    """The rubric for prompts without their own."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the templates and the rubric: equal fingerprints prompt alike."""
        return hashlib.sha256(repr((self.system_template, self.user_template, self.rubric)).encode()).hexdigest()

    def render(
        self, instruction: str, response: str, rubric: str | None = None, earlier: Sequence[Message] = ()
    ) -> list[Message]:
        """The chat messages that ask to grade a response, all texts sanitized; the response is to an instruction, after
        the turns `earlier` in its conversation. `rubric` is the prompt's own; None for the default."""
        forgeries = self._forgeries_in_chat if earlier else self._forgeries
        head, before, between, tail = self._pieces
        asked = (
            shown_conversation(instruction, earlier, lambda text: quoting.defused(text, forgeries))
            if earlier
            else quoting.defused(instruction, forgeries)
        )
        criteria = quoting.defused(rubric or self.rubric, forgeries)
        shown = quoting.defused(response, forgeries)
        user = f"{head}{criteria}{before}{asked}{between}{shown}{tail}"
        return [Message(role="system", content=self.system_template), Message(role="user", content=user)]

    def prose(self) -> list[str]:
        """The constant pieces of text, in order: system turn, the user turn around its three slots, the rubric."""
        return [self.system_template, *self._pieces, self.rubric]

    @cached_property
    def _pieces(self) -> tuple[str, str, str, str]:
        head, before, between, tail = taken_apart(self.user_template, SLOTS)
        return head, before, between, tail

    @cached_property
    def _forgeries(self) -> Forgeries:
        forgeries = Forgeries.of(self._pieces, (SCORE_BEGINS,))
        check_fences(SLOTS, self._pieces, forgeries)
        return forgeries

    @cached_property
    def _forgeries_in_chat(self) -> Forgeries:
        return Forgeries.of([*self._pieces, *LIKE_HEADINGS], (SCORE_BEGINS,))


def load_rubric_prompt(config: RubricJudge) -> RubricPrompt:
    """The prompt for a config, with its template files checked.

    Raises `InputError` if a template is missing, or if the user turn isn't text with the three slots, each once, in
    order and fenced by words in brackets.
    """
    name = "label" if config.expected_score else config.template
    system = (
        read_template(config.system_template, "rubric")
        if config.system_template
        else shipped_template(f"rubric_{name}.system")
    )
    for slot, value in (("lowest", config.min_score), ("highest", config.highest)):
        system = re.sub(rf"\{{\{{\s*{slot}\s*\}}\}}", str(value), system)
    user = read_template(config.user_template, "rubric") if config.user_template else shipped_template("rubric.user")
    rubric = config.rubric or shipped_template(f"rubric_{config.template}.rubric")
    prompt = RubricPrompt(system.strip(), user, rubric.strip())
    try:
        prompt.render("", "")
    except InputError as error:
        raise InputError(f"rubric template {config.user_template}: {error}") from error
    return prompt


def labels_of(config: RubricJudge) -> tuple[str, ...]:
    """The scores that a judge with `expected_score` may reply, lowest first."""
    return tuple(map(str, range(config.min_score, config.highest + 1)))


def read_score(text: str, config: RubricJudge, *, finished: bool) -> float | Unread:
    """The score in a judge's reply, or why there is none; `finished` is False if the token limit cut it.

    The last match counts, and if it can't be used, no earlier one does.
    """
    if not finished:
        return Unread.CUT
    text = without_thinking(text)
    if not text.strip():
        return Unread.EMPTY
    pattern = re.compile(config.score_pattern) if config.score_pattern else _PATTERNS[config.template]
    last = None
    for last in pattern.finditer(text):  # noqa: B007 - the last one is used
        pass
    if last is None or last[1] is None:
        return Unread.NO_SCORE
    try:
        score = float(last[1].strip().replace(",", "."))
    except ValueError:
        return Unread.NO_SCORE
    out_of = _OUT_OF.match(text, last.end(1))
    if out_of is not None and float(out_of[1]) != config.highest:
        return Unread.OUT_OF_RANGE
    return score if math.isfinite(score) and config.min_score <= score <= config.highest else Unread.OUT_OF_RANGE


def expected_score(logprobs: Sequence[float], config: RubricJudge) -> tuple[float, float]:
    """The mean of all scores, weighted by their probabilities (natural logarithms, lowest score first), and the sum of
    these probabilities; the mean is not a number if all are 0."""
    weights = [math.exp(each) for each in logprobs]
    total = math.fsum(weights)
    mean = math.fsum(weight * (config.min_score + i) for i, weight in enumerate(weights))
    return (mean / total if total else math.nan), total


_NUMBER = r"(-?\d+(?:[.,]\d+)?)(?!\d|[.,]\d|[ \t]*[-+=*×^][ \t]*\d)"
"""A number that isn't the start of a longer one or of a sum."""
_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "score": re.compile(rf"(?i)\[\[\s*score\s*:\s*{_NUMBER}"),
    "additive": re.compile(rf"(?i)\bscore\b[\s*_\"'`:<\[(]*{_NUMBER}"),
}
_OUT_OF = re.compile(r"\s*(?:/|out of)\s*(\d+)", re.I)
