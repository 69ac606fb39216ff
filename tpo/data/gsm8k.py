"""GSM8K: rows of the dataset as problems, final answers, and the text form that T5 is trained on.

Rows have a `question` and an `answer`, whose rationale contains annotations `<<48/2=24>>` and whose last line is
`#### 72`; models write answers in the same form. Rules marked [C] are those of DPO-ST's code (2407.18248), those
marked [D] ours.

T5's text has spaces around every operator. The paper's substitutions miss one that follows an operand of one character
(`1+2+3` becomes `1 + 2+3`) and separate a sign from its number; ours do neither [D].
"""

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# The code's pattern is `#+ (\-?[0-9\.\,]+)`, which finds the same numbers, but in time quadratic in the length of a row
# of #.
_ANSWER: Final = re.compile(r"# (-?[0-9.,]+)")
_ANSWER_LINE: Final = re.compile(r"#+ -?[0-9.,]+")
# An operator after another one, or after an opening parenthesis, is a sign.
_OPERATOR: Final = re.compile(r"(?<=[^\s+*/=(\[-])(//|[-+*/=])(?=\S)")


@dataclass(frozen=True)
class GSM8KProblem:
    """One row of the dataset."""

    question: str
    """The question."""
    rationale: str
    """The steps, one per line, with annotations, without the answer line."""
    reference: str
    """The right answer, without thousands separators."""


def read_row(row: Mapping[str, object]) -> GSM8KProblem:
    """Parses a row.

    Raises ValueError if `question` or `answer` isn't text, or the answer doesn't end with a line `#### N`.
    """
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError(f"a row with {sorted(row)}; expected text in question and answer, as in GSM8K")
    rationale, _, last_line = answer.rstrip().rpartition("\n")
    reference = final_answer(last_line)
    if reference is None or not _ANSWER_LINE.fullmatch(last_line):
        raise ValueError(f"an answer that ends in {answer[-40:]!r}; expected a last line such as '#### 72'")
    return GSM8KProblem(question, rationale.rstrip(), reference)


def final_answer(text: str) -> str | None:
    """The last number of a text after `#` and a space, without thousands separators; None if there is none [C].

    If the last one can't be read, no earlier number replaces it.
    """
    found = _ANSWER.findall(text)
    if not found:
        return None
    number = str(found[-1]).replace(",", "")
    try:
        return number.removesuffix(".") if math.isfinite(float(number)) else None
    except ValueError:
        return None


def to_t5(answer: str) -> str:
    """An answer in the form that T5 is trained on: one line, with `[ 48 / 2 = 24] 24` for `<<48/2=24>>24`.

    Drops annotations that only repeat a whole number; adds a space after `$`, after a colon between a non-digit and a
    digit, and around operators between two other characters; ends every line but the answer's in a full stop [C]. Drops
    empty lines, and spaces at either end of a line [D].
    """
    text = re.sub(r"<<[0-9]+=[0-9]+>>", "", answer)
    text = re.sub(r"(?<=[^0-9]):(?=[0-9])", ": ", text)
    text = text.replace("<<", "[ ").replace(">>", "] ")
    text = re.sub(r"\$(?=\S)", "$ ", text)
    text = _OPERATOR.sub(r" \1 ", text)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return " ".join(line if line.startswith("##") or line.endswith(".") else f"{line}." for line in lines)


def write_prompts(source: Path, target: Path) -> int:
    """Writes rows of GSM8K as prompts with `instruction`, `reference` and `demonstration`; returns how many.

    Raises ValueError, naming the line, if one isn't a row of GSM8K.
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


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m tpo.data.gsm8k FROM.jsonl TO.jsonl: rows of GSM8K as prompts with demonstrations")
    print(f"{sys.argv[2]}: {write_prompts(Path(sys.argv[1]), Path(sys.argv[2]))} prompts")
