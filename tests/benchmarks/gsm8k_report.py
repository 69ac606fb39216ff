"""Contents of GSM8K's files: rows that can be read, annotations, and whether the calculator agrees with their results.

Prints for each JSON-lines file of the dataset the counts, the annotations by how they agree, and one by one those that
differ in more than the way they are written. `python -m tests.benchmarks.gsm8k_report FILE...`; its output is in
docs/recipes/gsm8k.md.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.gsm8k_annotations import Annotation, annotations, from_t5
from tpo.data.gsm8k import GSM8KProblem, final_answer, read_row, to_t5


def problems(file: Path) -> Iterator[tuple[int, GSM8KProblem | None, str]]:
    """Each row's number from 1, the problem if it can be read, and the unchanged answer."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            try:
                yield number, read_row(row), str(row["answer"])
            except ValueError as error:
                print(f"  row {number}: {error}")
                yield number, None, str(row.get("answer"))


def way_of_writing(found: Annotation) -> str:
    """How a result that equals the calculator's is written differently."""
    sign, result = ("-", found.result[1:]) if found.result.startswith("-") else ("", found.result)
    if "." not in result:
        return "not a decimal number"
    whole, decimals = result.split(".")
    left_out = "no zero before the point" if not whole else ""
    shortened = f"{sign}{whole or '0'}.{decimals.rstrip('0')}".removesuffix(".")
    zeros = "zeros at the end" if decimals.endswith("0") and shortened == found.calculated else ""
    return " and ".join(filter(None, [left_out, zeros])) or "other"


def survives_t5(answer: str, problem: GSM8KProblem) -> bool:
    """Whether annotations and answer are the same after `to_t5` and `from_t5`, except for repeated whole numbers."""
    before = [
        annotation
        for annotation in annotations(answer)
        if not (annotation.expression.isdigit() and annotation.result.isdigit())
    ]
    back = from_t5(to_t5(answer))
    return annotations(back) == before and final_answer(back) == problem.reference


def report(file: Path) -> None:
    """One file's figures."""
    print(file.name)
    rows: Counter[str] = Counter()
    agreements: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    for number, problem, answer in problems(file):
        rows["rows"] += 1
        if problem is None:
            continue
        rows["read"] += 1
        rows["right by their own answer"] += final_answer(answer) == problem.reference
        found = annotations(problem.rationale)
        rows["without annotations"] += not found
        rows["with all annotations whole"] += len(found) == answer.count("<<") == answer.count(">>")
        rows["with every result right"] += all(
            annotation.agreement in ("identical", "equal", "rounded") for annotation in found
        )
        rows["with every result as the calculator writes it"] += all(
            annotation.agreement == "identical" for annotation in found
        )
        rows["the same after T5's form and back"] += survives_t5(answer, problem)
        for annotation in found:
            agreements[annotation.agreement] += 1
            if annotation.agreement == "equal":
                ways[way_of_writing(annotation)] += 1
            elif annotation.agreement != "identical":
                print(
                    f"  row {number}: <<{annotation.expression}={annotation.result}>> {annotation.agreement}: "
                    f"{annotation.reason or annotation.calculated}"
                )
    for counts in (rows, agreements, ways):
        print("  " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print(f"  annotations {agreements.total()}")


def main() -> None:
    """Reports on the given files."""
    parser = argparse.ArgumentParser(description="What GSM8K's files hold.")
    parser.add_argument("files", nargs="+", type=Path)
    for file in parser.parse_args().files:
        report(file)


if __name__ == "__main__":
    main()
