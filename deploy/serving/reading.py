"""Readings of an output: what a client may be shown while it grows, and once it has ended.

Pure. From one reading to the next, the response only grows, and in the end it doesn't depend on how the text was cut
into chunks. The format's rules are in `prompts/thought.py`.

Of an output that breaks the format, a client sees what is between the response marker and the next marker, or nothing
if there is no response marker. Evaluation falls back to the raw text there, which would show a thought here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prompts.thought import ParseError, ThoughtPrompt, begun

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


def read(prompt: ThoughtPrompt, output: str, ended: Ended | None, stops: Sequence[str]) -> Reading:
    """What may be said of `output`, which ended by itself, at the limit, or not yet.

    The reply is over as well where the response comes to one of `stops`, and where a marker in it breaks the format.
    """
    shown = prompt.shown(output, finished=ended == "stop")
    responds = prompt.response_marker is None or prompt.response_marker in output
    places = [(place + len(stop), place) for stop in stops if (place := shown.response.find(stop)) >= 0]
    if places:
        return Reading(shown.thought, shown.response[: min(places)[1]].rstrip(), responds, "stop")
    error = prompt.split(output, finished=True).error
    if error in _FOR_GOOD:
        return Reading(shown.thought, shown.response, responds, "content_filter", error)
    if ended == "length":
        return Reading(shown.thought, shown.response, responds, "length", ParseError.CUT_BY_LENGTH)
    if ended == "stop":
        return Reading(shown.thought, shown.response, responds, "content_filter" if error else "stop", error)
    sure = len(shown.response) - begun(shown.response, stops)
    return Reading(shown.thought, shown.response[:sure].rstrip(), responds)
