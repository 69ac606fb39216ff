"""Claims about prompt files: everything in them is read or refused by its place, nothing is lost."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rows import SHARED_DATA
from tpo.config import FileSource
from tpo.errors import InputError
from tpo.prompt_files import PromptRow, file_of, read_prompt_rows

INSTRUCTIONS = ["Why?", "два\nlines", '{{ braces }} "quoted", and a comma', "😀", "NA"]
COLUMNS = {"reference_column": "answer", "category_column": "kind", "difficulty_column": "level"}


def read(path: Path, **columns: str) -> list[PromptRow]:
    return read_prompt_rows(FileSource.model_validate({"path": path, **columns}), path)


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    else:
        Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a dataset"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str):
    rows: list[dict[str, object]] = [
        {"instruction": text, "answer": i, "kind": "k", "level": i + 1} for i, text in enumerate(INSTRUCTIONS)
    ]
    assert read(write(tmp_path / name, rows), **COLUMNS) == [
        PromptRow(text, str(i), "k", i + 1, None) for i, text in enumerate(INSTRUCTIONS)
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a dataset"])
def test_a_number_beside_an_empty_cell_keeps_its_form(tmp_path: Path, name: str):
    path = write(tmp_path / name, [{"instruction": "a", "answer": 42}, {"instruction": "b", "answer": None}])
    assert [row.reference for row in read(path, reference_column="answer")] == ["42", None]


def test_columns_that_are_not_named_are_not_read(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"question": "Why?", "answer": "42", "instruction": 7}])
    assert read(path, instruction_column="question") == [PromptRow("Why?", None, None, None, None)]


CONSTRAINTS = {"instruction_ids_column": "instruction_id_list", "kwargs_column": "kwargs"}
IDS = ["punctuation:no_comma", "length_constraints:number_words", "keywords:existence"]
WORDS = {"num_words": 30, "relation": "less than"}
"""Every row has every argument, as in tables that others publish."""


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a dataset", "text.csv", "text.parquet"])
def test_instructions_and_arguments_survive_every_kind_of_file(tmp_path: Path, name: str):
    nothing = {"num_words": None, "relation": None, "keywords": None}
    kwargs = [nothing, {**nothing, **WORDS}, {**nothing, "keywords": ["cat", "dog"]}]
    as_written = json.dumps if name.startswith("text") else lambda value: value
    rows: list[dict[str, object]] = [
        {"instruction": "Write.", "instruction_id_list": as_written(IDS), "kwargs": as_written(kwargs)},
        {"instruction": "Say.", "instruction_id_list": as_written([]), "kwargs": as_written([])},
    ]
    with_some, without = read(write(tmp_path / name, rows), **CONSTRAINTS)
    assert without.constraints is None and with_some.constraints is not None
    assert json.loads(with_some.constraints) == [
        {"id": IDS[0], "kwargs": {}},
        {"id": IDS[1], "kwargs": WORDS},
        {"id": IDS[2], "kwargs": {"keywords": ["cat", "dog"]}},
    ]


@pytest.mark.parametrize(
    ("ids", "kwargs", "told"),
    [
        (["keywords:poetry"], [{}], "row 2: the instruction id 'keywords:poetry' is unknown, expected one of"),
        (["keywords:existence"], [{}], "row 2: keywords:existence has the arguments none, expected keywords"),
        (["keywords:existence"], [{"keywords": ["\ud800"]}], "row 2: character"),
        ("no_comma", [{}], "row 2: the instruction ids are 'no_comma', expected a list"),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused_by_their_row(
    tmp_path: Path, ids: object, kwargs: object, told: str
):
    rows: list[dict[str, object]] = [
        {"instruction": "a", "instruction_id_list": [], "kwargs": []},
        {"instruction": "b", "instruction_id_list": ids, "kwargs": kwargs},
    ]
    with pytest.raises(InputError, match=told):
        read(write(tmp_path / "a.jsonl", rows), **CONSTRAINTS)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no real instructions here")
def test_ifeval_is_a_prompt_file():
    found = read(SHARED_DATA / "ifeval.jsonl", instruction_column="prompt", **CONSTRAINTS)
    assert len(found) == 541 and all(row.constraints for row in found)


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1), min_size=1))
def test_any_text_survives_a_json_file(tmp_path_factory: pytest.TempPathFactory, texts: list[str]):
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in texts))
    assert [row.instruction for row in read(path)] == texts


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no real instructions here")
@pytest.mark.parametrize(
    ("name", "column", "rows"),
    [
        ("alpaca_eval_instructions.jsonl", "instruction", 805),
        ("arena_hard_v0.1_questions.jsonl", "prompt", 500),
        ("gsm8k_test.jsonl", "question", 1319),
    ],
)
def test_real_files_are_read_whole(name: str, column: str, rows: int):
    found = read(SHARED_DATA / name, instruction_column=column)
    assert len(found) == rows
    assert all(row.instruction.strip() for row in found)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", b"\n \n", "holds no rows"),
        ("a.json", b"[]", "holds no rows"),
        ("a.csv", b"instruction\n", "holds no rows"),
        ("a.csv", b"", "holds no rows"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.json", b'{"instruction": "a"}', "is not a list of objects"),
        ("a.json", b'["a"]', "is not a list of objects"),
        ("a.json", b"[" * 100_000, "cannot be read"),
        ("a.jsonl", b'{"instruction": "a"}\n{"instruction": \n', "line 2, is not JSON"),
        ("a.jsonl", b'{"instruction": "a"}\n\n"b"', "line 3, is not an object"),
        ("a.jsonl", b'{"instruction": "\xff"}', "cannot be read"),
        (
            "a.jsonl",
            b'{"instruction": "a"}\n{"instruction": ["b"]}',
            r"row 2: the instruction is \['b'\], expected text",
        ),
        ("a.jsonl", rb'{"instruction": "ab\ud83d"}', "row 1: character 2 of .* is half a surrogate pair"),
        ("a.jsonl", b'{"text": "a", "label": 1}', "no column 'instruction'; its columns are 'text', 'label'"),
        ("a.txt", b"a", "unknown kind, expected .jsonl"),
    ],
)
def test_a_file_that_is_empty_or_damaged_is_refused(tmp_path: Path, name: str, content: bytes, told: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=told):
        read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"does not exist; data\.source\.path names"):
        read(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("column", ["reference_column", "category_column", "difficulty_column"])
def test_a_column_that_is_named_has_to_be_there(tmp_path: Path, column: str):
    path = write(tmp_path / "a.jsonl", [{"instruction": "a"}])
    with pytest.raises(InputError, match="no column 'gone'"):
        read(path, **{column: "gone"})


@pytest.mark.parametrize("value", ["hard", "inf", "1.5", [1]])
def test_a_difficulty_that_is_no_whole_number_is_refused_by_its_row(tmp_path: Path, value: object):
    path = write(tmp_path / "a.jsonl", [{"instruction": "a", "level": "2"}, {"instruction": "b", "level": value}])
    with pytest.raises(InputError, match=r"row 2: difficulty .* is not a whole number"):
        read(path, difficulty_column="level")


def test_a_dataset_of_several_splits_is_refused_with_their_names(tmp_path: Path):
    part = Dataset.from_list([{"instruction": "a"}])
    DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"several splits \(train, test\)"):
        read(tmp_path / "both")


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)


def test_validation_and_test_have_a_file_of_their_own_where_one_is_named():
    source = FileSource(path=Path("t-{iteration}.jsonl"), validation_path=Path("v.jsonl"))
    files = [str(file_of(source, kind, i)) for kind, i in (("", 3), ("validation", 0), ("test", 0))]
    assert files == ["t-3.jsonl", "v.jsonl", "t-0.jsonl"]
