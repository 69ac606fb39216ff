"""Claims about a comparison's sentences and page."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.report.test_run_page import ALL_HOSTILE, HOSTILE, interval, model_row
from tpo.errors import StoreError
from tpo.report.comparison import Comparison, Lead, Measure, read_comparison, verdict, write_comparison
from tpo.report.comparison_page import print_comparison, render_comparison
from tpo.report.summary import Interval, Summary


def a_lead(t: int, value: float, half: float, groups: Mapping[str, Interval] | None = None) -> Lead:
    return Lead(t, interval(value, half), groups or {}, {"1": interval(value, half)}, interval(0.5 + value / 2, half))


def a_comparison(
    values: Sequence[float],
    *,
    half: float = 0.03,
    measure: Measure = "difference",
    groups: Mapping[str, Interval] | None = None,
    score: float = 0.6,
) -> Comparison:
    leads = [a_lead(t, value, half, groups) for t, value in enumerate(values)]
    ours, theirs = (
        Summary(name, 7, 0.95, [model_row(f"M_{t}", t, base + 0.01 * t) for t in range(len(values))])
        for name, base in (("run", score), ("run-direct", score + 0.05))
    )
    spent = {name: {"tokens": 1234567.0, "seconds": 61.0, "cost": 0.0} for name in ("thinking", "direct")}
    return Comparison(ours, theirs, measure, leads, spent)


def test_a_comparison_is_read_as_it_was_written(tmp_path: Path):
    comparison = a_comparison([-0.1, 0.2], groups={"dial": interval(0.1)})
    (tmp_path / "comparison.json").write_bytes(write_comparison(comparison))
    assert read_comparison(tmp_path / "comparison.json") == comparison
    assert write_comparison(read_comparison(tmp_path / "comparison.json")) == write_comparison(comparison)


def test_a_file_that_is_not_a_comparison_is_refused(tmp_path: Path):
    (tmp_path / "comparison.json").write_text('{"leads": []}')
    with pytest.raises(StoreError, match="is not a comparison that this version can read"):
        read_comparison(tmp_path / "comparison.json")


@pytest.mark.parametrize(
    ("values", "half", "first", "crossing"),
    [
        ([-0.09, 0.05, 0.2], 0.03, "After 2 iterations each, thinking is ahead of direct (+20.0 points, 95 % interval "
         "+17.0 to +23.0).", "The lines cross between M_0 and M_1, where the lead is clear."),
        ([-0.09, 0.01, 0.2], 0.03, "ahead of direct",
         "The lines cross between M_0 and M_1; from M_2 on the lead is clear."),
        ([-0.09, 0.05, -0.01, 0.02], 0.03, "not clearly different from direct (+2.0 points",
         "The lines cross between M_2 and M_3, but the lead is not clear at any model."),
        ([0.09, 0.2], 0.03, "ahead of direct", "Thinking is ahead from the start."),
        ([-0.09, -0.2], 0.03, "behind direct (−20.0 points", "Thinking does not overtake direct."),
        ([0.09, -0.2], 0.03, "behind direct", "Direct overtakes thinking."),
    ],
)  # fmt: skip
def test_the_verdict_says_where_the_lines_cross_and_how_sure_that_is(
    values: Sequence[float], half: float, first: str, crossing: str
):
    sentences = verdict(a_comparison(values, half=half))
    assert first in sentences[0]
    assert sentences[2] == crossing


def test_kinds_of_instruction_are_sorted_by_what_they_gain():
    groups = {"dial": interval(0.1), "recall": interval(-0.3), "relay": interval(0.4), "words": interval(0.01)}
    sentences = verdict(a_comparison([0.0, 0.1], groups=groups))
    assert sentences[-1] == (
        "Of 4 categories, thinking is ahead in relay (+40.0), dial (+10.0); behind in recall (−30.0); not clearly "
        "different in 1."
    )


def test_the_even_point_of_a_comparing_judge_is_one_half():
    won = a_comparison([0.4, 0.7], measure="win_rate")
    assert "thinking is ahead of direct (it wins 70.0 % of test prompts" in verdict(won)[0]
    assert verdict(a_comparison([0.4, 0.51], measure="win_rate"))[0].count("not clearly different from direct") == 1
    page = render_comparison(won)
    assert "it compared those of the two runs" in page and "<th>Thinking</th>" not in page


def test_scores_in_another_unit_keep_their_unit():
    sentences = verdict(a_comparison([-0.5, 2.25], score=12.0))
    assert "+2.25, 95 % interval" in sentences[0]


def test_comparisons_before_training_or_without_scores_have_verdicts_too():
    assert verdict(a_comparison([-0.09]))[0].startswith("Before any training, thinking is behind direct")
    blank = a_comparison([0.1])
    blank = Comparison(blank.thinking, blank.direct, "difference", [Lead(0, None, {}, {}, None)], blank.spent)
    assert verdict(blank) == ["There is no result: the evaluation judge scored no test prompt for both runs."]
    assert "There is no result" in render_comparison(blank)


def test_every_number_of_the_table_is_on_the_page(capsys: pytest.CaptureFixture[str]):
    comparison = a_comparison([-0.1, 0.2], groups={"dial": interval(0.123), "relay": interval(-0.2)})
    page = render_comparison(comparison)
    print_comparison(comparison)
    printed = capsys.readouterr().out
    for number in re.findall(r"[+−]?\d+\.\d", printed.split("Before training,")[0]):
        assert number in page, number
    for name, mark in (("dial", "gains"), ("relay", "loses")):
        row = page.split(f'data-kind="{name}"')[1].split("</tr>")[0]
        assert mark in row


def test_names_from_data_never_become_markup():
    groups = {hostile: interval(0.1) for hostile in (*HOSTILE, ALL_HOSTILE)}
    page = render_comparison(a_comparison([-0.1, 0.2], groups=groups))
    assert not re.search(r"<(script|img|iframe|a href=.data)", page)
    assert "default-src 'none'" in page
