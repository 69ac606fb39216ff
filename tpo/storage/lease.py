"""One writer per run in a bucket: an object names the holder, who renews it, and can be taken over once it expires.

The object is only written conditionally (`If-None-Match`, `If-Match`), so of two contenders one succeeds. Its age
follows from the server's clock in the same reply; the time since our own renewal, from a local clock that also runs
while the machine sleeps. A holder that hasn't renewed for half the lease renews before it writes, so a process that was
suspended and taken for dead notices.

There is no wait for a holder that died on this machine: it held the lock of the same working copy (`tpo.storage.lock`),
which this process could not have acquired while the other lived.
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
"""Resolution of the server's times, in seconds."""


@dataclass(frozen=True)
class Holder:
    """The current or last holder of a bucket."""

    session: str
    """Id of one start of a run."""
    copy: str
    """Id of the working copy that it writes from; the same for all sessions there."""
    host: str
    """Its host name."""
    pid: int
    """Its process id."""
    start: str
    """When it started, by its own clock; human-readable."""
    seconds: float
    """Duration of the lease after each renewal, in seconds."""
    renewals: int = 0
    """Number of renewals."""
    released: bool = False
    """Whether it has been released."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, started {self.start}"


class Lease:
    """One process's hold on a bucket."""

    def __init__(self, bucket: Bucket, holder: Holder, found: Object | None, clock: Callable[[], float]) -> None:
        """Acquires it. Raises `ConflictError` if the object is no longer `found`."""
        self._bucket = bucket
        self._holder = holder
        self._clock = clock
        self._renewed = clock()
        self._etag = _written(bucket, holder, found.etag if found else None)
        self._lost: str | None = None
        self._lock = threading.Lock()

    @property
    def session(self) -> str:
        """The object's content while the lease is held."""
        return self._holder.session

    def check(self) -> None:
        """Raises `StoreError` if another process may be writing by now."""
        if self._lost is None and self._clock() - self._renewed > self._holder.seconds / 2:
            self.renew()
        if self._lost is not None:
            raise StoreError(
                f"{self._bucket.url} was taken over {self._lost}: this process stops writing there; completed work is "
                "kept"
            )

    def renew(self) -> None:
        """Renews the lease. Raises `StoreError` if the server doesn't answer."""
        with self._lock:
            if self._lost is None:
                self._write(replace(self._holder, renewals=self._holder.renewals + 1))

    def keep_renewing(self, stop: threading.Event) -> None:
        """Renews until `stop` is set or the lease is lost."""
        while self._lost is None and not stop.wait(self._holder.seconds / 4):
            with contextlib.suppress(StoreError):  # If this lasts, the next `check` raises.
                self.renew()

    def release(self) -> None:
        """Releases it for the next process."""
        with self._lock, contextlib.suppress(StoreError):
            if self._lost is None:
                self._write(replace(self._holder, released=True))

    def _write(self, holder: Holder) -> None:
        asked = self._clock()
        try:
            self._etag = _written(self._bucket, holder, self._etag)
        except ConflictError:
            found = last_holder(self._bucket)
            self._lost = f"by {found}" if found else "by a process that deleted its lease"
        else:
            self._holder, self._renewed = holder, asked


@dataclass(frozen=True)
class Held:
    """A bucket held by this process."""

    lease: Lease
    """Its lease."""
    same_copy: bool
    """Whether the last holder wrote from the same working copy."""


@contextlib.contextmanager
def held(url: str, storage: StorageConfig, copy: str) -> Iterator[Held]:
    """Holds a bucket exclusively, and renews the lease in a thread.

    Waits until the lease of a silent holder has expired. Raises `StoreError` with the holder's host, pid and start if
    it is alive.
    """
    # Fewer attempts than elsewhere: a renewal that waits long has lost the lease anyway.
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
    """The current or last holder of a bucket."""
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
                    say(f"{bucket.url}: taken over from {last}, which exited without releasing it")
                return Held(lease, last is not None and last.copy == holder.copy)
            continue
        if first is not None and (first.session, first.renewals) != (last.session, last.renewals):
            raise StoreError(f"{bucket.url} is being written by {last}: wait for it to end, or stop it")
        if first is None:
            say(f"{bucket.url} is held by {last}: waiting up to {last.seconds:.0f} s for a renewal")
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
        return now.etag  # The request took effect, but its reply was lost.


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
        raise StoreError(
            f"{NAME} in the bucket has an unknown format ({error}): delete it if no run writes there"
        ) from error
