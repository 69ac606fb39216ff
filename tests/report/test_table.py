import dataclasses
import subprocess
import sys

import pytest
from rich.console import Console

from tpo.report.summary import Interval, ModelRow, Summary
from tpo.report.table import (
    PERCENT,
    fixed,
    print_table,
    render_gains,
    render_seconds,
    render_table,
    scale_of,
    score_scale,
)

UNKNOWN = ModelRow(
    model="M_0", iteration=0, score=None, win_rate=None, gain=None, gain_over_direct=None, by_category={},
    by_difficulty={}, validation_score=None, parse_error_rate=1.0, thought_chars=0.0, response_chars=0.0, rho=None,
    regular_pairs=None, error_pairs=None, dropped={}, judge=None, chosen_epoch=None, seconds={},
)  # fmt: skip
KNOWN = dataclasses.replace(
    UNKNOWN, model="M_1", iteration=1,
    score=Interval(0.942, 0.921, 0.96, 600), win_rate=Interval(0.781, 0.749, 0.816, 600),
    gain=Interval(0.315, 0.28, 0.351, 600), gain_over_direct=Interval(-0.02, -0.05, 0.01, 600), validation_score=0.951,
    parse_error_rate=0.016, thought_chars=1115.4, response_chars=2026.0, rho=0.25, regular_pairs=261, error_pairs=28,
    dropped={"tie": 12, "small_margin": 99}, chosen_epoch=2, seconds={"samples": 31.42, "train": 9.7},
)  # fmt: skip


def summary_of(*rows: ModelRow) -> Summary:
    return Summary("laptop", 0, 0.95, rows)


def text_of(summary: Summary, width: int = 100) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        for render in (render_table, render_gains, render_seconds):
            console.print(render(summary))
    return captured.get()


def test_every_number_of_a_row_is_in_the_table() -> None:
    shown = text_of(summary_of(UNKNOWN, KNOWN))
    for number in (
        "94.2 [92.1, 96.0]", "78.1 [74.9, 81.6]", "+31.5 [+28.0, +35.1]", "−2.0 [−5.0, +1.0]", "1.6 %", "1115 + 2026",
        "261 + 28", "0.25", "95.1", "99 small margin, 12 tie", "31", "9.7", "41",
    ):  # fmt: skip
        assert number in shown


def test_the_table_fits_a_hundred_columns() -> None:
    lines = text_of(summary_of(dataclasses.replace(UNKNOWN, model="M_0 direct"), UNKNOWN, KNOWN)).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("M_1" in line for line in lines) == 3, "a row of the table was broken over lines"


@pytest.mark.parametrize("rows", [(), (UNKNOWN,), (UNKNOWN, KNOWN)])
def test_unknown_values_and_missing_models_are_shown_as_dashes(
    rows: tuple[ModelRow, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(summary_of(*rows))
    shown = capsys.readouterr().out
    assert "None" not in shown and "nan" not in shown
    assert "run laptop, seed 0" in shown


def test_shares_are_shown_times_100_and_other_scores_in_their_own_unit() -> None:
    assert score_scale(summary_of(KNOWN)) == PERCENT
    reward = dataclasses.replace(KNOWN, score=Interval(-3.1416, -4.0, 2.5, 9), gain=Interval(0.5, 0.25, 0.75, 9))
    shown = text_of(summary_of(reward), width=120)
    assert "−3.142 [−4.000, 2.500]" in shown and "+0.500 [+0.250, +0.750]" in shown


def test_one_category_above_1_makes_all_scores_raw() -> None:
    row = dataclasses.replace(KNOWN, by_category={"long": Interval(1.02, 0.9, 1.1, 5)})
    assert score_scale(summary_of(row)).factor == 1


@pytest.mark.parametrize(
    ("values", "number"), [([0.0, 1.0], "50.0"), ([9.0], "0.500"), ([-42.0], "0.50"), ([812.0], "0.5")]
)
def test_decimals_follow_the_size_of_the_scores(values: list[float], number: str) -> None:
    assert scale_of(values).number(0.5) == number


@pytest.mark.parametrize(("value", "shown"), [(-0.04, "0.0"), (0.04, "0.0"), (2.0, "+2.0"), (-2.0, "−2.0")])
def test_numbers_have_a_true_minus_and_no_negative_zero(value: float, shown: str) -> None:
    assert fixed(value, 1, signed=True) == shown


def test_brackets_in_names_are_text_not_markup() -> None:
    shown = text_of(summary_of(dataclasses.replace(KNOWN, dropped={"[red]x[/red]": 3}, seconds={"[b]": 1.0})))
    assert "3 [red]x[/red]" in shown and "[b]" in shown


def test_the_table_loads_neither_pandas_nor_matplotlib_nor_torch() -> None:
    code = "import sys, tpo.report.table; print({'pandas', 'numpy', 'matplotlib', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
