"""A journal of what a stage was told, a line as it comes, for answers that cost too much to be asked twice.

In: keys and values that JSON can hold. Out: the same again after a crash. A line that was being written when the
process died is dropped, and its question asked again. Every line reaches the operating system at once, so that a
killed process loses nothing, and the disk within a second, for what a power cut takes is a second's answers.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

SYNC_SECONDS = 1.0
JOURNALS = "journal-*.jsonl"
"""The journals in a stage's folder."""


class Journal:
    """Answers by key, on disk as they come; `written` is told how many there are."""

    def __init__(self, path: Path, written: Callable[[int], None] = lambda answers: None) -> None:
        self._path = path
        self._written = written
        found = read_journal(path)
        self._answers, self._whole_bytes = dict(found.answers), found.whole_bytes
        self._file: BinaryIO | None = None
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    @property
    def answers(self) -> Mapping[str, Any]:
        """Everything written so far, by this process or one before it."""
        return self._answers

    def write(self, key: str, answer: Any) -> None:
        """Adds one answer."""
        if self._file is None:
            self._file = self._path.open("ab")
            self._file.truncate(self._whole_bytes)
        self._file.write(json.dumps([key, answer], ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self._answers[key] = answer
        self._written(len(self._answers))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()


@dataclass(frozen=True)
class Found:
    """What a journal holds."""

    answers: Mapping[str, Any]
    """Answers by key."""
    whole_bytes: int
    """Bytes up to the end of the last whole line."""


def read_journal(path: Path) -> Found:
    """What stands in the journal at `path`, up to a line that was cut; nothing where there is no file."""
    answers: dict[str, Any] = {}
    whole_bytes = 0
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                key, answers[key] = json.loads(line)
                whole_bytes += len(line)
    return Found(answers, whole_bytes)
