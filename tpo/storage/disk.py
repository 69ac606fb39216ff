"""Crash-safe changes to the run folder: once a call has returned, its change is on disk, whole, under its final name.

A file is written under a temporary name, synced and renamed, and its folder is synced; a new folder is synced into its
parent. Operating system errors become `StoreError`s with a remedy. Every change is announced as an audit event
(`sys.audit`, PEP 578) before it is made: `tpo.write`, `tpo.append`, `tpo.sync`, `tpo.rename`, `tpo.mkdir`,
`tpo.remove`, `tpo.link`, `tpo.copy`. Tests listen there, stop the process at each event and check every state that a
crash can leave.

If the run is in a bucket, a mirror (`tpo.storage.mirror`) receives each change after it is on disk and before the call
returns, so that the bucket gets the changes in the same order as the disk.
"""

import contextlib
import dataclasses
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from tpo.errors import StoreError
from tpo.run_context import run_context, using

_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Mirror(Protocol):
    """A second copy of the run folder: receives each change once it is on disk, and supplies files that aren't."""

    def written(self, path: Path) -> None:
        """A file was written."""

    def appended(self, path: Path) -> None:
        """A file was appended to, and will be again; uploading may be delayed until then."""

    def settled(self, path: Path) -> None:
        """A file written by other code is complete."""

    def moved(self, source: Path, target: Path) -> None:
        """A file or folder was renamed."""

    def removed(self, path: Path) -> None:
        """A file or folder was deleted, or didn't exist locally."""

    def linked(self, source: Path, target: Path) -> None:
        """A file got a second name."""

    def bring_here(self, path: Path) -> None:
        """Fetches a file, or all files below a folder, if they only exist in the mirror."""

    def fetch_again(self, path: Path) -> bool:
        """Fetches a file and replaces the local one; False if the mirror has none."""

    def size(self, path: Path) -> int | None:
        """Size in bytes of a file that only exists in the mirror, otherwise None."""


@contextlib.contextmanager
def mirrored_by(mirror: Mirror) -> Iterator[None]:
    """Makes a mirror receive every change that this process makes through this module."""
    if run_context().mirror is not None:
        raise AssertionError("there is a mirror already")
    with using(dataclasses.replace(run_context(), mirror=mirror)):
        yield


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file completely or not at all: temporary file, sync, rename, sync of the folder."""
    _put_in_place(path, lambda temporary: temporary.write_bytes(data), data)
    if (mirror := run_context().mirror) is not None:
        mirror.written(path)


def fill_atomically(path: Path, fill: Callable[[Path], object]) -> None:
    """The same for a file written by `fill`; the mirror doesn't receive it."""
    _put_in_place(path, fill, b"")


def _put_in_place(path: Path, fill: Callable[[Path], object], announced: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        try:
            sys.audit("tpo.write", str(temporary), announced)
            fill(temporary)
            sync(temporary)
            sys.audit("tpo.rename", str(temporary), str(path))
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)


def make_folder(path: Path) -> None:
    """Creates a folder and its missing parents; another process may be creating them too."""
    with explained(path):
        if path.is_dir():
            return
        make_folder(path.parent)
        sys.audit("tpo.mkdir", str(path))
        path.mkdir(exist_ok=True)
        sync(path.parent)


def move(source: Path, target: Path) -> None:
    """Renames a file or folder within its file system."""
    with explained(source):
        sys.audit("tpo.rename", str(source), str(target))
        source.rename(target)
        sync(target.parent)
        if source.parent != target.parent:
            sync(source.parent)
    if (mirror := run_context().mirror) is not None:
        mirror.moved(source, target)


def remove(path: Path) -> None:
    """Deletes a file, or a folder with its content; does nothing if there is none."""
    with explained(path):
        sys.audit("tpo.remove", str(path))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            sync(path.parent)
        elif path.exists() or path.is_symlink():
            path.unlink()
            sync(path.parent)
    if (mirror := run_context().mirror) is not None:
        mirror.removed(path)


def link_or_copy(source: Path, target: Path, *, link: bool) -> None:
    """Gives a file a second name: a hard link if `link` is set and the file system supports it, otherwise a copy.

    The copy isn't synced; the commit that follows does that.
    """
    with explained(target):
        if link:
            sys.audit("tpo.link", str(source), str(target))
        if not (link and _linked(source, target)):
            sys.audit("tpo.copy", str(source), str(target))
            shutil.copyfile(source, target)
    if (mirror := run_context().mirror) is not None:
        mirror.linked(source, target)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def append(file: BinaryIO, data: bytes) -> None:
    """Appends to an open file; the operating system has the data when this returns, the disk after `sync`."""
    path = Path(file.name)
    with explained(path):
        sys.audit("tpo.append", str(path), data)
        file.write(data)
        file.flush()


def sync(path: Path) -> None:
    """Flushes a file's content, or a folder's list of names, to disk."""
    with explained(path):
        sys.audit("tpo.sync", str(path))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def settle(path: Path) -> None:
    """Flushes a file written by other code to disk and mirror."""
    sync(path)
    if (mirror := run_context().mirror) is not None:
        mirror.settled(path)


def settle_appended(path: Path) -> None:
    """Flushes a growing file to disk, and to the mirror from time to time."""
    sync(path)
    if (mirror := run_context().mirror) is not None:
        mirror.appended(path)


def bring_here(path: Path) -> None:
    """Fetches a file, or all files below a folder, that only exist in the mirror."""
    if (mirror := run_context().mirror) is not None:
        mirror.bring_here(path)


def fetch_again(path: Path) -> bool:
    """Fetches a file from the mirror and replaces the local one; False if there is none."""
    mirror = run_context().mirror
    return mirror is not None and mirror.fetch_again(path)


def size_of(path: Path) -> int | None:
    """Size of a file in bytes, local or in the mirror; None if it doesn't exist."""
    if path.is_file():
        return path.stat().st_size
    mirror = run_context().mirror
    return mirror.size(path) if mirror is not None else None


@contextlib.contextmanager
def explained(path: Path | None = None) -> Iterator[None]:
    """Turns an operating system error about a file, by default the one it names, into a `StoreError` with a remedy."""
    try:
        yield
    except OSError as error:
        if path is None and error.filename is None:
            raise StoreError(
                f"{error.strerror or error}, while writing to an unnamed output: check where the output goes, "
                "then rerun; completed work is saved"
            ) from error
        raise StoreError(_explanation(path or Path(str(error.filename)), error)) from error


def _explanation(path: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return (
            f"the disk is full: {path} could not be written ({_free_mib(path)} MiB free there): make room and rerun; "
            "completed work is saved"
        )
    if error.errno in _REFUSED:
        return f"{path} is not accessible ({error.strerror}): make the run folder readable and writable, then rerun"
    if error.errno == errno.EIO:
        return f"the disk failed at {path} ({error.strerror}): check the system log and the disk, then rerun"
    return f"{path}: {error.strerror or error}; fix that and rerun; completed work is saved"


def _free_mib(path: Path) -> int:
    try:
        return shutil.disk_usage(next(parent for parent in path.absolute().parents if parent.is_dir())).free // 2**20
    except OSError:
        return 0
