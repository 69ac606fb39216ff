"""A cache of large files' hashes, so that a start doesn't read 140 GB of a judge just to recognize it.

Hashes are in the user's cache folder (`$XDG_CACHE_HOME/tpo/hashes.json`). As in git, a file counts as unchanged if its
device, inode, size, modification time and change time are the same. Writing always updates the change time, which users
can't set; but that clock is coarse, so a file is only cached once it hasn't changed for a while.
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
"""Minimum age of the last change, in seconds, before a file is cached."""


def known_sha256(path: Path, read: Callable[[Path], str], *, at_rest_seconds: float = AT_REST_SECONDS) -> str:
    """The SHA-256 of a file's content, in hexadecimal; `read` computes it if it isn't cached."""
    version, name = _version(path), str(path.resolve())
    if (known := _remembered().get(name)) is not None and known[0] == version:
        return str(known[1])
    digest = read(path)
    if version == _version(path) and time.time() - version[-1] / 1e9 >= at_rest_seconds:
        _remember({name: [version, digest]})
    return digest


def _version(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tpo" / "hashes.json"


def _remembered() -> Mapping[str, tuple[list[int], str]]:
    """The cached entries by path; empty if the cache file is damaged."""
    try:
        values: Any = json.loads(_file().read_bytes())
    except (OSError, RuntimeError, ValueError):  # Path raises RuntimeError if the user has no home.
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: (entry[0], entry[1]) for name, entry in values.items() if isinstance(entry, list) and len(entry) == 2}


def _remember(entry: Mapping[str, Any]) -> None:
    """Adds an entry. Without a usable cache, or with concurrent writers, the file is simply read again next time."""
    with contextlib.suppress(OSError, RuntimeError, StoreError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps({**_remembered(), **entry}).encode()
        fill_atomically(_file(), lambda temporary: temporary.write_bytes(data))
