"""The headers of a folder's safetensors files, checked against the format.

Only headers are read, no tensors. The format's rules: the tensors follow the header one after the other, without gap or
overlap, each as large as its shape and type require. The library that loads them checks the same, but only after the
engines have started, and with less helpful errors. All errors are `InputError`s with what was found.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo.errors import InputError
from tpo.models.files import LFS_POINTER, MAX_VOCABULARY_BYTES, check_fetched, read_json, some_of

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""Maximum length of a header, the format's own limit."""
BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
"""The format's types, with their numbers of bits."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk."""

    file: Path
    """The file that holds it."""
    shape: tuple[int, ...]
    """Its shape."""
    dtype: str = ""
    """Its type, by the format's name."""


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder of safetensors, in one file or in several with an index.

    Raises `InputError` naming a file that is missing, truncated, not safetensors, or inconsistent with its header.
    """
    places = None if (folder / WEIGHTS).is_file() else _places(folder)
    names = [WEIGHTS] if places is None else sorted(set(places.values()))
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        found = read_header(folder / name)
        if twice := found.keys() & tensors.keys():
            raise InputError(f"{folder} has tensors in two files: {some_of(twice)}; delete the extra file")
        tensors |= found
    if places is not None and (
        missing := [name for name in places if tensors.get(name, _NOWHERE).file.name != places[name]]
    ):
        raise InputError(f"{folder / INDEX} names tensors that its files lack: {some_of(missing)}; download them again")
    return tensors


def check_tensor_files(folder: Path) -> None:
    """Raises `InputError` if `read_tensors` would, or if any other safetensors file in the folder is invalid.

    Engines differ in what they load: the files in the index, or all files.
    """
    if (folder / WEIGHTS).is_file() and (folder / INDEX).is_file() and set(_places(folder).values()) != {WEIGHTS}:
        raise InputError(
            f"{folder} has both {WEIGHTS} and an index of other files, so it is unclear which is the model: "
            f"delete {WEIGHTS}, or the index and the files that it names"
        )
    read = {tensor.file for tensor in read_tensors(folder).values()}
    for path in sorted(folder.glob("*.safetensors")):
        if path not in read:
            read_header(path)


def _places(folder: Path) -> dict[str, str]:
    """The file of each tensor, from the index: only files in this folder."""
    places = read_json(folder / INDEX, MAX_VOCABULARY_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{folder / INDEX} has no weight_map, expected the file of each tensor")
    for name in dict.fromkeys(map(str, places.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise InputError(
                f"{name} is missing: {folder / INDEX} names it, expected a file in {folder}; download it again"
            )
    return places


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file: 8 bytes with the header's length, the header as JSON, then the tensors."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            check_fetched(path, file.read(len(LFS_POINTER)))
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"its header would have {length} bytes, and the file has {size}")
            header = json.loads(file.read(length), object_pairs_hook=_without_repetition)
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        header.pop("__metadata__", None)
        spans = sorted((*_span(name, about), name) for name, about in header.items())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the folder's weights are incomplete, download them again") from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error
    end = 0
    for begin, next_end, name in spans:
        if begin != end:
            raise InputError(f"{path} is not a safetensors file: {name} begins at byte {begin}, expected {end}")
        end = next_end
    if 8 + length + end != size:
        raise InputError(
            f"{path} has {size} bytes, expected {8 + length + end}: it is truncated or damaged, download it again"
        )
    return {name: StoredTensor(path, tuple(about["shape"]), about["dtype"]) for name, about in header.items()}


def _span(name: str, about: Any) -> tuple[int, int]:
    """A tensor's begin and end; raises `ValueError` if they don't match its shape and type."""
    try:
        bits, shape, (begin, end) = BITS[about["dtype"]], about["shape"], about["data_offsets"]
        whole = all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name} has no valid type, shape and offsets: {str(about)[:100]}") from None
    if not whole or math.prod(shape) * bits != 8 * (end - begin):
        raise ValueError(f"{name} is {about['dtype']} {shape}, which does not fill bytes {begin} to {end}")
    return begin, end


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found


_NOWHERE = StoredTensor(Path(os.devnull), ())
