"""The calculator: what a model must write after `<<48/2=` or `[ 48 / 2 =`, as text and token by token.

In: what a model wrote so far, as text or as token ids. Out: the text that must follow, or the next token; None if
the model decides. DPO-ST's code (2407.18248) forces the results of annotations while it samples: a whole number or two
decimals, then what closes the annotation [C]. Where the expression has no value, nothing is forced [C].

Tokens are chosen for the text that they add, not for their place in a list. A token is forced only if the text so far
plus the token decodes to the text so far plus a part of what must follow; the first choice is the token that the
tokenizer itself takes there. The paper's code counts tokens by characters, which is right only if every digit is a
token. If a model writes another number before it can be stopped, as a token `=2` does, it is left alone [D].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from tpo.method.arithmetic import MAX_CHARACTERS, ExpressionError, evaluate, format_result

Style = Literal["gsm8k", "t5"]
"""How annotations are written: `<<48/2=24>>` as in GSM8K, for Llama; or `[ 48 / 2 = 24]` for T5, which has no `<`."""

_CONTEXT_TOKENS: Final = 8
"""Tokens before the `=` that a later token is decoded with: tokenizers write the first token of a text otherwise."""


@dataclass(frozen=True)
class _Form:
    """The parts of an annotation in one style."""

    start: str
    """What opens it."""
    equals: str
    """What ends its expression."""
    space: str
    """What stands between that and the result."""
    end: str
    """What closes it."""
    signed: bool
    """Whether a negative result is written; the code's calculator for Llama skips it [C]."""


_FORMS: Final[dict[Style, _Form]] = {
    "gsm8k": _Form(start="<<", equals="=", space="", end=">>", signed=False),
    "t5": _Form(start="[ ", equals=" =", space=" ", end="]", signed=True),
}
_OTHERS: Final = "=(#\n"
"""Characters that hardly make one token with a digit or a bracket behind them, at least not all of them."""
_WINDOW_TOKENS: Final = MAX_CHARACTERS + 4
"""Tokens that are looked back from an `=`: an expression that begins before them is too long to have a value."""


class Tokenizer(Protocol):
    """A tokenizer, as far as the calculator knows it."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a begin or end token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, spaces as they are."""
        ...


@dataclass(frozen=True)
class Open:
    """An annotation whose result isn't, or not wholly, written."""

    so_far: str
    """What stands of it, from its start."""
    due: str
    """What must follow: the rest of the result, and what closes the annotation."""


def open_annotation(text: str, style: Style) -> Open | None:
    """The annotation that is open at the end of `text` and has a value, or None.

    The last one that was opened counts [D], and its first `=` [C]; what stands after that must be the beginning of the
    result, or nothing.
    """
    form = _FORMS[style]
    at = text.rfind(form.start)
    if at < 0:
        return None
    expression, equals, written = text[at + len(form.start) :].partition(form.equals)
    if not equals:
        return None
    try:
        result = format_result(evaluate(expression))
    except ExpressionError:
        return None
    if result.startswith("-") and not form.signed:
        return None
    whole = f"{form.space}{result}{form.end}"
    if written == whole or not whole.startswith(written):
        return None
    return Open(text[at:], whole[len(written) :])


class Calculator:
    """The calculator of one request: asked before each of its tokens, it says which it must be, or None.

    What it says depends on the output alone, not on when it was asked before. Between annotations it looks at each new
    token once; it decodes more only from an `=` to the end of the result that belongs there.
    """

    def __init__(self, tokenizer: Tokenizer, style: Style, *, equals: dict[int, bool] | None = None) -> None:
        """`equals` keeps which tokens have an `=`; calculators of one tokenizer can share it, and fill it together."""
        self._tokenizer = tokenizer
        self._style: Style = style
        self._equals = {} if equals is None else equals
        self._seen = 0
        self._mark = -1
        """Place of the last token with an `=`, of those seen."""
        self._open: Open | None = None
        """What is open there, unless the output has gone another way since."""

    def next_token(self, output_ids: Sequence[int]) -> int | None:
        """The token that must follow all tokens of the output so far; None if the model decides."""
        self._read(output_ids)
        if self._open is None:
            return None
        context = list(output_ids[max(0, self._mark + 1 - _CONTEXT_TOKENS) :])
        text = self._tokenizer.decode(context)
        before = self._tokenizer.decode(context[: len(context) - (len(output_ids) - self._mark - 1)])
        written = text.removeprefix(before)
        due = self._open.due.removeprefix(written)
        if not (text.startswith(before) and due and self._open.due == written + due):
            self._open = None
            return None
        for token in self._candidates(self._open.so_far + written, due):
            added = self._tokenizer.decode([*context, token])
            if len(added) > len(text) and (text + due).startswith(added):
                return token
        return None

    def _read(self, output_ids: Sequence[int]) -> None:
        """Takes notice of the tokens that are new; only one with an `=` can make a result due."""
        if len(output_ids) < self._seen:
            self._seen, self._mark, self._open = 0, -1, None
        mark = self._mark
        for place in range(self._seen, len(output_ids)):
            if self._has_equals(output_ids[place]):
                mark = place
        self._seen = len(output_ids)
        if mark != self._mark:
            self._mark = mark
            window = output_ids[max(0, mark + 1 - _WINDOW_TOKENS) : mark + 1]
            self._open = open_annotation(self._tokenizer.decode(window), self._style)

    def _has_equals(self, token: int) -> bool:
        if token not in self._equals:
            self._equals[token] = "=" in self._tokenizer.decode([token])
        return self._equals[token]

    def _candidates(self, so_far: str, due: str) -> Iterator[int]:
        """Tokens that may begin `due`: the tokenizer's own within the annotation, then those of `due` by itself.

        By itself a text can begin with a token that is a space too, or a space and a digit in one; so its first
        character is tried behind others as well.
        """
        before, after = self._tokenizer.encode(so_far), self._tokenizer.encode(so_far + due)
        if after[: len(before)] == before:
            yield from after[len(before) : len(before) + 1]
        for text in (due, due[0], *(f"{other}{due[0]}" for other in _OTHERS)):
            yield from self._tokenizer.encode(text)
