"""The table of faults: every test of a fault adds its row, and `make fault-table` writes them to docs/faults.md."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
HEAD = """# What can go wrong, and what then happens

Made by `make fault-table` from the tests in `tests/faults`, which run each of these faults; a row stands here because
its test passed. "Recovers" means that the same command, run again where the process had ended, ends with what an
uninterrupted run has, byte for byte.

| fault | where | outcome |
|---|---|---|
"""

_rows: set[tuple[str, str, str]] = set()


@pytest.fixture
def outcome() -> Callable[[str, str, str], None]:
    """Adds a row: the fault, where it struck, and what came of it."""
    return lambda fault, where, came: _rows.add((fault, where, came))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if os.environ.get("TPO_FAULT_TABLE") and exitstatus == pytest.ExitCode.OK:
        TABLE.parent.mkdir(exist_ok=True)
        lines = "".join(f"| {fault} | {where} | {came} |\n" for fault, where, came in sorted(_rows))
        TABLE.write_text(HEAD + lines, encoding="utf-8")
