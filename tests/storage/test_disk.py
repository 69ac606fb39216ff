"""Tests of tpo.storage.disk that need no crash and no mirror; those are in tests/faults."""

import sys
from pathlib import Path

import pytest

from tpo.errors import StoreError
from tpo.storage.disk import make_folder


def test_a_folder_that_another_process_creates_at_the_same_moment_is_used(tmp_path: Path):
    wanted, created = tmp_path / "parent/folder", list[str]()

    def create_first(event: str, arguments: tuple[object, ...]) -> None:
        if event == "tpo.mkdir" and str(arguments[0]).startswith(str(tmp_path)):
            Path(str(arguments[0])).mkdir()
            created.append(Path(str(arguments[0])).name)

    sys.addaudithook(create_first)
    make_folder(wanted)
    assert created == ["parent", "folder"] and wanted.is_dir()


def test_a_file_in_the_place_of_a_folder_is_reported(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"taken: File exists"):
        make_folder(tmp_path / "taken")
