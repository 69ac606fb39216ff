"""The table of faults: every test of a fault records its outcome, and `make fault-table` puts them in the docs."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def outcome() -> Callable[[str, str, str], None]:
    """Reports a row of the table: the fault, where it occurred, and the outcome."""

    def tell(fault: str, where: str, came: str) -> None:
        if path := os.environ.get("TPO_FAULT_ROWS"):
            with Path(path).open("a", encoding="utf-8") as rows:
                rows.write(json.dumps([fault, where, came], ensure_ascii=False) + "\n")

    return tell
