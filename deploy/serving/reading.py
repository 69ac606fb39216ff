"""Readings of an output: what a client may be shown while it grows, and once it has ended.

Pure. From one reading to the next, the response only grows, and in the end it doesn't depend on how the text was split
into chunks. The format's rules are in `prompts/thought.py`.

If an output breaks the format, a client sees the text between the response marker and the next marker, or nothing if
there is no response marker. Evaluation falls back to the raw text in that case, which here would show a thought.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers.decoders import DecodeStream

from prompts.native import OutputTokens
from prompts.thought import ParseError, ThoughtPrompt, begun
from tpo.models.chat import ChatEncoder

Ended = Literal["stop", "length"]
"""Why the engine stopped: the model ended its turn, or the output reached its limit."""
Finish = Literal["stop", "length", "content_filter"]
"""Why a reply ended, in OpenAI's terms; `content_filter` if something is withheld."""
_FOR_GOOD = (ParseError.REPEATED_RESPONSE_MARKER, ParseError.THOUGHT_MARKER_IN_RESPONSE)


@dataclass(frozen=True)
class Reading:
    """What is known about an output."""

    thought: str
    """The text before the response marker so far."""
    response: str
    """The part of the response that may be shown so far."""
    responds: bool
    """Whether the response has begun, even if it is still empty."""
    finish_reason: Finish | None = None
    """Why the reply has ended; None if it hasn't."""
    format_error: ParseError | None = None
    """How it breaks the format; known once it has ended."""

    @property
    def is_reply(self) -> bool:
        """Whether an ended output can be served: it follows the format, or is a response that was cut at the limit."""
        return self.format_error is None or (self.format_error is ParseError.CUT_BY_LENGTH and bool(self.response))


class GrowingTokens(OutputTokens):
    """The tokens of an output that is under way; each is decoded once."""

    def __init__(self, encoder: ChatEncoder) -> None:
        self._ids = list[int]()
        super().__init__(self._ids, encoder.decode)
        self._streams: dict[int, tuple[int, DecodeStream, str]] = {}
        """Per start of a text: its end, its decoder, and the text so far."""
        self._tokenizer = getattr(encoder.tokenizer, "_tokenizer", None)

    def add(self, ids: Sequence[int]) -> None:
        """Appends tokens."""
        self._ids += ids

    def text(self, start: int, end: int) -> str:
        """The text of tokens `start` to `end`, without special tokens; a character that isn't complete is left out."""
        if self._tokenizer is None:
            return super().text(start, end)
        done, stream, text = self._streams.get(start, (end + 1, None, ""))
        if stream is None or end < done:
            done, stream, text = start, DecodeStream(skip_special_tokens=True), ""
        for token in self.ids[done:end]:
            text += stream.step(self._tokenizer, token) or ""
        self._streams[start] = (end, stream, text)
        return text


def read(
    prompt: ThoughtPrompt, output: str, ended: Ended | None, stops: Sequence[str], tokens: OutputTokens | None = None
) -> Reading:
    """The reading of `output` so far, which ended by itself, at the limit, or not yet.

    Native thoughts are found by the output's `tokens`. The reply is also over if the response contains one of `stops`,
    or a marker in it breaks the format.
    """
    shown = prompt.shown(output, finished=ended == "stop", tokens=tokens)
    responds = prompt.responds(output, tokens)
    places = [(place + len(stop), place) for stop in stops if (place := shown.response.find(stop)) >= 0]
    if places:
        return Reading(shown.thought, shown.response[: min(places)[1]].rstrip(), responds, "stop")
    error = prompt.split(output, finished=True, tokens=tokens).error
    if error in _FOR_GOOD:
        return Reading(shown.thought, shown.response, responds, "content_filter", error)
    if ended == "length":
        return Reading(shown.thought, shown.response, responds, "length", ParseError.CUT_BY_LENGTH)
    if ended == "stop":
        return Reading(shown.thought, shown.response, responds, "content_filter" if error else "stop", error)
    sure = len(shown.response) - begun(shown.response, stops)
    return Reading(shown.thought, shown.response[:sure].rstrip(), responds)
