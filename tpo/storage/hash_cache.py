"""Hashes of large files that were read before, so that no start reads 140 GB of a judge to see that it is the same.

In: a file. Out: the SHA-256 of its content, from the user's cache (`$XDG_CACHE_HOME/tpo/hashes.json`) where the file is
the one that was read: the same device, inode, size, and times of the last write and of the last change, by which git
too knows a file again.

A change of content that leaves all of these alone is not noticed. A write can't do that, since it sets the time of
change, which no user can set; but that clock is coarse, so a file is remembered only after it has been at rest.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tpo.errors import StoreError
from tpo.storage.disk import fill_atomically

AT_REST_SECONDS = 5.0
"""Age of the last change at which a file is remembered."""


def known_sha256(path: Path, read: Callable[[Path], str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal; `read` finds it where it is not known."""
    version, name = _version(path), str(path.resolve())
    if (known := _remembered().get(name)) is not None and known[0] == version:
        return str(known[1])
    digest = read(path)
    if version == _version(path) and time.time() - version[-1] / 1e9 >= AT_REST_SECONDS:
        _remember({name: [version, digest]})
    return digest


def _version(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tpo" / "hashes.json"


def _remembered() -> Mapping[str, tuple[list[int], str]]:
    """What was read before, by path; nothing of it where the file is not as it was written."""
    try:
        values: Any = json.loads(_file().read_bytes())
    except (OSError, RuntimeError, ValueError):  # where nobody has a home, Path says so by RuntimeError
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: (entry[0], entry[1]) for name, entry in values.items() if isinstance(entry, list) and len(entry) == 2}


def _remember(entry: Mapping[str, Any]) -> None:
    """Adds to what is known. Where there is no cache to be had, or another process writes too, it is read again."""
    with contextlib.suppress(OSError, RuntimeError, StoreError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps({**_remembered(), **entry}).encode()
        fill_atomically(_file(), lambda temporary: temporary.write_bytes(data))
