"""GSM8K: a row of the data set as a problem, its calculator annotations, its answer, and its text as T5 is taught it.

In: rows with a `question` and an `answer`, whose rationale holds annotations `<<48/2=24>>` and whose last line is
`#### 72`; or what a model wrote in that form. Out: `Problem`, `Annotation`, the final answer, text in the other form.
Rules marked [C] are those of DPO-ST's code (2407.18248), those marked [D] ours.

T5's text has spaces around every operator. The paper's substitutions miss one that follows an operand of one character
(`1+2+3` becomes `1 + 2+3`) and tear a sign from its number; ours do neither [D].
"""

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final, Literal

from tpo.method.arithmetic import ExpressionError, evaluate, format_result

ANSWER_TOLERANCE: Final = 1e-4
"""Answers nearer than this are the same [C]."""

# The code's pattern is `#+ (\-?[0-9\.\,]+)`, which finds the same numbers in a time that grows with the square of a row
# of #.
_ANSWER: Final = re.compile(r"# (-?[0-9.,]+)")
_ANSWER_LINE: Final = re.compile(r"#+ -?[0-9.,]+")
_ANNOTATION: Final = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_T5_ANNOTATION: Final = re.compile(r"\[ ([^\[\]=]*) = ([^\[\]]*)\] ?")
# An operator that follows another, or an opening parenthesis, is a sign.
_OPERATOR: Final = re.compile(r"(?<=[^\s+*/=(\[-])(//|[-+*/=])(?=\S)")

Agreement = Literal["identical", "equal", "rounded", "different", "no value"]
"""How an annotation's result compares with what the calculator writes for its expression.

`identical`: the same characters. `equal`: the same number, written otherwise. `rounded`: right, but the calculator
writes two decimals of it. `different`: another number, or none. `no value`: the expression has none.
"""


@dataclass(frozen=True)
class Problem:
    """One row of the data set."""

    question: str
    """What is asked."""
    rationale: str
    """The steps, one a line, with annotations; without the line of the answer."""
    reference: str
    """The right answer, without thousands separators."""


@dataclass(frozen=True)
class Annotation:
    """One `<<expression=result>>` of a rationale."""

    expression: str
    """What stands before the first `=`."""
    result: str
    """What stands after it."""
    calculated: str | None
    """What the calculator writes for the expression; None if that has no value."""
    agreement: Agreement
    """How `result` compares with it."""
    reason: str | None = None
    """Why there is no value."""


def read_row(row: Mapping[str, object]) -> Problem:
    """A row as a problem.

    Raises ValueError if `question` or `answer` isn't a text, or the answer doesn't end in a line `#### N`.
    """
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError(f"a row with {sorted(row)}; expected texts under question and answer, as GSM8K has them")
    rationale, _, last_line = answer.rstrip().rpartition("\n")
    reference = final_answer(last_line)
    if reference is None or not _ANSWER_LINE.fullmatch(last_line):
        raise ValueError(f"an answer that ends in {answer[-40:]!r}; expected a last line such as '#### 72'")
    return Problem(question, rationale.rstrip(), reference)


def final_answer(text: str) -> str | None:
    """The last number of a text after `#` and a space, without thousands separators; None if there is none [C].

    An earlier number doesn't stand in for a last one that can't be read.
    """
    found = _ANSWER.findall(text)
    if not found:
        return None
    number = str(found[-1]).replace(",", "")
    try:
        return number.removesuffix(".") if math.isfinite(float(number)) else None
    except ValueError:
        return None


def is_right(text: str, reference: str) -> bool:
    """Whether the final answer of `text` is `reference`, up to `ANSWER_TOLERANCE`; a text without one is wrong.

    So the code scores greedy answers; samples it sorts into right and wrong by equality [C], and we by this too [D].
    """
    answer = final_answer(text)
    return answer is not None and abs(float(answer) - float(reference)) < ANSWER_TOLERANCE


def annotations(rationale: str) -> list[Annotation]:
    """All annotations of a text, in its order; what isn't closed, or has no `=`, is none."""
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
    tolerance = Fraction(str(ANSWER_TOLERANCE))
    if abs(written - value) >= tolerance:
        return "different"
    return "equal" if abs(written - Fraction(calculated)) < tolerance else "rounded"


def to_t5(answer: str) -> str:
    """An answer in the form that T5 is taught: one line, `[ 48 / 2 = 24] 24` for `<<48/2=24>>24`.

    Annotations that only repeat a whole number go; a space follows `$`, and a colon before a digit; operators between
    two other characters have spaces round them; every line but the answer's ends in a full stop [C]. Empty lines and
    spaces at the ends of lines go [D].
    """
    text = re.sub(r"<<[0-9]+=[0-9]+>>", "", answer)
    text = re.sub(r"(?<=[^0-9]):(?=[0-9])", ": ", text)
    text = text.replace("<<", "[ ").replace(">>", "] ")
    text = re.sub(r"\$(?=\S)", "$ ", text)
    text = _OPERATOR.sub(r" \1 ", text)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return " ".join(line if line.startswith("##") or line.endswith(".") else f"{line}." for line in lines)


def from_t5(text: str) -> str:
    """A text in T5's form with GSM8K's annotations again, the answer on its own line, and `$5` for `$ 5` [D].

    What `to_t5` loses stays lost: the other line breaks, annotations that only repeat a number, and which operators had
    no spaces. Annotations and final answer are those that the text before `to_t5` had.
    """
    text = _T5_ANNOTATION.sub(lambda found: f"<<{_without_spaces(found[1])}={_without_spaces(found[2])}>>", text)
    text = re.sub(r"\$ (?=\S)", "$", text)
    return re.sub(r" (?=##+ )", "\n", text)


def write_prompts(source: Path, target: Path) -> int:
    """Writes rows of GSM8K as prompts with `instruction`, `reference` and `demonstration`; how many there are.

    Raises ValueError, naming the line, where one is no row of GSM8K.
    """
    lines = []
    for number, line in enumerate(source.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            problem = read_row(row)
        except ValueError as error:
            raise ValueError(f"{source}, line {number}: {error}") from error
        values = {"instruction": problem.question, "reference": problem.reference, "demonstration": row["answer"]}
        lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _without_spaces(text: str) -> str:
    return "".join(text.split())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tpo.data.gsm8k FROM.jsonl TO.jsonl: rows of GSM8K as prompts with demonstrations")
    print(f"{sys.argv[2]}: {write_prompts(Path(sys.argv[1]), Path(sys.argv[2]))} prompts")
