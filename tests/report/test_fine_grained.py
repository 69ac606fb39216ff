"""Claims about win rates by kind of instruction, as pages, the terminal and Markdown show them."""

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.test_comparison import a_comparison
from tests.report.test_run_page import ALL_HOSTILE, FULL, HOSTILE, Reader, interval, page_of, summary_of
from tpo.report.comparison import Comparison
from tpo.report.comparison_page import render_comparison
from tpo.report.fine_grained import about, as_markdown, by_chance, findings, kind_lines, print_kinds
from tpo.report.run_page import render_report
from tpo.report.summary import FineGrained, Interval, KindRow, read_summary, write_summary

CATEGORIES = {
    "dial": interval(0.7, 0.1),
    "relay": interval(0.3, 0.1),
    "words": interval(0.5),
    "odd": interval(1.0, 0.0, 3),
}


def a_row(model: str, categories: Mapping[str, Interval], shift: float = 0.0) -> KindRow:
    levels = {str(level): interval(0.4 + shift + 0.02 * level, 0.05, 90) for level in (1, 2, 10)}
    return KindRow(model, interval(0.5 + shift), categories, levels, interval(0.6, 0.2, 7), None)


def some_kinds(categories: Mapping[str, Interval] = CATEGORIES, models: int = 2) -> FineGrained:
    return FineGrained(
        against="M_0 direct", judge="pairwise (m)", rater="rater at http://x/v1", rated=["category"], prompts=600,
        no_category={"no_label": 5, "too_long": 2}, no_complexity={"not_given": 600}, min_prompts=10, confidence=0.95,
        rows=[a_row(f"M_{t}", categories, 0.1 * t) for t in range(models)],
    )  # fmt: skip


def run_page(fine: FineGrained) -> str:
    summary = summary_of(*FULL)
    changed = type(summary)(summary.run, summary.seed, summary.confidence, summary.models, fine)
    return render_report(changed, config={}, epochs={}, margins={}, standings={}, examples=[])


def comparison_page(fine: FineGrained) -> str:
    return render_comparison(with_kinds(fine))


def with_kinds(fine: FineGrained) -> Comparison:
    plain = a_comparison([-0.1, 0.2])
    return Comparison(plain.thinking, plain.direct, plain.measure, plain.leads, plain.spent, fine)


def test_a_summary_with_kinds_is_read_as_it_was_written(tmp_path: Path):
    summary = summary_of(*FULL)
    for fine in (None, some_kinds()):
        path = tmp_path / "summary.json"
        changed = type(summary)(summary.run, summary.seed, summary.confidence, summary.models, fine)
        path.write_bytes(write_summary(changed))
        assert write_summary(read_summary(path)) == write_summary(changed)


def test_a_summary_of_an_earlier_version_is_read_too(tmp_path: Path):
    path = tmp_path / "summary.json"
    path.write_bytes(write_summary(summary_of(*FULL)).replace(b',\n "fine_grained": null', b""))
    assert b"fine_grained" not in path.read_bytes() and read_summary(path).fine_grained is None


def test_categories_come_by_win_rate_and_complexities_in_order_then_what_is_unknown():
    lines = kind_lines(some_kinds(), "category")
    assert [(line.name, line.prompts, line.standing) for line in lines] == [
        ("odd", 3, "few prompts"), ("dial", 600, "ahead"), ("words", 600, "not clear"), ("relay", 600, "behind"),
        ("unknown", 7, ""), ("all", 600, ""),
    ]  # fmt: skip
    assert [line.name for line in kind_lines(some_kinds(), "complexity")] == ["1", "2", "10", "all"]


def test_findings_say_what_is_ahead_and_behind_and_how_much_may_be_chance():
    fine = some_kinds()
    by_category, by_complexity = findings(fine)
    assert by_category == (
        "Of 4 categories, M_1 against M_0 direct is ahead in dial (70.0 %); behind in relay (30.0 %); not clearly "
        "different in 1; with too few prompts in 1."
    )
    assert by_complexity.startswith("Of 3 complexities, M_1 against M_0 direct is ahead in 10 (70.0 %)")
    assert "These are 6 intervals at 95 %: even without any difference, about 0.3 of them" in by_chance(fine)


def test_what_is_unknown_is_told_with_its_reasons():
    told = about(some_kinds())
    assert "Categories are rated by rater at http://x/v1. Complexities are the prompts' own." in told
    assert "The category of 7 prompts is unknown (5 no label, 2 too long)." in told
    assert "The complexity" not in told


def test_every_number_of_the_terminal_is_on_the_page_and_in_markdown():
    fine, printed = some_kinds(), io.StringIO()
    print_kinds(fine, Console(file=printed, width=150))
    page, markdown = run_page(fine), as_markdown(fine)
    numbers = re.findall(r"\d+\.\d", printed.getvalue())
    assert len(numbers) > 40
    for number in numbers:
        assert number in page and number in markdown, number


def test_a_long_run_shows_the_first_and_the_last_models_in_the_terminal():
    printed = io.StringIO()
    print_kinds(some_kinds(models=9), Console(file=printed, width=200))
    assert re.findall(r"M_\d", printed.getvalue().splitlines()[1]) == ["M_0", "M_7", "M_8"]


@pytest.mark.parametrize("render", [run_page, comparison_page])
def test_names_from_data_and_models_never_become_markup(render: Callable[[FineGrained], str]):
    hostile = {text: interval(0.3) for text in (*HOSTILE, ALL_HOSTILE)}
    page = render(some_kinds(hostile))
    tags = {tag for tag, _ in Reader(page).elements}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "embed", "link", "base", "form"})
    assert not [name for _, attributes in Reader(page).elements for name in attributes if name.startswith("on")]
    assert page.count("data-kind-of=") == len(hostile) + 2 + 4


def test_markdown_cells_stay_cells():
    text = as_markdown(some_kinds({"a|b\n| c <b>": interval(0.4), "`x`": interval(0.3)}))
    (row,) = [line for line in text.splitlines() if "b\\>" in line]
    assert row.startswith("| a\\|b \\| c \\<b\\> | 600 |")


def test_a_page_without_kinds_has_no_such_section():
    assert 'id="kinds"' not in page_of(*FULL) and 'id="wins"' not in render_comparison(a_comparison([0.1]))
