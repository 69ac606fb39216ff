"""Checkpoints of a training under way: sealed when they are whole, and found again after a crash.

In: the folder of a training stage, with the trainer's own checkpoints in `trainer/`. Out: the newest one to go on from.

The trainer writes a checkpoint file by file into its place. When all of them are on the disk, a seal beside the folder
names each with its size and hash; what has no seal, or is not what its seal says, is never read. (Optimiser, schedule,
random state and the shards of a model that is spread over workers are pickles; they are loaded with `weights_only`, so
that no code in them runs.) A finished
epoch's model is written under a temporary name and renamed. A checkpoint counts only if the models of all epochs before
it are there.
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
    """A whole checkpoint."""

    folder: Path
    """The trainer's own files."""
    step: int
    """Optimiser steps done."""
    epochs: int
    """Epochs finished."""


class Pace:
    """When the next checkpoint is due: so long after the last that saving takes no more than its share of the time.

    The first is due at once: it shows what saving costs, and a training that is killed again and again still gets on.
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._clock = clock
        self._due = clock()

    def due(self) -> bool:
        """Whether to save now."""
        return self._clock() >= self._due

    def saved(self, seconds: float) -> None:
        """Takes note of a save that took some seconds and ends now."""
        self._due = self._clock() + seconds / self._share


def trainer_folder(folder: Path) -> Path:
    """Where the trainer keeps its checkpoints: scratch, gone when the stage is complete."""
    return folder / "trainer"


def epoch_folder(folder: Path, epoch: int) -> Path:
    """Where the model of an epoch stands, once it is whole."""
    return folder / f"epoch_{epoch}"


def tidy(folder: Path) -> Checkpoint | None:
    """The checkpoint to go on from, or None; what it does not build on is removed, so that it is made anew."""
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
    """Removes all checkpoints but one, each one's seal first: half of a checkpoint must not look whole."""
    kept = {checkpoint.folder, _seal(checkpoint.folder)} if checkpoint else set()
    for path in sorted(trainer_folder(folder).glob("checkpoint-*"), key=lambda path: path.is_dir()):
        if path not in kept:
            remove(path)


def seal_checkpoint(path: Path, *, step: int, epochs: int) -> Checkpoint:
    """Has the disk hold a checkpoint that the trainer has written, and says so in its seal."""
    seal(path, step=step, epochs=epochs)
    return Checkpoint(path, step, epochs)


def seal(path: Path, **facts: int) -> None:
    """Syncs a file, or a folder with all files in it, and writes down beside it what it is."""
    _settle_all(path)
    write_atomically(_seal(path), json.dumps({**facts, "files": _contents(path)}).encode())


def sealed(path: Path) -> dict[str, Any] | None:
    """What the seal of a file or folder says, if that is still so."""
    try:
        facts = json.loads(_seal(path).read_text(encoding="utf-8"))
        files = facts.pop("files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return facts if files == _contents(path) else None


def publish(temporary: Path, place: Path) -> None:
    """Puts a folder in its place, whole or not at all; what stands there already stays."""
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
