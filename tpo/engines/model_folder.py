"""What a model folder must be before anything loads it: safetensors, a config and a tokenizer, and no code.

In: a folder. Out: its context length in tokens, or an `InputError` that says what was found. Nothing of the folder is
executed or unpickled to find out, and nothing heavy is imported.
"""

import json
from pathlib import Path
from typing import Any

from tpo.errors import InputError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that run code when loaded."""


def check_model_folder(folder: Path) -> int:
    """The model's context in tokens, after checking that the folder holds what we load and nothing that we refuse."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected one with safetensors, config and tokenizer")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model: it has no config.json")
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise InputError(
                f"{folder} holds pickled weights ({', '.join(pickles[:3])}), which run code when loaded: convert them "
                "to safetensors first"
            )
        raise InputError(f"{folder} is not a model: it has no .safetensors file")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise InputError(f"{folder} has no tokenizer: expected tokenizer.json or tokenizer.model")
    config = _read_config(folder / "config.json")
    if (folder / "tokenizer_config.json").is_file():
        _read_config(folder / "tokenizer_config.json")
    context = config.get("max_position_embeddings")
    if not isinstance(context, int) or context < 1:
        raise InputError(f"{folder / 'config.json'} has no max_position_embeddings, expected the context in tokens")
    return context


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object")
    if "auto_map" in config:
        raise InputError(f"{path} asks to run code of its own (auto_map), which is refused")
    return config
