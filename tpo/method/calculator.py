"""The calculator: what must follow `<<48/2=` or `[ 48 / 2 =` in a model's output, as text and token by token.

DPO-ST's code (2407.18248) forces the results of annotations during sampling: a whole number or two decimals, then the
closing marker [C]. If the expression has no value, nothing is forced [C].

Tokens are chosen for the text that they add, not for their position in a list. A token is forced only if the text so
far plus the token decodes to the text so far plus the beginning of what must follow; the first choice is the token that
the tokenizer itself uses there. The paper's code counts tokens by characters, which is right only if every digit is a
token. If a model writes another number before it can be stopped, as a token `=2` does, it is left alone [D].
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from tpo.method.arithmetic import MAX_CHARACTERS, ExpressionError, evaluate, format_result

Style = Literal["gsm8k", "t5"]
"""How annotations are written: `<<48/2=24>>` as in GSM8K, for Llama; or `[ 48 / 2 = 24]` for T5, which has no `<`."""

_CONTEXT_TOKENS: Final = 8
"""Tokens up to the `=` that later tokens are decoded with: tokenizers treat the first token of a text differently."""


@dataclass(frozen=True)
class _Form:
    """The parts of an annotation in one style."""

    start: str
    """Opening marker."""
    equals: str
    """End of the expression."""
    space: str
    """Text between that and the result."""
    end: str
    """Closing marker."""
    signed: bool
    """Whether a negative result is written; the code's calculator for Llama skips it [C]."""


_FORMS: Final[dict[Style, _Form]] = {
    "gsm8k": _Form(start="<<", equals="=", space="", end=">>", signed=False),
    "t5": _Form(start="[ ", equals=" =", space=" ", end="]", signed=True),
}
_OTHERS: Final = "=(#\n"
"""Characters that rarely form one token with a following digit or bracket, at least not all of them."""
_WINDOW_TOKENS: Final = MAX_CHARACTERS + 4
"""Tokens to look back from an `=`: an expression that begins before them is too long to have a value."""


class Tokenizer(Protocol):
    """The methods of a tokenizer that the calculator uses."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a begin or end token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, spaces unchanged."""
        ...


@dataclass(frozen=True)
class Open:
    """An annotation whose result isn't, or not completely, written."""

    so_far: str
    """Its text so far, from the opening marker on."""
    due: str
    """What must follow: the rest of the result and the closing marker."""


def open_annotation(text: str, style: Style) -> Open | None:
    """The annotation that is open at the end of `text` and has a value, or None.

    The last one opened counts [D], up to its first `=` [C]; the text after that must be empty or the beginning of the
    result.
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
    """The calculator of one request: before each token, it returns the one that must follow, or None.

    The result depends on the output alone, not on earlier calls. Between annotations it looks at each new token once;
    it decodes more only from an `=` to the end of its result.
    """

    def __init__(self, tokenizer: Tokenizer, style: Style, *, equals: dict[int, bool] | None = None) -> None:
        """`equals` caches which tokens contain an `=`; calculators of one tokenizer can share it."""
        self._tokenizer = tokenizer
        self._style: Style = style
        self._equals = {} if equals is None else equals
        self._seen = 0
        self._mark = -1
        """Index of the last token seen that contains an `=`."""
        self._open: Open | None = None
        """The annotation open there, unless the output has diverged since."""

    def next_token(self, output_ids: Sequence[int]) -> int | None:
        """The token that must follow the output so far; None if the model decides."""
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
        """Scans the new tokens; only one with an `=` can make a result due."""
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

        A text by itself may begin with a token for a space, or for a space and a digit together; so its first character
        is also tried after other characters.
        """
        before, after = self._tokenizer.encode(so_far), self._tokenizer.encode(so_far + due)
        if after[: len(before)] == before:
            yield from after[len(before) : len(before) + 1]
        for text in (due, due[0], *(f"{other}{due[0]}" for other in _OTHERS)):
            yield from self._tokenizer.encode(text)
