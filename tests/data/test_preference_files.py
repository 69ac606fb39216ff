"""Claims about files of preferences: each published shape is recognized; what expresses no preference is counted."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tpo.data.preference_files import Preference, read_preferences
from tpo.errors import InputError

Rows = Sequence[Mapping[str, Any]]


def written(folder: Path, rows: Rows, name: str = "data.jsonl") -> Path:
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def read(folder: Path, rows: Rows) -> list[Preference]:
    return list(read_preferences(written(folder, rows)).rows)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_reward_bench_is_pairs_with_subsets(tmp_path: Path):
    row = {"id": 3, "prompt": "Why?", "chosen": "So.", "rejected": "No.", "subset": "hep-go", "chosen_model": "m"}
    found = read_preferences(written(tmp_path, [row]))
    assert found.shape == "pairs" and found.left_out == {}
    assert found.rows == [Preference("Why?", ("So.",), ("No.",), subset="hep-go", name="3")]


def test_reward_bench_2_is_lists_of_responses(tmp_path: Path):
    rows = [
        {"id": "1", "prompt": "Why?", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"},
        {"id": "ref:7", "prompt": "A color?", "chosen": ["red"], "rejected": ["dog", "cat"], "subset": "Ties"},
        {"id": "tied:7", "prompt": "Colors?", "chosen": ["red", "blue"], "rejected": ["dog"], "subset": "Ties"},
    ]
    path = tmp_path / "test.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = read_preferences(path)
    assert found.shape == "best_of_n"
    assert [(row.better, row.worse) for row in found.rows] == [
        (("a",), ("b", "c", "d")), (("red",), ("dog", "cat")), (("red", "blue"), ("dog",))
    ]  # fmt: skip
    assert [row.counts_ties for row in found.rows] == [False, True, True]


@pytest.mark.parametrize("names", [("response1", "response2", "overall_preference", "context"),
                                   ("response_1", "response_2", "preference_strength", "prompt")])  # fmt: skip
def test_helpsteers_strengths_name_the_better_of_two_responses(tmp_path: Path, names: Sequence[str]):
    first, second, strength, asked = names
    rows = [
        {
            first: f"a{value}",
            second: f"b{value}",
            strength: value,
            asked: turns("Hi.", "Hello.", "Why?"),
            "domain": "code",
        }
        for value in (-3, -1, 0, 2)
    ]
    found = read_preferences(written(tmp_path, rows, "data.jsonl.gz"))
    assert found.shape == "two_responses" and found.left_out == {"no_preference": 1}
    assert [row.better[0] for row in found.rows] == ["a-3", "a-1", "b2"]
    assert found.rows[0].instruction == "Why?" and "Hello." in (found.rows[0].history or "")
    assert found.rows[0].subset == "code"


def test_rated_responses_give_the_best_and_the_worst_of_a_prompt(tmp_path: Path):
    rows = [
        {"prompt": prompt, "response": response, "helpfulness": value, "verbosity": 2}
        for prompt, response, value in [
            ("p", "bad", 0),
            ("p", "good", 4),
            ("p", "fair", 2),
            ("q", "x", 3),
            ("q", "y", 3),
        ]
    ]
    found = read_preferences(written(tmp_path, rows))
    assert found.shape == "rated_responses" and found.left_out == {"rated_equal": 1}
    assert found.rows == [Preference("p", ("good",), ("bad",))]


def test_a_response_may_be_a_chat_that_ends_with_it_and_brings_its_prompt(tmp_path: Path):
    row = {"chosen": turns("Hi.", "Hello.", "Why?", "So."), "rejected": turns("Hi.", "Hello.", "Why?", "No.")}
    (found,) = read(tmp_path, [row])
    assert (found.instruction, found.better, found.worse) == ("Why?", ("So.",), ("No.",))
    assert found.history is not None


def test_references_and_constraints_come_along(tmp_path: Path):
    row = {
        "prompt": "Say it.", "chosen": "a", "rejected": "b", "answer": 42,
        "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}],
    }  # fmt: skip
    (found,) = read(tmp_path, [row])
    assert found.reference == "42" and "no_comma" in (found.constraints or "")


def test_what_expresses_no_preference_is_left_out_and_counted(tmp_path: Path):
    same = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows = [
        same,
        same,
        same | {"rejected": "a"},
        same | {"prompt": " "},
        same | {"rejected": "c"},
        same | {"chosen": "d"},
    ]
    found = read_preferences(written(tmp_path, rows), limit=2)
    assert found.left_out == {"beyond_limit": 1, "no_prompt": 1, "repeated": 1, "same_text": 1}
    assert len(found.rows) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "has the columns 'text' not read|has the columns"),
        ({"chosen": "a", "rejected": "b"}, "row 1: there is no prompt"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "row 1: chosen is 3, expected text"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "row 1: the prompt is 3"),
        ({"prompt": "p", "response1": "a", "response2": "b", "overall_preference": "x"}, "overall_preference is 'x'"),
        ({"prompt": "p", "response": "a", "helpfulness": "good"}, "row 1: helpfulness is 'good'"),
        ({"prompt": "p", "response": "a", "helpfulness": None}, "row 1: helpfulness is None"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, r"expresses no preference \(1 same_text\)"),
    ],
)
def test_a_file_that_is_no_preferences_is_refused_with_what_was_found(
    tmp_path: Path, row: Mapping[str, Any], message: str
):
    with pytest.raises(InputError, match=message):
        read(tmp_path, [row])


def test_a_later_row_of_another_form_is_refused(tmp_path: Path):
    rows: Rows = [{"prompt": "p", "chosen": ["a"], "rejected": ["b"]}, {"prompt": "q", "chosen": "a", "rejected": "b"}]
    with pytest.raises(InputError, match="row 2: chosen is 'a', expected a list"):
        read(tmp_path, rows)


def test_a_missing_file_is_named_by_its_variable(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist; DATA must name a file"):
        read_preferences(tmp_path / "nowhere.jsonl")
