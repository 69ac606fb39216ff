"""Reads a model folder's small files, with limits on their size.

Sizes are checked before parsing, and nesting too deep for Python is an error like any other. All errors are
`InputError`s with what was found.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tpo.errors import InputError

MAX_CONFIG_BYTES = 4 << 20
"""Maximum size of a config or a chat template; published ones are kilobytes."""
MAX_VOCABULARY_BYTES = 128 << 20
"""Maximum size of a vocabulary or a tensor index; the largest published ones have 35 MB."""


LFS_POINTER = b"version https://git-lfs"
"""The beginning of a pointer that git leaves in place of a large file that it hasn't downloaded."""


def check_fetched(path: Path, start: bytes) -> None:
    """Raises `InputError` if a file, which begins with `start`, is only a Git LFS pointer."""
    if start.startswith(LFS_POINTER):
        raise InputError(
            f"{path} is a Git LFS pointer, not the file itself: run git lfs pull in the cloned folder, or download the "
            "model with hf download"
        )


def read_text(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> str:
    """The text in a file; raises `InputError` if it is larger than `max_bytes` or isn't UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes, expected at most {max_bytes}: it isn't a model file"
            )
        check_fetched(path, content)
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable: {error}") from error


def read_json(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file."""
    if not path.exists():
        return {}
    text = read_text(path, max_bytes)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object")
    return values


def some_of(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
