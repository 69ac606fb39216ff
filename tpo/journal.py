"""A journal of what a stage was told, a line as it comes, for answers that cost too much to be asked twice.

In: keys and values that JSON can hold. Out: the same again after a crash. Each line ends with a checksum. A line that
was being written when the process died, or that is no longer what was written, is dropped and its question asked
again. Every line reaches the operating system at once, so that a killed process loses nothing, and the disk within a
second, for what a power cut takes is a second's answers.
"""

import json
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from tpo.console import say
from tpo.disk import append, explained, sync, write_atomically

SYNC_SECONDS = 1.0
JOURNALS = "journal-*.jsonl"
"""The journals in a stage's folder."""


class Journal:
    """Answers by key, on disk as they come; `written` is told how many there are."""

    def __init__(self, path: Path, written: Callable[[int], None] = lambda answers: None) -> None:
        self._path = path
        self._written = written
        found = read_journal(path)
        self._answers = dict(found.answers)
        self._file: BinaryIO | None = None
        self._synced = time.monotonic()
        if found.dropped:
            say(f"{path}: {found.dropped} damaged lines, asked again")
            write_atomically(path, b"".join(_line(key, answer) for key, answer in self._answers.items()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            sync(self._path)

    @property
    def answers(self) -> Mapping[str, Any]:
        """Everything written so far, by this process or one before it."""
        return self._answers

    def write(self, key: str, answer: Any) -> None:
        """Adds one answer."""
        if self._file is None:
            with explained(self._path):
                sys.audit("tpo.append", str(self._path), b"")
                self._file = self._path.open("ab")
            sync(self._path.parent)
        append(self._file, _line(key, answer))
        self._answers[key] = answer
        self._written(len(self._answers))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            sync(self._path)
            self._synced = time.monotonic()


@dataclass(frozen=True)
class Found:
    """What a journal holds."""

    answers: Mapping[str, Any]
    """Answers by key."""
    dropped: int
    """Lines that are not what was written, a last one that was cut included."""


def read_journal(path: Path) -> Found:
    """What stands in the journal at `path`; nothing where there is no file."""
    answers: dict[str, Any] = {}
    dropped = 0
    if path.exists():
        with explained(path):
            lines = path.read_bytes().split(b"\n")
        for line in lines[:-1]:
            text, _, checksum = line.rpartition(b" ")
            if checksum == _checksum(text):
                key, answers[key] = json.loads(text)
            else:
                dropped += 1
        dropped += bool(lines[-1])
    return Found(answers, dropped)


def _line(key: str, answer: Any) -> bytes:
    text = json.dumps([key, answer]).encode()
    return text + b" " + _checksum(text) + b"\n"


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
