"""Prompts from files: JSON lines, JSON, CSV, Parquet, or a Hugging Face dataset saved to disk.

In: a path and the names of its columns. Out: rows with an instruction and, where named, reference, category and
difficulty. A damaged row is an error that names the line and never a row less: what is missing from a data set without
a word is found months later.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tpo.config import FileSource
from tpo.errors import InputError


@dataclass(frozen=True)
class PromptRow:
    """One row of a prompt file, as far as we read it."""

    instruction: str
    """The instruction; empty where the row holds none."""
    reference: str | None
    """The right answer, where the file names one."""
    category: str | None
    """The category, where the file names one."""
    difficulty: int | None
    """The difficulty, where the file names one."""


def file_of(source: FileSource, kind: Literal["", "validation", "test"] | str, iteration: int) -> Path:
    """The file that a set of prompts is drawn from; `{iteration}` in a path becomes the iteration's number."""
    own = {"validation": source.validation_path, "test": source.test_path}.get(kind)
    return own or Path(str(source.path).replace("{iteration}", str(iteration)))


def read_prompt_rows(source: FileSource, path: Path) -> list[PromptRow]:
    """All rows of a prompt file.

    Raises `InputError` where the file is missing, empty or damaged, or lacks a column that the source names.
    """
    rows = read_table(path)
    if not rows:
        raise InputError(f"{path} holds no prompts")
    wanted = {
        "instruction": source.instruction_column,
        "reference": source.reference_column,
        "category": source.category_column,
        "difficulty": source.difficulty_column,
    }
    for column in filter(None, wanted.values()):
        if not any(column in row for row in rows):
            columns = ", ".join(repr(name) for name in dict.fromkeys(name for row in rows[:100] for name in row))
            raise InputError(f"{path} has no column {column!r}; its columns are {columns}: set data.source.*_column")
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(_prompt_row({name: row.get(column) for name, column in wanted.items() if column}))
        except ValueError as error:
            raise InputError(f"{path}, row {number}: {error}") from error
    return found


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a `.jsonl`, `.json`, `.csv` or `.parquet` file or of a Hugging Face dataset folder.

    Raises `InputError` where it is missing, of another kind, or damaged; a damaged row is never skipped.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; data.source.path names a file or a dataset folder")
    try:
        if path.is_dir():
            return _read_dataset(path)
        if path.suffix == ".jsonl":
            return _read_json_lines(path)
        if path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise InputError(f"{path} is not a list of objects")
            return rows
        if path.suffix == ".csv":
            return _read_csv(path)
        if path.suffix == ".parquet":
            return _read_parquet(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    raise InputError(f"{path} is of an unknown kind, expected .jsonl, .json, .csv, .parquet or a dataset folder")


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}, is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}, is not an object")
            rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    import pandas as pd

    frame = pd.read_csv(path, keep_default_na=False, dtype=str)
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    # Not by way of pandas, which makes 42 beside an empty cell 42.0.
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _read_dataset(path: Path) -> list[dict[str, Any]]:
    from datasets import Dataset, load_from_disk

    dataset = load_from_disk(str(path))
    if not isinstance(dataset, Dataset):
        raise InputError(f"{path} holds several splits ({', '.join(dataset)}): name one of its folders")
    return [dict(row) for row in dataset]


def _prompt_row(values: dict[str, Any]) -> PromptRow:
    instruction = values.get("instruction")
    if not isinstance(instruction, str | None) and instruction == instruction:
        raise ValueError(f"the instruction is {instruction!r}, expected text")
    return PromptRow(
        instruction=_encodable(instruction) if isinstance(instruction, str) else "",
        reference=_text(values.get("reference")),
        category=_text(values.get("category")),
        difficulty=_whole_number(values.get("difficulty")),
    )


def _text(value: Any) -> str | None:
    return None if value is None or value == "" or value != value else _encodable(str(value))


def _encodable(text: str) -> str:
    """The text itself; ValueError where it holds half a surrogate pair, which neither tokenizer nor Parquet takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} of {text[:40]!r} is half a surrogate pair, not text") from None
    return text


def _whole_number(value: Any) -> int | None:
    text = _text(value)
    try:
        number = 0.0 if text is None else float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise ValueError(f"difficulty {value!r} is not a whole number")
    return None if text is None else int(number)
