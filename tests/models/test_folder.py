"""Claims about which folders are models."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rows import a_model
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.errors import InputError
from tpo.models.folder import check_model_folder


def test_a_models_context_is_read_from_its_config(tmp_path: Path):
    assert check_model_folder(a_model(tmp_path, context=333)) == 333


def test_sub_folders_are_ignored(tmp_path: Path):
    (a_model(tmp_path) / "original").mkdir()
    (tmp_path / "original" / "consolidated.00.pth").write_bytes(b"pickle")
    assert check_model_folder(tmp_path) == 512


def test_the_check_loads_nothing_heavy(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from tpo.models.folder import check_model_folder;"
        "check_model_folder(Path(sys.argv[1]));"
        "print(sorted({'torch', 'transformers', 'safetensors', 'jinja2', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(SHIPPED_SEED_MODEL)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["seed_model", "evaluator", "armorm"])
def test_the_shipped_models_pass(name: str):
    assert check_model_folder(SHIPPED_SEED_MODEL.parent / name) == 512


def test_a_model_in_several_files_with_an_index_passes(tmp_path: Path):
    (a_model(tmp_path) / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    places = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(places))
    assert check_model_folder(tmp_path) == 512


@pytest.mark.parametrize(
    "template",
    [
        "{%- for m in messages %}{% generation %}{{ m.content | tojson(indent=2) }}{% endgeneration %}{% endfor -%}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}",
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for t in tools %}{{ t.name }}{% endfor %}{{ messages[0]['content'] }}",
    ],
    ids=["generation", "refuses roles", "dates and loops", "tools"],
)
def test_templates_of_published_models_pass(tmp_path: Path, template: str):
    (a_model(tmp_path) / "chat_template.jinja").write_text(template)
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
    ("damage", "pattern"),
    [
        (without("config.json"), "has no config.json"),
        (without("model.safetensors"), "has no .safetensors file"),
        (without("tokenizer.json"), "has no tokenizer: expected tokenizer.json or"),
        (pickled("pytorch_model.bin"), r"contains pickles \(pytorch_model.bin\), which run code .* convert"),
        (pickled("model.pt"), "contains pickles"),
        (config_is("{"), "is not readable JSON"),
        (config_is("[]"), "is not a JSON object"),
        (config_is("{}"), "has model_type = None, expected the name of a family"),
        (config_is('{"model_type": "llama"}'), "has no max_position_embeddings"),
        (
            config_is('{"max_position_embeddings": 9, "auto_map": {"AutoModel": "x.Y"}}'),
            r"auto_map in config.json\), which is not allowed",
        ),
        (config_is('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}', "tokenizer_config.json"), "auto_map"),
    ],
)
def test_a_folder_that_is_not_a_model_or_would_run_code_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], pattern: str
):
    damage(a_model(tmp_path))
    with pytest.raises(InputError, match=pattern):
        check_model_folder(tmp_path)


def test_a_file_is_not_a_model(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"it is a file; name its folder"):
        check_model_folder(path)
