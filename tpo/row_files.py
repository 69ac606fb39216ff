"""Reads rows out of files that others wrote, in a process of its own with limits on memory and time.

In: a path and the names of columns. Out: the named columns of each row, and which columns there are; or an error in
words. A file of a kilobyte can ask for a terabyte (one long text, named a million times; zeros, compressed), and a
parser in C can die of a damaged one: that ends this process and no other. It is started as a script, and imports no
code of ours.

The decision to question: a Hugging Face dataset is read as the Arrow files that it is, without its library, which makes
objects of whatever classes the folder names. Extension types, pickled ones among them, are read as what they store.
"""

import csv
import json
import resource
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

MOST_FILE_BYTES = 1 << 30
"""Size of a file, or of the files of a dataset together."""
MOST_ROWS = 2_000_000
"""Rows of a file."""
MOST_TEXT_CHARS = 1 << 28
"""Characters in the columns that are read, together."""
MOST_LINE_CHARS = 1 << 24
"""Characters in one line of a text file."""
MEMORY_BYTES = 4 << 30
"""Address space of the process that reads."""
SECONDS = 300
"""Processor time of the process that reads."""

Row = dict[str, Any]
Columns = dict[str, None]

_END_OF_ARROW = b"\xff\xff\xff\xff\0\0\0\0"
_BATCH_ROWS = 256


class UnreadableError(Exception):
    """What is wrong with a file, in words that follow its path."""


def main(path: Path, wanted: Sequence[str]) -> None:
    """Writes a line of JSON for each row, a list of the wanted values in order, and then one of the file's columns.

    That last line is an object: `columns`, or `fault` where the file is not what it should be.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    columns: Columns = {}
    try:
        for row in _counted(_rows(path, wanted, columns), wanted):
            sys.stdout.write(json.dumps(row, default=_as_text) + "\n")
        last: dict[str, object] = {"columns": list(columns)}
    except UnreadableError as error:
        last = {"fault": str(error)}
    except MemoryError:
        last = {"fault": f" needs more than {MEMORY_BYTES >> 30} GiB of memory to be read: split it"}
    except RecursionError:
        last = {"fault": " cannot be read: it is nested too deep"}
    except Exception as error:  # noqa: BLE001 - parsers raise what they like
        last = {"fault": f" cannot be read: {error}"[:2000]}
    sys.stdout.write(json.dumps(last) + "\n")


def _as_text(value: object) -> str:
    """A date or a decimal number as it is written."""
    if isinstance(value, bytes):
        raise UnreadableError(f" holds bytes, expected text: {value[:20]!r}")
    return str(value)


def _counted(rows: Iterator[Row], wanted: Sequence[str]) -> Iterator[list[Any]]:
    """The wanted values of each row; UnreadableError where there are too many."""
    chars = 0
    for number, row in enumerate(rows, 1):
        values = [row.get(name) for name in wanted]
        chars += sum(map(_size, values))
        if number > MOST_ROWS or chars > MOST_TEXT_CHARS:
            raise UnreadableError(f" holds more than {MOST_ROWS} rows or {MOST_TEXT_CHARS} characters: split it")
        yield values


def _size(value: object) -> int:
    """Characters of a text, or of a list or object as it is written."""
    if isinstance(value, str):
        return len(value)
    return len(json.dumps(value, default=_as_text)) if isinstance(value, list | dict) else 0


def _rows(path: Path, wanted: Sequence[str], columns: Columns) -> Iterator[Row]:
    """The rows of a file, with the wanted columns at least; `columns` gets the names of all."""
    if path.is_dir():
        yield from _dataset(path, wanted, columns)
        return
    _check_size(path.stat().st_size)
    if path.suffix == ".parquet":
        yield from _parquet(path, wanted, columns)
        return
    read = {".csv": _csv, ".jsonl": _json_lines, ".json": _json}[path.suffix]
    with path.open(encoding="utf-8-sig" if path.suffix == ".csv" else "utf-8", newline="") as file:
        for row in read(file):
            columns.update(dict.fromkeys(row))
            yield row


def _check_size(size: int) -> None:
    if size > MOST_FILE_BYTES:
        raise UnreadableError(f" has {size} bytes, expected {MOST_FILE_BYTES} at most: split it")


def _text_lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(MOST_LINE_CHARS + 1):
        if len(line) > MOST_LINE_CHARS:
            raise UnreadableError(f" has a line of more than {MOST_LINE_CHARS} characters: it is no file of prompts")
        yield line


def _json_lines(file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(_text_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f", line {number}, is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UnreadableError(f", line {number}, is not an object")
        yield row


def _json(file: TextIO) -> Iterator[Row]:
    rows = json.load(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnreadableError(" is not a list of objects")
    yield from rows


def _csv(file: TextIO) -> Iterator[Row]:
    csv.field_size_limit(MOST_LINE_CHARS)
    reader = csv.DictReader(_text_lines(file), strict=True)
    for row in reader:
        if None in row or None in row.values():
            cells = len(reader.fieldnames or ())
            raise UnreadableError(f", line {reader.line_num}, has not the {cells} cells of the header")
        yield row


def _parquet(path: Path, wanted: Sequence[str], columns: Columns) -> Iterator[Row]:
    import pyarrow.parquet as pq

    # Not by way of pandas, which makes 42 beside an empty cell 42.0.
    file = pq.ParquetFile(path)
    columns.update(dict.fromkeys(file.schema_arrow.names))
    if file.metadata.num_rows > MOST_ROWS:
        raise UnreadableError(f" holds {file.metadata.num_rows} rows, more than {MOST_ROWS} rows: split it")
    for batch in file.iter_batches(_BATCH_ROWS, columns=[name for name in wanted if name in columns]):
        batch.validate(full=True)
        yield from batch.to_pylist() or [{}] * batch.num_rows


def _dataset(path: Path, wanted: Sequence[str], columns: Columns) -> Iterator[Row]:
    """The rows of one split that the library `datasets` has saved: Arrow streams, and their names in `state.json`."""
    import pyarrow as pa

    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        raise UnreadableError(f" holds several splits ({', '.join(map(str, splits))}): name one of its folders")
    names = [
        str(part["filename"]) for part in json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
    ]
    for name in names:
        if Path(name).name != name or not (path / name).is_file():
            raise UnreadableError(f" names the file {name!r} (state.json), expected one in the folder")
    _check_size(sum((path / name).stat().st_size for name in names))
    for name in names:
        with (path / name).open("rb") as file:
            file.seek(-len(_END_OF_ARROW), 2)
            if file.read() != _END_OF_ARROW:
                raise UnreadableError(f" is cut off: {name} does not end as Arrow streams do")
        schema = pa.ipc.open_stream(pa.OSFile(str(path / name))).schema
        columns.update(dict.fromkeys(schema.names))
        options = pa.ipc.IpcReadOptions(included_fields=[i for i, name in enumerate(schema.names) if name in wanted])
        for batch in pa.ipc.open_stream(pa.OSFile(str(path / name)), options=options):
            batch.validate(full=True)
            yield from batch.to_pylist()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
