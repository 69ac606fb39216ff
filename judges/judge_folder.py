"""What the folder of a judge that is a model must be before anything loads it: safetensors in full, and no code.

In: a folder. Out: its tensors' names and shapes, or an `InputError` that says what was found. Nothing of the folder is
executed or unpickled to find out, and no tensor is read: the headers of the files say what there is.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo.engines.model_folder import PICKLES, check_model_folder
from tpo.errors import InputError

_INDEX = "model.safetensors.index.json"


def check_judge_folder(folder: Path) -> int:
    """The model's context in tokens, after checking that the folder holds no code, nor pickles, beside what we load."""
    if folder.is_dir():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise InputError(
                f"{folder} holds pickles ({some_of(pickles)}), which run code when loaded: convert weights to "
                "safetensors, and delete them"
            )
        asking = [name for name in ("config.json", "tokenizer_config.json") if "auto_map" in read_json(folder / name)]
        code = sorted(path.name for path in folder.glob("*.py"))
        if asking or code:
            found = some_of([*(f"auto_map in {name}" for name in asking), *code])
            raise InputError(
                f"{folder} holds code of its own ({found}), which is refused: delete auto_map from config.json and "
                "tokenizer_config.json, and the .py files; nothing of them is needed, our own code takes their place"
            )
    return check_model_folder(folder)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk."""

    file: Path
    """The file that holds it."""
    shape: tuple[int, ...]
    """Its shape."""


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder of safetensors, in one file or in several with an index; only headers are read.

    Raises `InputError` naming a file that is not there, is cut off or is no safetensors.
    """
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and (folder / _INDEX).is_file():
        places = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(places, dict):
            raise InputError(f"{folder / _INDEX} has no weight_map, expected where each tensor is")
        names = sorted({str(name) for name in places.values()})
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        path = folder / Path(name).name
        for tensor, about in _read_header(path).items():
            tensors[tensor] = StoredTensor(path, tuple(about["shape"]))
    return tensors


def _read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: its length in 8 bytes, then JSON; the tensors must follow in full."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            header: dict[str, Any] = json.loads(file.read(min(length, size)))
        header.pop("__metadata__", None)
        end = 8 + length + max((about["data_offsets"][1] for about in header.values()), default=0)
    except FileNotFoundError:
        raise InputError(f"{path} is not there: the folder's weights are not complete, fetch them again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error
    if end != size:
        raise InputError(f"{path} has {size} bytes, expected {end}: it is cut off or damaged, fetch it again")
    return header


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object")
    return values


def some_of(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
