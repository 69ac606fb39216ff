"""Claims about which folders are models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rows import a_model
from tpo.engines.model_folder import check_model_folder
from tpo.errors import InputError


def test_a_models_context_is_read_from_its_config(tmp_path: Path):
    assert check_model_folder(a_model(tmp_path, context=333)) == 333


def test_a_pickle_beside_safetensors_is_left_alone(tmp_path: Path):
    (a_model(tmp_path) / "training_args.bin").write_bytes(b"pickle")
    assert check_model_folder(tmp_path) == 512


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickled(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(b"cos\nsystem\n")

    return damage


def config_is(text: str, name: str = "config.json") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (without("config.json"), "has no config.json"),
        (without("model.safetensors"), "has no .safetensors file"),
        (without("tokenizer.json"), "has no tokenizer: expected tokenizer.json or"),
        (pickled("pytorch_model.bin"), r"pickled weights \(pytorch_model.bin\), which run code .* convert"),
        (pickled("model.pt"), "pickled weights"),
        (config_is("{"), "is not readable JSON"),
        (config_is("[]"), "is not a JSON object"),
        (config_is("{}"), "has no max_position_embeddings"),
        (config_is('{"max_position_embeddings": "512"}'), "has no max_position_embeddings"),
        (config_is('{"max_position_embeddings": 0}'), "has no max_position_embeddings"),
        (
            config_is('{"max_position_embeddings": 9, "auto_map": {"AutoModel": "x.Y"}}'),
            r"auto_map\), which is refused",
        ),
        (config_is('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}', "tokenizer_config.json"), "auto_map"),
    ],
)
def test_a_folder_that_is_no_model_or_would_run_code_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], told: str
):
    damage(a_model(tmp_path))
    with pytest.raises(InputError, match=told):
        check_model_folder(tmp_path)


def test_a_file_is_no_model(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"is not a folder: expected one with"):
        check_model_folder(path)
