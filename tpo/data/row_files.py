"""Reader of rows from untrusted files, in a subprocess with limits on memory and time.

A file of a kilobyte can unpack to a terabyte (one long text, repeated a million times by reference; compressed zeros),
and a parser in C can crash on a damaged one: that only ends this subprocess. It is started as a script and imports none
of our code.

A Hugging Face dataset is read directly from its Arrow files, without its library, which instantiates any class that the
folder names. Extension types, including pickled ones, are read as their storage type. Of a dataset's features, only
class labels are used: their numbers become names.

A folder of files of one kind is read as one file, in the order of their names, if they are parts of one split and none
is missing.
"""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TextIO

KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings of files that can be read, in upper or lower case."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Further endings that text files may have."""
MAX_FILE_BYTES = 1 << 30
"""Maximum size of a file, also unpacked, or of a folder's files together."""
MAX_ROWS = 2_000_000
"""Maximum number of rows in a file."""
MAX_TEXT_CHARS = 1 << 28
"""Maximum number of characters in the requested columns, together."""
MAX_LINE_CHARS = 1 << 24
"""Maximum number of characters in one line of a text file."""
MEMORY_BYTES = 4 << 30
"""Limit on the address space of the reading process, in bytes."""
SECONDS = 300
"""Limit on the CPU time of the reading process, in seconds."""
WALL_SECONDS = 6 * SECONDS
"""Limit on its wall time, in seconds; generous, since the disk or machine may be slow."""

Row = dict[str, Any]
Columns = dict[str, None]

_END_OF_ARROW = b"\xff\xff\xff\xff\0\0\0\0"
_BATCH_ROWS = 256
_ENCODINGS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Encodings by byte order mark; a file without one is UTF-8."""
_PART = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
"""File name of a part of a split, as datasets are published."""
_SPLITS = {"train", "training", "validation", "valid", "val", "dev", "test"}
_ABOUT = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}
"""Metadata files next to data files."""


class UnreadableError(Exception):
    """A file can't be read; the message follows its path."""


def main(path: Path, wanted: Sequence[str]) -> None:
    """Writes a line of JSON for each row, a list of the requested values in order, and a last one about the file.

    The last line is an object: `columns`, or `fault` if the file can't be read.
    """
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
        last = {"fault": " cannot be read: it is nested too deeply"}
    except Exception as error:  # noqa: BLE001 - parsers can raise anything
        last = {"fault": f" cannot be read: {error}"[:2000]}
    sys.stdout.write(json.dumps(last) + "\n")


def _as_text(value: object) -> str:
    """A date or decimal number as text."""
    if isinstance(value, bytes):
        raise UnreadableError(f" contains bytes, expected text: {value[:20]!r}")
    return str(value)


def kind_of(name: str) -> tuple[str, str]:
    """A file name's endings for its format and its compression; both empty if the format isn't supported."""
    stem, compression = name.lower(), ""
    for ending in COMPRESSED:
        if stem.endswith(ending):
            stem, compression = stem.removesuffix(ending), ending
    kind = next((kind for kind in KINDS if stem.endswith(kind)), "")
    return ("", "") if compression and kind in ("", ".parquet") else (kind, compression)


def parts_of(folder: Path) -> list[Path]:
    """The data files in a folder, sorted by name."""
    visible = (path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    return sorted(path for path in visible if path.name not in _ABOUT and kind_of(path.name)[0] and path.is_file())


def _counted(rows: Iterator[Row], wanted: Sequence[str]) -> Iterator[list[Any]]:
    """The wanted values of each row; raises `UnreadableError` if there are too many."""
    chars = 0
    for number, row in enumerate(rows, 1):
        values = [_value(row, name) for name in wanted]
        chars += sum(map(_size, values))
        if number > MAX_ROWS or chars > MAX_TEXT_CHARS:
            raise UnreadableError(f" has more than {MAX_ROWS} rows or {MAX_TEXT_CHARS} characters: split it")
        yield values


def _size(value: object) -> int:
    """Length in characters of a text, or of a list or object as JSON."""
    if isinstance(value, str):
        return len(value)
    return len(json.dumps(value, default=_as_text)) if isinstance(value, list | dict) else 0


def _value(row: Row, name: str) -> Any:
    """A row's value in a column or a nested field, such as `reward_model.ground_truth`."""
    if name in row or "." not in name:
        return row.get(name)
    value: Any = row
    for field in name.split("."):
        if value is None:
            return None
        if value is not row and not (isinstance(value, dict) and field in value):
            fields = (
                f"the fields are {', '.join(map(repr, value))}" if isinstance(value, dict) else f"it is {value!r:.40}"
            )
            raise UnreadableError(f" has no field {name!r} in some row: {fields}")
        value = value.get(field)
    return value


def _rows(path: Path, wanted: Sequence[str], columns: Columns) -> Iterator[Row]:
    """The rows of a file or folder, with at least the wanted columns; adds the names of all columns to `columns`."""
    if not path.is_dir():
        _check_size(path.stat().st_size)
        yield from _file_rows(path, wanted, columns)
    elif any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        yield from _dataset(path, wanted, columns)
    else:
        yield from _folder_rows(path, wanted, columns)


def _folder_rows(path: Path, wanted: Sequence[str], columns: Columns) -> Iterator[Row]:
    """The rows of all files in a folder, which must be parts of one dataset."""
    parts = parts_of(path)
    _check_parts([part.name for part in parts])
    _check_size(sum(part.stat().st_size for part in parts))
    for part in parts:
        own: Columns = {}
        try:
            yield from _file_rows(part, wanted, own)
        except UnreadableError as error:
            raise UnreadableError(f"/{part.name}{error}") from error
        except (MemoryError, RecursionError):
            raise
        except Exception as error:
            raise UnreadableError(f"/{part.name} cannot be read: {error}") from error
        if lost := [name for name in wanted if name in columns and name not in own and own]:
            raise UnreadableError(f"/{part.name} has no column {lost[0]!r}, which earlier files have")
        columns.update(own)


def _check_parts(names: Sequence[str]) -> None:
    kinds = sorted({kind_of(name)[0] for name in names})
    if len(kinds) > 1:
        raise UnreadableError(f" has files in several formats ({', '.join(kinds)}): name one of them")
    parts = [_PART.match(name) for name in names]
    splits = {part["split"] for part in parts if part}
    splits |= {stem for name in names if (stem := name.split(".")[0].lower()) in _SPLITS}
    if len(splits) > 1:
        raise UnreadableError(
            f" has several splits ({', '.join(sorted(splits))}): name one file, or put each split in its own folder"
        )
    numbers = {int(part["number"]) for part in parts if part}
    counts = {int(part["count"]) for part in parts if part}
    if counts and (len(counts) > 1 or numbers != set(range(min(counts)))):
        raise UnreadableError(f" has {len(numbers)} of {max(counts)} parts: download the missing ones")


def _file_rows(path: Path, wanted: Sequence[str], columns: Columns) -> Iterator[Row]:
    kind, compression = kind_of(path.name)
    if kind == ".parquet":
        yield from _parquet(path, wanted, columns)
        return
    read = {".csv": _csv, ".tsv": _tsv, ".json": _json}.get(kind, _json_lines)
    try:
        with _unpacked(path, compression) as packed, io.BufferedReader(_Limited(packed)) as data:
            start = data.peek(4)[:4]
            encoding = next((name for mark, name in _ENCODINGS.items() if start.startswith(mark)), "utf-8")
            if encoding == "utf-8" and b"\0" in start:
                raise UnreadableError(" contains NUL bytes and may be UTF-16: save it as UTF-8")
            with io.TextIOWrapper(data, encoding=encoding, newline="") as file:
                for row in read(file):
                    columns.update(dict.fromkeys(row))
                    yield row
    except UnicodeDecodeError as error:
        raise UnreadableError(f" cannot be read: {error}; save it as UTF-8 (iconv -t UTF-8)") from error
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, OSError) as error:
        packed_as = f" ({compression})" if compression else ""
        raise UnreadableError(f" cannot be read{packed_as}: {error}") from error


def _unpacked(path: Path, compression: str) -> "contextlib.AbstractContextManager[IO[bytes]]":
    if compression == ".zst":
        import pyarrow as pa

        return contextlib.closing(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    opened: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return opened[compression](path, "rb") if compression else path.open("rb")


class _Limited(io.RawIOBase):
    """A stream cut off by an error at the maximum file size: a kilobyte can unpack to a terabyte."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left = MAX_FILE_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._stream.read(min(len(buffer), 1 << 20))
        self._left -= len(found)
        if self._left < 0:
            raise UnreadableError(f" unpacks to more than {MAX_FILE_BYTES} bytes: split it")
        buffer[: len(found)] = found
        return len(found)


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UnreadableError(f" has {size} bytes, expected at most {MAX_FILE_BYTES}: split it")


def _text_lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_LINE_CHARS + 1):
        if len(line) > MAX_LINE_CHARS:
            raise UnreadableError(f" has a line of more than {MAX_LINE_CHARS} characters: it is not a data file")
        yield line


def _json_lines(file: TextIO) -> Iterator[Row]:
    first = True
    for number, line in enumerate(_text_lines(file), 1):
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            yield from _list_of_objects(line + file.read())
            return
        first = False
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnreadableError(f", line {number}, is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UnreadableError(f", line {number}, is not an object")
        yield row


def _json(file: TextIO) -> Iterator[Row]:
    """A list of objects, or one object per line, as such files often contain."""
    text = file.read()
    try:
        yield from _list_of_objects(text)
    except json.JSONDecodeError as error:
        if not text.lstrip().startswith("{") or error.msg != "Extra data":
            raise
        yield from _json_lines(io.StringIO(text, newline=""))


def _list_of_objects(text: str) -> list[Row]:
    held = json.loads(text)
    if isinstance(held, list) and all(isinstance(row, dict) for row in held):
        return held
    hint = ""
    if isinstance(held, dict):
        lists = [name for name, value in held.items() if isinstance(value, list) and value]
        hint = f": keep only its list {lists[0]!r}" if lists and isinstance(held[lists[0]][0], dict) else hint
        if held and all(isinstance(value, dict) for value in held.values()):
            hint = ', but an object of columns: write it row by row (in pandas, orient="records")'
    raise UnreadableError(f" is not a list of objects{hint}")


def _csv(file: TextIO) -> Iterator[Row]:
    return _separated(file, ",")


def _tsv(file: TextIO) -> Iterator[Row]:
    return _separated(file, "\t")


def _separated(file: TextIO, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_CHARS)
    reader = csv.DictReader(_text_lines(file), strict=True, delimiter=delimiter)
    header = reader.fieldnames or ()
    if len(header) == 1 and (other := next((mark for mark in ";\t,|" if mark in header[0]), None)):
        raise UnreadableError(
            f" has one column, {header[0]!r}: its cells are separated by {other!r}, expected {delimiter!r} (commas in "
            ".csv, tabs in .tsv)"
        )
    for row in reader:
        if None in row or None in row.values():
            raise UnreadableError(
                f", line {reader.line_num}, does not have as many cells as the header ({len(header)})"
            )
        yield row


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Names of class labels by column, in the order of their numbers, as the library `datasets` records them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}
    return {name: names for name, names in labels.items() if isinstance(names, list)}


def _named(rows: Sequence[Row], class_names: dict[str, list[str]]) -> Sequence[Row]:
    """Replaces the numbers of class labels by names; the library writes -1 for no label."""
    for row in rows:
        for column, names in class_names.items():
            number = row.get(column)
            if not isinstance(number, int):
                continue
            if not -1 <= number < len(names):
                raise UnreadableError(f" has class {number} in column {column!r}, which has {len(names)} classes")
            row[column] = None if number == -1 else names[number]
    return rows


def _stored_names(wanted: Sequence[str], columns: Columns) -> list[str]:
    """The stored columns that contain the wanted ones, which may be fields within them."""
    stored = [name if name in columns else name.split(".")[0] for name in wanted]
    return [name for name in dict.fromkeys(stored) if name in columns]


def _parquet(path: Path, wanted: Sequence[str], columns: Columns) -> Iterator[Row]:
    import pyarrow.parquet as pq

    # Not with pandas, which turns 42 next to an empty cell into 42.0.
    file = pq.ParquetFile(path)
    columns.update(dict.fromkeys(file.schema_arrow.names))
    if file.metadata.num_rows > MAX_ROWS:
        raise UnreadableError(f" has {file.metadata.num_rows} rows, more than {MAX_ROWS}: split it")
    class_names = _class_names(file.schema_arrow)
    for batch in file.iter_batches(_BATCH_ROWS, columns=_stored_names(wanted, columns)):
        batch.validate(full=True)
        yield from _named(batch.to_pylist(), class_names) or [{}] * batch.num_rows


def _dataset(path: Path, wanted: Sequence[str], columns: Columns) -> Iterator[Row]:
    """The rows of one split saved by the library `datasets`: Arrow streams, listed in `state.json`."""
    import pyarrow as pa

    if (path / "dataset_dict.json").is_file():
        splits = [str(name) for name in json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]]
        if len(splits) != 1:
            raise UnreadableError(f" has several splits ({', '.join(splits)}): name one of its folders")
        path /= Path(splits[0]).name
    names = [
        str(part["filename"]) for part in json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
    ]
    for name in names:
        if Path(name).name != name or not (path / name).is_file():
            raise UnreadableError(f" names the file {name!r} in state.json, expected one in the folder")
    _check_size(sum((path / name).stat().st_size for name in names))
    for name in names:
        with (path / name).open("rb") as file:
            file.seek(-len(_END_OF_ARROW), 2)
            if file.read() != _END_OF_ARROW:
                raise UnreadableError(f" is truncated: {name} does not end like an Arrow stream")
        schema = pa.ipc.open_stream(pa.OSFile(str(path / name))).schema
        columns.update(dict.fromkeys(schema.names))
        stored, class_names = _stored_names(wanted, columns), _class_names(schema)
        options = pa.ipc.IpcReadOptions(included_fields=[i for i, name in enumerate(schema.names) if name in stored])
        for batch in pa.ipc.open_stream(pa.OSFile(str(path / name)), options=options):
            batch.validate(full=True)
            yield from _named(batch.to_pylist(), class_names)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
