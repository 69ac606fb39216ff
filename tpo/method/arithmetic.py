"""Arithmetic: the value of what stands in a calculator annotation, and how that value is written.

In: text such as `48/2` or `(3+4)*.5`, as models write it. Out: an exact fraction; or `ExpressionError` and why. A value
as text, by the rule of DPO-ST's calculator (2407.18248, its code [C]).

The paper's code runs Python's `eval` on what a model wrote. Here a small parser knows numbers, + - * / //, signs and
parentheses and, beyond `eval`, thousands separators and percent [D]; nothing else has a meaning, so nothing else can
happen. Its work is bounded by the length of the text: no operator makes a number longer than its operands together.
"""

import re
from fractions import Fraction
from typing import Final

MAX_CHARACTERS: Final = 100
"""Longer expressions are refused; the longest in GSM8K has 30 [D]."""
MAX_DEPTH: Final = 20
"""Parentheses within one another [D]."""
MAX_VALUE: Final = 10**15
"""Values from here on are refused: a calculator that writes them is of no help [D]."""
WHOLE_WITHIN: Final = Fraction(1, 10_000)
"""A value nearer than this to a whole number is written as one [C]."""

_NUMBER: Final = re.compile(r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+")
_TOKEN: Final = re.compile(rf"{_NUMBER.pattern}|//|\S")


class ExpressionError(ValueError):
    """The text has no value: it isn't arithmetic, or too long, too deep or too large."""


class DivisionByZeroError(ExpressionError):
    """The arithmetic divides by zero."""


def evaluate(expression: str) -> Fraction:
    """The exact value of an expression; spaces between its parts don't matter.

    `//` is division rounded down, as in Python; `5%` is a twentieth; a comma separates thousands, before three digits.
    Raises `ExpressionError` if there is no value, `DivisionByZeroError` for a zero divisor.
    """
    if len(expression) > MAX_CHARACTERS:
        raise ExpressionError(f"an expression of {len(expression)} characters; expected at most {MAX_CHARACTERS}")
    parser = _Parser(expression)
    value = parser.sum(0)
    parser.end()
    if abs(value) >= MAX_VALUE:
        raise ExpressionError(
            f"{expression!r} is of {len(str(int(value)))} digits; expected a value below {MAX_VALUE:.0e}"
        )
    return value


def format_result(value: Fraction) -> str:
    """A whole number where one is nearer than 1e-4, else two decimals at most, `0.5` and not `.50` [C].

    What lies halfway goes to the even hundredth, as Python's `round` does; what two decimals make whole is written
    whole: 2.999 is `3`, where the code writes `3.0` [D].
    """
    whole = round(value)
    if abs(value - whole) < WHOLE_WITHIN:
        return str(whole)
    hundredths = round(100 * value)
    units, rest = divmod(abs(hundredths), 100)
    sign = "-" if hundredths < 0 else ""
    return f"{sign}{units}.{rest:02d}".rstrip("0").rstrip(".")


class _Parser:
    """Recursive descent over the tokens of one expression; each method reads one rule and returns its value."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._tokens: list[str] = [*_TOKEN.findall(expression), ""]
        self._at = 0

    def sum(self, depth: int) -> Fraction:
        """Products that are added and subtracted, from the left."""
        value = self._product(depth)
        while operator := self._take("+", "-"):
            other = self._product(depth)
            value = value + other if operator == "+" else value - other
        return value

    def end(self) -> None:
        """Nothing may follow."""
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
                raise ExpressionError(f"more than {MAX_DEPTH} parentheses within one another")
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
        """The next token if it is one of `wanted`, which is then read; else an empty string."""
        token = self._tokens[self._at]
        if token not in wanted:
            return ""
        self._at += 1
        return token

    def _unexpected(self, expected: str) -> ExpressionError:
        found = self._tokens[self._at]
        return ExpressionError(f"{self._expression!r} has {found!r} where {expected} was expected")
