"""A journal of what a stage was told, a line as it comes, for answers that cost too much to be asked twice.

In: keys and values that JSON can hold. Out: the same again after a crash. `Lines` is the file beneath it, which the
ledger (`tpo.storage.ledger`) is too. Each line ends with a checksum. A line that was being written when the process
died, or that is no longer what was written, is dropped and its question asked again. Every line reaches the operating
system at once, so that a killed process loses nothing, and the disk within a second, for what a power cut takes is a
second's answers.
"""

import json
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from tpo.console import say
from tpo.storage.disk import append, explained, settle, settle_grown, sync, write_atomically

SYNC_SECONDS = 1.0
JOURNALS = "journal-*.jsonl"
"""The journals in a stage's folder."""


class Lines:
    """A file of JSON values, a line each with a checksum, that is only ever added to; it is there from the first on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._synced = time.monotonic()

    def write(self, value: Any) -> None:
        """Adds a line: the operating system has it when this returns, the disk within a second of further lines."""
        if self._file is None:
            with explained(self._path):
                sys.audit("tpo.append", str(self._path), b"")
                self._file = self._path.open("ab")
            sync(self._path.parent)
        append(self._file, _line(value))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            settle_grown(self._path)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Has the disk hold what was written."""
        if self._file is not None:
            self._file.close()
            self._file = None
            settle(self._path)


class Journal:
    """Answers by key, on disk as they come; `written` is told how many there are."""

    def __init__(self, path: Path, written: Callable[[int], None] = lambda answers: None) -> None:
        self._path = path
        self._lines = Lines(path)
        self._written = written
        found = read_journal(path)
        self._answers = dict(found.answers)
        if found.dropped:
            say(f"{path}: {found.dropped} damaged lines, asked again")
            write_lines(path, [*self._answers.items()])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()

    @property
    def answers(self) -> Mapping[str, Any]:
        """Everything written so far, by this process or one before it."""
        return self._answers

    def write(self, key: str, answer: Any) -> None:
        """Adds one answer."""
        self._lines.write([key, answer])
        self._answers[key] = answer
        self._written(len(self._answers))

    def forget(self, keys: Iterable[str]) -> None:
        """Takes answers out, so that they are asked for again."""
        self._lines.close()
        for key in keys:
            self._answers.pop(key, None)
        write_lines(self._path, [*self._answers.items()])


@dataclass(frozen=True)
class Found:
    """What a journal holds."""

    answers: Mapping[str, Any]
    """Answers by key."""
    dropped: int
    """Lines that are not what was written, a last one that was cut included."""


def read_journal(path: Path) -> Found:
    """What stands in the journal at `path`; nothing where there is no file."""
    found = read_lines(path)
    return Found(dict(found.values), found.dropped)


@dataclass(frozen=True)
class FoundLines:
    """What a file of lines holds."""

    values: Sequence[Any]
    """The values, in order."""
    dropped: int
    """Lines that are not what was written, a last one that was cut included."""


def read_lines(path: Path) -> FoundLines:
    """What stands in the file at `path`; nothing where there is no file."""
    values: list[Any] = []
    dropped = 0
    if path.exists():
        with explained(path):
            lines = path.read_bytes().split(b"\n")
        for line in lines[:-1]:
            text, _, checksum = line.rpartition(b" ")
            if checksum == _checksum(text):
                values.append(json.loads(text))
            else:
                dropped += 1
        dropped += bool(lines[-1])
    return FoundLines(values, dropped)


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Puts a file with these lines, and no others, in the place of the one at `path`."""
    write_atomically(path, b"".join(map(_line, values)))


def _line(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return text + b" " + _checksum(text) + b"\n"


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
