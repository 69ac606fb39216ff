"""Checkpoints of a training in progress: sealed when they are complete, and found again after a crash.

The trainer writes a checkpoint file by file into `trainer/` of a training stage. When all files are on disk, a seal
next to the folder names each with its size and hash; a folder without a seal, or different from its seal, is never
read. (Optimizer, scheduler, random state and the shards of a spread model are pickles; they are loaded with
`weights_only`, so that no code in them runs.) A finished epoch's model is written under a temporary name and renamed. A
checkpoint counts only if the models of all epochs before it exist.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo.storage.disk import bring_here, move, remove, settle, sync, write_atomically
from tpo.storage.store import sha256_of_each


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    """The trainer's own files."""
    step: int
    """Optimizer steps done."""
    epochs: int
    """Epochs finished."""


class Pace:
    """The time of the next checkpoint: far enough from the last that saving takes no more than its share of the time.

    The first is due at once: it shows how long saving takes, and a training that is killed repeatedly still makes
    progress.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._due = clock()

    def due(self) -> bool:
        """Whether to save now."""
        return self._clock() >= self._due

    def saved(self, seconds: float) -> None:
        """Registers a save that took some seconds and ends now."""
        self._due = self._clock() + seconds / self._share


def trainer_folder(folder: Path) -> Path:
    """The trainer's folder for checkpoints; deleted when the stage is complete."""
    return folder / "trainer"


def references_of(folder: Path) -> Path:
    """The reference's log-probabilities of the rows, once they are computed; deleted when the stage is complete."""
    return folder / "dataset" / "references.safetensors"


def epoch_folder(folder: Path, epoch: int) -> Path:
    """The model of an epoch, once it is complete."""
    return folder / f"epoch_{epoch}"


def tidy(folder: Path) -> Checkpoint | None:
    """The checkpoint to resume from, or None; later files are removed, and training remakes them."""
    bring_here(trainer_folder(folder))
    found = [_checkpoint(path) for path in trainer_folder(folder).glob("checkpoint-*") if path.is_dir()]
    whole = [checkpoint for checkpoint in found if checkpoint is not None and _has_epochs(folder, checkpoint)]
    newest = max(whole, key=lambda checkpoint: checkpoint.step, default=None)
    keep_only(folder, newest)
    finished = newest.epochs if newest else 0
    kept = {epoch_folder(folder, epoch) for epoch in range(1, finished + 1)}
    for path in {*folder.glob("epoch_*"), *folder.glob(".*.tmp")} - kept:
        remove(path)
    return newest


def keep_only(folder: Path, checkpoint: Checkpoint | None) -> None:
    """Removes all checkpoints but one, each one's seal first, so that half a checkpoint never looks complete."""
    kept = {checkpoint.folder, _seal(checkpoint.folder)} if checkpoint else set()
    for path in sorted(trainer_folder(folder).glob("checkpoint-*"), key=lambda path: path.is_dir()):
        if path not in kept:
            remove(path)


def seal_checkpoint(path: Path, *, step: int, epochs: int) -> Checkpoint:
    """Flushes a checkpoint to disk and seals it."""
    seal(path, step=step, epochs=epochs)
    return Checkpoint(path, step, epochs)


def seal(path: Path, **facts: int) -> None:
    """Flushes a file, or a folder with its files, and writes a seal next to it."""
    _settle_all(path)
    write_atomically(_seal(path), json.dumps({**facts, "files": _contents(path)}).encode())


def sealed(path: Path) -> dict[str, Any] | None:
    """The seal of a file or folder, if it still matches."""
    try:
        facts = json.loads(_seal(path).read_text(encoding="utf-8"))
        files = facts.pop("files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return facts if files == _contents(path) else None


def publish(temporary: Path, place: Path) -> None:
    """Moves a folder to its final place atomically; an existing one stays."""
    _settle_all(temporary)
    if place.exists():
        remove(temporary)
    else:
        move(temporary, place)


def _checkpoint(path: Path) -> Checkpoint | None:
    facts = sealed(path)
    return Checkpoint(path, facts["step"], facts["epochs"]) if facts else None


def _has_epochs(folder: Path, checkpoint: Checkpoint) -> bool:
    return all(epoch_folder(folder, epoch).is_dir() for epoch in range(1, checkpoint.epochs + 1))


def _contents(path: Path) -> list[list[object]]:
    files = _files(path)
    return [
        [file.relative_to(path).as_posix(), file.stat().st_size, sha256]
        for file, sha256 in zip(files, sha256_of_each(files), strict=True)
    ]


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _settle_all(path: Path) -> None:
    for file in _files(path):
        settle(file)
    for folder in sorted({file.parent for file in _files(path)} | {path.parent}):
        sync(folder)


def _seal(path: Path) -> Path:
    return path.with_name(f"{path.name}.seal.json")
