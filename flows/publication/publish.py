"""Publishes M_t of a run as a folder, atomically.

`publication.json` in it lists its sources and the hash of each file, so that a second call without changes does
nothing, and a folder that others created or edited is never replaced. A killed call leaves only a folder whose name
begins with a dot, which the next one removes.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flows.publication.cards import as_json, model_card, pairs_card
from flows.publication.finished_model import FinishedModel, PublishedPair, columns
from flows.publication.lineage import Lineage, lineage_of
from flows.publication.model_files import PARSER, bytes_to_copy, write_model
from prompts import asking_template
from tpo import __version__
from tpo.errors import InputError
from tpo.storage.disk import explained, sync
from tpo.storage.hash_cache import known_sha256
from tpo.storage.store import file_sha256

PUBLICATION = "publication.json"
"""The file that marks a published folder."""
PAIRS = "pairs"
"""The folder of pairs in it."""
CARD = "README.md"
"""The only file in it that users may edit."""
_MIB_BESIDES_WEIGHTS = 256


@dataclass(frozen=True)
class Published:
    """A published folder."""

    folder: Path
    """Its path."""
    made: bool
    """Whether it was written now; False if it was already current."""
    has_pairs: bool
    """Whether it includes the pairs."""


def publish(model: FinishedModel, folder: Path, pairs: list[PublishedPair] | None) -> Published:
    """Publishes a model to `folder`, with its `pairs` if given.

    Raises `InputError` if `folder` has other content, if files that must be replaced were edited, or if disk space is
    short.
    """
    lineage = lineage_of(model)
    about = {"format": 1, "pairs": pairs is not None, "lineage": as_json(lineage), "wording": _wording()}
    about = json.loads(json.dumps(about))
    with explained(folder), _exclusive(folder):
        existing = _published(folder)
        edited, missing = _changes(folder, existing) if existing is not None else ([], [])
        current = existing is not None and {key: existing.get(key) for key in about} == about
        if current and not missing and set(edited) <= {CARD}:
            return Published(folder, made=False, has_pairs=pairs is not None)
        if edited:
            raise InputError(
                f"{folder} was published before, and has changed since ({', '.join(edited[:4])}): move it away, or "
                "name another folder in TO="
            )
        _check_space(model, folder)
        staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        staging.mkdir()
        try:
            _fill(model, staging, lineage, about, pairs)
            _put_in_place(staging, folder)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return Published(folder, made=True, has_pairs=pairs is not None)


def _fill(
    model: FinishedModel, staging: Path, lineage: Lineage, about: Mapping[str, Any], pairs: list[PublishedPair] | None
) -> None:
    write_model(model, staging)
    (staging / CARD).write_text(model_card(model, lineage, pairs=pairs is not None), encoding="utf-8")
    if pairs is not None:
        (staging / PAIRS).mkdir()
        _write_rows(staging / PAIRS / "train-00000-of-00001.parquet", pairs)
        (staging / PAIRS / CARD).write_text(pairs_card(model, lineage, len(pairs)), encoding="utf-8")
    _check_no_secrets(model, staging)
    for path in (path for path in staging.rglob("*") if path.is_file()):
        path.chmod(
            path.stat().st_mode | (0o444 & ~_umask())
        )  # safetensors writes files that only their owner can read.
    files = {path.relative_to(staging).as_posix(): path for path in sorted(staging.rglob("*")) if path.is_file()}
    hashes = {name: _sha256(path) for name, path in files.items()}
    text = json.dumps({**about, "files": hashes}, indent=1, ensure_ascii=False) + "\n"
    (staging / PUBLICATION).write_text(text, encoding="utf-8")
    for path in (*(path for path in staging.rglob("*")), staging):
        sync(path)


def _write_rows(path: Path, pairs: list[PublishedPair]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chat = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    chats = dict.fromkeys(("prompt", "chosen", "rejected"), chat)
    scores = {name: pa.float64() for name in ("chosen_score", "rejected_score", "margin")}
    types = {name: pa.string() for name in PublishedPair.__dataclass_fields__} | chats | scores
    schema = pa.schema([pa.field(name, kind) for name, kind in types.items()])
    pq.write_table(pa.Table.from_pylist(columns(pairs), schema=schema), path, compression="zstd")


def _check_no_secrets(model: FinishedModel, staging: Path) -> None:
    """Raises `InputError` if a text contains a folder of this machine or a secret of this process's environment."""
    places = {str(path) for path in (model.root.resolve(), Path.cwd(), Path.home()) if len(path.parts) > 2}
    secret = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
    secrets = {value: name for name, value in os.environ.items() if secret.search(name) and len(value) >= 8}
    for path in (path for path in staging.rglob("*") if path.suffix in (".json", ".md", ".jinja", ".py", ".txt")):
        text = path.read_text(encoding="utf-8")
        found = [f"the folder {place}" for place in sorted(places) if place in text]
        found += [f"the value of {name}" for value, name in secrets.items() if value in text]
        if found and path.name != "tokenizer.json":
            raise InputError(
                f"{path.relative_to(staging)} would contain {found[0]}, which must not be published: remove it from "
                "the run's config or the model's files"
            )


def _wording() -> str:
    """The version of cards, parser and template, so that a newer version updates the folder."""
    here = Path(__file__).parent
    sources = [*sorted(here.glob("*.jinja")), *sorted(here.glob("*.py")), PARSER, Path(asking_template.__file__)]
    return f"{__version__} {hashlib.sha256(''.join(map(file_sha256, sources)).encode()).hexdigest()[:16]}"


def _published(folder: Path) -> dict[str, Any] | None:
    """The content of an existing `publication.json`; None for an empty or missing folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        about = json.loads((folder / PUBLICATION).read_text(encoding="utf-8"))
        if not isinstance(about["files"], dict):
            raise TypeError("no files")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} exists and isn't a published folder (no {PUBLICATION}): move it away, or name another in TO="
        ) from error
    return dict(about)


def _changes(folder: Path, about: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The files that were changed or added since publication, and those that are missing."""
    existing = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    existing.pop(PUBLICATION, None)
    files = about["files"]
    changed = [name for name, path in existing.items() if name not in files or _sha256(path) != files[name]]
    return changed, sorted(files.keys() - existing.keys())


def _sha256(path: Path) -> str:
    return known_sha256(path, file_sha256) if path.suffix == ".safetensors" else file_sha256(path)


def _check_space(model: FinishedModel, folder: Path) -> None:
    needed = bytes_to_copy(model, folder.parent) + _MIB_BESIDES_WEIGHTS * 2**20
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise InputError(
            f"{folder} needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free there: free some space, or "
            "name a folder in TO= on the run's own disk, where weights take no space"
        )


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Locks out other processes that publish to a folder; removes what a killed one has left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=1):
            for leftover in folder.parent.glob(f".{_literally(folder.name)}.*.tmp"):
                shutil.rmtree(leftover)
            yield
    except Timeout as error:
        raise InputError(f"another process is publishing to {folder}: wait for it") from error


def _literally(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _put_in_place(staging: Path, folder: Path) -> None:
    """Renames a complete folder to its final name, replacing an earlier one."""
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old.tmp")
        folder.rename(old)
        staging.rename(folder)
        shutil.rmtree(old)
    else:
        staging.rename(folder)
    sync(folder.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
