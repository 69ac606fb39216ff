"""Claims about a bucket, on a real S3 server: each request takes effect once and completely, despite network faults."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faulty_proxy import Asked, Fault, FaultyProxy
from tests.s3_server import S3Server, new_url
from tpo.errors import StoreError
from tpo.storage.bucket import Bucket, ConflictError, Version

LARGE = 6 * 2**20
"""Bytes of a file that goes in two parts."""

pytestmark = pytest.mark.faults


@pytest.fixture
def through(proxy: FaultyProxy, s3: S3Server, tmp_path: Path) -> Bucket:
    """A bucket behind the proxy."""
    return Bucket(new_url(), s3.storage(tmp_path, endpoint_url=proxy.endpoint, timeout_seconds=1))


def a_file(folder: Path, data: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(data)
    return path


def fetched(bucket: Bucket, name: str, folder: Path) -> bytes:
    bucket.download(name, bucket.versions()[name], folder / "fetched")
    return (folder / "fetched").read_bytes()


@pytest.mark.parametrize("size", [0, 1000, LARGE])
def test_objects_are_uploaded_listed_copied_fetched_and_deleted(s3: S3Server, tmp_path: Path, size: int):
    bucket, data = Bucket(new_url(), s3.storage(tmp_path)), os.urandom(size)
    bucket.put("a/b", a_file(tmp_path, data))
    bucket.copy("a/b", "a/c")
    assert {name: version.size for name, version in bucket.versions("a/").items()} == {"a/b": size, "a/c": size}
    assert fetched(bucket, "a/c", tmp_path) == data
    assert (bucket.versions()["a/b"].etag.endswith("-2")) == (size == LARGE)
    bucket.delete("a/b")
    assert bucket.version("a/b") is None and bucket.get("a/b") is None
    assert bucket.versions().keys() == {"a/c"}


def test_a_conditional_write_fails_after_another_write(s3: S3Server, tmp_path: Path):
    bucket = Bucket(new_url(), s3.storage(tmp_path))
    first = bucket.put_if("a", b"1", None)
    second = bucket.put_if("a", b"2", first)
    for late in (None, first):
        with pytest.raises(ConflictError):
            bucket.put_if("a", b"3", late)
    found = bucket.get("a")
    assert found is not None and (found.data, found.etag) == (b"2", second) and 0 <= found.age < 60


FAULTS = {
    "the server is overloaded (503)": Fault(status=503),
    "the server fails (500)": Fault(status=500, code="InternalError"),
    "the server is silent": Fault(seconds=2.0),
    "the connection is cut while sending": Fault(cut_request=True),
    "the connection is cut while reading": Fault(cut_reply=True),
    "the reply is lost after the request took effect": Fault(lose_reply=True),
}


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_request_is_retried(
    through: Bucket,
    proxy: FaultyProxy,
    tmp_path: Path,
    outcome: Callable[[str, str, str], None],
    fault: str,
    size: int,
):
    data = os.urandom(size)
    proxy.script = lambda request: FAULTS[fault] if request.count == 0 else None
    through.put("a", a_file(tmp_path, data))
    assert fetched(through, "a", tmp_path) == data
    through.copy("a", "b")
    through.delete("a")
    assert through.versions().keys() == {"b"}
    assert proxy.struck >= 4
    outcome(fault, "a bucket, each request", "retried; uploads and downloads are complete")


@pytest.mark.parametrize("fault", [Fault(cut_reply=True), Fault(damage_reply=True)])
def test_content_that_stays_wrong_is_refused(through: Bucket, proxy: FaultyProxy, tmp_path: Path, fault: Fault):
    through.put("a", a_file(tmp_path, b"whole" * 100))
    version = through.versions()["a"]
    proxy.script = lambda request: fault if request.method == "GET" else None
    with pytest.raises(StoreError, match="failed in up to 4 attempts"):
        through.download("a", version, tmp_path / "fetched")


def test_a_server_that_stays_away_is_given_up_with_a_remedy(through: Bucket, proxy: FaultyProxy, tmp_path: Path):
    proxy.script = lambda request: Fault(status=503)
    with pytest.raises(StoreError, match=r"SlowDown.*saved on this machine; rerun"):
        through.put("a", a_file(tmp_path, b"data"))
    assert len(proxy.asked) == 4


def test_a_lost_reply_to_a_conditional_write_is_a_conflict_with_oneself(through: Bucket, proxy: FaultyProxy):
    proxy.script = lambda request: Fault(lose_reply=True) if request.conditional and request.count == 0 else None
    with pytest.raises(ConflictError):
        through.put_if("a", b"1", None)
    found = through.get("a")
    assert found is not None and found.data == b"1"


def test_a_server_without_conditional_writes_is_refused(through: Bucket, proxy: FaultyProxy):
    through.check_conditions()
    proxy.script = lambda request: Fault(ignore_conditions=True)
    with pytest.raises(StoreError, match="does not support conditional writes"):
        through.check_conditions()
    assert through.versions() == {}


def test_parts_of_an_aborted_upload_are_deleted(through: Bucket, proxy: FaultyProxy, tmp_path: Path):
    def script(request: Asked) -> Fault | None:
        return Fault(status=503) if request.method in ("POST", "DELETE") and "uploadId" in request.path else None

    proxy.script = script
    with pytest.raises(StoreError):
        through.put("a", a_file(tmp_path, bytes(LARGE)))
    proxy.script = lambda request: None
    through.drop_unfinished()
    through.drop_unfinished()
    assert (
        sum(request.method == "DELETE" and "uploadId" in request.path for request in proxy.asked if not request.count)
        == 1
    )
    assert through.versions() == {}


@pytest.mark.parametrize(
    ("changes", "url", "says"),
    [
        ({}, "s3://no-such-bucket/x", "there is no bucket no-such-bucket at http.*: create it, or set folder"),
        ({"key": "somebody else"}, "", r"access denied \(InvalidAccessKeyId at http.*AWS_ACCESS_KEY_ID"),
        ({"secret": "not hers"}, "", r"access denied \(SignatureDoesNotMatch.*AWS_ACCESS_KEY_ID"),
        ({"key": ""}, "", "no keys were found.*AWS_PROFILE"),
        ({"endpoint_url": "http://127.0.0.1:9"}, "", "failed in up to.*rerun"),
        ({"region": "not a region"}, "", "the S3 client could not be created.*storage"),
    ],
)
def test_an_error_that_the_user_can_fix_comes_with_a_remedy(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], url: str, says: str
):
    for name, variable in (("key", "AWS_ACCESS_KEY_ID"), ("secret", "AWS_SECRET_ACCESS_KEY")):
        if name in changes:
            monkeypatch.setenv(variable, changes[name])
    if changes.get("key") == "":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
    chosen = {name: value for name, value in changes.items() if name in ("endpoint_url", "region")}
    with pytest.raises(StoreError, match=says):
        Bucket(url or new_url(), s3.storage(tmp_path, **({"max_attempts": 2} | chosen))).versions()


def test_versions_are_compared_by_md5_or_for_uploads_in_parts_by_size(tmp_path: Path):
    path = a_file(tmp_path, b"abc")
    assert Version(3, "900150983cd24fb0d6963f7d28e17f72").is_of(path)
    assert not Version(3, "900150983cd24fb0d6963f7d28e17f73").is_of(path)
    assert Version(3, "something-2").is_of(path)
    assert not Version(4, "something-2").is_of(path)
