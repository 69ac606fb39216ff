"""Which files of a repository are downloaded: a model's safetensors, configs and tokenizer; one file or split of a
dataset.

Never code or pickles. Pure: a repository is a mapping of its files' paths to their sizes.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath

from tpo.data.row_files import MAX_FILE_BYTES, kind_of
from tpo.errors import InputError
from tpo.models.files import some_of
from tpo.models.folder import OTHER_WEIGHTS, PICKLES
from tpo.models.tensors import INDEX, WEIGHTS

CONVERTED = "refs/convert/parquet"
"""The branch with the hub's own Parquet copy of a dataset: `config/split/0000.parquet`."""
_PLAIN = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "spiece.model", "*.tiktoken", "LICENSE*", "README.md")
"""Configs, tokenizer, chat template, license and model card."""
_TEMPLATES = "additional_chat_templates"
_MAX_INDEX_BYTES = 2**28

Tree = Mapping[str, int]
"""Sizes of a repository's files, by path."""


def model_files(tree: Tree, folder: str, address: str) -> list[str]:
    """A model's files except its weights; `folder` is its folder in the repository, `address` its address for messages.

    Raises `InputError` if there is no model, or none with safetensors.
    """
    names = _names(tree, folder)
    if "config.json" not in names:
        below = sorted(path.removesuffix("/config.json") for path in tree if path.endswith("/config.json"))
        inside = f"; there is one in {some_of(below)}: add the folder to the address" if below else ""
        where = f" in {folder}" if folder else ""
        raise InputError(f"{address} is not a model: its repository has no config.json{where}{inside}")
    if WEIGHTS not in names and INDEX not in names:
        raise InputError(
            f"{address} has no safetensors ({WEIGHTS} or {INDEX}), and no other weights are loaded{_why(names)}"
        )
    plain = [name for name in names if any(fnmatch(name, pattern) for pattern in _PLAIN)]
    prefix = f"{folder}/" if folder else ""
    templates = [path for path in tree if fnmatch(path, f"{prefix}{_TEMPLATES}/*.jinja")]
    return sorted([prefix + name for name in plain] + templates)


def _why(names: Sequence[str]) -> str:
    """The weights that there are instead, with a remedy, for the end of a message."""
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        return (
            f": it has pickles ({some_of(pickles)}), which run code when loaded; name a revision with safetensors (the "
            "hub's own conversion is often open as a pull request: @refs/pr/N), or another repository"
        )
    if any(name.startswith("adapter_model.") for name in names):
        return ": it is an adapter; name a repository in which it is merged into its model"
    others = [name for name in names if name.endswith((*OTHER_WEIGHTS, ".safetensors"))]
    return f": it has {some_of(others)}; name another repository" if others else "; name another repository"


def weight_files(tree: Tree, folder: str, index: bytes | None, address: str) -> list[str]:
    """A model's weights; `index` is the content of its index of shards, if it has one.

    A second copy in another layout (`consolidated.safetensors`) isn't downloaded.
    Raises `InputError` if the index can't be read, or names a file that doesn't exist.
    """
    prefix = f"{folder}/" if folder else ""
    if prefix + WEIGHTS in tree or index is None:
        return [prefix + WEIGHTS]
    try:
        found = json.loads(index[:_MAX_INDEX_BYTES])["weight_map"]
        names = sorted({str(name) for name in found.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{address}: its {INDEX} is not readable ({type(error).__name__}): name another revision"
        ) from None
    if odd := [name for name in names if "/" in name or not name.endswith(".safetensors")]:
        raise InputError(f"{address}: its {INDEX} names {some_of(odd)}, expected safetensors next to it")
    if missing := [name for name in names if prefix + name not in tree]:
        raise InputError(
            f"{address}: its {INDEX} names files that it lacks ({some_of(missing)}): name another revision"
        )
    return [prefix + name for name in names]


def _names(tree: Tree, folder: str) -> list[str]:
    """Names of the files directly in a folder."""
    prefix = f"{folder}/" if folder else ""
    return [rest for path in tree if path.startswith(prefix) and "/" not in (rest := path.removeprefix(prefix))]


def data_files(tree: Tree, path: str) -> list[str]:
    """The files that a path in a dataset's repository refers to; empty if there are none.

    The path is a file, a folder with data files, or a split, optionally below its config: `train`, `main/train`. A
    split is one file of that name, or all its parts (`train-00000-of-00002.parquet`).
    """
    if path in tree:
        return [path]
    inside = sorted(f"{path}/{name}" for name in _names(tree, path) if kind_of(name)[0])
    if inside:
        return inside
    config, _, split = path.rpartition("/")
    part = re.compile(rf"{re.escape(split)}(?:[-_.]\d+)*(?:-of-\d+)?(?:-[0-9a-f]{{16}})?")
    found = dict[str, list[str]]()
    for each in sorted(tree):
        file = PurePosixPath(each)
        parent = "" if str(file.parent) == "." else str(file.parent)
        kind = "".join(kind_of(file.name))
        stem = file.name[: len(file.name) - len(kind)]
        if kind and part.fullmatch(stem) and (not config or config in (parent, PurePosixPath(parent).name)):
            found.setdefault(parent, []).append(each)
    if len(found) > 1:
        names = ", ".join(f"{folder or '.'}/{split}" for folder in found)
        raise InputError(f"{split} is in several folders ({names}): name one of them")
    return next(iter(found.values()), [])


def converted_folder(tree: Tree, path: str) -> str | None:
    """The folder of a split in the hub's own Parquet copy; None if it has no such split."""
    config, _, split = path.rpartition("/")
    folders = {str(PurePosixPath(each).parent) for each in tree if each.endswith(".parquet")}
    found = sorted(folder for folder in folders if folder.rpartition("/")[2] == split)
    if config:
        return path if path in found else None
    if len(found) > 1 and f"default/{split}" not in found:
        raise InputError(f"{split} is a split of several configs: name one of {', '.join(found)}")
    return f"default/{split}" if f"default/{split}" in found else next(iter(found), None)


def no_such_data(tree: Tree, path: str, address: str) -> InputError:
    """The error for a path that doesn't exist in a repository."""
    known = [each for each in tree if kind_of(each)[0]]
    near = difflib.get_close_matches(path, known, 3, cutoff=0.5) or known
    if not known:
        return InputError(
            f"{address}: the repository has no data files that can be read (.parquet, .jsonl, .json, .csv, .tsv) and "
            "the hub has no Parquet copy of it; scripts are never run: name another dataset, or convert it"
        )
    return InputError(f"{address}: there is no file, folder or split {path}; it has {some_of(near)}: name one of these")


def check_data(tree: Tree, files: Sequence[str], address: str) -> None:
    """Raises `InputError` for data that couldn't be read after its download."""
    if unread := [path for path in files if not kind_of(path)[0]]:
        raise InputError(
            f"{address}: {some_of(unread)} has an unknown format, expected .parquet, .jsonl, .json, .csv or .tsv"
        )
    if (size := sum(tree[path] for path in files)) > MAX_FILE_BYTES:
        raise InputError(
            f"{address} has {size / 2**30:,.1f} GiB, and at most {MAX_FILE_BYTES / 2**30:,.0f} GiB are read: name one "
            f"of its files ({some_of(files)})"
        )
