"""Requests to a language model and its replies, whether it runs in our engines or behind a server."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Decoding:
    """How a reply is decoded: greedily, as for the Self-Taught Evaluator, unless a temperature is given."""

    max_new_tokens: int
    """Maximum number of tokens."""
    labels: tuple[str, ...] = ()
    """The allowed replies; empty if any text is."""
    probabilities: bool = False
    """Whether the labels' log-probabilities are requested."""
    temperature: float = 0.0
    """Sampling temperature of a server's reply; our own engines decode greedily."""
    top_p: float = 1.0
    """Nucleus sampling mass."""


@dataclass(frozen=True)
class Reply:
    """One reply."""

    text: str
    """The text."""
    finished: bool
    """False if the token limit cut it, or a filter or a tool call ended it."""
    input_tokens: int
    """Tokens read."""
    output_tokens: int
    """Tokens written."""
    cached_tokens: int = 0
    """Tokens read from a prefix cache."""
    label_logprobs: tuple[float, ...] | None = None
    """Natural log-probability of each label, in the order of `Decoding.labels`, if requested and reported; -inf for a
    label that isn't reported."""
    ended_by: str = ""
    """The server's reason for an unfinished reply: `length`, `content_filter`."""
    reasoning_chars: int = 0
    """Characters of reasoning that the server returns separately from the text."""


def without_thinking(text: str) -> str:
    """A reply without its leading block of thinking; the opening tag may be in the prompt.

    A reply whose block doesn't end is only thinking, so nothing is left.
    """
    end = max(text.rfind(tag) + len(tag) if tag in text else -1 for tag in _THINKING_ENDS)
    if end >= 0:
        return text[end:].lstrip()
    return "" if _THINKING_BEGINS.match(text) else text


_THINKING_ENDS = ("</think>", "</thinking>", "</reasoning>", "[/THINK]")
_THINKING_BEGINS = re.compile(r"\s*(?:<think>|<thinking>|<reasoning>|\[THINK\])")


@dataclass(frozen=True)
class TokenCount:
    """Token usage."""

    input_tokens: int = 0
    """Tokens read."""
    output_tokens: int = 0
    """Tokens written."""
