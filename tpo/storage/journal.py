"""A journal of replies that are too expensive to request twice, one line as each arrives.

It maps keys to JSON values. `Lines` is the underlying file, which the ledger (`tpo.storage.ledger`) uses, too. Each
line ends with a checksum. A line that was truncated by a crash or altered is dropped, and its request repeated. Every
line reaches the operating system at once, so a killed process loses nothing, and the disk within a second, so a power
cut costs a second's replies.
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
from tpo.storage.disk import append, explained, settle, settle_appended, sync, write_atomically

SYNC_SECONDS = 1.0
JOURNALS = "journal-*.jsonl"
"""The journals in a stage's folder."""


class Lines:
    """An append-only file of JSON values, one per line with a checksum; it exists from the start."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._clock = clock
        self._synced = clock()

    def write(self, value: Any) -> None:
        """Appends a line: the operating system has it when this returns, the disk within a second of writing."""
        if self._file is None:
            with explained(self._path):
                sys.audit("tpo.append", str(self._path), b"")
                self._file = self._path.open("ab")
            sync(self._path.parent)
        append(self._file, _line(value))
        if self._clock() - self._synced > SYNC_SECONDS:
            settle_appended(self._path)
            self._synced = self._clock()

    def close(self) -> None:
        """Flushes everything written to disk."""
        if self._file is not None:
            self._file.close()
            self._file = None
            settle(self._path)


class Journal:
    """Replies by key, stored as they arrive; `written` receives their number."""

    def __init__(
        self,
        path: Path,
        written: Callable[[int], None] = lambda answers: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._lines = Lines(path, clock=clock)
        self._written = written
        found = read_journal(path)
        self._answers = dict(found.answers)
        if found.dropped:
            say(f"{path}: {found.dropped} damaged lines, whose requests are repeated")
            write_lines(path, [*self._answers.items()])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()

    @property
    def answers(self) -> Mapping[str, Any]:
        """Everything written so far, by this process or an earlier one."""
        return self._answers

    def write(self, key: str, answer: Any) -> None:
        """Adds one reply."""
        self._lines.write([key, answer])
        self._answers[key] = answer
        self._written(len(self._answers))

    def forget(self, keys: Iterable[str]) -> None:
        """Removes replies, so that they are requested again."""
        self._lines.close()
        for key in keys:
            self._answers.pop(key, None)
        write_lines(self._path, [*self._answers.items()])


class JournalPart(Journal):
    """The replies of one of several that share a journal, whose keys may be the same: those under its name."""

    def __init__(self, whole: Journal, name: str) -> None:
        self._whole, self._prefix = whole, f"{name} "

    @property
    def answers(self) -> Mapping[str, Any]:
        """As in `Journal`, by their keys without the name."""
        prefix = self._prefix
        return {key[len(prefix) :]: answer for key, answer in self._whole.answers.items() if key.startswith(prefix)}

    def write(self, key: str, answer: Any) -> None:
        """Adds one reply."""
        self._whole.write(self._prefix + key, answer)

    def forget(self, keys: Iterable[str]) -> None:
        """Removes replies, so that they are requested again."""
        self._whole.forget([self._prefix + key for key in keys])


class JournalByPrompt(Journal):
    """Several journals as one, each with the replies about some prompts, whose ids their keys begin with.

    Args:
        journals: The journal of each prompt.
        written: Called after each reply is written; may raise to end the work.
    """

    def __init__(self, journals: Mapping[str, Journal], written: Callable[[], None]) -> None:
        self._of_prompt, self._after = journals, written

    @property
    def answers(self) -> Mapping[str, Any]:
        """As in `Journal`."""
        parts = {id(journal): journal for journal in self._of_prompt.values()}
        return {key: answer for journal in parts.values() for key, answer in journal.answers.items()}

    def write(self, key: str, answer: Any) -> None:
        """Adds one reply."""
        self._of_prompt[key.partition(" ")[0]].write(key, answer)
        self._after()

    def forget(self, keys: Iterable[str]) -> None:
        """Removes replies, so that they are requested again."""
        for key in keys:
            self._of_prompt[key.partition(" ")[0]].forget([key])


@dataclass(frozen=True)
class Found:
    """The content of a journal."""

    answers: Mapping[str, Any]
    """Replies by key."""
    dropped: int
    """Number of damaged lines, including a last one that was cut."""


def read_journal(path: Path) -> Found:
    """The content of the journal at `path`; empty if there is no file."""
    found = read_lines(path)
    return Found(dict(found.values), found.dropped)


@dataclass(frozen=True)
class FoundLines:
    """The content of a file of lines."""

    values: Sequence[Any]
    """The values, in order."""
    dropped: int
    """Number of damaged lines, including a last one that was cut."""


def read_lines(path: Path) -> FoundLines:
    """The content of the file at `path`; empty if there is no file."""
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
    """Replaces the file at `path` by one with exactly these lines."""
    write_atomically(path, b"".join(map(_line, values)))


def _line(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return text + b" " + _checksum(text) + b"\n"


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
