import json
from pathlib import Path

import pytest

from tests import hub_server
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import ModelConfig, PackagedModel
from tpo.errors import InputError
from tpo.models.folder import check_model_folder
from tpo.models.published import ORIGIN, fetch_model

PUBLISHED = {path.name: path.read_bytes() for path in SHIPPED_SEED_MODEL.iterdir() if path.is_file()}
NOWHERE = "http://127.0.0.1:9"


def a_model(folder: Path, **changes: object) -> ModelConfig:
    return ModelConfig.model_validate({"path": str(folder / "models" / "M"), "hub_id": "ours/M", **changes})


def the_package(folder: Path) -> PackagedModel:
    pins = folder / "pins.txt"
    pins.write_text("no-such-package-of-ours==1.0 --hash=sha256:" + "0" * 64 + "\n")
    return PackagedModel(requirements=pins, file="M.gguf", sha256="0" * 64)


def test_a_missing_folder_is_downloaded_from_the_hub(tmp_path, monkeypatch):
    with hub_server.serving({"ours/M": PUBLISHED | {"model.bin": b"a pickle"}}) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as every process of a run has it
        fetch_model(a_model(tmp_path))
    folder = tmp_path / "models" / "M"
    assert check_model_folder(folder) == check_model_folder(SHIPPED_SEED_MODEL)
    assert not (folder / "model.bin").exists()
    assert json.loads((folder / ORIGIN).read_text())["hub_id"] == "ours/M"


def test_an_existing_folder_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    folder = tmp_path / "models" / "M"
    folder.mkdir(parents=True)
    fetch_model(a_model(tmp_path))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("repositories", "gated", "said"),
    [
        ({}, frozenset(), "there is no ours/M at revision main, or it is private"),
        ({"ours/M": PUBLISHED}, frozenset({"ours/M"}), "ours/M is gated: accept its licence"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do_and_leaves_nothing(tmp_path, monkeypatch, repositories, gated, said):
    with hub_server.serving(repositories, gated=gated) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(InputError, match=said):
            fetch_model(a_model(tmp_path))
    assert [path.name for path in (tmp_path / "models").iterdir() if not path.name.endswith(".lock")] == []


def test_if_neither_hub_nor_package_can_be_had_both_reasons_are_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match=r"the hub: .*; the packages of .*pins\.txt: .*no-such-package-of-ours"):
        fetch_model(a_model(tmp_path, package=the_package(tmp_path)))


def test_without_a_source_nothing_is_fetched(tmp_path):
    fetch_model(a_model(tmp_path, hub_id=None))
    assert not (tmp_path / "models").exists()
