"""The run folder: Parquet shards and one manifest per stage, written so that a stage survives a crash whole or not at
all.

A stage is identified by its inputs' fingerprints and the config values that affect it. Each shard is written atomically
(`tpo.storage.disk`), then its seal, and finally the manifest. A stage is complete if its manifest exists and names the
same inputs and config; there is no database. Damaged stages and those made from anything else are moved aside, not
deleted. Sealed shards of an unfinished stage are kept if they still match their seals.

Nothing here imports pandas or pyarrow until rows are read or written, so that a finished run is recognized quickly.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_type_hints

from tpo import __version__
from tpo.console import say
from tpo.errors import DamagedError, StoreError
from tpo.records import Artifact, External, RowCounts
from tpo.storage.disk import (
    bring_here,
    explained,
    fetch_again,
    make_folder,
    move,
    remove,
    settle,
    size_of,
    sync,
    write_atomically,
)
from tpo.storage.hash_cache import known_sha256

if TYPE_CHECKING:
    import pyarrow

FORMAT = 3
"""Version of this layout; manifests of other versions are rejected."""

ROWS_AT_ONCE = 50_000
"""Rows in a shard of a stage that streams them: at the paper's size, 5,000 × 8, it still writes one file."""
READ_AT_ONCE = 64 * 2**20
"""Maximum size in bytes of a file whose content is verified whenever its stage is looked up; larger ones are verified
when they are used."""
SCRATCH = ("dataset", "ray", "trainer")
"""Folders of a training stage that aren't part of its result; deleted when it is complete."""
_HASHED_AT_ONCE = min(8, os.cpu_count() or 1)
"""Number of files hashed in parallel: one thread reads about 1 GB/s, and a disk can deliver more."""
_PACKAGE = Path(__file__).parents[2]
_SHIPPED_WITH_US = "package:"
_NOT_ITS_HASH = "its content does not match the hash in the manifest"

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Manifest:
    """A complete stage, described in its `manifest.json`."""

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
    """`rows_in`, `rows_out` and `dropped` by reason; None if the stage never drops anything."""
    facts: Mapping[str, Any]
    """Further findings for the report (ρ, health, …)."""
    seconds: float
    """Wall-clock time from the stage's start to this manifest; for a resumed stage, from its last start."""
    finished: str
    """When, in UTC, ISO 8601."""
    code: str
    """Version of this package."""
    format: int
    """Version of the layout."""
    external: Mapping[str, str] | None = None
    """SHA-256 of every file or folder from outside the run that was read, by path; None from an earlier version."""
    checksum: str = ""
    """SHA-256 over everything above."""


class Clock:
    """The clock for manifests."""

    def now(self) -> datetime.datetime:
        """The time, in UTC."""
        return datetime.datetime.now(datetime.UTC)

    def monotonic(self) -> float:
        """Seconds since a fixed moment."""
        return time.monotonic()


_CLOCK = Clock()


class Stage:
    """One stage of a run: a folder, its inputs, and its rows or files."""

    def __init__(
        self,
        root: Path,
        name: str,
        record: type | str,
        *,
        inputs: Mapping[str, Artifact | External],
        config: Mapping[str, Any],
        without_effect: Collection[str] = (),
        clock: Clock = _CLOCK,
    ) -> None:
        """`without_effect` are values of `config`, by paths such as `sample.top_p`, that don't affect the result: they
        are in the manifest, as in earlier versions, but aren't compared."""
        self.root = root
        self.name = name
        self.record = record if isinstance(record, str) else record.__name__
        self._row_type = record
        self.inputs = {name: source.fingerprint for name, source in inputs.items()}
        self._sources = tuple(inputs.values())
        self.config: dict[str, Any] = json.loads(json.dumps(config, default=str))
        self.without_effect = frozenset(without_effect)
        self.folder = root / name
        self.shard_size: int | None = None
        self._clock = clock
        self._started = clock.monotonic()

    def manifest(self) -> Manifest | None:
        """The folder's manifest, even if inputs or config have changed; None without one."""
        return read_manifest(self.folder)

    def complete(self) -> Artifact | None:
        """The stage's artifact if it was made from the same inputs and config, otherwise None.

        Raises `DamagedError` if a file is missing or altered. Large files, those of models, are only checked by size
        here; `check_files` reads them before the model is used. If external files have other paths now, or the manifest
        doesn't list them, it is rewritten.
        """
        manifest = self.manifest()
        if manifest is None or self.changes(manifest.inputs, manifest.config):
            return None
        check_stage(self.folder, manifest)
        if manifest.external != (external := self._external()):
            # Made by an earlier version, or from the same content at other paths: `is_current` looks at these.
            _write_manifest(self.folder, dataclasses.replace(manifest, external=external))
        return Artifact(self.folder, manifest.rows, manifest.fingerprint)

    def changes(self, inputs: Mapping[str, str], config: Mapping[str, Any]) -> list[str]:
        """Differences between the given inputs and config and this stage's own; human-readable."""
        found = [
            f"input {name}" for name in sorted(inputs.keys() | self.inputs) if inputs.get(name) != self.inputs.get(name)
        ]
        old, new = dict(_leaves(config)), dict(_leaves(self.config))
        return found + [
            f"{key}: {old.get(key)!r} → {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key not in self.without_effect
        ]

    def begin(self, *, shard_size: int | None = None) -> list[str]:
        """Prepares the folder; returns what has changed since an earlier attempt, which is then moved aside.

        An unfinished attempt is resumed with its own shard size, a new one uses `shard_size`; `self.shard_size` is set
        to it.
        """
        self._started = self._clock.monotonic()
        changed = self._changed_plan()
        if changed == []:
            for leftover in self.folder.rglob(".*.tmp"):
                remove(leftover)
            return []
        if self.folder.exists():
            set_aside(self.folder)
        make_folder(self.folder)
        self.shard_size = shard_size
        plan = {"inputs": self.inputs, "config": self.config, "shard_size": shard_size, "format": FORMAT}
        write_atomically(self.folder / "plan.json", _to_json(_with_checksum(plan)))
        return changed or []

    def _changed_plan(self) -> list[str] | None:
        """Differences from the plan of the attempt in the folder; None without a plan."""
        try:
            plan = _read_checked(self.folder / "plan.json")
        except DamagedError as damaged:
            return [damaged.what]
        if plan is None:
            return None
        self.shard_size = plan["shard_size"]
        return self.changes(plan["inputs"], plan["config"])

    def shard(self, index: int) -> Path:
        """The path of shard `index`."""
        return self.folder / f"part-{index:05d}.parquet"

    def has_shard(self, index: int) -> bool:
        """Whether shard `index` is complete, written by this process or an earlier one, and undamaged."""
        path = self.shard(index)
        try:
            seal = _read_checked(_seal(path))
            if seal is None:
                return False
            bring_here(path)
            if path.is_file() and file_sha256(path) == seal["sha256"]:
                return True
            what = f"{path} does not match its seal"
        except DamagedError as damaged:
            what = damaged.what
        say(f"{what}: redone")
        remove(_seal(path))
        return False

    def has_begun(self) -> bool:
        """Whether the folder holds an unfinished attempt with the same inputs and config."""
        return not (self.folder / "manifest.json").exists() and self._changed_plan() == []

    def sealed(self, known: Container[int] = ()) -> dict[int, str]:
        """SHA-256 of the shards of this stage's unfinished attempt, without those `known`; empty if there is none."""
        found = dict[int, str]()
        with contextlib.suppress(StoreError):  # moved away meanwhile
            if self._changed_plan() == []:
                for path in self.folder.glob("part-*.seal.json"):
                    number = int(path.name.split(".")[0].removeprefix("part-"))
                    if number not in known and (seal := _read_checked(path)) is not None:
                        found[number] = seal["sha256"]
        return dict(sorted(found.items()))

    def read_shard(self, index: int, sha256: str, record: type[Row]) -> list[Row] | None:
        """The rows of a shard of an unfinished attempt, as in `read_shards`; None if it hasn't that content."""
        try:
            data = self.shard(index).read_bytes()
        except OSError:
            return None
        return _rows_in(data, record) if hashlib.sha256(data).hexdigest() == sha256 else None

    def write_shard(self, index: int, rows: Sequence[object]) -> None:
        """Writes one shard: the Parquet file, then a seal next to it that marks it as complete."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.shard(index)
        assert isinstance(self._row_type, type)
        schema = _schema(self._row_type)
        table = pa.Table.from_pylist([vars(row) for row in rows], schema=schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
        write_atomically(path, data)
        seal = {"name": path.name, "rows": len(rows), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write_atomically(_seal(path), _to_json(_with_checksum(seal)))

    def write_shards(self, rows: Iterable[object], at_once: int = ROWS_AT_ONCE) -> int:
        """Writes rows as they come, `at_once` in a shard; returns the number of shards, which is at least one."""
        rows, shards = iter(rows), 0
        while (shard := list(itertools.islice(rows, at_once))) or not shards:
            self.write_shard(shards, shard)
            shards += 1
        return shards

    def commit(
        self, shards: int, *, account: RowCounts | None = None, facts: Mapping[str, Any] | None = None
    ) -> Artifact:
        """Writes the manifest over shards 0 to `shards` - 1; from here on the stage is complete.

        Raises `StoreError` if one of them is missing, or if their rows don't add up to `account.rows_out`: a stage
        never silently ends with missing rows.
        """
        files = []
        for index in range(shards):
            if (seal := _read_checked(_seal(self.shard(index)))) is None:
                raise StoreError(f"{self.shard(index)} was never written, expected {shards} shards: rerun")
            files.append({key: value for key, value in seal.items() if key != "checksum"})
        rows = sum(file["rows"] for file in files)
        if account is not None and rows != account.rows_out:
            raise StoreError(f"{self.folder} has {rows} rows, expected {account.rows_out}: move it away and rerun")
        return self._commit(files, account, facts or {})

    def commit_files(self, *, facts: Mapping[str, Any] | None = None) -> Artifact:
        """The same for a stage of files instead of rows (a model): hashes and syncs each file."""
        bring_here(self.folder)
        own = {self.folder / "plan.json", self.folder / "manifest.json"}
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file() and path not in own)
        for path in paths:
            settle(path)
        files = [
            {
                "name": path.relative_to(self.folder).as_posix(),
                "rows": 1,
                "bytes": path.stat().st_size,
                "sha256": sha256,
            }
            for path, sha256 in zip(paths, sha256_of_each(paths), strict=True)
        ]
        for folder in sorted({self.folder, *(path.parent for path in self.folder.rglob("*"))}):
            sync(folder)
        return self._commit(files, None, facts or {})

    def _commit(
        self, files: Sequence[Mapping[str, Any]], account: RowCounts | None, facts: Mapping[str, Any]
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
            seconds=round(self._clock.monotonic() - self._started, 3),
            finished=self._clock.now().isoformat(timespec="seconds"),
            code=__version__,
            format=FORMAT,
            external=self._external(),
        )
        _write_manifest(self.folder, manifest)
        return Artifact(self.folder, manifest.rows, manifest.fingerprint)

    def _external(self) -> dict[str, str]:
        found = dict[Path, str]()
        for source in self._sources:
            if isinstance(source, External):
                found |= source.files
            elif not source.path.is_relative_to(self.root):
                found[source.path] = source.fingerprint
        return dict(sorted((_portable(path), sha256) for path, sha256 in found.items()))


def remaking_damaged(make: Callable[[], Result]) -> Result:
    """Calls `make`; if it finds a damaged stage, moves that aside (once each) and calls `make` again.

    The same inputs give the same content, so later stages stay valid.
    """
    remade = set[Path]()
    while True:
        try:
            return make()
        except DamagedError as damaged:
            if damaged.folder in remade or is_set_aside(Path(damaged.folder.name)) or not damaged.folder.exists():
                raise
            remade.add(damaged.folder)
            say(f"{damaged.what}: moved to {set_aside(damaged.folder).name}, redone")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a stage's folder, or None.

    Raises `DamagedError` if it was altered, `StoreError` if another version wrote it.
    """
    values = _read_checked(folder / "manifest.json")
    return Manifest(**values) if values is not None else None


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_atomically(folder / "manifest.json", _to_json(_with_checksum(dataclasses.asdict(manifest))))


def check_stage(folder: Path, manifest: Manifest) -> None:
    """Raises `DamagedError` if a file of a stage is missing or altered, as far as `complete` checks."""
    for file in manifest.files:
        _check_file(folder, file, whole=file["bytes"] <= READ_AT_ONCE)


def read_rows(artifact: Artifact, record: type[Row]) -> list[Row]:
    """All rows of an artifact, in order.

    Raises `DamagedError` if a shard is missing or altered.
    """
    return list(stream_rows(artifact, record))


def stream_rows(artifact: Artifact, record: type[Row]) -> Iterator[Row]:
    """The same rows as an iterator, with at most one shard in memory."""
    for shard in read_shards(artifact, record):
        yield from shard


class StoredRows(Collection[Row]):
    """The rows of an artifact, in order, read anew each time, with at most one shard in memory."""

    def __init__(self, artifact: Artifact, record: type[Row]) -> None:
        self._artifact = artifact
        self._record = record

    def __len__(self) -> int:
        return self._artifact.rows

    def __iter__(self) -> Iterator[Row]:
        return stream_rows(self._artifact, self._record)

    def __contains__(self, row: object) -> bool:
        return any(row == each for each in self)


def read_shards(artifact: Artifact, record: type[Row], shards: Container[int] | None = None) -> Iterator[list[Row]]:
    """The rows of an artifact, shard by shard, each checked against its hash; all shards or those of some numbers.

    Only the columns of `record` are read: that of the stage, or one with fewer fields that is `STORED_AS` that
    (`SampledResponse`).
    """
    manifest = read_manifest(artifact.path)
    stored_as = getattr(record, "STORED_AS", record.__name__)
    if manifest is None or manifest.record != stored_as:
        raise StoreError(f"{artifact.path} has no complete {stored_as} rows: run the stage that writes them")
    for i, file in enumerate(manifest.files):
        if shards is not None and i not in shards:
            continue
        path = artifact.path / file["name"]
        _check_file(artifact.path, file, whole=False)
        bring_here(path)
        with explained(path):
            data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            raise DamagedError(artifact.path, f"{path} is damaged: {_NOT_ITS_HASH}")
        yield _rows_in(data, record)


def _rows_in(data: bytes, record: type[Row]) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [field.name for field in dataclasses.fields(cast(Any, record))]
    with pq.ParquetFile(pa.BufferReader(data)) as parquet:
        there = [name for name in names if name in parquet.schema_arrow.names]
        table = parquet.read(there, use_threads=False)  # A shard is small.
    columns = [_values_of(table, field) for field in dataclasses.fields(cast(Any, record))]
    return [record(*row) for row in zip(*columns, strict=True)]


def check_files(model: Artifact) -> None:
    """Verifies all files of a model made by this run; call it before using the model.

    Raises `DamagedError` if it doesn't match its manifest. An external model, such as M_0, has no manifest and is
    already identified by its content.
    """
    for folder in (model.path, model.path.parent):
        if (manifest := read_manifest(folder)) is not None:
            break
    else:
        return
    for file in manifest.files:
        if (folder / file["name"]).is_relative_to(model.path):
            bring_here(folder / file["name"])
            _check_file(folder, file, whole=True)


def _check_file(folder: Path, file: Mapping[str, Any], *, whole: bool) -> None:
    path = folder / file["name"]
    fault = _fault(path, file, whole=whole)
    if fault is not None and fetch_again(path):
        fault = _fault(path, file, whole=whole)
    if fault is not None:
        raise DamagedError(folder, f"{path} {fault}")


def _fault(path: Path, file: Mapping[str, Any], *, whole: bool) -> str | None:
    size = size_of(path)
    if size is None:
        return "is missing"
    if size != file["bytes"]:
        return f"is damaged: it is not {file['bytes']} bytes long"
    if whole and path.is_file() and file_sha256(path) != file["sha256"]:
        return f"is damaged: {_NOT_ITS_HASH}"
    return None


def is_set_aside(path: Path) -> bool:
    """Whether a path is in a folder that was moved aside, which is no longer used."""
    return any(".old-" in part for part in path.parts)


def set_aside(folder: Path) -> Path:
    """Renames a folder to the first free `<name>.old-<n>`; returns the new path."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    move(folder, aside)
    return aside


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read in chunks."""
    with explained(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_each(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of files' contents, in order, computed in parallel."""
    with ThreadPoolExecutor(max_workers=_HASHED_AT_ONCE) as threads:
        return list(threads.map(file_sha256, paths))


def combined_sha256(files: Sequence[Mapping[str, Any]]) -> str:
    """One SHA-256 over the names and hashes of files."""
    return hashlib.sha256("".join(f"{file['name']} {file['sha256']}\n" for file in files).encode()).hexdigest()


def folder_artifact(folder: Path, *, read: Callable[[Path], str] = file_sha256) -> Artifact:
    """An artifact for a model folder that isn't a stage, identified by the content of its files.

    A large file is read once, by `read`, and again only after it has changed.
    """
    files = [
        {"name": path.relative_to(folder).as_posix(), "sha256": _sha256_of(path, read)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return Artifact(folder, len(files), combined_sha256(files))


def _sha256_of(path: Path, read: Callable[[Path], str]) -> str:
    with explained(path):
        large = path.stat().st_size > READ_AT_ONCE
        return known_sha256(path, read) if large else read(path)


def _values_of(table: "pyarrow.Table", field: "dataclasses.Field[Any]") -> list[Any]:
    """A record field's values; its default if the rows were written before the field existed."""
    if field.name not in table.column_names and field.default is not dataclasses.MISSING:
        return [field.default] * table.num_rows
    return _values(table.column(field.name))


def _values(column: "pyarrow.ChunkedArray") -> list[Any]:
    """A column's values as plain Python; for lists, ten times faster than Arrow's `to_pylist`."""
    import pyarrow as pa

    if not pa.types.is_list(column.type) or column.null_count:
        return list(column.to_pylist())
    lists = column.combine_chunks()
    items, offsets = lists.flatten().tolist(), [0, *itertools.accumulate(lists.value_lengths().tolist())]
    return [items[start:end] for start, end in itertools.pairwise(offsets)]


def _schema(record: type) -> "pyarrow.Schema":
    import pyarrow as pa

    hints = get_type_hints(record)
    return pa.schema([pa.field(f.name, *_arrow_type(hints[f.name])) for f in dataclasses.fields(record)])


def _arrow_type(hint: Any) -> "tuple[pyarrow.DataType, bool]":
    import pyarrow as pa

    plain = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list[int]: pa.list_(pa.int32())}
    plain |= {list[str]: pa.list_(pa.string()), list[float]: pa.list_(pa.float64())}
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


def _seal(path: Path) -> Path:
    return path.with_suffix(".seal.json")


def _with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in values.items() if key != "checksum"}
    return {**values, "checksum": hashlib.sha256(_to_json(values)).hexdigest()}


def _read_checked(path: Path) -> dict[str, Any] | None:
    """The JSON object in one of our own files, or None if there is no file.

    Raises `DamagedError` if it was altered, `StoreError` if another version wrote it.
    """
    try:
        with explained(path):
            values = json.loads(path.read_text(encoding="utf-8"))
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
    except ValueError as error:
        raise DamagedError(path.parent, f"{path} is not readable: {error}") from error
    version = values.get("format", FORMAT) if isinstance(values, dict) else None
    if isinstance(version, int) and version != FORMAT:
        raise StoreError(
            f"{path} has format {version}, expected {FORMAT}: use the version that wrote it "
            f"({values.get('code', 'not recorded')}), or another run name"
        )
    if not isinstance(values, dict) or _with_checksum(values)["checksum"] != values.get("checksum"):
        raise DamagedError(path.parent, f"{path} was altered (its checksum does not match)")
    return values


def _to_json(values: Any) -> bytes:
    return (json.dumps(values, indent=1, ensure_ascii=False, default=str) + "\n").encode()


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's or a folder's content; for a stage's folder, its fingerprint.

    Raises `StoreError` if it doesn't exist, `DamagedError` if a stage doesn't match its manifest.
    """
    if not path.is_dir():
        return file_sha256(path)
    if (manifest := read_manifest(path)) is not None:
        check_stage(path, manifest)
        return manifest.fingerprint
    return folder_artifact(path).fingerprint


def external_file(path: Path) -> External:
    """A file, or a folder such as a dataset, identified by its content."""
    sha256 = content_sha256(path)
    return External(sha256, {path: sha256})


def is_unchanged(path: str, sha256: str) -> bool:
    """Whether an external file or folder of a manifest has the same content as then.

    Another run's stage is identified by its manifest or, if it is a model named in the config, by its files.
    """
    shipped = path.removeprefix(_SHIPPED_WITH_US)
    place = Path(path) if shipped == path else _PACKAGE / shipped
    try:
        if place.is_dir() and folder_artifact(place).fingerprint == sha256:
            return True
        return content_sha256(place) == sha256
    except StoreError:
        return False


def _portable(path: Path) -> str:
    """A path for a manifest: relative to this package, for files that ship with it."""
    inside = path.is_absolute() and path.is_relative_to(_PACKAGE)
    return f"{_SHIPPED_WITH_US}{path.relative_to(_PACKAGE).as_posix()}" if inside else str(path)


def complete_artifact(folder: Path) -> Artifact:
    """The artifact of a stage that is known to be current, from its manifest alone.

    Raises `StoreError` if it isn't complete, `DamagedError` if it doesn't match its manifest.
    """
    if (manifest := read_manifest(folder)) is None:
        raise StoreError(f"{folder} is not complete: rerun to complete it")
    check_stage(folder, manifest)
    return Artifact(folder, manifest.rows, manifest.fingerprint)
