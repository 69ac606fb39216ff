"""Claims about a table of models: it survives its file, its sentences match its numbers, and its page runs nothing."""

import dataclasses
import re
from pathlib import Path

import pytest

from tpo.errors import StoreError
from tpo.records import Message
from tpo.report.model_table import (
    MeasuredRow,
    ModelTable,
    compared_with_first,
    read_model_table,
    sentences,
    write_model_table,
)
from tpo.report.model_table_page import Asked, ShownAnswer, model_table_picture, print_model_table, render_model_table
from tpo.report.summary import Interval

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def interval(value: float, half: float = 0.02) -> Interval:
    return Interval(value, value - half, value + half, 100)


def row(model: str, below: str | None, score: float, gain: float | None) -> MeasuredRow:
    return MeasuredRow(
        model=model,
        below=below,
        score=interval(score),
        gain=None if gain is None else interval(gain),
        tokens=interval(20.0, 1.0),
        tokens_gain=None if gain is None else interval(3.0, 1.0),
        by_category={HOSTILE: interval(score), "cups": interval(score)},
        by_difficulty={"1": interval(score), "10": interval(score), "2": interval(score)},
        error_rate=0.01,
        made_from={} if below is None else {"pairs": 1200, "mean_gap": 17.25},
        dropped={} if below is None else {"answers_differ": 3},
    )


ROWS = [row("base", None, 0.3, None), row("SFT", "base", 0.6, 0.3), row("DPO", "SFT", 0.61, 0.01)]
MODEL_TABLE = ModelTable("mine", "ThinkPO", 0, 0.95, ROWS)


def test_a_table_survives_its_file(tmp_path: Path):
    (tmp_path / "model_table.json").write_bytes(write_model_table(MODEL_TABLE))
    assert read_model_table(tmp_path / "model_table.json") == MODEL_TABLE
    assert (
        write_model_table(read_model_table(tmp_path / "model_table.json"))
        == (tmp_path / "model_table.json").read_bytes()
    )


@pytest.mark.parametrize("content", [b"", b"{}", b'{"run": "x"}', b"[1]", b'{"rows": [{}]}'])
def test_a_file_that_is_not_a_table_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "model_table.json").write_bytes(content)
    with pytest.raises(StoreError, match="is not a table of models that this version can read"):
        read_model_table(tmp_path / "model_table.json")


def test_each_step_is_described_with_its_interval_and_unclear_steps_are_called_unclear():
    assert sentences(MODEL_TABLE) == [
        "SFT against base: score +30.0 points [+28.0, +32.0], length +3.0 tokens [+2.0, +4.0].",
        "DPO against SFT: score +1.0 points [−1.0, +3.0], not clearly different, length +3.0 tokens [+2.0, +4.0].",
    ]


def test_what_models_write_is_shown_and_never_runs():
    answers = [
        ShownAnswer("base", None, HOSTILE, 3, 0.0, False, "cut_by_length"),
        ShownAnswer("SFT", HOSTILE, HOSTILE, 30, None, None, None),
    ]
    earlier = [Message(role="user", content=HOSTILE), Message(role="assistant", content=HOSTILE)]
    question = Asked(HOSTILE, HOSTILE, HOSTILE, 1, answers, earlier)
    page = render_model_table(MODEL_TABLE, config={"name": HOSTILE}, examples=[question], spent=[])
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;") >= 9
    assert page.index(">2<") < page.index(">10<")
    assert "base: wrong" in page and "breaks the format: cut by length" in page


def test_the_table_has_all_models_and_what_they_were_trained_on(capsys: pytest.CaptureFixture[str]):
    print_model_table(MODEL_TABLE)
    printed = " ".join(capsys.readouterr().out.split())
    assert "1,200 pairs, 17.2 mean gap" in printed and "60.0 [58.0, 62.0]" in printed
    assert "Not trained on for DPO: 3 answers differ." in printed


def test_a_table_without_scores_has_no_score_plot():
    blind = dataclasses.replace(
        MODEL_TABLE, rows=[dataclasses.replace(r, score=None, gain=None) for r in MODEL_TABLE.rows]
    )
    assert model_table_picture(blind) is None and model_table_picture(MODEL_TABLE) is not None
    assert sentences(blind) == []
    assert "<h1>" in render_model_table(blind, config={}, examples=[], spent=[])


def test_models_of_another_run_get_their_own_line_at_the_models_compared_with_them():
    pairs = [(row(f"SFT_{t} without", None, 0.5, None), row(f"SFT_{t}", f"SFT_{t} without", 0.6, 0.1)) for t in (0, 1)]
    table = dataclasses.replace(MODEL_TABLE, rows=[ROWS[0], *(each for pair in pairs for each in pair)])
    assert [each.model for each in compared_with_first(table)] == ["SFT_0 without", "SFT_1 without"]
    assert compared_with_first(MODEL_TABLE) == []
    pages = [render_model_table(each, config={}, examples=[], spent=[]) for each in (MODEL_TABLE, table)]
    assert ["in orange the models that they are compared with" in page for page in pages] == [False, True]
    named = [set(re.findall(r"<text[^>]*>([^<]+)</text>", page)) for page in pages]
    assert {"base", "SFT", "DPO"} <= named[0]
    assert {"base", "SFT_0", "SFT_1"} <= named[1] and "SFT_0 without" not in named[1]


def test_a_long_table_names_only_some_models_so_that_labels_do_not_overlap():
    long = [ROWS[0], *(row(f"SFT_{t}", "base", 0.5, 0.1) for t in range(20))]
    page = render_model_table(dataclasses.replace(MODEL_TABLE, rows=long), config={}, examples=[], spent=[])
    named = set(re.findall(r"<text[^>]*>(SFT_\d+)</text>", page))
    assert 4 <= len(named) <= 9
