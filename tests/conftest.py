"""What holds for all tests: the slow files come first, so that no process ends long after the others; those marked gpu
are skipped where there is no NVIDIA GPU; examples may take their time."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.faulty_proxy import FaultyProxy
from tests.s3_server import KEYS, S3Server, s3_server

settings.register_profile("tpo", deadline=None)
settings.load_profile("tpo")


SLOW = ("end_to_end", "faults", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if any(item.get_closest_marker(name) for name in SLOW)}
    items.sort(key=lambda item: item.path not in slow)
    if not Path("/dev/nvidiactl").exists():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; its keys are in the environment, for this process and those that it starts."""
    os.environ.update(KEYS)
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultyProxy]:
    """A proxy before the server, which lets everything pass until it is told otherwise."""
    with FaultyProxy(s3.endpoint) as proxy:
        yield proxy
