"""A run in a bucket: changes on the local disk are uploaded in the same order, and missing files are downloaded.

The bucket is authoritative and the working copy a cache, with one exception: files that the bucket lacks and the last
holder's own working copy has were about to be uploaded, and are. A PUT is atomic and visible to all at once, so a
manifest in the bucket means the same as one on disk. Buckets can't rename: a folder is copied, its manifest last, and
then deleted, its manifest first, so that half a stage never looks complete. The lease (`tpo.storage.lease`) is checked
before each change; a process that has lost it writes nothing.

Large files are downloaded when they are used. Temporary files, locks and other names with a leading dot stay local.
"""

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tpo.config.resources import StorageConfig
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.errors import StoreError
from tpo.run_context import run_context
from tpo.storage.bucket import Bucket, Version
from tpo.storage.disk import fill_atomically, make_folder, mirrored_by, remove, write_atomically
from tpo.storage.journal import JOURNALS
from tpo.storage.lease import held, last_holder
from tpo.storage.ledger import LEDGER
from tpo.storage.lock import only_writer
from tpo.storage.store import SCRATCH

_MIB = 2**20
_COPY = ".copy.json"


class BucketMirror:
    """Uploads changes of a run's working copy to its bucket, and downloads what only exists there."""

    def __init__(
        self, root: Path, bucket: Bucket, storage: StorageConfig, check: Callable[[], None], *, session: str = ""
    ) -> None:
        """`check` raises if this process may not write; `session` is the lease's id, if there is one."""
        self.root = root.resolve()
        self.bucket = bucket
        self.storage = storage
        self.session = session
        self._check = check
        self._elsewhere: dict[str, Version] = {}
        """Files that are only in the bucket."""
        self._put_at: dict[str, float] = {}

    def written(self, path: Path) -> None:
        """Uploads a file."""
        if (name := self._name(path)) is not None:
            self._put(name, path)

    def appended(self, path: Path) -> None:
        """Uploads a journal, if the last upload was some time ago."""
        if (name := self._name(path)) is None:
            return
        if time.monotonic() - self._put_at.setdefault(name, time.monotonic()) >= self.storage.journal_seconds:
            self._put(name, path)

    def settled(self, path: Path) -> None:
        """Uploads a file, unless the bucket has it."""
        if (name := self._name(path)) is not None:
            version = self.bucket.version(name)
            if version is None or not version.is_of(path):
                self._put(name, path)

    def moved(self, source: Path, target: Path) -> None:
        """Copies the objects under the old name, then deletes them; files that were local until now are uploaded."""
        if (new := self._name(target)) is None:
            return
        old = self._name(source)
        if old is None:
            for path in _files(target):
                self.settled(path)
            return
        names = self._names(old)
        for name in _manifests_last(names):
            self._copy(name, new + name.removeprefix(old))
        for name in reversed(_manifests_last(names)):
            self._delete(name)

    def removed(self, path: Path) -> None:
        """Deletes a file, or everything below a folder, manifests and seals first."""
        if (name := self._name(path)) is not None:
            for one in reversed(_manifests_last(self._names(name))):
                self._delete(one)

    def linked(self, source: Path, target: Path) -> None:
        """Copies a file within the bucket, or uploads it if its source isn't part of this run."""
        old, new = self._name(source), self._name(target)
        if new is None:
            return
        version = self.bucket.version(old) if old is not None else None
        if old is not None and version is not None and version.is_of(source):
            self._copy(old, new)
        else:
            self._put(new, target)

    def size(self, path: Path) -> int | None:
        """Size in bytes of a file that only exists in the bucket, otherwise None."""
        version = self._elsewhere.get(self._name(path) or "")
        return version.size if version else None

    def bring_here(self, path: Path) -> None:
        """Downloads a file, or all files below a folder, that only exist in the bucket."""
        if (name := self._name(path)) is None:
            return
        for one in [one for one in self._elsewhere if one == name or one.startswith(f"{name}/")]:
            self._fetch(one, self._elsewhere[one])

    def fetch_again(self, path: Path) -> bool:
        """Downloads a file and replaces the local one; False if the bucket has none."""
        name = self._name(path)
        version = self.bucket.version(name) if name is not None else None
        if name is None or version is None:
            return False
        say(f"{path} is damaged: downloaded again from {self.bucket.url}")
        self._fetch(name, version)
        return True

    def catch_up(self, folder: Path) -> None:
        """Downloads what another process has uploaded below a folder since, replacing local files."""
        if (name := self._name(folder)) is None:
            return
        for one, version in self.bucket.versions(f"{name}/").items():
            path = self.root / one
            if _is_shared(one) and not (path.is_file() and version.is_of(path)):
                self._fetch(one, version)

    def pull(self, *, same_copy: bool) -> None:
        """Updates the working copy; with `same_copy`, the last holder's, it may have files that the bucket lacks."""
        there = {name: version for name, version in self.bucket.versions().items() if _is_shared(name)}
        here = {name: path for path in _files(self.root) if (name := self._name(path)) is not None}
        if here and not there and not same_copy:
            raise StoreError(
                f"{self.bucket.url} is empty, but {self.root} is a working copy of a run there: restore the bucket's "
                "content, or move that folder away to start over"
            )
        for name, version in there.items():
            path = self.root / name
            if path.is_file() and (version.is_of(path) or (same_copy and _is_longer_journal(path, version))):
                continue
            if version.size <= self.storage.part_mib * _MIB:
                self._fetch(name, version)
            else:
                remove(path)
                self._elsewhere[name] = version
        if not same_copy:
            _forget([path for name, path in here.items() if name not in there], self.root)

    def push(self) -> None:
        """Uploads files that the bucket lacks: manifests last, and files about the whole run after them."""
        there = self.bucket.versions()
        missing = []
        for path in _files(self.root):
            name = self._name(path)
            if name is None or any(part in SCRATCH for part in PurePosixPath(name).parts):
                continue
            if name not in there or _is_longer_journal(path, there[name]):
                missing.append(name)
        if missing:
            say(f"{self.bucket.url}: uploading {len(missing)} files that were not uploaded before")
        for name in _manifests_last(missing):
            self._put(name, self.root / name)

    def _name(self, path: Path) -> str | None:
        """The object of a run's file; None if it stays local."""
        resolved = path.parent.resolve() / path.name
        if not resolved.is_relative_to(self.root):
            return None
        name = resolved.relative_to(self.root).as_posix()
        return name if _is_shared(name) else None

    def _names(self, name: str) -> list[str]:
        """The object of that name, and those below it."""
        return [one for one in self.bucket.versions(name) if one == name or one.startswith(f"{name}/")]

    def _put(self, name: str, path: Path) -> None:
        self._announce("put", name)
        self.bucket.put(name, path)
        self._elsewhere.pop(name, None)
        self._put_at[name] = time.monotonic()

    def _copy(self, source: str, target: str) -> None:
        self._announce("copy", target)
        self.bucket.copy(source, target)
        if source in self._elsewhere:
            self._elsewhere[target] = self._elsewhere[source]

    def _delete(self, name: str) -> None:
        self._announce("delete", name)
        self.bucket.delete(name)
        self._elsewhere.pop(name, None)

    def _announce(self, what: str, name: str) -> None:
        self._check()
        sys.audit(f"tpo.storage.bucket.{what}", str(self.root / name))

    def _fetch(self, name: str, version: Version) -> None:
        path = self.root / name
        make_folder(path.parent)
        fill_atomically(path, lambda temporary: self.bucket.download(name, version, temporary))
        self._elsewhere.pop(name, None)


@contextlib.contextmanager
def reading(config: RunConfig) -> Iterator[None]:
    """Updates the working copy of a run in a bucket for reading. Does nothing for other runs.

    Raises `StoreError` if the bucket can't be reached, or another process on this machine writes to the run.
    """
    if isinstance(config.folder, Path):
        yield
        return
    with only_writer(config.root):
        bucket = Bucket(config.place, config.storage)
        mirror = BucketMirror(config.root, bucket, config.storage, _only_looking)
        last = last_holder(bucket)
        mirror.pull(same_copy=last is not None and last.copy == _copy_of(config.root))
    with mirrored_by(mirror):
        yield


@contextlib.contextmanager
def writing(config: RunConfig) -> Iterator[None]:
    """Holds a run in a bucket exclusively, with its working copy up to date, and uploads each change.

    The working copy must be held exclusively, too (`only_writer`). Does nothing for other runs.
    """
    if isinstance(config.folder, Path):
        yield
        return
    with held(config.place, config.storage, _copy_of(config.root)) as taken:
        bucket = Bucket(config.place, config.storage)
        mirror = BucketMirror(config.root, bucket, config.storage, taken.lease.check, session=taken.lease.session)
        with contextlib.suppress(StoreError):  # Not every server or role allows this; nothing depends on it.
            bucket.drop_unfinished()
        mirror.pull(same_copy=taken.same_copy)
        with mirrored_by(mirror):
            mirror.push()
            yield


@dataclass(frozen=True)
class Handover:
    """What a run's workers need to upload and download. It contains no keys: workers find their own."""

    root: Path
    """The working copy, at the same path on every machine."""
    url: str
    """The run's address."""
    storage: StorageConfig
    """How to reach the bucket."""
    session: str
    """The lease that permits writing."""


def hand_over() -> Handover | None:
    """The handover for this run's workers; None if the run isn't in a bucket."""
    mirror = run_context().mirror
    if not isinstance(mirror, BucketMirror):
        return None
    return Handover(mirror.root, mirror.bucket.url, mirror.storage, mirror.session)


@contextlib.contextmanager
def helping(handover: Handover | None, *folders: Path) -> Iterator[None]:
    """In a worker: uploads its changes, after bringing these folders up to date."""
    if handover is None:
        yield
        return
    bucket = Bucket(handover.url, handover.storage)

    def check() -> None:
        holder = last_holder(bucket)
        if holder is None or holder.session != handover.session or holder.released:
            raise StoreError(f"{handover.url} is held by {holder or 'no process'}: this worker stops writing there")

    mirror = BucketMirror(handover.root, bucket, handover.storage, check, session=handover.session)
    for folder in folders:
        mirror.catch_up(folder)
    with mirrored_by(mirror):
        yield


def catch_up(folder: Path) -> None:
    """Brings a folder up to date with what workers on other machines have uploaded."""
    mirror = run_context().mirror
    if isinstance(mirror, BucketMirror):
        mirror.catch_up(folder)


def _only_looking() -> None:
    raise AssertionError("a run that was opened for reading was changed")


def _copy_of(root: Path) -> str:
    """The id of a working copy; a different one if the folder was copied elsewhere."""
    made = {"copy": uuid.uuid4().hex, "folder": root.stat().st_ino}
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((root / _COPY).read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("folder") == made["folder"]:
            return str(found["copy"])
    write_atomically(root / _COPY, json.dumps(made).encode())
    return str(made["copy"])


def _forget(paths: list[Path], root: Path) -> None:
    if paths:
        say(f"{root}: removed {len(paths)} files that another process has since removed from the bucket")
    for path in paths:
        remove(path)
    for folder in sorted({parent for path in paths for parent in path.parents}, reverse=True):
        if folder.is_relative_to(root) and folder != root and not any(folder.iterdir()):
            remove(folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_shared(name: str) -> bool:
    """Whether a file of that name is mirrored: no leading dots, and no names planted in the bucket that would lead out
    of the working copy."""
    return all(part and not part.startswith(".") for part in name.split("/"))


def _is_longer_journal(path: Path, version: Version) -> bool:
    return (path.match(JOURNALS) or path.name == LEDGER) and path.stat().st_size > version.size


def _manifests_last(names: list[str]) -> list[str]:
    """Names ordered so that manifests and seals come after what they mark as complete."""

    def rank(name: str) -> int:
        if "/" not in name:
            return 3
        return 2 if name.endswith("/manifest.json") else int(name.endswith(".seal.json"))

    return sorted(names, key=lambda name: (rank(name), name))
