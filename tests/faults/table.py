"""Writes the table of faults in docs/reliability.md from the rows that tests left: `python -m tests.faults.table`."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- written by make fault-table -->\n", "<!-- end -->\n"
Row = tuple[str, str, str]
"""A fault, where it was injected, and the outcome."""


def write_table(rows: Iterable[Row], page: Path = PAGE) -> int:
    """Writes the table into the page, between its markers; returns how many lines the table has."""
    lines = table(rows)
    write_between(page, BEGIN, END, "".join(lines))
    return len(lines) - 2


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replaces what a page has between two markers, which are whole lines."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{page} has no {begin.strip()} … {end.strip()}: put them where the table belongs")
    page.write_text(before + begin + text + end + after, encoding="utf-8")


def table(rows: Iterable[Row]) -> list[str]:
    """A line for each fault and outcome, with all the places where it had that outcome."""
    places: dict[tuple[str, str], set[str]] = {}
    for fault, where, outcome in rows:
        places.setdefault((fault, outcome), set()).add(where)
    listed = sorted((fault, ", ".join(sorted(where)), outcome) for (fault, outcome), where in places.items())
    head = ["| fault | where | outcome |\n", "|---|---|---|\n"]
    return head + [f"| {fault} | {where} | {outcome} |\n" for fault, where, outcome in listed]


if __name__ == "__main__":
    found = [tuple(json.loads(line)) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    print(f"{write_table(found)} lines in {PAGE}")
