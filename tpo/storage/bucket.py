"""The objects below one prefix of an S3 bucket: reads, writes, conditional writes, copies, deletions and listings.

Keys, region and endpoint come from the `[storage]` section or from where AWS's tools look for them. Errors are
`StoreError`s with the server's message and a remedy.

The client is boto3 and not fsspec's or pyarrow's file system, since those don't expose conditional writes
(`If-None-Match`, `If-Match`), S3's only means of excluding a second writer. Overloads, timeouts and broken connections
are retried with increasing waits; rejections aren't.
"""

import contextlib
import email.utils
import functools
import hashlib
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tpo.config.resources import StorageConfig
from tpo.errors import StoreError

_MIB = 2**20
_MAX_PAUSE = 20.0
"""Maximum seconds between two attempts; botocore's own limit."""
_WHO = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role"

Result = TypeVar("Result")


class ConflictError(Exception):
    """A conditional write was rejected: the object has another version."""


@dataclass(frozen=True)
class Version:
    """An object's metadata."""

    size: int
    """Bytes."""
    etag: str
    """Changes with the content: its MD5 in hex, for an object uploaded in one part and not encrypted with the user's
    own key. A multipart upload's contains a `-`."""

    def is_of(self, path: Path) -> bool:
        """Whether a file has the same content, as far as the metadata tells: for multipart uploads, the same size.

        Always False in a bucket that encrypts with the user's own key, so small files are downloaded at each start.
        """
        if path.stat().st_size != self.size:
            return False
        return "-" in self.etag or _md5(path) == self.etag


@dataclass(frozen=True)
class Object:
    """An object with its content."""

    data: bytes
    """The content."""
    etag: str
    """Its version."""
    age: float
    """Seconds since it was written, by the server's clock."""


class Bucket:
    """The objects whose names begin with one prefix; names are relative to it."""

    def __init__(self, url: str, storage: StorageConfig) -> None:
        """Doesn't connect yet. `url` is `s3://bucket/prefix`."""
        self.url = url.rstrip("/")
        self._name, _, prefix = self.url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._storage = storage
        self._client = _connected(storage)

    def versions(self, under: str = "") -> dict[str, Version]:
        """The versions of all objects whose names begin with `under`."""
        found = {}
        with self._explained(under):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._name, Prefix=self._prefix + under
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    name = item["Key"].removeprefix(self._prefix)
                    found[name] = Version(item["Size"], item["ETag"].strip('"'))
        return found

    def get(self, name: str) -> Object | None:
        """A small object, or None if there is none."""
        with self._explained(name):
            try:
                return self._again(lambda: self._read(name))
            except _client_error() as error:
                if _code(error) in ("NoSuchKey", "404"):
                    return None
                raise

    def download(self, name: str, version: Version, path: Path) -> None:
        """Writes an object to a file and verifies its size and, if the server reports it, its MD5.

        Raises `StoreError` if they differ after the last attempt.
        """

        def once() -> None:
            if version.size <= self._part:
                path.write_bytes(self._read(name).data)
            else:
                with path.open("wb") as file:
                    self._client.download_fileobj(self._name, self._prefix + name, file, Config=self._transfer())
            if not version.is_of(path):
                raise _CutError(f"received {path.stat().st_size} bytes that are not the object's {version.size}")

        with self._explained(name):
            self._again(once)

    def _read(self, name: str) -> Object:
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        reply = self._client.get_object(Bucket=self._name, Key=self._prefix + name)
        now = email.utils.parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
        try:
            data = reply["Body"].read()
        except (HTTPClientError, IncompleteReadError) as error:
            raise _CutError(str(error)) from error
        return Object(data, reply["ETag"].strip('"'), (now - reply["LastModified"]).total_seconds())

    def put(self, name: str, path: Path) -> None:
        """Writes an object from a file, completely or not at all; a large one in parts."""
        with self._explained(name):
            size = path.stat().st_size
            if size <= self._part:
                self._client.put_object(Bucket=self._name, Key=self._prefix + name, Body=path.read_bytes())
                return
            try:
                self._client.upload_file(str(path), self._name, self._prefix + name, Config=self._transfer())
            except Exception as error:
                # If the reply that the parts were joined is lost, a retry finds no upload.
                if "NoSuchUpload" not in str(error) or (self.version(name) or Version(-1, "")).size != size:
                    raise

    def put_if(self, name: str, data: bytes, etag: str | None) -> str:
        """Writes an object if its version is still `etag`, or if it doesn't exist, for None; returns its version.

        Raises `ConflictError` otherwise. An earlier attempt whose reply was lost can be the cause: check whether the
        object's content is `data`.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
        with self._explained(name):
            try:
                reply = self._client.put_object(Bucket=self._name, Key=self._prefix + name, Body=data, **condition)
            except _client_error() as error:
                if _code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409"):
                    raise ConflictError(name) from error
                raise
        return str(reply["ETag"].strip('"'))

    def copy(self, source: str, target: str) -> None:
        """Copies an object within the bucket, without downloading it."""
        with self._explained(source):
            place = {"Bucket": self._name, "Key": self._prefix + source}
            self._client.copy(place, self._name, self._prefix + target, Config=self._transfer())

    def delete(self, name: str) -> None:
        """Deletes an object, if it exists."""
        with self._explained(name):
            self._client.delete_object(Bucket=self._name, Key=self._prefix + name)

    def version(self, name: str) -> Version | None:
        """An object's version, or None if there is none."""
        with self._explained(name):
            try:
                reply = self._client.head_object(Bucket=self._name, Key=self._prefix + name)
            except _client_error() as error:
                if _code(error) in ("NoSuchKey", "NotFound", "404"):
                    return None
                raise
        return Version(reply["ContentLength"], reply["ETag"].strip('"'))

    def drop_unfinished(self) -> None:
        """Deletes the parts of abandoned uploads, which cost money and aren't listed."""
        with self._explained(""):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._name, Prefix=self._prefix
            )
            for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
                self._client.abort_multipart_upload(Bucket=self._name, Key=upload["Key"], UploadId=upload["UploadId"])

    def check_conditions(self) -> None:
        """Writes and deletes a probe; raises `StoreError` if the server ignores the conditions of writes."""
        name = f".probe-{uuid.uuid4().hex}"
        try:
            first = self.put_if(name, b"first", None)
            if not (self._refuses(name, None) and self._refuses(name, "0" * 32)):
                raise StoreError(
                    f"the server of {self.url} does not support conditional writes (If-None-Match, If-Match): two runs "
                    "could write to one folder without noticing; use a server that does, or a folder on a file system"
                )
            self.put_if(name, b"second", first)
        except ConflictError as error:
            raise StoreError(f"the server of {self.url} rejected a write whose condition was met: {error}") from error
        finally:
            with contextlib.suppress(StoreError):
                self.delete(name)

    def _refuses(self, name: str, etag: str | None) -> bool:
        try:
            self.put_if(name, b"must not be written", etag)
        except ConflictError:
            return True
        return False

    @property
    def _part(self) -> int:
        return self._storage.part_mib * _MIB

    def _transfer(self) -> Any:
        from boto3.s3.transfer import TransferConfig

        return TransferConfig(multipart_threshold=self._part + 1, multipart_chunksize=self._part, max_concurrency=4)

    def _again(self, once: Callable[[], Result]) -> Result:
        """Retries a download that is cut off, as botocore retries requests."""
        from boto3.exceptions import RetriesExceededError

        for attempt in range(1, self._storage.max_attempts + 1):
            try:
                return once()
            except (_CutError, RetriesExceededError):
                if attempt == self._storage.max_attempts:
                    raise
                time.sleep(min(_MAX_PAUSE, random.random() * 2**attempt))
        raise AssertionError("max_attempts is at least 1")

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, _CutError) as error:
            raise StoreError(self._explanation(f"{self.url}/{name}".rstrip("/"), error)) from error

    def _explanation(self, place: str, error: Exception) -> str:
        code, text = _code(error), str(error).rstrip(".")
        where = f"at {self._client.meta.endpoint_url}"
        if code == "NoSuchBucket":
            return f"there is no bucket {self._name} {where}: create it, or set folder or storage.endpoint_url"
        if code in ("InvalidBucketName", "ParamValidationError"):
            return f"{place}: {text}; set folder to s3://bucket/prefix with the name of a bucket"
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
            return f"{place}: no keys were found ({text}): provide them as for AWS's tools, by {_WHO}"
        if code in _DENIED:
            return (
                f"{place}: access denied ({code} {where}): set {_WHO} to an identity that may list, read, write and "
                "delete there, then rerun; completed work is saved"
            )
        if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
            return f"{place}: the bucket is in another region ({text}): set storage.region or AWS_DEFAULT_REGION"
        return (
            f"{place}: the server {where} failed in up to {self._storage.max_attempts} attempts ({text}): completed "
            "work is saved on this machine; rerun when the server works again, and missing files are uploaded"
        )


class _CutError(Exception):
    """A download was cut off."""


_DENIED = (
    "AccessDenied", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
    "AllAccessDisabled", "AccountProblem",
)  # fmt: skip


def _connected(storage: StorageConfig) -> Any:
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    options = Config(
        retries={"mode": "standard", "total_max_attempts": storage.max_attempts},
        connect_timeout=storage.timeout_seconds,
        read_timeout=storage.timeout_seconds,
        s3={"addressing_style": "path"} if storage.endpoint_url else None,
        region_name=storage.region,
    )
    try:
        # A separate session: creating clients from boto3's default one isn't thread-safe.
        session = botocore.session.get_session()
        session.register_component("data_loader", _descriptions())
        client = boto3.session.Session(botocore_session=session).client
        return client("s3", endpoint_url=storage.endpoint_url, config=options)
    except (BotoCoreError, ValueError) as error:
        raise StoreError(
            f"the S3 client could not be created: {error}; check [storage] and the AWS_… variables"
        ) from error


@functools.cache
def _descriptions() -> Any:
    """Botocore's descriptions of AWS's services, which take a tenth of a second to load."""
    from botocore.loaders import create_loader

    return create_loader()


def _client_error() -> type[Exception]:
    import botocore.exceptions

    error: type[Exception] = botocore.exceptions.ClientError
    return error


def _code(error: BaseException) -> str:
    """The server's error code; transfer errors only have it in their text."""
    reply = getattr(error, "response", None)
    if isinstance(reply, dict):
        return str(reply.get("Error", {}).get("Code", ""))
    found = re.search(r"An error occurred \((\w+)\)", str(error))
    return found[1] if found else type(error).__name__


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
