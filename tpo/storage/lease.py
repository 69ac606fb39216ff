"""One writer a run in a bucket: an object says who, is renewed while they live, and is taken over when it has run out.

In: a bucket. Out: the bucket held until the context ends, and `check`, which raises once it no longer is.

The object is written on condition only (`If-None-Match`, `If-Match`), so that of two who want it one gets it. How old
it is, the server's clock says, in the same reply; how long ago this process renewed it, a clock of this machine that
goes on while it sleeps. Who is asked to write and has not renewed for half the lease, renews first, so that a process
that was stopped and has been taken for dead finds that out before it writes.

A holder that died on this machine is not waited for: it held the lock of the same working copy (`tpo.storage.lock`),
and this process could not have got that while it lived.
"""

import contextlib
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace

from tpo.config.resources import StorageConfig
from tpo.console import say
from tpo.errors import StoreError
from tpo.storage.bucket import Bucket, ConflictError, Object

NAME = ".lease.json"
_SERVERS_TICK = 1.0
"""Seconds to which the server's times are rounded."""


@dataclass(frozen=True)
class Holder:
    """Who holds a bucket, or held it last."""

    session: str
    """Of one start of a run, and no other."""
    copy: str
    """The working copy that it writes from; it outlives sessions."""
    host: str
    """Its machine."""
    pid: int
    """Its process there."""
    start: str
    """When it began, by its own clock; for people."""
    seconds: float
    """How long the lease lasts from each renewal."""
    renewals: int = 0
    """How often it was renewed."""
    released: bool = False
    """Whether it has ended and said so."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.start}"


class Lease:
    """The hold of one process on a bucket."""

    def __init__(self, bucket: Bucket, holder: Holder, found: Object | None, clock: Callable[[], float]) -> None:
        """Takes it. Raises `ConflictError` where `found` is not what stands there any more."""
        self._bucket = bucket
        self._holder = holder
        self._clock = clock
        self._renewed = clock()
        self._etag = _written(bucket, holder, found.etag if found else None)
        self._lost: str | None = None
        self._lock = threading.Lock()

    @property
    def session(self) -> str:
        """What stands in the object as long as the lease is held."""
        return self._holder.session

    def check(self) -> None:
        """Raises `StoreError` where somebody else may write by now."""
        if self._lost is None and self._clock() - self._renewed > self._holder.seconds / 2:
            self.renew()
        if self._lost is not None:
            raise StoreError(
                f"{self._bucket.url} was taken over {self._lost}: this process writes no more to it; what is complete "
                "there is kept"
            )

    def renew(self) -> None:
        """Says that this process lives. Raises `StoreError` where the server does not answer."""
        with self._lock:
            if self._lost is None:
                self._write(replace(self._holder, renewals=self._holder.renewals + 1))

    def keep_renewing(self, stop: threading.Event) -> None:
        """Renews until `stop` is set, or the lease is lost."""
        while self._lost is None and not stop.wait(self._holder.seconds / 4):
            with contextlib.suppress(StoreError):  # the next `check` says so, if it lasts
                self.renew()

    def release(self) -> None:
        """Lets the next one have it at once."""
        with self._lock, contextlib.suppress(StoreError):
            if self._lost is None:
                self._write(replace(self._holder, released=True))

    def _write(self, holder: Holder) -> None:
        asked = self._clock()
        try:
            self._etag = _written(self._bucket, holder, self._etag)
        except ConflictError:
            found = last_holder(self._bucket)
            self._lost = f"by {found}" if found else "by somebody who deleted its lease"
        else:
            self._holder, self._renewed = holder, asked


@dataclass(frozen=True)
class Held:
    """A bucket that is held."""

    lease: Lease
    """Its lease."""
    goes_on: bool
    """Whether the one who held it last wrote from the same working copy."""


@contextlib.contextmanager
def held(url: str, storage: StorageConfig, copy: str) -> Iterator[Held]:
    """Holds a bucket for this process alone, and renews the hold in a thread.

    Waits for a holder that gives no sign of life until its lease has run out. Raises `StoreError` naming the holder's
    host, pid and start where it gives one.
    """
    # Short of patience: who waits long to renew has lost the lease meanwhile.
    brisk = storage.model_copy(
        update={
            "max_attempts": min(storage.max_attempts, 3),
            "timeout_seconds": min(storage.timeout_seconds, storage.lease_seconds / 6),
        }
    )
    bucket = Bucket(url, brisk)
    taken = _take(bucket, _this_process(copy, storage.lease_seconds))
    stop = threading.Event()
    thread = threading.Thread(target=taken.lease.keep_renewing, args=(stop,), name="lease", daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        stop.set()
        thread.join()
        taken.lease.release()


def last_holder(bucket: Bucket) -> Holder | None:
    """Who holds a bucket, or held it last."""
    found = bucket.get(NAME)
    return _holder(found) if found else None


def _take(bucket: Bucket, holder: Holder) -> Held:
    first: Holder | None = None
    while True:
        found = bucket.get(NAME)
        last = _holder(found) if found else None
        if found is None or last is None or _is_free(found, last, holder):
            with contextlib.suppress(ConflictError):
                lease = Lease(bucket, holder, found, _clock)
                if last is not None and not last.released:
                    say(f"{bucket.url}: taken over from {last}, which ended without a word")
                return Held(lease, last is not None and last.copy == holder.copy)
            continue
        if first is not None and (first.session, first.renewals) != (last.session, last.renewals):
            raise StoreError(f"{bucket.url} is being written by {last}: wait for it to end, or stop it")
        if first is None:
            say(f"{bucket.url} is held by {last}: waiting up to {last.seconds:.0f} s for a sign of life")
        first = last
        time.sleep(min(1.0, last.seconds / 10))


def _is_free(found: Object, last: Holder, holder: Holder) -> bool:
    died_here = (last.copy, last.host) == (holder.copy, holder.host)
    return last.released or died_here or found.age > last.seconds + _SERVERS_TICK


def _written(bucket: Bucket, holder: Holder, etag: str | None) -> str:
    try:
        return bucket.put_if(NAME, _to_json(holder), etag)
    except ConflictError:
        now = bucket.get(NAME)
        if now is None or now.data != _to_json(holder):
            raise
        return now.etag  # it took effect, and its reply was lost


def _this_process(copy: str, seconds: float) -> Holder:
    start = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Holder(uuid.uuid4().hex, copy, socket.gethostname(), os.getpid(), start, seconds)


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _to_json(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _holder(found: Object) -> Holder:
    try:
        return Holder(**json.loads(found.data))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{NAME} in the bucket is none of ours ({error}): delete it if no run writes there") from error
