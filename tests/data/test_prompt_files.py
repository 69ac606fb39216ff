"""Claims about prompt files: everything in them is read, or rejected with its location; nothing is lost."""

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rows import SHARED_DATA
from tpo.config.data import FileSource
from tpo.data.prompt_files import PromptRow, file_of, read_prompt_rows
from tpo.errors import InputError

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
def test_a_number_next_to_an_empty_cell_keeps_its_form(tmp_path: Path, name: str):
    path = write(tmp_path / name, [{"instruction": "a", "answer": 42}, {"instruction": "b", "answer": None}])
    assert [row.reference for row in read(path, reference_column="answer")] == ["42", None]


def test_columns_that_are_not_named_are_not_read(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"question": "Why?", "answer": "42", "instruction": 7}])
    assert read(path, instruction_column="question") == [PromptRow("Why?", None, None, None, None)]


def test_a_rubric_column_gives_prompts_their_own_rubrics(tmp_path: Path):
    rows: list[dict[str, object]] = [
        {"instruction": "a", "how": "Rhyme."},
        {"instruction": "b", "how": ""},
        {"instruction": "c", "how": None},
    ]
    assert [row.rubric for row in read(write(tmp_path / "a.jsonl", rows), rubric_column="how")] == [
        "Rhyme.",
        None,
        None,
    ]
    rows = [{"instruction": "a", "how": {"criteria": "Rhyme."}}]
    with pytest.raises(InputError, match=r"the rubric has fields.*data\.source\.rubric_column to one of how\.criteria"):
        read(write(tmp_path / "b.jsonl", rows), rubric_column="how")


CONSTRAINTS = {"instruction_ids_column": "instruction_id_list", "kwargs_column": "kwargs"}
IDS = ["punctuation:no_comma", "length_constraints:number_words", "keywords:existence"]
WORDS = {"num_words": 30, "relation": "less than"}
"""Every row has every argument, as in published tables."""


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
    ("ids", "kwargs", "pattern"),
    [
        (["keywords:poetry"], [{}], "row 2: the instruction id 'keywords:poetry' is unknown, expected one of"),
        (["keywords:existence"], [{}], "row 2: keywords:existence has the arguments none, expected keywords"),
        (["keywords:existence"], [{"keywords": ["\ud800"]}], "row 2: character"),
        ("no_comma", [{}], "row 2: the instruction ids are 'no_comma', expected a list"),
    ],
)
def test_instructions_that_cannot_be_checked_are_rejected_by_row(
    tmp_path: Path, ids: object, kwargs: object, pattern: str
):
    rows: list[dict[str, object]] = [
        {"instruction": "a", "instruction_id_list": [], "kwargs": []},
        {"instruction": "b", "instruction_id_list": ids, "kwargs": kwargs},
    ]
    with pytest.raises(InputError, match=pattern):
        read(write(tmp_path / "a.jsonl", rows), **CONSTRAINTS)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no real instructions here")
def test_ifeval_is_a_prompt_file():
    found = read(SHARED_DATA / "ifeval.jsonl", instruction_column="prompt", **CONSTRAINTS)
    assert len(found) == 541 and all(row.constraints for row in found)


ROWS: list[dict[str, object]] = [{"instruction": f"Wie heißt {i}?", "answer": f"{i}"} for i in range(3)]
READ = [PromptRow(f"Wie heißt {i}?", f"{i}", None, None, None) for i in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LIST = json.dumps(ROWS, ensure_ascii=False, indent=1)
COMMAS = "instruction,answer\n" + "".join(f"{row['instruction']},{row['answer']}\n" for row in ROWS)
FORMS = {
    "lines with a mark.jsonl": LINES.encode("utf-8-sig"),
    "a list with a mark.json": LIST.encode("utf-8-sig"),
    "cells with a mark.csv": COMMAS.encode("utf-8-sig"),
    "lines of a spreadsheet.jsonl": LINES.encode("utf-16"),
    "big end first.csv": b"\xfe\xff" + COMMAS.encode("utf-16-be"),
    "lines.json": LINES.encode(),
    "lines with a mark.json": LINES.encode("utf-8-sig"),
    "a list.jsonl": LIST.encode(),
    "a list in a line.jsonl": json.dumps(ROWS).encode(),
    "lines.ndjson": LINES.encode(),
    "LINES.JSONL": LINES.encode(),
    "CELLS.Csv": COMMAS.encode(),
    "tabs.tsv": COMMAS.replace(",", "\t").encode(),
    "windows.jsonl": LINES.replace("\n", "\r\n").encode(),
    "windows.json": LINES.replace("\n", "\r\n").encode(),
    "windows.csv": COMMAS.replace("\n", "\r\n").encode(),
    "an old mac.csv": COMMAS.replace("\n", "\r").encode(),
    "empty lines.jsonl": b"\n \n" + LINES.replace("\n", "\n\n\t\n").encode(),
    "lines.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
    "a list.json.gz": gzip.compress(LIST.encode("utf-8-sig"), mtime=0),
    "cells.csv.gz": gzip.compress(COMMAS.encode(), mtime=0),
    "lines.jsonl.bz2": bz2.compress(LINES.encode()),
    "lines.jsonl.xz": lzma.compress(LINES.encode()),
    "lines.JSONL.zst": pa.compress(LINES.encode(), "zstd", asbytes=True),
}


@pytest.mark.parametrize("name", FORMS)
def test_files_are_read_in_the_formats_that_users_have(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(FORMS[name])
    assert read(tmp_path / name, reference_column="answer") == READ


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["a.jsonl", "b.jsonl"],
        ["1.json", "2.json"],
        ["a.csv", "b.csv"],
    ],
)
def test_a_folder_of_files_of_one_kind_is_read_as_one(tmp_path: Path, names: list[str]):
    for name, rows in zip(names, (ROWS[:2], ROWS[2:]), strict=True):
        write(tmp_path / name, rows)
    for other in ("README.md", ".gitattributes", "dataset_infos.json", "_SUCCESS", ".hidden.jsonl"):
        (tmp_path / other).write_text("nothing")
    assert read(tmp_path, reference_column="answer") == READ


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"], r"several splits \(test, train\): name one"),
        (["train.jsonl", "test.jsonl"], r"several splits \(test, train\)"),
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "has 2 of 3 parts: download the missing"),
        (["a.jsonl", "b.csv"], r"several formats \(.csv, .jsonl\): name one of them"),
        (["a.csv", "lacking.csv"], "/lacking.csv has no column 'instruction', which earlier files have"),
        (["a.jsonl", "broken.jsonl"], "/broken.jsonl, line 1, is not JSON"),
    ],
)
def test_an_incomplete_or_mixed_folder_is_rejected(tmp_path: Path, names: list[str], pattern: str):
    for name in names:
        write(tmp_path / name, [{"other": 1}] if "lacking" in name else ROWS)
        if "broken" in name:
            (tmp_path / name).write_text("{")
    with pytest.raises(InputError, match=pattern):
        read(tmp_path)


def test_the_error_for_files_one_level_deeper_names_their_folder(tmp_path: Path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl", ROWS)
    with pytest.raises(InputError, match=r"is not a dataset saved to disk.*name one of its folders \(data\)"):
        read(tmp_path)


def test_a_dataset_with_one_split_is_read(tmp_path: Path):
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one", reference_column="answer") == READ


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_class_labels_are_read_by_name(tmp_path: Path, kind: str):
    features = Features({"instruction": Value("string"), "topic": ClassLabel(names=["sums", "words"])})
    labelled = Dataset.from_dict({"instruction": ["a", "b", "c"], "topic": [1, 0, -1]}, features=features)
    path = tmp_path / ("a.parquet" if kind == "parquet" else "saved")
    labelled.to_parquet(path) if kind == "parquet" else labelled.save_to_disk(path)
    assert [row.category for row in read(path, category_column="topic")] == ["words", "sums", None]


NESTED: list[dict[str, object]] = [
    {"instruction": "a", "reward": {"truth": {"answer": "42"}, "style": "rule"}},
    {"instruction": "b", "reward": None},
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a dataset"])
def test_a_field_within_a_column_is_named_with_a_dot(tmp_path: Path, name: str):
    path = write(tmp_path / name, NESTED)
    assert [row.reference for row in read(path, reference_column="reward.truth.answer")] == ["42", None]
    with pytest.raises(InputError, match=r"no field 'reward.gone' in some row: the fields are 'truth', 'style'"):
        read(path, reference_column="reward.gone")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("column", ["reference", "category", "demonstration"])
def test_a_column_of_objects_is_rejected_with_the_fields_to_name(tmp_path: Path, name: str, column: str):
    path = write(tmp_path / name, NESTED)
    pattern = rf"row 1: the {column} has fields.*set data.source.{column}_column to one of reward.truth, reward.style"
    with pytest.raises(InputError, match=pattern):
        read(path, **{f"{column}_column": "reward"})


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_list_of_one_answer_is_that_answer_and_longer_ones_are_rejected(tmp_path: Path, name: str):
    file = write(tmp_path / f"one-{name}", [{"instruction": "a", "answer": ["42"]}, {"instruction": "b", "answer": []}])
    assert [row.reference for row in read(file, reference_column="answer")] == ["42", None]
    two = write(tmp_path / f"two-{name}", [{"instruction": "a", "answer": ["42", "forty-two"]}])
    with pytest.raises(
        InputError, match=r"row 1: the reference is a list of 2 \(\['42', 'forty-two'\]\), expected one"
    ):
        read(two, reference_column="answer")


@pytest.mark.parametrize(("value", "reference"), [(42.0, "42"), (0.5, "0.5"), (float("nan"), None), (1e300, "1e+300")])
def test_a_whole_number_in_a_column_of_floats_is_written_as_an_integer(
    tmp_path: Path, value: float, reference: str | None
):
    path = write(tmp_path / "a.parquet", [{"instruction": "a", "answer": value}, {"instruction": "b", "answer": 0.1}])
    assert read(path, reference_column="answer")[0].reference == reference


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
def test_real_files_are_read_completely(name: str, column: str, rows: int):
    found = read(SHARED_DATA / name, instruction_column=column)
    assert len(found) == rows
    assert all(row.instruction.strip() for row in found)


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("a.jsonl", b"", "has no rows"),
        ("a.jsonl", b"\n \n", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.csv", b"instruction\n", "has no rows"),
        ("a.csv", b"", "has no rows"),
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
        ("a.jsonl", rb'{"instruction": "ab\ud83d"}', "row 1: character 2 of .* is an unpaired surrogate"),
        ("a.jsonl", b'{"text": "a", "label": 1}', "no column 'instruction'; its columns are 'text', 'label'"),
        ("a.txt", b"a", "unknown format, expected .jsonl.*plain text has no columns: write it as .jsonl"),
        ("a.zip", b"PK", "unknown format.*unpack it"),
        ("a.xlsx", b"PK", "unknown format.*save the sheet as .csv"),
        ("a.parquet.gz", b"\x1f\x8b", "unknown format.*unpack it"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"instruction": "a"}', mtime=0)[:-12],
            r"cannot be read \(.gz\): Compressed file ended",
        ),
        ("a.jsonl.zst", b"{}", r"cannot be read \(.zst\)"),
        ("a.csv", "instruction,answer\nStraße,1\n".encode("cp1252"), r"cannot be read: 'utf-8'.*save it as UTF-8"),
        ("a.csv", b"instruction;answer\na;b\n", "its cells are separated by ';', expected ','"),
        ("a.json", b'{"rows": [{"instruction": "a"}]}', "is not a list of objects: keep only its list 'rows'"),
        (
            "a.json",
            b'{"instruction": {"0": "a"}}',
            "is not a list of objects, but an object of columns: write it row by row",
        ),
    ],
)
def test_an_empty_or_damaged_file_is_rejected(tmp_path: Path, name: str, content: bytes, pattern: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=pattern):
        read(path)


def test_a_missing_file_is_rejected(tmp_path: Path):
    with pytest.raises(InputError, match=r"does not exist; data\.source\.path must name"):
        read(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("column", ["reference_column", "category_column", "difficulty_column"])
def test_a_named_column_must_exist(tmp_path: Path, column: str):
    path = write(tmp_path / "a.jsonl", [{"instruction": "a"}])
    with pytest.raises(InputError, match="no column 'gone'"):
        read(path, **{column: "gone"})


@pytest.mark.parametrize("value", ["hard", "inf", "1.5", [1]])
def test_a_difficulty_that_is_not_a_whole_number_is_rejected_by_row(tmp_path: Path, value: object):
    path = write(tmp_path / "a.jsonl", [{"instruction": "a", "level": "2"}, {"instruction": "b", "level": value}])
    with pytest.raises(InputError, match=r"row 2: difficulty .* is not a whole number"):
        read(path, difficulty_column="level")


def test_a_dataset_of_several_splits_is_rejected_with_their_names(tmp_path: Path):
    part = Dataset.from_list([{"instruction": "a"}])
    DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"several splits \(train, test\)"):
        read(tmp_path / "both")


def test_a_folder_that_is_not_a_dataset_is_rejected(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)


def test_validation_and_test_use_their_own_files_if_named():
    source = FileSource(path=Path("t-{iteration}.jsonl"), validation_path=Path("v.jsonl"))
    files = [str(file_of(source, kind, i)) for kind, i in (("", 3), ("validation", 0), ("test", 0))]
    assert files == ["t-3.jsonl", "v.jsonl", "t-0.jsonl"]
