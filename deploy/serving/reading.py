"""What may be said of an output to a client, while it comes and when it is over.

In: the text so far and why it ended, if it did. Out: a `Reading`, whose response only grows from one to the next and in
the end doesn't depend on how the text was cut into chunks. Pure; the rules of the format are `prompts/thought.py`'s.

An output that breaks the format shows what is between its response marker and the next marker, and nothing without a
response marker. The evaluation falls back to the raw text there, which would show a thought here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prompts.thought import ParseError, ThoughtPrompt, begun

Ended = Literal["stop", "length"]
"""Why the engine stopped: the model ended its turn, or the limit cut it."""
Finish = Literal["stop", "length", "content_filter"]
"""Why a reply is over, in OpenAI's words: `content_filter` where something is withheld."""
_FOR_GOOD = (ParseError.REPEATED_RESPONSE_MARKER, ParseError.THOUGHT_MARKER_IN_RESPONSE)


@dataclass(frozen=True)
class Reading:
    """What is known of an output."""

    thought: str
    """What stands before the response marker so far."""
    response: str
    """What may be shown of the response so far."""
    responds: bool
    """Whether the response has begun, be it with nothing yet."""
    finish_reason: Finish | None = None
    """Why the reply is over; None while it isn't."""
    format_error: ParseError | None = None
    """How it breaks the format; known when it is over."""

    @property
    def is_reply(self) -> bool:
        """Whether, being over, it can be served: it keeps the format, or is a response that the limit cut."""
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
