"""Claims about the lease, on a real S3 server: a bucket has one holder, and a process that lost it stops writing."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faulty_proxy import Fault, FaultyProxy
from tests.s3_server import S3Server, new_url
from tpo.config.resources import StorageConfig
from tpo.errors import StoreError
from tpo.storage.bucket import Bucket
from tpo.storage.lease import Holder, Lease, held, last_holder

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from tpo.config.resources import StorageConfig
from tpo.storage.lease import held
with held(sys.argv[1], StorageConfig.model_validate_json(sys.argv[2]), sys.argv[3]):
    print("held", flush=True)
    time.sleep(60)
"""

pytestmark = pytest.mark.faults


@pytest.fixture
def storage(s3: S3Server, tmp_path: Path) -> StorageConfig:
    return s3.storage(tmp_path)


@pytest.fixture
def holder(storage: StorageConfig) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Starts processes that hold a bucket, and ends them after the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(url: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", HOLD, url, storage.model_dump_json(), "theirs"]
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout is not None and processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_second_machine_is_told_who_holds_the_bucket(
    storage: StorageConfig, holder: Callable[[str], "subprocess.Popen[str]"], outcome: Callable[[str, str, str], None]
):
    url = new_url()
    first = holder(url)
    with (
        pytest.raises(StoreError, match=rf"process {first.pid} on {socket.gethostname()}, started 20\d\d-.*: wait"),
        held(url, storage, "ours"),
    ):
        pass
    assert first.poll() is None
    outcome("a second machine starts the run", "a bucket", "the second names the holder; the first continues")


def test_a_dead_machines_lease_must_expire_first(
    storage: StorageConfig,
    holder: Callable[[str], "subprocess.Popen[str]"],
    capsys: pytest.CaptureFixture[str],
    outcome: Callable[[str, str, str], None],
):
    url = new_url()
    first = holder(url)
    first.kill()
    first.wait()
    with held(url, storage, "ours") as taken:
        assert not taken.same_copy
        stderr = capsys.readouterr().err
        assert f"held by process {first.pid}" in stderr and "waiting up to 3 s" in stderr
        assert f"taken over from process {first.pid}" in stderr
    outcome("the machine is lost", "a bucket", "another takes over once the lease has expired, and resumes")


def test_a_dead_holder_of_the_same_working_copy_is_replaced_at_once(
    storage: StorageConfig, holder: Callable[[str], "subprocess.Popen[str]"], capsys: pytest.CaptureFixture[str]
):
    url = new_url()
    first = holder(url)
    first.kill()
    first.wait()
    with held(url, storage, "theirs") as taken:
        assert taken.same_copy
    stderr = capsys.readouterr().err
    assert "waiting" not in stderr and f"taken over from process {first.pid}" in stderr


def test_a_released_bucket_is_free_at_once(storage: StorageConfig, capsys: pytest.CaptureFixture[str]):
    url = new_url()
    with pytest.raises(ZeroDivisionError), held(url, storage, "theirs"):
        _ = 1 / 0
    with held(url, storage, "ours") as taken:
        assert not taken.same_copy
    assert capsys.readouterr().err == ""


def test_a_lease_is_renewed_as_long_as_its_holder_lives(storage: StorageConfig):
    url = new_url()
    with held(url, storage, "ours") as taken:
        threading.Event().wait(2 * storage.lease_seconds)
        found = last_holder(Bucket(url, storage))
        assert found is not None and found.renewals >= 4
        taken.lease.check()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def a_lease(bucket: Bucket, clock: Clock, session: str = "first") -> Lease:
    return Lease(bucket, Holder(session, session, "here", 1, "today", seconds=60.0), bucket.get(".lease.json"), clock)


def test_a_holder_whose_lease_was_taken_while_it_slept_writes_no_more(
    storage: StorageConfig, outcome: Callable[[str, str, str], None]
):
    bucket, clock = Bucket(new_url(), storage), Clock()
    first = a_lease(bucket, clock)
    a_lease(bucket, Clock(), "second")
    first.check()  # not renewed at once
    clock.now = 31.0
    for _ in range(2):
        with pytest.raises(StoreError, match=r"taken over by process 1 on here.*stops writing"):
            first.check()
    first.release()
    found = last_holder(bucket)
    assert found is not None and found.session == "second" and not found.released
    outcome("a process sleeps until another takes its lease", "a bucket", "stops before it writes; the other continues")


def test_a_holder_that_slept_and_still_has_its_lease_continues(storage: StorageConfig):
    bucket, clock = Bucket(new_url(), storage), Clock()
    first = a_lease(bucket, clock)
    clock.now = 1000.0
    first.check()
    found = last_holder(bucket)
    assert found is not None and found.renewals == 1


def test_a_renewal_survives_a_lost_reply(storage: StorageConfig, proxy: FaultyProxy):
    bucket, clock = Bucket(new_url(), storage.model_copy(update={"endpoint_url": proxy.endpoint})), Clock()
    proxy.script = lambda request: Fault(lose_reply=True) if request.conditional and request.count in (0, 2) else None
    lease = a_lease(bucket, clock)
    for clock.now in (100.0, 200.0):
        lease.check()
    assert proxy.struck == 2


def test_a_holder_that_cannot_renew_writes_nothing(storage: StorageConfig, proxy: FaultyProxy):
    bucket, clock = (
        Bucket(new_url(), storage.model_copy(update={"endpoint_url": proxy.endpoint, "max_attempts": 1})),
        Clock(),
    )
    lease = a_lease(bucket, clock)
    proxy.script = lambda request: Fault(status=503)
    clock.now = 31.0
    with pytest.raises(StoreError, match="failed in up to 1 attempts"):
        lease.check()
    proxy.script = lambda request: None
    lease.check()
