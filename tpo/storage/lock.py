"""One writer per run folder: a second process gets an error naming the holder; a dead holder's lock is taken over.

The operating system holds the lock (`flock`) and releases it however the holder dies, so no clock or timeout decides
who is dead. The holder's name is in a file next to it, for messages only.
"""

import contextlib
import datetime
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tpo.console import say
from tpo.errors import StoreError
from tpo.storage.disk import explained, make_folder, remove, write_atomically

_LOCK, _HOLDER = ".lock", ".holder.json"


def check_unheld(root: Path) -> None:
    """Raises `StoreError` naming the holder if another process holds a run folder.

    An early check, so that a second run is refused before it starts Prefect; `only_writer` decides, and reports
    anything else that is wrong with the folder.
    """
    lock = FileLock(root / _LOCK, timeout=0, fallback_to_soft=False)
    if not (root / _LOCK).is_file():
        return
    try:
        lock.acquire()
    except Timeout:
        raise _held(root) from None
    except OSError:
        return
    lock.release()


def _held(root: Path) -> StoreError:
    return StoreError(f"{root} is being written by {_holder(root)}: wait for it to end, or stop it")


@contextlib.contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Holds a run folder exclusively, creating it if necessary.

    Raises `StoreError` naming the holder's host, pid and start if another process holds it, and if the file system has
    no locks: a lock file would outlive its holder.
    """
    make_folder(root)
    lock = FileLock(root / _LOCK, timeout=0, fallback_to_soft=False)
    with explained(root / _LOCK):
        try:
            lock.acquire()
        except Timeout:
            raise _held(root) from None
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise StoreError(
                f"the file system of {root} does not support locks (flock), which keep two processes from writing "
                "there: mount it with locks, or set folder in the profile to another one"
            ) from error
    try:
        if (root / _HOLDER).exists():
            say(f"{root}: taken over from {_holder(root)}, which exited without releasing it")
        for leftover in root.glob(".*.tmp"):
            remove(leftover)
        write_atomically(root / _HOLDER, json.dumps(_this_process()).encode())
        yield
    finally:
        with contextlib.suppress(StoreError):
            remove(root / _HOLDER)
        lock.release()


def _this_process() -> dict[str, str | int]:
    start = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": start}


def _holder(root: Path) -> str:
    try:
        holder = json.loads((root / _HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, started {holder['start']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which has not recorded its id yet"
