"""GSM8K's calculator annotations, compared with the calculator's results, and the way back from T5's form.

Only tests and `tests.benchmarks.gsm8k_report` need these. [C] and [D] mean the same as in `tpo.data.gsm8k`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from tpo.method.arithmetic import ExpressionError, evaluate, format_result

TOLERANCE: Final = 1e-4
"""Answers that differ by less than this are the same [C]."""
_ANNOTATION: Final = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_T5_ANNOTATION: Final = re.compile(r"\[ ([^\[\]=]*) = ([^\[\]]*)\] ?")

Agreement = Literal["identical", "equal", "rounded", "different", "no value"]
"""How an annotation's result compares with the calculator's for its expression.

`identical`: the same characters. `equal`: the same number, written differently. `rounded`: right, but the calculator
rounds it to two decimals. `different`: another number, or none. `no value`: the expression has none.
"""


@dataclass(frozen=True)
class Annotation:
    """One `<<expression=result>>` of a rationale."""

    expression: str
    """The text before the first `=`."""
    result: str
    """The text after it."""
    calculated: str | None
    """The calculator's result; None if the expression has no value."""
    agreement: Agreement
    """How `result` compares with `calculated`."""
    reason: str | None = None
    """Why there is no value."""


def annotations(rationale: str) -> list[Annotation]:
    """All annotations of a text, in order; anything unclosed or without an `=` isn't one."""
    return [_annotation(expression, result) for expression, result in _ANNOTATION.findall(rationale)]


def _annotation(expression: str, result: str) -> Annotation:
    try:
        value = evaluate(expression)
    except ExpressionError as error:
        return Annotation(expression, result, None, "no value", str(error))
    calculated = format_result(value)
    return Annotation(expression, result, calculated, _agreement(value, calculated, result))


def _agreement(value: Fraction, calculated: str, result: str) -> Agreement:
    if result == calculated:
        return "identical"
    try:
        written = evaluate(result)
    except ExpressionError:
        return "different"
    tolerance = Fraction(str(TOLERANCE))
    if abs(written - value) >= tolerance:
        return "different"
    return "equal" if abs(written - Fraction(calculated)) < tolerance else "rounded"


def from_t5(text: str) -> str:
    """A text in T5's form turned back: GSM8K's annotations, the answer on its own line, and `$5` for `$ 5` [D].

    What `to_t5` drops stays lost: the other line breaks, annotations that only repeat a number, and which operators had
    no spaces. The other annotations and the final answer are those of the text before `to_t5`.
    """
    text = _T5_ANNOTATION.sub(lambda found: f"<<{_without_spaces(found[1])}={_without_spaces(found[2])}>>", text)
    text = re.sub(r"\$ (?=\S)", "$", text)
    return re.sub(r" (?=##+ )", "\n", text)


def _without_spaces(text: str) -> str:
    return "".join(text.split())
