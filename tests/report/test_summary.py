"""Claims about `summary.json`."""

import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.errors import StoreError
from tpo.records import JudgeHealth
from tpo.report.summary import Interval, ModelRow, Summary, read_summary, write_summary

numbers = st.floats(allow_nan=False, allow_infinity=False)
st.register_type_strategy(Interval, st.builds(Interval, numbers, numbers, numbers, st.integers(0)))
by_name = st.dictionaries(st.text(), st.from_type(Interval), max_size=2)
shares = st.none() | numbers
health = st.builds(
    JudgeHealth,
    unscored=st.dictionaries(st.text(), st.integers(), max_size=2),
    first_rate=shares,
    swap_agreement=shares,
    length_correlation=shares,
    reference_agreement=shares,
    score_quantiles=st.lists(numbers, max_size=3),
)
rows = st.builds(
    ModelRow,
    by_category=by_name,
    by_difficulty=by_name,
    dropped=st.dictionaries(st.text(), st.integers(), max_size=2),
    validation_score=st.none() | numbers,
    parse_error_rate=numbers,
    thought_chars=numbers,
    response_chars=numbers,
    rho=st.none() | numbers,
    judge=st.none() | health,
    seconds=st.dictionaries(st.text(), numbers, max_size=2),
)


@given(st.builds(Summary, confidence=numbers, models=st.lists(rows, max_size=3)))
def test_a_summary_is_read_as_it_was_written(summary: Summary):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "summary.json"
        path.write_bytes(write_summary(summary))
        assert read_summary(path) == summary
        assert write_summary(read_summary(path)) == path.read_bytes()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"models": 3}', '{"models": [{"score": null}]}', '{"models": [3]}'])
def test_a_file_that_is_not_a_summary_is_refused(tmp_path: Path, text: str):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(StoreError, match="is not a summary that this version can read"):
        read_summary(tmp_path / "summary.json")


def test_an_error_in_a_summary_names_its_place(tmp_path: Path):
    path, interval = tmp_path / "summary.json", {"value": 1.0, "low": "low", "high": 1.0, "n": 3}
    row = ModelRow("M_0", 0, None, None, None, None, {}, {}, None, 0.0, 1.0, 1.0, 0.2, 1, 0, {}, None, 1, {})
    wrong = json.dumps({"score": interval}).encode()[1:-1]
    path.write_bytes(write_summary(Summary("mine", 0, 0.95, [row])).replace(b'"score": null', wrong))
    with pytest.raises(StoreError, match=r"models\.0\.score\.low: .* valid number, .*\): remove it and rerun$"):
        read_summary(path)
    path.write_bytes(write_summary(Summary("mine", 0, 0.95, [])).replace(b'"seed"', b'"new": 1, "seed"'))
    with pytest.raises(StoreError, match="that this version can read \\(new: Unexpected"):
        read_summary(path)


def test_a_summary_of_a_version_that_did_not_count_swapped_pairs_is_read(tmp_path: Path):
    health = JudgeHealth(3, {}, 0, 0, 0, 0, None, None, None, None, 0, [])
    row = ModelRow(
        "M_1", 1, None, None, None, None, {}, {}, None, 0.0, 1.0, 1.0, 0.2, 1, 0, {}, health, 1, {"train": 2.0}
    )
    (path := tmp_path / "summary.json").write_bytes(
        re.sub(
            rb',\s+"swap_pairs".*?null,\s+"scored_groups": 0',
            b"",
            write_summary(Summary("mine", 0, 0.95, [row])),
            flags=re.S,
        )
    )
    assert b"swap_pairs" not in path.read_bytes()
    assert read_summary(path).models == [row]
