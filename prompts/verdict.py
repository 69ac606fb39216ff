"""Verdict prompts: show a judge two responses to one instruction, and read which of them it finds better.

The layout is exactly the one that the Self-Taught Evaluator was trained on (2408.02666; its published code).

A conversation takes the instruction's place turn by turn, each under a heading in brackets; the model wasn't trained on
such questions, and neither was any other judge of this layout.

No response can pose as a part of the layout, nor as a verdict: `prompts.quoting` says how. In responses to a
conversation, headings of its turns are defused, too.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from prompts import quoting
from prompts.quoting import LIKE_HEADINGS, Forgeries, check_fences, shown_conversation, taken_apart
from prompts.template import read_template, shipped_template
from tpo.config.judges import PairwiseJudge
from tpo.engines.inference.reply import without_thinking
from tpo.errors import InputError
from tpo.records import Message

SLOTS = ("instruction", "first", "second")
"""The slots of a user template, in this order."""
LABELS = ("[[A]]", "[[B]]")
"""The labels for the response shown first, and for the one shown second."""
TIE_LABEL = "[[C]]"
"""The label that some judges write for a tie, though the prompt doesn't offer it."""


class Verdict(StrEnum):
    """A judge's decision."""

    FIRST = "A"
    """The response shown first is better."""
    SECOND = "B"
    """The response shown second is better."""
    TIE = "C"
    """Neither is; the prompt doesn't offer it, but judges say it."""


@dataclass(frozen=True)
class VerdictPrompt:
    """One way to ask for a verdict."""

    system_template: str
    """The system turn, used verbatim."""
    user_template: str
    """The user turn: text with `{{ instruction }}`, `{{ first }}` and `{{ second }}`, in this order, and nothing else
    of Jinja's."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the templates: equal fingerprints prompt alike."""
        return hashlib.sha256(repr((self.system_template, self.user_template)).encode()).hexdigest()

    def render(self, instruction: str, first: str, second: str, earlier: Sequence[Message] = ()) -> list[Message]:
        """The chat messages that ask which of two responses is better, all texts sanitized; the responses are to an
        instruction, after the turns `earlier` in its conversation."""
        head, between, middle, tail = self._pieces
        responses = [self.defused(text, in_chat=bool(earlier)) for text in (first, second)]
        user = f"{head}{self.shown(instruction, earlier)}{between}{responses[0]}{middle}{responses[1]}{tail}"
        return [Message(role="system", content=self.system_template), Message(role="user", content=user)]

    def shown(self, instruction: str, earlier: Sequence[Message] = ()) -> str:
        """What takes the instruction's place: itself, or its conversation turn by turn, sanitized."""
        if not earlier:
            return self.defused(instruction)
        return shown_conversation(instruction, earlier, lambda text: self.defused(text, in_chat=True))

    def defused(self, text: str, *, in_chat: bool = False) -> str:
        """`text` as this prompt shows it: without outer white space, and with round brackets in whatever could pass for
        a part of the template, for a label or, `in_chat`, for the heading of a conversation's turn."""
        return quoting.defused(text, self._forgeries_in_chat if in_chat else self._forgeries)

    def prose(self) -> list[str]:
        """The constant pieces of text, in order: system turn, then the user turn around its three slots."""
        return [self.system_template, *self._pieces]

    @cached_property
    def _pieces(self) -> tuple[str, str, str, str]:
        head, between, middle, tail = taken_apart(self.user_template, SLOTS)
        return head, between, middle, tail

    @cached_property
    def _forgeries(self) -> Forgeries:
        forgeries = Forgeries.of([*LABELS, TIE_LABEL, *self._pieces])
        check_fences(SLOTS, self._pieces, forgeries)
        return forgeries

    @cached_property
    def _forgeries_in_chat(self) -> Forgeries:
        return Forgeries.of([*LABELS, TIE_LABEL, *self._pieces, *LIKE_HEADINGS])


def load_verdict_prompt(config: PairwiseJudge) -> VerdictPrompt:
    """The prompt for a config, with its template files checked.

    Raises `InputError` if a template is missing, if the user turn isn't text with the three slots, each once, in order
    and fenced by words in brackets, or if neither turn mentions the labels.
    """
    shipped = PROMPTS["cot" if config.mode == "cot" else "label"]
    prompt = VerdictPrompt(
        read_template(config.system_template, "verdict").strip() if config.system_template else shipped.system_template,
        read_template(config.user_template, "verdict") if config.user_template else shipped.user_template,
    )
    try:
        prompt.render("", "", "")
    except InputError as error:
        raise InputError(f"verdict template {config.user_template}: {error}") from error
    unsaid = [label for label in LABELS if not any(label in piece for piece in prompt.prose())]
    if unsaid:
        raise InputError(
            f"the verdict templates never mention {' and '.join(unsaid)}, from which verdicts are read: tell the judge "
            f'in the system or the user turn to finish with "{LABELS[0]}" or "{LABELS[1]}"'
        )
    return prompt


def parse_verdict(text: str, *, finished: bool) -> Verdict | None:
    """The verdict in what a judge wrote; None if there is none, or more than one.

    As published, both labels together are no verdict, and `[[C]]` alone is a tie. A judgment cut by the token limit
    (`finished` is False) has no verdict either, since a label so far may be a quotation. A native thought at its
    beginning is ignored, since it weighs both.
    """
    if not finished:
        return None
    text = without_thinking(text)
    first, second = (label in text for label in LABELS)
    if first and second:
        return None
    if first or second:
        return Verdict.FIRST if first else Verdict.SECOND
    return Verdict.TIE if TIE_LABEL in text else None


def defused(text: str) -> str:
    """`text` as the shipped prompts show it; a custom prompt has its own delimiters, so use its method."""
    return PROMPTS["cot"].defused(text)


PROMPTS: Mapping[str, VerdictPrompt] = {
    "cot": VerdictPrompt(shipped_template("verdict_cot.system").strip(), shipped_template("verdict.user")),
    "label": VerdictPrompt(shipped_template("verdict_label.system").strip(), shipped_template("verdict.user")),
}
"""The shipped prompts: explain first, or give the verdict alone."""
