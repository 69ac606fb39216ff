"""Changes to the run folder that survive a crash: what has returned is on the disk, whole, under its name.

In: paths and bytes. Out: nothing, or a `StoreError` that says what the disk said and what to do.

A file is written beside its place, synced and renamed, and its folder synced; a new folder is synced into the one that
holds it. Every change is announced as an audit event (`sys.audit`, PEP 578) before it is made: `tpo.write`,
`tpo.append`, `tpo.sync`, `tpo.rename`, `tpo.mkdir`, `tpo.remove`, `tpo.link`, `tpo.copy`. The tests listen there, stop
the process at each of them and look at every state that a crash can leave.
"""

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tpo.errors import StoreError

_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: temporary file, sync, rename, sync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        try:
            sys.audit("tpo.write", str(temporary), data)
            temporary.write_bytes(data)
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


def remove(path: Path) -> None:
    """Deletes a file, or a folder with all that is in it; nothing where there is none."""
    with explained(path):
        sys.audit("tpo.remove", str(path))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.exists() or path.is_symlink():
            path.unlink()
        else:
            return
        sync(path.parent)


def bring(source: Path, target: Path, *, link: bool) -> None:
    """Puts a file under another name too: a hard link where `link` says so and the file system can, else a copy.

    The copy is not synced; what commits it syncs it.
    """
    with explained(target):
        if link:
            sys.audit("tpo.link", str(source), str(target))
            with contextlib.suppress(OSError):
                os.link(source, target)
                return
        sys.audit("tpo.copy", str(source), str(target))
        shutil.copyfile(source, target)


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


@contextlib.contextmanager
def explained(path: Path | None = None) -> Iterator[None]:
    """Turns what the operating system says of a file, by default the one that it names, into a `StoreError` with a
    remedy."""
    try:
        yield
    except OSError as error:
        raise StoreError(_explanation(path or Path(str(error.filename or ".")), error)) from error


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
        return shutil.disk_usage(next(parent for parent in path.parents if parent.is_dir())).free // 2**20
    except OSError:
        return 0
