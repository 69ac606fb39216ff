"""JSON files of one record each: a summary, a table of models, a comparison.

Files are written by `json`, not by pydantic, which spells floats differently: files of earlier versions stay byte-equal
when they're made again.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tpo.errors import StoreError

Record = TypeVar("Record")


def to_json(record: Any) -> bytes:
    """A dataclass instance as JSON, its fields in their order."""
    return (json.dumps(dataclasses.asdict(record), indent=1, ensure_ascii=False) + "\n").encode()


def read_record(path: Path, kind: type[Record], name: str) -> Record:
    """The record in a file; raises `StoreError`, which calls it a `name`, if the file holds anything else."""
    # A config of the adapter reaches the dataclasses in a tuple, but must not be given for one by itself.
    adapter = TypeAdapter(tuple[kind], config=ConfigDict(extra="forbid"))  # type: ignore[valid-type]
    try:
        return adapter.validate_json(b"[" + path.read_bytes() + b"]")[0]
    except (OSError, ValidationError) as error:
        raise StoreError(f"{path} is not a {name} of this version ({_why(error)}): remove it and run again") from error


def _why(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}".removeprefix(": ")
