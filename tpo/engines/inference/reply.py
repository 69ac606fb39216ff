"""What a language model is asked for beside samples, and what comes back, whoever runs it: our engines or a server."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Decoding:
    """How a reply is decoded: greedily, as the Self-Taught Evaluator's are, unless a temperature is given."""

    max_new_tokens: int
    """Longest reply."""
    labels: tuple[str, ...] = ()
    """Texts of which the reply must be one; empty where it is free."""
    probabilities: bool = False
    """Whether the log-probabilities of the labels are wanted too."""
    temperature: float = 0.0
    """Sampling temperature, of a server's reply; engines of our own reply greedily."""
    top_p: float = 1.0
    """Nucleus sampling mass."""


@dataclass(frozen=True)
class Reply:
    """One reply."""

    text: str
    """What the model wrote."""
    finished: bool
    """False if the token limit cut it, or a filter or a tool call ended it."""
    input_tokens: int
    """Tokens read."""
    output_tokens: int
    """Tokens written."""
    cached_tokens: int = 0
    """Tokens of those read that a prefix cache held."""
    label_logprobs: tuple[float, ...] | None = None
    """Natural log-probability of each label, in the order of `Decoding.labels`, as far as it was asked for and the
    server tells; -inf for a label beyond what it tells."""
    ended_by: str = ""
    """Why a reply that isn't finished ends, in the server's word: `length`, `content_filter`."""
    reasoning_chars: int = 0
    """Characters of reasoning that the server keeps apart from the text."""


def without_thinking(text: str) -> str:
    """A reply without the block of thinking that it begins with; the block's beginning may stand in the prompt.

    A reply whose block does not end is all thinking.
    """
    end = max(text.rfind(tag) + len(tag) if tag in text else -1 for tag in _THINKING_ENDS)
    if end >= 0:
        return text[end:].lstrip()
    return "" if _THINKING_BEGINS.match(text) else text


_THINKING_ENDS = ("</think>", "</thinking>", "</reasoning>", "[/THINK]")
_THINKING_BEGINS = re.compile(r"\s*(?:<think>|<thinking>|<reasoning>|\[THINK\])")


@dataclass(frozen=True)
class Tokens:
    """Tokens that a model has been asked with."""

    input_tokens: int = 0
    """Tokens read."""
    output_tokens: int = 0
    """Tokens written."""
