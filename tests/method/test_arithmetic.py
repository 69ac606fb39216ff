"""Claims about the values of expressions, expressions without one, and how a value is written."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.method.arithmetic import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_VALUE,
    DivisionByZeroError,
    ExpressionError,
    evaluate,
    format_result,
)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("48/2", 24),
        (" 7 + 8 ", 15),
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("20-5-3", 12),
        ("100/5/2", 10),
        ("-3+5", 2),
        ("4*-2", -8),
        ("5--3", 8),
        ("+-+-7", 7),
        (".5*8", 4),
        ("5.*2", 10),
        ("0.1+0.2", Fraction(3, 10)),
        ("1/3", Fraction(1, 3)),
        ("007+1", 8),
        ("1,250+1,000,000", 1_001_250),
        ("1,250.5*2", 2501),
        ("20%*50", 10),
        ("(10+10)%*50", 10),
        ("50%%", Fraction(1, 200)),
        ("17//5", 3),
        ("-17//5", -4),
        ("2*7//3", 4),
    ],
)
def test_the_value_of_an_expression(expression: str, value: Fraction) -> None:
    assert evaluate(expression) == value


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction]:
    """An expression and its value, built in parallel from fractions."""
    kind = draw(st.integers(0, 4 if depth else 0))
    if kind == 0:
        hundredths = draw(st.integers(0, 99_999))
        return draw(st.sampled_from([f"{hundredths / 100:.2f}", f"{hundredths / 100:,.2f}"])), Fraction(hundredths, 100)
    text, value = draw(expressions(depth - 1))
    if kind == 1:
        return f"-({text})", -value
    if kind == 2:
        return f"({text})%", value / 100
    right, other = draw(expressions(depth - 1))
    space = draw(st.sampled_from(["", " "]))
    operator = draw(st.sampled_from("+-*/" if other else "+-*"))
    result = {"+": Fraction.__add__, "-": Fraction.__sub__, "*": Fraction.__mul__, "/": Fraction.__truediv__}
    return f"({text}){space}{operator}{space}({right})", result[operator](value, other)


@given(expressions())
def test_values_are_exact(case: tuple[str, Fraction]) -> None:
    text, value = case
    if len(text) <= MAX_CHARACTERS and abs(value) < MAX_VALUE:
        assert evaluate(text) == value


@given(st.lists(st.tuples(st.sampled_from("+-*/"), st.integers(1, 99)), max_size=12), st.integers(1, 99))
def test_products_come_before_sums_and_both_from_the_left(steps: list[tuple[str, int]], first: int) -> None:
    terms = [Fraction(first)]
    for operator, number in steps:
        if operator in "+-":
            terms.append(Fraction(f"{operator}{number}"))
        else:
            terms[-1] *= number if operator == "*" else Fraction(1, number)
    value = sum(terms, Fraction())
    if abs(value) < MAX_VALUE:
        assert evaluate(str(first) + "".join(f"{operator}{number}" for operator, number in steps)) == value


@pytest.mark.parametrize("expression", ["1/0", "5/(3-3)", "1//0", "2/0%", "0/0"])
def test_a_division_by_zero_is_named(expression: str) -> None:
    with pytest.raises(DivisionByZeroError, match="divides by zero"):
        evaluate(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "", " ", "()", "(", "1+", "*2", "1 2", "(1", "1)", "1.2.3", ".", "1,00", "1,0000", "1234,567", "1e5", "0x10",
        "1_000", "x", "2x", "2 x 3", "3!", "2^3", "9**9**9", "5 % 3", "%", "$5", "٣+1", "２", "1+²", "½", "∞", "5=5",
        "__import__('os').system('id')", "[1]", "{}", "lambda: 0", "1 if 1 else 2", "print", "1;2", "1\\\n+2", "1//",
        "1///2", "'1'", "True", "nan", "inf", "# 1", "1\x002",
    ],
)  # fmt: skip
def test_what_is_not_arithmetic_has_no_value(expression: str) -> None:
    with pytest.raises(ExpressionError, match="was expected"):
        evaluate(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "(" * 10_000 + "1" + ")" * 10_000,
        "(" * 50,
        "(" * 45 + "1" + ")" * 45,
        "-" * 99,
        "9" * 100,
        "*".join(["9" * 9] * 10),
        "9" * 1_000_000,
        "1+" * 500_000 + "1",
        "1,000" * 20,
        " " * 1_000_000,
        "((((((((((1" * 9,
    ],
)
def test_oversized_expressions_are_rejected_quickly(expression: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ExpressionError):
        evaluate(expression)
    assert time.perf_counter() - start < 0.5


def test_parentheses_nest_up_to_the_limit() -> None:
    assert evaluate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH) == 1
    with pytest.raises(ExpressionError, match="nested more than 20 deep"):
        evaluate("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1))


@given(st.text(st.sampled_from("0123456789.,+-*/%() =x"), max_size=110) | st.text(max_size=30))
def test_any_text_has_a_value_or_a_named_error(text: str) -> None:
    try:
        value = evaluate(text)
    except ExpressionError:
        return
    assert abs(value) < MAX_VALUE
    assert evaluate(text.strip()) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("24", "24"),
        ("-3", "-3"),
        ("0.5", "0.5"),
        ("-0.25", "-0.25"),
        ("12.50", "12.5"),
        ("1/3", "0.33"),
        ("2/3", "0.67"),
        ("2.99995", "3"),
        ("2.9999", "3"),
        ("3.00009", "3"),
        ("2.999", "3"),
        ("0.125", "0.12"),
        ("0.375", "0.38"),
        ("0.004", "0"),
        ("-0.004", "0"),
        ("-0.00001", "0"),
        ("1234567.891", "1234567.89"),
    ],
)
def test_how_a_value_is_written(value: str, text: str) -> None:
    assert format_result(Fraction(value)) == text


@given(st.fractions(-1000, 1000))
def test_a_written_value_is_within_half_a_hundredth_and_reads_back(value: Fraction) -> None:
    text = format_result(value)
    assert abs(Fraction(text) - value) <= Fraction(1, 200)
    assert evaluate(text) == Fraction(text)
    assert format_result(Fraction(text)) == text
    assert text != "-0" and not ("." in text and text.endswith("0"))


@given(st.integers(-(10**6), 10**6), st.fractions(-1, 1).filter(lambda part: abs(part) < 1))
def test_a_value_within_a_ten_thousandth_of_a_whole_number_is_written_whole(whole: int, part: Fraction) -> None:
    assert format_result(whole + part / 10_000) == str(whole)


@given(st.integers(-(10**7), 10**7))
def test_hundredths_are_written_as_python_rounds_them(hundredths: int) -> None:
    written = str(round(hundredths / 100, 2)).removesuffix(".0")
    assert format_result(Fraction(hundredths, 100)) == ("0" if written == "-0" else written)
