"""What has been fetched: a record for each pinned address, written once all of its files are there and checked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpo.config.hub import HubAddress, hub_folder
from tpo.storage.disk import make_folder, write_atomically


@dataclass(frozen=True)
class Fetched:
    """What became of an address."""

    written: str
    """The address as the config has it."""
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
    """What a run takes from the hub, for a plan."""

    keys: Sequence[str]
    """The settings that name it."""
    address: str
    """Its address, with the commit if that is known."""
    lacking: int
    """Bytes that aren't on this machine."""
    size: int
    """Bytes in all."""
    free: int
    """Free bytes on the disk that they come to."""


def is_complete(address: HubAddress) -> bool:
    """Whether everything that a pinned address means is on this machine, as far as files' sizes tell."""
    try:
        files: dict[str, int] = json.loads(_record(address).read_text(encoding="utf-8"))["files"]
        return bool(files) and all((address.folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_record(address: HubAddress, files: dict[str, int]) -> None:
    """Notes that these files, by their names in the address's folder, are all there."""
    path = _record(address)
    make_folder(path.parent)
    write_atomically(path, (json.dumps({"address": str(address), "files": files}, indent=1) + "\n").encode())


def _record(address: HubAddress) -> Path:
    """A file outside the address's folder, whose content is that of the model or the data alone."""
    below = address.folder.relative_to(hub_folder()).as_posix().rstrip("/")
    return hub_folder() / "fetched" / f"{below}.json"
