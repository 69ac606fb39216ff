"""A hub on loopback for the tests of this folder, with the miniature's model on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import Hub, hub_server
from tpo.config.base import SHIPPED_SEED_MODEL

MODEL = {path.name: path.read_bytes() for path in SHIPPED_SEED_MODEL.iterdir() if path.is_file()}
"""The miniature's files."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model, and an empty cache."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ASSETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        hub.repository("models/o/m", MODEL)
        yield hub
