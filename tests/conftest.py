"""What holds for all tests: those marked gpu are skipped where there is no NVIDIA GPU; examples may take their time."""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("tpo", deadline=None)
settings.load_profile("tpo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not Path("/dev/nvidiactl").exists():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
