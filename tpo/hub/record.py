"""Records of downloads: one for each pinned address, written once all its files are there and verified."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpo.config.hub import HubAddress, hub_folder
from tpo.storage.disk import make_folder, write_atomically


@dataclass(frozen=True)
class Fetched:
    """An address that was resolved or downloaded."""

    written: str
    """The address in the config."""
    address: str
    """The same with a commit."""
    revision: str
    """The branch or tag that was at that commit, or the commit itself."""
    lacking: int
    """Bytes that the cache lacked."""
    size: int
    """Bytes in all."""
    free: int
    """Free bytes on the cache's disk."""


@dataclass(frozen=True)
class Download:
    """A download from the hub, for a plan."""

    keys: Sequence[str]
    """The settings that name it."""
    address: str
    """Its address, with the commit if known."""
    lacking: int
    """Bytes that aren't on this machine."""
    size: int
    """Bytes in all."""
    free: int
    """Free bytes on the cache's disk."""


def is_complete(address: HubAddress) -> bool:
    """Whether all files of a pinned address are on this machine, judging by their sizes."""
    try:
        files: dict[str, int] = json.loads(_record(address).read_text(encoding="utf-8"))["files"]
        return bool(files) and all((address.folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_record(address: HubAddress, files: dict[str, int]) -> None:
    """Records that an address is complete, with the sizes of its files by name."""
    path = _record(address)
    make_folder(path.parent)
    write_atomically(path, (json.dumps({"address": str(address), "files": files}, indent=1) + "\n").encode())


def _record(address: HubAddress) -> Path:
    """The record's path, outside the address's folder, which only contains the model or the data."""
    below = address.folder.relative_to(hub_folder()).as_posix().rstrip("/")
    return hub_folder() / "fetched" / f"{below}.json"
