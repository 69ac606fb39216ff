"""The run folder: Parquet shards and one manifest a stage, written so that a crash leaves either all of it or none.

In: rows of a record class, a shard at a time. Out: an `Artifact`, or the knowledge that a stage is already complete.

A stage is identified by what it was made from: the fingerprints of its inputs and the config values that matter. Each
file is written beside its place, flushed, synced and renamed; the folder is synced; the manifest comes last. A stage
is complete if its manifest stands and names the same inputs and config: nothing else, no database, says so. A stage
made from anything else is moved aside and not deleted. Shards of an unfinished stage are kept and not made again.

Nothing here imports pandas or pyarrow until rows are read or written, so that a finished run is recognised at once.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from tpo import __version__
from tpo.errors import StoreError
from tpo.records import RECORDS, Account, Artifact

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
"""Version of this layout; a manifest from a newer one is refused."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class Manifest:
    """What a complete stage says of itself, as `manifest.json`."""

    stage: str
    """Path of the stage below the run folder."""
    record: str
    """Record class of the rows, or `Model`."""
    inputs: Mapping[str, str]
    """Fingerprint of every input, by name."""
    config: Mapping[str, Any]
    """The config values that identify the result."""
    files: Sequence[Mapping[str, Any]]
    """Name, rows, bytes and SHA-256 of every file, in order."""
    fingerprint: str
    """SHA-256 over the files' hashes."""
    rows: int
    """Rows in all files."""
    account: Mapping[str, Any] | None
    """`rows_in`, `rows_out` and `dropped` by reason, or None where a stage drops nothing by its nature."""
    facts: Mapping[str, Any]
    """What else the stage found, for the report (ρ, token counts, …)."""
    seconds: float
    """Wall-clock time from the stage's start to this manifest; a resumed stage counts its last start."""
    finished: str
    """When, in UTC, ISO 8601."""
    code: str
    """Version of this package."""
    format: int
    """Version of the layout."""


class Stage:
    """One stage of a run: a folder, what it is made from, and the rows or files in it."""

    def __init__(
        self, root: Path, name: str, record: type | str, *, inputs: Mapping[str, str], config: Mapping[str, Any]
    ) -> None:
        self.root = root
        self.name = name
        self.record = record if isinstance(record, str) else record.__name__
        self.inputs = dict(inputs)
        self.config: dict[str, Any] = json.loads(json.dumps(config, default=str))
        self.folder = root / name
        self._started = time.monotonic()

    def manifest(self) -> Manifest | None:
        """The manifest that stands in the folder, whatever it was made from, or None."""
        return read_manifest(self.folder)

    def complete(self) -> Artifact | None:
        """The stage's artifact if it has been made from the same inputs and config, else None."""
        manifest = self.manifest()
        if manifest is None or self.changes(manifest.inputs, manifest.config):
            return None
        for file in manifest.files:
            path = self.folder / file["name"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise StoreError(
                    f"{path} is missing or not {file['bytes']} bytes long, as {self.folder / 'manifest.json'} says: "
                    f"move {self.folder} away and run again to make it anew"
                )
        return Artifact(self.folder, manifest.record, manifest.rows, manifest.fingerprint)

    def changes(self, inputs: Mapping[str, str], config: Mapping[str, Any]) -> list[str]:
        """What differs between the given inputs and config and this stage's own, in words."""
        found = [
            f"input {name}" for name in sorted(inputs.keys() | self.inputs) if inputs.get(name) != self.inputs.get(name)
        ]
        old, new = dict(_leaves(config)), dict(_leaves(self.config))
        return found + [
            f"{key}: {old.get(key)!r} → {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]

    def begin(self, *, keep_shards: bool = True, shard_size: int | None = None) -> list[str]:
        """Makes the folder ready and returns what changed since an earlier making, which is moved aside.

        An unfinished making of the same stage is gone on with, or with `keep_shards` off begun anew. `shard_size` is
        what a shard's number counts in: shards of another size would stand for other rows.
        """
        self._started = time.monotonic()
        plan = _read_object(self.folder / "plan.json")
        changed: list[str] = []
        if plan is not None:
            changed = self.changes(plan.get("inputs", {}), plan.get("config", {}))
            if plan.get("shard_size") != shard_size:
                changed.append(f"shard size: {plan.get('shard_size')} → {shard_size}")
            if not changed and keep_shards:
                return []
        if plan is not None and not changed:
            shutil.rmtree(self.folder)
        elif self.folder.exists():
            _move_aside(self.folder)
        self.folder.mkdir(parents=True)
        plan = {"inputs": self.inputs, "config": self.config, "shard_size": shard_size}
        write_atomically(self.folder / "plan.json", _to_json(plan))
        return changed

    def shard(self, index: int) -> Path:
        """Where shard `index` stands."""
        return self.folder / f"part-{index:05d}.parquet"

    def has_shard(self, index: int) -> bool:
        """Whether shard `index` has been written whole, by this process or one before it."""
        return _seal(self.shard(index)).exists()

    def write_shard(self, index: int, rows: Sequence[object]) -> None:
        """Writes one shard: the Parquet file, then a seal beside it that says that it is whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.shard(index)
        schema = _schema(RECORDS[self.record])
        table = pa.Table.from_pylist([vars(row) for row in rows], schema=schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        write_atomically(path, data)
        seal = {"name": path.name, "rows": len(rows), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write_atomically(_seal(path), _to_json(seal))

    def commit(self, *, account: Account | None = None, facts: Mapping[str, Any] | None = None) -> Artifact:
        """Writes the manifest over all shards; from here on the stage is complete."""
        seals = [_read_object(path) for path in sorted(self.folder.glob("part-*.seal.json"))]
        files = [seal for seal in seals if seal is not None]
        return self._commit(files, account, facts or {})

    def commit_files(self, *, facts: Mapping[str, Any] | None = None) -> Artifact:
        """The same for a stage that holds files in place of rows (a model): hashes and syncs every one of them."""
        files = []
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name = path.relative_to(self.folder).as_posix()
            if name not in ("plan.json", "manifest.json"):
                _sync(path)
                files.append({"name": name, "rows": 1, "bytes": path.stat().st_size, "sha256": file_sha256(path)})
        for folder in {path.parent for path in self.folder.rglob("*")}:
            _sync(folder)
        return self._commit(files, None, facts or {})

    def _commit(
        self, files: Sequence[Mapping[str, Any]], account: Account | None, facts: Mapping[str, Any]
    ) -> Artifact:
        manifest = Manifest(
            stage=self.name,
            record=self.record,
            inputs=self.inputs,
            config=self.config,
            files=files,
            fingerprint=combined_sha256(files),
            rows=sum(file["rows"] for file in files),
            account=dataclasses.asdict(account) if account else None,
            facts=dict(facts),
            seconds=round(time.monotonic() - self._started, 3),
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            code=__version__,
            format=FORMAT,
        )
        write_atomically(self.folder / "manifest.json", _to_json(dataclasses.asdict(manifest)))
        return Artifact(self.folder, self.record, manifest.rows, manifest.fingerprint)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a stage's folder, or None where there is none.

    Raises `StoreError` where it is not readable or comes from a newer version.
    """
    path = folder / "manifest.json"
    if (values := _read_object(path)) is None:
        return None
    version = values.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise StoreError(
            f"{path} has format {version}, this version reads up to {FORMAT}: use the version that wrote it "
            f"({values.get('code')}), or another run name"
        )
    try:
        return Manifest(**values)
    except TypeError as error:
        raise StoreError(f"{path} is not a manifest: {error}; move {folder} away and run again") from error


def read_rows(artifact: Artifact, record: type[Row]) -> list[Row]:
    """All rows of an artifact, in order.

    Raises `StoreError` where a shard is missing or its content is not what the manifest says.
    """
    return [row for shard in read_shards(artifact, record) for row in shard]


def read_shards(artifact: Artifact, record: type[Row]) -> Iterator[list[Row]]:
    """The rows of an artifact, shard by shard, each checked against its hash."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = read_manifest(artifact.path)
    if manifest is None or manifest.record != record.__name__:
        raise StoreError(f"{artifact.path} holds no complete {record.__name__} rows: run the stage that makes them")
    for file in manifest.files:
        path = artifact.path / file["name"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise StoreError(
                f"{path} is damaged (its hash is not the manifest's): move {artifact.path} away, run again"
            )
        yield [record(**row) for row in pq.read_table(pa.BufferReader(data)).to_pylist()]


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: temporary file, flush, sync, rename, folder sync."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync(path.parent)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined_sha256(files: Sequence[Mapping[str, Any]]) -> str:
    """One SHA-256 over the names and hashes of some files."""
    return hashlib.sha256("".join(f"{file['name']} {file['sha256']}\n" for file in files).encode()).hexdigest()


def folder_artifact(folder: Path) -> Artifact:
    """An artifact for a model folder that no stage of ours made, named by the content of its files."""
    files = [
        {"name": path.relative_to(folder).as_posix(), "sha256": file_sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return Artifact(folder, "Model", len(files), combined_sha256(files))


def _schema(record: type) -> "pyarrow.Schema":
    import pyarrow as pa

    hints = get_type_hints(record)
    return pa.schema([pa.field(f.name, *_arrow_type(hints[f.name])) for f in dataclasses.fields(record)])


def _arrow_type(hint: Any) -> "tuple[pyarrow.DataType, bool]":
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list[int]: pa.list_(pa.int32())}
    if hint in plain:
        return plain[hint], False
    options = [option for option in get_args(hint) if option is not type(None)]
    if all(isinstance(option, str) for option in options):
        return pa.string(), False
    return _arrow_type(options[0])[0], True


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)
    _sync(folder.parent)


def _seal(path: Path) -> Path:
    return path.with_suffix(".seal.json")


def _read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in one of our own files, or None where there is no file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not readable: {error}; move {path.parent} away and run again") from error
    if not isinstance(values, dict):
        raise StoreError(f"{path} is not a JSON object; move {path.parent} away and run again")
    return values


def _to_json(values: Any) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False, default=str) + "\n").encode()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
