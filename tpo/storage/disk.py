"""Changes to the run folder that survive a crash: what has returned is on the disk, whole, under its name.

In: paths and bytes. Out: nothing, or a `StoreError` that says what the disk said and what to do.

A file is written beside its place, synced and renamed, and its folder synced; a new folder is synced into the one that
holds it. Every change is announced as an audit event (`sys.audit`, PEP 578) before it is made: `tpo.write`,
`tpo.append`, `tpo.sync`, `tpo.rename`, `tpo.mkdir`, `tpo.remove`, `tpo.link`, `tpo.copy`. The tests listen there, stop
the process at each of them and look at every state that a crash can leave.

Where the run is in a bucket, a mirror (`tpo.storage.mirror`) is told of each change after it is on the disk and before
the call returns, so that the bucket has what the disk has in the order in which the disk got it.
"""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from tpo.errors import StoreError

_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Mirror(Protocol):
    """Where else the run folder is kept: told of each change once it is on the disk, asked for what is not here."""

    def written(self, path: Path) -> None:
        """A file stands in its place."""

    def grown(self, path: Path) -> None:
        """A file was appended to and will be again; some of that may wait for the next time."""

    def settled(self, path: Path) -> None:
        """A file that others wrote is whole."""

    def moved(self, source: Path, target: Path) -> None:
        """A file or folder has another name."""

    def removed(self, path: Path) -> None:
        """A file or folder is gone, or was not here."""

    def brought(self, source: Path, target: Path) -> None:
        """A file has another name too."""

    def bring_here(self, path: Path) -> None:
        """Fetches a file, or all files below a folder, that are there and not here."""

    def bring_again(self, path: Path) -> bool:
        """Fetches a file in place of the one here; False where there is none."""

    def size(self, path: Path) -> int | None:
        """Bytes of a file that is there and not here, else None."""


_mirror: Mirror | None = None


@contextlib.contextmanager
def mirrored_by(mirror: Mirror) -> Iterator[None]:
    """Has a mirror told of everything that this process changes through this module."""
    global _mirror  # noqa: PLW0603 -- as the disk, it is one for all that writes in this process
    if _mirror is not None:
        raise AssertionError("a mirror is told already")
    _mirror = mirror
    try:
        yield
    finally:
        _mirror = None


def mirror_of_this_process() -> Mirror | None:
    """The mirror that is told of changes, or None where the disk has everything."""
    return _mirror


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: temporary file, sync, rename, sync of the folder."""
    _put_in_place(path, lambda temporary: temporary.write_bytes(data), data)
    if _mirror is not None:
        _mirror.written(path)


def fill_atomically(path: Path, fill: Callable[[Path], object]) -> None:
    """The same with a file that `fill` writes, for what comes from the mirror or does not belong there."""
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
    """Makes a folder and those above it that are not there yet."""
    with explained(path):
        if path.is_dir():
            return
        make_folder(path.parent)
        sys.audit("tpo.mkdir", str(path))
        path.mkdir()
        sync(path.parent)


def move(source: Path, target: Path) -> None:
    """Renames a file or folder within its file system."""
    with explained(source):
        sys.audit("tpo.rename", str(source), str(target))
        source.rename(target)
        sync(target.parent)
        if source.parent != target.parent:
            sync(source.parent)
    if _mirror is not None:
        _mirror.moved(source, target)


def remove(path: Path) -> None:
    """Deletes a file, or a folder with all that is in it; nothing where there is none."""
    with explained(path):
        sys.audit("tpo.remove", str(path))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            sync(path.parent)
        elif path.exists() or path.is_symlink():
            path.unlink()
            sync(path.parent)
    if _mirror is not None:
        _mirror.removed(path)


def bring(source: Path, target: Path, *, link: bool) -> None:
    """Puts a file under another name too: a hard link where `link` says so and the file system can, else a copy.

    The copy is not synced; what commits it syncs it.
    """
    with explained(target):
        if link:
            sys.audit("tpo.link", str(source), str(target))
        if not (link and _linked(source, target)):
            sys.audit("tpo.copy", str(source), str(target))
            shutil.copyfile(source, target)
    if _mirror is not None:
        _mirror.brought(source, target)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def append(file: BinaryIO, data: bytes) -> None:
    """Adds to an open file; the operating system has it when this returns, the disk after `sync`."""
    path = Path(file.name)
    with explained(path):
        sys.audit("tpo.append", str(path), data)
        file.write(data)
        file.flush()


def sync(path: Path) -> None:
    """Has the disk hold a file's content, or a folder's list of names."""
    with explained(path):
        sys.audit("tpo.sync", str(path))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def settle(path: Path) -> None:
    """Has the disk hold a file that others wrote, and the mirror too."""
    sync(path)
    if _mirror is not None:
        _mirror.settled(path)


def settle_grown(path: Path) -> None:
    """Has the disk hold a file that will be appended to again, and the mirror too, though not each time."""
    sync(path)
    if _mirror is not None:
        _mirror.grown(path)


def bring_here(path: Path) -> None:
    """Fetches a file, or all files below a folder, that stand in the mirror alone."""
    if _mirror is not None:
        _mirror.bring_here(path)


def bring_again(path: Path) -> bool:
    """Fetches a file from the mirror in place of what is here; False where there is none."""
    return _mirror is not None and _mirror.bring_again(path)


def size_of(path: Path) -> int | None:
    """Bytes of a file, here or in the mirror alone; None where there is none."""
    if path.is_file():
        return path.stat().st_size
    return _mirror.size(path) if _mirror is not None else None


@contextlib.contextmanager
def explained(path: Path | None = None) -> Iterator[None]:
    """Turns what the operating system says of a file, by default the one that it names, into a `StoreError` with a
    remedy."""
    try:
        yield
    except OSError as error:
        if path is None and error.filename is None:
            raise StoreError(
                f"{error.strerror or error}, when something was printed or written that has no name: see where the "
                "output goes, then run again; what is complete is kept"
            ) from error
        raise StoreError(_explanation(path or Path(str(error.filename)), error)) from error


def _explanation(path: Path, error: OSError) -> str:
    if error.errno in _FULL:
        return (
            f"the disk is full: {path} could not be written ({_free_mib(path)} MiB free there): make room and run "
            "again, what is complete is kept"
        )
    if error.errno in _REFUSED:
        return f"{path} is out of reach ({error.strerror}): make the run folder readable and writable, then run again"
    if error.errno == errno.EIO:
        return f"the disk failed at {path} ({error.strerror}): look at the system's log, mend the disk, then run again"
    return f"{path}: {error.strerror or error}; mend that and run again, what is complete is kept"


def _free_mib(path: Path) -> int:
    try:
        return shutil.disk_usage(next(parent for parent in path.absolute().parents if parent.is_dir())).free // 2**20
    except OSError:
        return 0
