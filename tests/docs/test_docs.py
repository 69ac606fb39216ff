"""Claims about the documentation: it is current, and its links lead somewhere."""

import json
import re
from pathlib import Path

import pytest

from tests.benchmarks import performance
from tests.docs.fields import PAGE, page

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").glob("*.md")]


def test_the_reference_of_fields_is_what_the_config_says():
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(path: Path):
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_targets_of_make_that_pages_name_are_there(path: Path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert named - targets == set()


def test_the_readme_fits():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 180


def test_the_table_of_performance_has_the_kept_results():
    kept = json.loads(performance.RESULTS.read_text(encoding="utf-8"))
    assert performance.BEGIN + performance.table(kept) + performance.END in performance.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("goal", "median", "is_met"),
    [("≥ 2.5", 2.5, True), ("≥ 2.5", 2.4, False), ("≤ 0.286 (16/56)", 0.26, True), ("≥ 1, one call a layer", 16, True),
     ("engines 0, judges 1", 0, None)],
)  # fmt: skip
def test_a_missed_goal_is_said(goal: str, median: float, is_met: bool | None):
    assert performance.Goal(goal).is_met(median) is is_met
