"""Writes docs/faults.md from the rows that the tests of faults have left: `python -m tests.faults.table <rows>`."""

import json
import sys
from pathlib import Path

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
HEAD = """# What can go wrong, and what then happens

Made by `make fault-table` from the tests in `tests/faults`, which run each of these faults; a row stands here because
its test passed. "Recovers" means that the same command, run again where the process had ended, ends with what an
uninterrupted run has, byte for byte.

| fault | where | outcome |
|---|---|---|
"""


def write_table(rows: Path) -> int:
    """Writes the table; returns how many rows it has."""
    found = sorted({tuple(json.loads(line)) for line in rows.read_text(encoding="utf-8").splitlines()})
    TABLE.parent.mkdir(exist_ok=True)
    lines = "".join(f"| {fault} | {where} | {came} |\n" for fault, where, came in found)
    TABLE.write_text(HEAD + lines, encoding="utf-8")
    return len(found)


if __name__ == "__main__":
    print(f"{write_table(Path(sys.argv[1]))} rows in {TABLE}")
