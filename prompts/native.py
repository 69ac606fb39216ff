"""Native thoughts: where the thought of a model that thinks by itself ends in an output, and the response begins.

An output is divided at the *tokens* that close the thought, since prompts and thoughts can quote their text. Text is
searched only if there are no tokens to search, or the tokenizer has none for the tags. The first closing tag counts:
nothing before it is ever part of the response.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Decode = Callable[[Sequence[int]], str]
"""The text of token ids, without special tokens."""
Use = Literal["asked", "allowed", "unwanted"]
"""Whether the model is asked to think natively, may do so because it can't be switched off, or is asked not to."""


class OutputTokens:
    """The tokens of an output."""

    def __init__(self, ids: Sequence[int], decode: Decode) -> None:
        self.ids = ids
        self.decode = decode

    def text(self, start: int, end: int) -> str:
        """The text of tokens `start` to `end`, without special tokens."""
        return self.decode(self.ids[start:end])

    def find(self, wanted: Sequence[int], start: int = 0) -> int:
        """The first place of some tokens in a row from `start` on, or -1."""
        ids, n = self.ids, len(wanted)
        while n:
            try:
                start = ids.index(wanted[0], start)
            except ValueError:
                return -1
            if tuple(ids[start : start + n]) == tuple(wanted):
                return start
            start += 1
        return -1


@dataclass(frozen=True)
class Division:
    """An output, divided into a native thought and what follows it."""

    thought: str | None
    """The thought without its tags; None if there is none."""
    rest: str
    """What follows the thought, up to the next tag; the whole output without a thought, nothing while one is open."""
    closed: bool = True
    """Whether the thought has ended; True if there is none."""
    repeated: bool = False
    """Whether a closing tag comes up in the rest."""
    reopened: bool = False
    """Whether an opening tag comes up in the rest."""


@dataclass(frozen=True)
class NativeThoughts:
    """How one model writes its thoughts."""

    use: Use
    """Whether they are wanted."""
    opening: str
    """Text that opens a thought."""
    closing: str
    """Text that closes it and begins the response."""
    opening_ids: tuple[int, ...] = ()
    """Tokens of `opening`; empty if the tokenizer has no tokens for it."""
    closing_ids: tuple[int, ...] = ()
    """Tokens of `closing`; empty if the tokenizer has no tokens for it."""
    ending_ids: tuple[int, ...] = ()
    """Tokens to write in order to end a thought, `closing_ids` among them."""
    end_of_message: tuple[int, ...] = ()
    """Tokens that end a message, for models whose thoughts are messages of their own."""
    opened: bool = False
    """Whether the prompt has opened the thought, so that an output begins within it."""

    @property
    def comes_first(self) -> bool:
        """Whether every output begins with a native thought: it is asked for, or the model can't do without."""
        return self.use == "asked" or (self.use == "allowed" and (self.opened or bool(self.end_of_message)))

    @property
    def tags(self) -> tuple[str, str]:
        """The texts around a thought."""
        return self.opening, self.closing

    def divide(self, output: str, tokens: OutputTokens | None = None) -> Division:
        """The thought in an output, and the rest; by `tokens`, those of `output`, if there are any."""
        if tokens is None or not self.closing_ids:
            return self._divide_text(output)
        end = len(tokens.ids)
        if (place := tokens.find(self.closing_ids)) < 0:
            if not (self.opened or self.use == "asked" or tokens.find(self.opening_ids) >= 0):
                return Division(None, output)
            return Division(self._thought(tokens, end), "", closed=False)
        start = place + len(self.closing_ids)
        again, anew = tokens.find(self.closing_ids, start), tokens.find(self.opening_ids, start)
        ends = [at for at in (again, anew, tokens.find(self.end_of_message, start)) if at >= 0]
        return Division(
            self._thought(tokens, place),
            tokens.text(start, min(ends, default=end)),
            repeated=again >= 0,
            reopened=anew >= 0,
        )

    def response_despite(
        self, output: str, division: Division, tokens: OutputTokens | None = None, *, finished: bool
    ) -> str:
        """The response in an output whose thought was unwanted: what follows a thought at its start.

        Before a thought in its middle there may be thoughts, too; while the output isn't finished that is what was
        taken for the response until then.
        """
        if tokens is None or not self.closing_ids:
            before = output[: min(at for tag in self.tags if (at := output.find(tag)) >= 0)]
        else:
            places = tokens.find(self.opening_ids), tokens.find(self.closing_ids)
            before = tokens.text(0, min(at for at in places if at >= 0))
        if before.strip():
            return "" if finished else before
        return division.rest

    def _thought(self, tokens: OutputTokens, end: int) -> str:
        """The text of the tokens before `end`, without the tag that opens the thought."""
        place = tokens.find(self.opening_ids)
        before, start = (tokens.text(0, place), place + len(self.opening_ids)) if 0 <= place < end else ("", 0)
        # What comes after the message, such as <|start|>assistant, heads the response.
        message_end = tokens.find(self.end_of_message, start)
        return f"{before}{tokens.text(start, message_end if start <= message_end < end else end)}".strip()

    def _divide_text(self, output: str) -> Division:
        before, closing, rest = output.partition(self.closing)
        thought = before.replace(self.opening, "", 1).strip()
        if not closing:
            if not (self.opened or self.use == "asked" or self.opening in output):
                return Division(None, output)
            return Division(thought, "", closed=False)
        ends = [at for tag in self.tags if (at := rest.find(tag)) >= 0]
        return Division(
            thought,
            rest[: min(ends, default=len(rest))],
            repeated=self.closing in rest,
            reopened=self.opening in rest,
        )
