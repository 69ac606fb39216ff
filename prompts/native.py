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
"""Whether the model is asked to think natively, can't be kept from it, or was told not to."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of an output."""

    ids: Sequence[int]
    """Token ids, in order."""
    decode: Decode
    """Turns them into text."""


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
    end_of_message: int | None = None
    """Token that ends a message, for models whose thoughts are messages of their own."""
    opened: bool = False
    """Whether the prompt has opened the thought, so that an output begins within it."""

    @property
    def tags(self) -> tuple[str, str]:
        """The texts around a thought."""
        return self.opening, self.closing

    def divide(self, output: str, tokens: Tokens | None = None) -> Division:
        """The thought in an output, and the rest; by `tokens`, those of `output`, if there are any."""
        if tokens is None or not self.closing_ids:
            return self._divide_text(output)
        ids, opening, closing = list(tokens.ids), self.opening_ids, self.closing_ids
        if (place := _find(ids, closing)) < 0:
            if not (self.opened or self.use == "asked" or _find(ids, opening) >= 0):
                return Division(None, output)
            return Division(self._thought(ids, tokens.decode), "", closed=False)
        rest = ids[place + len(closing) :]
        again, anew = _find(rest, closing), _find(rest, opening)
        ends = [at for at in (again, anew, _find(rest, (self.end_of_message,))) if at >= 0]
        return Division(
            self._thought(ids[:place], tokens.decode),
            tokens.decode(rest[: min(ends, default=len(rest))]),
            repeated=again >= 0,
            reopened=anew >= 0,
        )

    def response_despite(self, output: str, division: Division, tokens: Tokens | None = None) -> str:
        """The response in an output whose thought was unwanted: what stands before a thought in its middle; nothing if
        it closes one that it never opened, for all before that may be a thought."""
        if tokens is None or not self.closing_ids:
            places = output.find(self.opening), output.find(self.closing)
            before = output[: max(places[0], 0)]
        else:
            places = _find(tokens.ids, self.opening_ids), _find(tokens.ids, self.closing_ids)
            before = tokens.decode(tokens.ids[: max(places[0], 0)])
        if places[0] < 0 or 0 <= places[1] < places[0]:
            return ""
        return before if before.strip() else division.rest

    def _thought(self, ids: list[int], decode: Decode) -> str:
        opening = self.opening_ids
        place = _find(ids, opening)
        before, after = (ids[:place], ids[place + len(opening) :]) if place >= 0 else ([], ids)
        # What comes after the message, such as <|start|>assistant, heads the response.
        end = _find(after, (self.end_of_message,))
        return f"{decode(before)}{decode(after if end < 0 else after[:end])}".strip()

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


def _find(ids: Sequence[int], wanted: Sequence[int | None]) -> int:
    """The first place of some tokens in a row among others, or -1."""
    n = len(wanted)
    if n == 0 or wanted[0] is None:
        return -1
    return next((i for i in range(len(ids) - n + 1) if list(ids[i : i + n]) == list(wanted)), -1)
