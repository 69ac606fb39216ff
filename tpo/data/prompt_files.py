"""Prompts from files: JSON lines, JSON, CSV, TSV, Parquet, a folder of them, or a Hugging Face dataset saved to disk.

Each row has an instruction, which may be the end of a conversation (`tpo.data.conversations`), and, from the columns
that the config names, a reference, category, difficulty, demonstration, constraints and rubric. A damaged row is an
error that names the line and is never skipped: rows that silently vanish from a dataset are noticed months later.
"""

import json
import math
import stat
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from tpo.config.data import FileSource
from tpo.config.hub import local_path
from tpo.data import row_files
from tpo.data.conversations import Conversation, Unusable, encodable, is_written_as_text, read_conversation
from tpo.errors import InputError
from tpo.method.instructions import write_constraints
from tpo.sandbox import Sandbox, SandboxError

Row = TypeVar("Row")
MAX_DIFFICULTY = 1_000_000
"""Maximum difficulty, which is a level and not a measurement."""
_ASKING_COLUMNS = ("instruction", "prompt", "messages", "conversation", "conversations", "question")
"""Usual names of the instruction column in published datasets."""
_NOT_READ = {
    (".txt", ".md"): "plain text has no columns: write it as .jsonl, one object per line",
    (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar"): "unpack it and name a file in it",
    (".xlsx", ".xls", ".ods"): "save the sheet as .csv",
    (".arrow", ".feather"): "name the dataset folder that it is a part of",
    (".parquet.gz", ".parquet.zst"): "unpack it",
}
"""Remedies for files of other kinds, by ending."""


@dataclass(frozen=True)
class PromptRow:
    """The fields that we use from one row of a prompt file."""

    instruction: str
    """The instruction; empty if the row has none."""
    reference: str | None
    """The right answer, if the file has one."""
    category: str | None
    """The category, if the file has one."""
    difficulty: int | None
    """The difficulty, if the file has one."""
    demonstration: str | None
    """The response to imitate, if the file has one."""
    constraints: str | None = None
    """The verifiable instructions, in the form of `Prompt.constraints`, if the file has columns of them."""
    history: str | None = None
    """The turns before the instruction, in the form of `Prompt.history`, if it ends a conversation."""
    rubric: str | None = None
    """The prompt's own rubric, if the file has one."""
    unusable: Unusable | None = None
    """Why a conversation can't be a prompt; the instruction is empty then."""


def file_of(source: FileSource, kind: Literal["", "validation", "test"] | str, iteration: int) -> Path:
    """The file that a set of prompts is drawn from; `{iteration}` in `path` becomes the iteration's number."""
    own = {"validation": source.validation_path, "test": source.test_path}.get(kind)
    place = own or source.path
    return local_path(place if own or isinstance(place, str) else str(place).replace("{iteration}", str(iteration)))


def read_prompt_rows(source: FileSource, path: Path) -> list[PromptRow]:
    """All rows of a prompt file.

    Raises `InputError` if the file is missing, empty, damaged or too large (`tpo.data.row_files` has the limits), lacks
    a column that the source names, or contains conversations as text.
    """
    wanted = {
        "instruction": source.instruction_column,
        "reference": source.reference_column,
        "category": source.category_column,
        "difficulty": source.difficulty_column,
        "demonstration": source.demonstration_column,
        "instruction_ids": source.instruction_ids_column,
        "kwargs": source.kwargs_column,
        "rubric": source.rubric_column,
    }
    named = {name: column for name, column in wanted.items() if column is not None}
    rows = read_columns(path, named, lambda values: _prompt_row(values, named), section="data.source")
    texts = [row.instruction for row in rows if row.instruction]
    if texts and all(map(is_written_as_text, texts)):
        raise InputError(
            f"{path} has conversations as text in column {source.instruction_column!r}, expected lists of turns: "
            "write each as a list, in a format with lists (.jsonl or .parquet)"
        )
    return rows


def read_columns(
    path: Path, named: Mapping[str, str], make: Callable[[dict[str, Any]], Row], *, section: str
) -> list[Row]:
    """Applies `make` to each row's values by name; `named` maps each name to its column.

    Raises `InputError` if the file can't be read, if it lacks a column (`section` is the profile section that names the
    columns), or if `make` raises `ValueError`.
    """
    table = read_table(path, list(named.values()), f"{section}.path")
    if not table.rows:
        raise InputError(f"{path} has no rows")
    for name, column in named.items():
        if column not in table.columns and column.split(".")[0] not in table.columns:
            known = ", ".join(map(repr, table.columns))
            usual = [other for other in _ASKING_COLUMNS if name == "instruction" and other in table.columns]
            remedy = f'{section}.instruction_column = "{usual[0]}"' if usual else f"{section}.*_column"
            raise InputError(f"{path} has no column {column!r}; its columns are {known}: set {remedy}")
    found = []
    for number, values in enumerate(table.rows, 1):
        try:
            found.append(make(dict(zip(named, values, strict=True))))
        except ValueError as error:
            raise InputError(f"{path}, row {number}: {error}") from error
    return found


def check_prompt_file(source: FileSource, path: Path) -> None:
    """Raises `InputError` if `read_prompt_rows` would, or if no row has an instruction."""
    rows = read_prompt_rows(source, path)
    if any(row.instruction.strip() for row in rows):
        return
    if reasons := Counter(row.unusable for row in rows if row.unusable is not None):
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise InputError(
            f"{path} has no conversation in column {source.instruction_column!r} that can be a prompt ({counts}), "
            "expected alternating user and assistant turns, in text, after at most one system turn"
        )
    raise InputError(f"{path} has no text in column {source.instruction_column!r}")


@dataclass(frozen=True)
class DataTable:
    """The columns and rows of a file."""

    columns: list[str]
    """Names of all its columns."""
    rows: list[list[Any]]
    """The requested columns of each row; None for a column that the file lacks."""


def read_table(path: Path, columns: Sequence[str], place: str) -> DataTable:
    """Reads a file in a subprocess; `place` is the setting that names it.

    Raises `InputError` if it can't be read. A damaged row is never skipped.
    """
    _check_kind(path, place)
    limits = {"memory_bytes": row_files.MEMORY_BYTES, "cpu_seconds": row_files.SECONDS}
    try:
        with Sandbox(Path(row_files.__file__), str(path.absolute()), *columns, **limits) as reader:
            rows = [json.loads(line) for line in reader.lines(row_files.WALL_SECONDS)]
    except SandboxError as error:
        raise InputError(f"{path} cannot be read: {_why_unread(error)}") from error
    last = rows.pop()
    if "fault" in last:
        raise InputError(f"{path}{last['fault']}")
    return DataTable(last["columns"], rows)


def _why_unread(error: SandboxError) -> str:
    if error.reason == "died":
        return f"the process that reads it crashed with status {error.status}: the file is damaged"
    limits = f"{row_files.MEMORY_BYTES >> 30} GiB of memory, {row_files.SECONDS} s of CPU time"
    return f"reading it takes more {error.reason} than allowed ({limits}, {row_files.WALL_SECONDS} s in all): split it"


def _check_kind(path: Path, place: str) -> None:
    """Accepts a file of a known kind or a folder, not a pipe or device, since opening one may block."""
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist; {place} must name a file or a dataset folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; {place} must name a file or a dataset folder") from error
    if stat.S_ISDIR(kind):
        _check_folder(path)
    elif not stat.S_ISREG(kind):
        raise InputError(
            f"{path} is neither a file nor a folder but a pipe, socket or device; {place} must name a file or a "
            "dataset folder"
        )
    elif not row_files.kind_of(path.name)[0]:
        name = path.name.lower()
        hint = next((f": {what}" for endings, what in _NOT_READ.items() if name.endswith(endings)), "")
        raise InputError(
            f"{path} has an unknown format, expected {', '.join(row_files.KINDS)} (text also followed by "
            f"{', '.join(row_files.COMPRESSED)}), a folder of them or a dataset folder{hint}"
        )


def _check_folder(path: Path) -> None:
    """Accepts a dataset, or a folder with files of a known kind."""
    if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")) or row_files.parts_of(path):
        return
    folders = sorted(inner.name for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))
    hint = f": name one of its folders ({', '.join(folders[:8])})" if folders else ""
    raise InputError(
        f"{path} cannot be read: it is not a dataset saved to disk (no state.json) and has no data files "
        f"({', '.join(row_files.KINDS)}){hint}"
    )


def _prompt_row(values: dict[str, Any], named: Mapping[str, str]) -> PromptRow:
    found = _asked(values.get("instruction"))
    asked = Conversation("", None) if isinstance(found, Unusable) else found
    return PromptRow(
        instruction=asked.instruction,
        reference=_text(_single(values.get("reference")), "reference", named),
        category=_text(values.get("category"), "category", named),
        difficulty=_whole_number(values.get("difficulty")),
        demonstration=_text(values.get("demonstration"), "demonstration", named),
        constraints=_constraints(values.get("instruction_ids"), values.get("kwargs")),
        history=asked.history,
        rubric=_text(values.get("rubric"), "rubric", named),
        unusable=found if isinstance(found, Unusable) else None,
    )


def _asked(value: Any) -> Conversation | Unusable:
    """The prompt of a row: a text, or a conversation up to its last user turn."""
    if isinstance(value, list):
        return read_conversation(value)
    if not isinstance(value, str | None) and value == value:
        raise ValueError(
            f"the instruction is {value!r:.80}, expected text, or a list of turns with role and content (or from and "
            "value)"
        )
    return Conversation(encodable(value) if isinstance(value, str) else "", None)


def _constraints(ids: Any, kwargs: Any) -> str | None:
    text = write_constraints(ids, kwargs)
    return None if text is None else encodable(text)


def _single(reference: Any) -> Any:
    """The only answer in a list of one; a whole number in a column of floats as the int that a model would write."""
    if isinstance(reference, list) and len(reference) < 2:
        reference = reference[0] if reference else None
    if isinstance(reference, float) and reference.is_integer() and abs(reference) < 2**53:
        return int(reference)
    return reference


def _text(value: Any, what: str, named: Mapping[str, str]) -> str | None:
    """Text or a number as text; raises ValueError for an object or a list, whose notation no model would write."""
    if isinstance(value, dict):
        fields = ", ".join(f"{named[what]}.{name}" for name in value)
        raise ValueError(
            f"the {what} has fields, expected text or a number: set data.source.{what}_column to one of {fields}"
        )
    if isinstance(value, list):
        raise ValueError(
            f"the {what} is a list of {len(value)} ({value!r:.60}), expected one text or number: put the right "
            "one in its own column"
        )
    return None if value is None or value == "" or value != value else encodable(str(value))


def _whole_number(value: Any) -> int | None:
    text = None if value is None or value == "" or value != value else str(value)
    try:
        number = 0.0 if text is None else float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer() or abs(number) > MAX_DIFFICULTY:
        raise ValueError(f"difficulty {value!r} is not a whole number up to {MAX_DIFFICULTY:,}")
    return None if text is None else int(number)
