"""JSON files with one record each: a summary, a table, a comparison.

They are written with `json` rather than pydantic, which formats floats differently, so that files of earlier versions
are reproduced byte for byte.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tpo.errors import StoreError

Record = TypeVar("Record")


def to_json(record: Any) -> bytes:
    """A dataclass instance as JSON, in the order of its fields."""
    return (json.dumps(dataclasses.asdict(record), indent=1, ensure_ascii=False) + "\n").encode()


def read_record(path: Path, kind: type[Record], name: str) -> Record:
    """Reads a record of this class; raises `StoreError`, calling it a `name`, if the file isn't one."""
    # pydantic rejects a config for a dataclass by itself; inside a tuple it is accepted, and reaches the dataclasses.
    adapter = TypeAdapter(tuple[kind], config=ConfigDict(extra="forbid"))  # type: ignore[valid-type]
    try:
        return adapter.validate_json(b"[" + path.read_bytes() + b"]")[0]
    except (OSError, ValidationError) as error:
        raise StoreError(
            f"{path} is not a {name} that this version can read ({_why(error)}): remove it and rerun"
        ) from error


def _why(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}".removeprefix(": ")
