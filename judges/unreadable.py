"""Why a reply has no readable verdict, and when to stop calling a judge that gives none.

A judge whose replies are cut, empty or without a label costs as much as a good one. Its first replies show it, so the
stage stops after some tens of them and names the most common cause with the setting that helps.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from prompts.verdict import LABELS, parse_verdict
from tpo.config.judges import PairwiseJudge
from tpo.engines.inference.chat_client import RefusedChat
from tpo.engines.inference.reply import Reply, without_thinking
from tpo.errors import StageError

FIRST_ANSWERS = 32
"""Number of replies after which a judge is checked for the first time."""
MIN_READABLE_SHARE = 0.1
"""Share of readable verdicts below which the stage stops."""
EXAMPLE_CHARS = 80
"""Characters of an unreadable reply that are quoted, from its end."""
TOO_LONG = "too_long"
"""Why a comparison is refused on our side; nothing was requested or paid."""


@dataclass(frozen=True)
class Cause:
    """Why a reply is unreadable."""

    what: str
    """What the reply was, in a few words that similar replies share."""
    remedy: str
    """The setting that helps."""


def cause_of(reply: Reply | RefusedChat, config: PairwiseJudge) -> Cause | None:
    """Why a reply has no readable verdict; None if it has one."""
    if isinstance(reply, RefusedChat):
        return Cause(f"was refused by the server ({re.sub(r'[0-9]+', 'N', reply.reason)[:200]})", _REFUSED)
    if config.mode == "probability":
        if reply.label_logprobs is not None and max(reply.label_logprobs) > -math.inf:
            return None
        if reply.finished and reply.text.lstrip().startswith(LABELS):
            return Cause("came without log-probabilities of the labels", _NO_LOGPROBS)
    elif parse_verdict(reply.text, finished=reply.finished) is not None:
        return None
    return _cut(reply, config) if not reply.finished else _unlabelled(reply, config)


def _cut(reply: Reply, config: PairwiseJudge) -> Cause:
    text = without_thinking(reply.text).strip()
    if reply.ended_by in ("content_filter", "safety"):
        return Cause("was held back by the server's content filter", _REFUSED)
    if reply.ended_by in ("tool_calls", "function_call"):
        return Cause("was a tool call", "serve the judge without tools")
    if not text and (reply.reasoning_chars or reply.text.strip()):
        return Cause(
            "was cut by length while the judge was still reasoning, with no verdict yet", _reasons_less(config)
        )
    if not text:
        return Cause(
            "was cut by length with empty content, as if all of it were hidden reasoning", _reasons_less(config)
        )
    return Cause(f"was cut by length after {reply.output_tokens} tokens, before its end", "raise judge.max_new_tokens")


def _unlabelled(reply: Reply, config: PairwiseJudge) -> Cause:
    text = without_thinking(reply.text)
    if not text.strip() and (reply.reasoning_chars or reply.text.strip()):
        return Cause("was reasoning alone, with empty content", _reasons_less(config))
    if not text.strip():
        return Cause("was empty", "look at what the server says to a chat, and at its chat template")
    if config.mode == "probability":
        return Cause("did not begin with a label", _holds_to_labels(config))
    if all(label in text for label in LABELS):
        return Cause(f"named both labels, {' and '.join(LABELS)}", _BOTH)
    return Cause(f"named neither {' nor '.join(LABELS)}", _holds_to_labels(config))


class FirstAnswers:
    """Checks a model's replies as they come.

    `cause_of` says why a reply can't be read, if it can't; `who` is the model in a sentence, and `what` the thing that
    its replies should have, such as `verdict`.
    """

    def __init__(self, cause_of: Callable[[Reply | RefusedChat], Cause | None], who: str, what: str) -> None:
        self._cause_of, self._who, self._what = cause_of, who, what
        self._read = 0
        self._causes: Counter[Cause] = Counter()
        self._examples: dict[Cause, str] = {}

    def see(self, reply: Reply | RefusedChat) -> bool:
        """Counts a reply; returns whether it is readable."""
        cause = self._cause_of(reply)
        if cause is None:
            self._read += 1
        elif not (isinstance(reply, RefusedChat) and reply.reason == TOO_LONG):
            self._causes[cause] += 1
            if isinstance(reply, Reply):
                self._examples.setdefault(cause, " ".join(without_thinking(reply.text).split())[-EXAMPLE_CHARS:])
        return cause is None

    def check(self) -> None:
        """Raises `StageError` if hardly any reply is readable."""
        asked = self._read + self._causes.total()
        if asked < FIRST_ANSWERS or self._read >= MIN_READABLE_SHARE * asked:
            return
        cause, count = self._causes.most_common(1)[0]
        example = self._examples.get(cause)
        ends = f" (one ends: {example!r})" if example else ""
        raise StageError(
            f"{self._who} gave {self._read} {self._what}s that can be read in its first {asked} answers, so it gets no "
            f"more questions; {count} times the reply {cause.what}{ends}. What helps: {cause.remedy}; then rerun, "
            f"which repeats only questions without a {self._what}"
        )


def _reasons_less(config: PairwiseJudge) -> str:
    less = ', or have it reason less: endpoint.extra_body = { reasoning_effort = "low" } or ' if config.endpoint else ""
    how = "{ chat_template_kwargs = { enable_thinking = false } }" if config.endpoint else ""
    return f"raise judge.max_new_tokens{less}{how}"


def _holds_to_labels(config: PairwiseJudge) -> str:
    other = "take a judge that follows the verdict prompt"
    if config.endpoint is None:
        return f'set judge.mode to "verdict" or "probability", which hold a reply to the labels, or {other}'
    if config.endpoint.structured_outputs and config.mode != "cot":
        return f"serve the judge without a reasoning parser, which lets replies escape structured_outputs, or {other}"
    return (
        'with a vLLM server, set endpoint.structured_outputs and judge.mode = "verdict" or "probability", which hold a '
        f"reply to the labels; or {other}"
    )


_NO_LOGPROBS = 'set judge.mode to "verdict" or "cot", which need no log-probabilities, or serve the judge with vLLM'
_BOTH = "take a judge that follows the verdict prompt, or say in a judge.system_template to finish with one label"
_REFUSED = "lower judge.max_response_chars, or take a judge with a longer context or without such a filter"
