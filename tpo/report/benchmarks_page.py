"""The page of an evaluation: one HTML file, without scripts; all text in it is escaped."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tpo.report.benchmarks import LABELS, Benchmarks
from tpo.report.page import render
from tpo.storage.ledger import Spending


def render_benchmarks(
    found: Benchmarks, *, model: str, config: Mapping[str, Any], spent: Sequence[Spending] = ()
) -> str:
    """The page of one model's benchmarks."""
    return render(
        "benchmarks.html.jinja",
        found=found,
        model=model,
        labels=LABELS,
        spent=spent,
        config=json.dumps(config, indent=2, ensure_ascii=False, default=str),
    )
