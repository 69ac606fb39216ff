"""Claims about a study's file, sentences, Markdown, table and page."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_run_page import ALL_HOSTILE, HOSTILE, Reader
from tpo.errors import StoreError
from tpo.report.study import (
    Budget,
    Level,
    Pooled,
    Study,
    StudyLead,
    StudyModel,
    StudySide,
    read_study,
    render_markdown,
    sentences,
    unequal_amounts,
    write_study,
)
from tpo.report.study_page import print_study, render_study
from tpo.report.summary import Interval

BUDGET: Budget = {"prompts": 400, "samples": 3200, "judge calls": 3030, "tokens": 100_000, "training steps": 36}


def pooled(value: float, half: float = 0.03) -> Pooled:
    each = {
        str(seed): Interval(value + d, value + d - 0.02, value + d + 0.02, 600) for seed, d in ((0, -0.01), (1, 0.01))
    }
    runs, both = (Interval(value, value - width, value + width, 2) for width in (half, 1.5 * half))
    return Pooled(value, runs, both, each)


def a_side(name: str = "tried", score: float = 0.8, **changes: Any) -> StudySide:
    def model(name: str, below: str | None, value: float) -> StudyModel:
        before, first = (None, None) if below is None else (pooled(0.2), pooled(0.3))
        level = Level(Interval(0.053, 0.04, 0.066, 2), {"0": 0.05, "1": 0.056})
        levels, benchmarks = {"format broken, %": level}, {"gsm8k: accuracy": level}
        return StudyModel(name, below, pooled(value), before, first, pooled(0.1, 0.2), levels, benchmarks)

    models = [
        StudyModel("M_0 direct", None, pooled(0.6), None, None, None, {}),
        model("M_0", None, 0.5), model("M_1", "M_0", 0.7), model("M_2", "M_1", score),
    ]  # fmt: skip
    places = {"0": f"runs/{name}-seed0", "1": f"runs/{name}-seed1"}
    return dataclasses.replace(StudySide(name, f"{name}.toml", places, {}, BUDGET, BUDGET, models), **changes)


def a_study(**changes: Any) -> Study:
    study = Study(
        "tried-study",
        "iterate",
        "to M_2",
        [0, 1],
        0.95,
        0.4,
        [a_side()],
        "difference",
        [],
        [],
        ["Two share 40 %."],
    )
    return dataclasses.replace(study, **changes)


def against(lead: float, **changes: Any) -> Study:
    sides = [a_side(), a_side("other", 0.8 - lead)]
    return a_study(sides=sides, leads=[StudyLead("M_0", pooled(0.0)), StudyLead("M_2", pooled(lead))], **changes)


@pytest.mark.parametrize("study", [a_study(), against(0.1, unequal=["samples 1 and 2"])], ids=["one", "two"])
def test_a_study_is_read_as_it_was_written(tmp_path: Path, study: Study):
    (tmp_path / "study.json").write_bytes(write_study(study))
    assert read_study(tmp_path / "study.json") == study
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(StoreError, match="is not a study"):
        read_study(tmp_path / "study.json")


@pytest.mark.parametrize(
    ("study", "first", "others"),
    [
        (a_study(), "M_2 scores 80.0 [75.5, 84.5], the mean of 2 training runs.",
         ["M_2 − M_0: +30.0 [25.5, 34.5].", "M_2 − M_1: +20.0 [15.5, 24.5]."]),
        (against(0.1), "M_2 of tried is ahead of other's: +10.0 [5.5, 14.5].", ["other: M_2 − M_0: +30.0"]),
        (against(-0.1), "M_2 of tried is behind other's: −10.0 [−14.5, −5.5].", []),
        (against(0.02), "M_2 of tried is not clearly different from other's: +2.0 [−2.5, 6.5].", []),
        (against(0.7, measure="win_rate"), "M_2 of tried is ahead of other's: 70.0 [65.5, 74.5].", []),
        (against(0.1, unequal=["samples 3,200 and 1,600 (50 % apart)"]), "M_2 of tried is ahead",
         ["The budgets are not equal: samples 3,200 and 1,600 (50 % apart)."]),
    ],
)  # fmt: skip
def test_findings_say_what_is_clear_over_runs_and_prompts(study: Study, first: str, others: list[str]):
    found = sentences(study)
    assert found[0].startswith(first)
    assert all(any(each.startswith(other) for each in found) for other in others)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"samples": 3045}, []),
        ({"samples": 3000}, ["samples 3,200 and 3,000 (6 % apart)"]),
        ({"prompts": 0, "tokens": 120_000}, ["prompts 400 and 0 (100 % apart)",
                                             "tokens 100,000 and 120,000 (17 % apart)"]),
    ],
)  # fmt: skip
def test_amounts_more_than_a_twentieth_apart_are_unequal(changes: Any, told: list[str]):
    assert unequal_amounts(BUDGET, {**BUDGET, **changes}) == told


def test_markdown_has_every_run_the_mean_and_both_of_its_intervals(capsys: pytest.CaptureFixture[str]):
    text = render_markdown(against(0.1))
    assert "| M_2 | 79.0 [77.0, 81.0] | 81.0 [79.0, 83.0] | 80.0 [77.0, 83.0] | [75.5, 84.5] |" in text
    assert "| M_2 − M_0 | +29.0 [27.0, 31.0] |" in text
    assert "## tried − other" in text
    assert "| samples | 3,200 | 3,200 | 3,200 | 3,200 |" in text
    print_study(against(0.1))
    shown = capsys.readouterr().out
    assert "80.0 [77.0, 83.0]" in shown and "training steps" in shown


def test_a_page_full_of_hostile_text_has_only_our_elements_and_names_missing_runs():
    runs = dict.fromkeys(("0", "1"), ALL_HOSTILE)
    level = a_side().models[1].levels["format broken, %"]
    models = [dataclasses.replace(model, levels=dict.fromkeys(HOSTILE, level)) for model in a_side().models]
    side = a_side(ALL_HOSTILE, profile=ALL_HOSTILE, runs=runs, missing={"1": ALL_HOSTILE}, models=models)
    page = render_study(a_study(name=ALL_HOSTILE, sides=[side, side], remarks=list(HOSTILE), unequal=list(HOSTILE)))
    elements = Reader(page).elements
    tags = {tag for tag, _ in elements}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "embed", "link", "base", "form"})
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    assert ": missing" in page
