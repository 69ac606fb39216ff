"""Arithmetic: the value of the expression in a calculator annotation, and how that value is written.

Reads expressions as models write them, such as `48/2` or `(3+4)*.5`. Values are exact fractions, written by the rule of
DPO-ST's calculator (2407.18248, its code [C]).

The paper's code runs Python's `eval` on model output. Here a small parser accepts only numbers, + - * / //, signs,
parentheses and, unlike `eval`, thousands separators and percent signs [D]; nothing else is evaluated. Its work is
bounded by the length of the text: no operator makes a number longer than its operands together.
"""

import re
from fractions import Fraction
from typing import Final

MAX_CHARACTERS: Final = 100
"""Longer expressions are rejected; the longest in GSM8K has 30 [D]."""
MAX_DEPTH: Final = 20
"""Maximum nesting of parentheses [D]."""
MAX_VALUE: Final = 10**15
"""Values of at least this magnitude are rejected: a calculator that writes them doesn't help [D]."""
WHOLE_WITHIN: Final = Fraction(1, 10_000)
"""A value closer than this to a whole number is written as one [C]."""

_NUMBER: Final = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+")
_TOKEN: Final = re.compile(rf"{_NUMBER.pattern}|//|\S")


class ExpressionError(ValueError):
    """The text has no value: it isn't arithmetic, or it is too long, too deep or too large."""


class DivisionByZeroError(ExpressionError):
    """The arithmetic divides by zero."""


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression; spaces between its parts don't matter.

    `//` rounds down, as in Python; `5%` is a twentieth; a comma before three digits separates thousands. Raises
    `ExpressionError` if there is no value, `DivisionByZeroError` for a zero divisor.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ExpressionError(f"an expression of {len(expression)} characters; expected at most {MAX_CHARACTERS}")
    parser = _Parser(expression)
    value = parser.sum(0)
    parser.end()
    if abs(value) >= MAX_VALUE:
        raise ExpressionError(
            f"{expression!r} has {len(str(abs(int(value))))} digits; expected a value below {MAX_VALUE:.0e}"
        )
    return value


def format_result(value: Fraction) -> str:
    """A whole number if the value is within 1e-4 of one, else at most two decimals, `0.5` rather than `.50` [C].

    Ties go to the even hundredth, as with Python's `round`. A value that rounds to a whole number at two decimals is
    written as one: 2.999 is `3`, where the code writes `3.0` [D].
    """
    whole = round(value)
    if abs(value - whole) < WHOLE_WITHIN:
        return str(whole)
    hundredths = round(100 * value)
    units, rest = divmod(abs(hundredths), 100)
    sign = "-" if hundredths < 0 else ""
    return f"{sign}{units}.{rest:02d}".rstrip("0").rstrip(".")


class _Parser:
    """Recursive-descent parser of one expression; each method reads one grammar rule and returns its value."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens: list[str] = [*_TOKEN.findall(expression), ""]
        self._at = 0

    def sum(self, depth: int) -> Fraction:
        """Products added and subtracted, left to right."""
        value = self._product(depth)
        while operator := self._take("+", "-"):
            other = self._product(depth)
            value = value + other if operator == "+" else value - other
        return value

    def end(self) -> None:
        """Raises `ExpressionError` if anything is left."""
        if self._tokens[self._at]:
            raise self._unexpected("an operator or the end")

    def _product(self, depth: int) -> Fraction:
        value = self._factor(depth)
        while operator := self._take("*", "/", "//"):
            other = self._factor(depth)
            if operator == "*":
                value *= other
            elif other == 0:
                raise DivisionByZeroError(f"{self._expression!r} divides by zero")
            else:
                value = value / other if operator == "/" else Fraction(value // other)
        return value

    def _factor(self, depth: int) -> Fraction:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        value = self._number(depth)
        while self._take("%"):
            value /= 100
        return -value if negative else value

    def _number(self, depth: int) -> Fraction:
        if self._take("("):
            if depth == MAX_DEPTH:
                raise ExpressionError(f"parentheses nested more than {MAX_DEPTH} deep")
            value = self.sum(depth + 1)
            if not self._take(")"):
                raise self._unexpected("an operator or )")
            return value
        token = self._tokens[self._at]
        if not _NUMBER.fullmatch(token):
            raise self._unexpected("a number")
        self._at += 1
        return Fraction(token.replace(",", "").removesuffix("."))

    def _take(self, *wanted: str) -> str:
        """Consumes the next token and returns it if it is one of `wanted`; otherwise returns an empty string."""
        token = self._tokens[self._at]
        if token not in wanted:
            return ""
        self._at += 1
        return token

    def _unexpected(self, expected: str) -> ExpressionError:
        found = self._tokens[self._at]
        return ExpressionError(f"{self._expression!r} has {found!r} where {expected} was expected")
