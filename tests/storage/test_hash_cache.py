"""Claims about cached hashes: the one returned always matches the file's content."""

import functools
import hashlib
import os
from pathlib import Path

import pytest

from tpo.storage import hash_cache
from tpo.storage.store import file_sha256


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tpo" / "hashes.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


known_sha256 = functools.partial(hash_cache.known_sha256, at_rest_seconds=0.0)


class Reader:
    """Reads files, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, path: Path) -> str:
        self.times += 1
        return file_sha256(path)


def test_an_unchanged_file_is_read_once(model: Path, tmp_path: Path):
    read, other = Reader(), tmp_path / "other"
    other.write_bytes(b"others")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert [known_sha256(model, read), known_sha256(other, read), known_sha256(model, read)][::2] == [expected] * 2
    assert read.times == 2


def test_a_write_is_noticed_even_if_size_and_modification_time_are_restored(model: Path):
    read, before = Reader(), model.stat()
    known_sha256(model, read)
    with model.open("r+b") as file:
        file.write(b"W")
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known_sha256(model, read) == hashlib.sha256(b"Weights").hexdigest()
    assert read.times == 2


def test_another_file_in_its_place_is_read(model: Path, tmp_path: Path):
    read = Reader()
    known_sha256(model, read)
    other = tmp_path / "other"
    other.write_bytes(b"strange")
    os.utime(other, ns=(model.stat().st_atime_ns, model.stat().st_mtime_ns))
    other.replace(model)
    assert known_sha256(model, read) == hashlib.sha256(b"strange").hexdigest()


def test_a_file_written_a_moment_ago_is_not_cached(model: Path):
    read = Reader()
    for _ in range(2):
        known_sha256(model, read, at_rest_seconds=60.0)
    assert read.times == 2


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"a"', b'{"PATH": 1}', b'{"PATH": [[1, 2, 3, 4, 5], "0"]}', b"\xff"])
def test_a_damaged_cache_is_ignored(model: Path, cache: Path, damage: bytes):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(damage.replace(b"PATH", str(model).encode()))
    for _ in range(2):
        assert known_sha256(model, file_sha256) == hashlib.sha256(b"weights").hexdigest()


def test_without_a_cache_it_is_read_again(model: Path, cache: Path):
    cache.parent.parent.write_bytes(b"a file, where the folder should be")
    assert known_sha256(model, file_sha256) == hashlib.sha256(b"weights").hexdigest()


def test_without_a_home_it_is_read_again(model: Path, monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert known_sha256(model, file_sha256) == hashlib.sha256(b"weights").hexdigest()
