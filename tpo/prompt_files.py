"""Prompts from files: JSON lines, JSON, CSV, Parquet, or a Hugging Face dataset saved to disk.

In: a path and the names of its columns. Out: rows with an instruction and, where named, reference, category and
difficulty. A damaged row is an error that names the line and never a row less: what is missing from a data set without
a word is found months later.
"""

import csv
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
    wanted = _columns(source)
    _check_columns(path, wanted, list(dict.fromkeys(name for row in rows for name in row)))
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(_prompt_row({name: row.get(column) for name, column in wanted.items() if column}))
        except ValueError as error:
            raise InputError(f"{path}, row {number}: {error}") from error
    return found


def check_prompt_file(source: FileSource, path: Path) -> None:
    """Raises `InputError` where `read_prompt_rows` would, as far as that is known at once.

    A dataset folder is checked by its description alone: to open it imports libraries for seconds.
    """
    if not path.is_dir():
        if not any(row.instruction.strip() for row in read_prompt_rows(source, path)):
            raise InputError(f"{path} has no text in column {source.instruction_column!r}")
        return
    description = path / "dataset_info.json"
    if not description.is_file():
        raise InputError(
            f"{path} is not a dataset saved to disk: it has no dataset_info.json (name one split's folder)"
        )
    try:
        columns = list(json.loads(description.read_text(encoding="utf-8")).get("features") or ())
    except (ValueError, AttributeError) as error:
        raise InputError(f"{description} cannot be read: {error}") from error
    _check_columns(path, _columns(source), columns)


def _columns(source: FileSource) -> dict[str, str | None]:
    return {
        "instruction": source.instruction_column,
        "reference": source.reference_column,
        "category": source.category_column,
        "difficulty": source.difficulty_column,
    }


def _check_columns(path: Path, wanted: dict[str, str | None], columns: list[str]) -> None:
    for column in filter(None, wanted.values()):
        if column not in columns:
            known = ", ".join(map(repr, columns))
            raise InputError(f"{path} has no column {column!r}; its columns are {known}: set data.source.*_column")


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
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{path}, line {reader.line_num}, has not the {len(reader.fieldnames or ())} cells of the header"
                )
            rows.append(dict(row))
        return rows


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
