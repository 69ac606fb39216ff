"""Claims about which files of a repository are fetched."""

import json
from collections.abc import Sequence

import pytest

from tpo.errors import InputError
from tpo.hub.selection import check_data, converted_folder, data_files, model_files, no_such_data, weight_files

MODEL = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def tree(*paths: str) -> dict[str, int]:
    return dict.fromkeys(paths, 10)


def index(*files: str) -> bytes:
    return json.dumps({"weight_map": {f"layer.{i}": file for i, file in enumerate(files)}}).encode()


def test_config_tokenizer_and_template_are_fetched_and_neither_code_nor_pickles():
    others = ("modeling.py", "pytorch_model.bin", "original/params.json", "original/consolidated.00.pth", "run.sh")
    found = model_files(tree(*MODEL, "model.safetensors", "LICENSE", *others), "", "hf://o/m")
    assert found == sorted([*MODEL, "LICENSE"])


def test_a_model_may_be_in_a_folder_of_its_repository():
    inside = [f"sub/{name}" for name in (*MODEL, "model.safetensors", "additional_chat_templates/tools.jinja")]
    found = model_files(tree("config.json", *inside, "sub/deeper/config.json"), "sub", "hf://o/m/sub")
    assert found == sorted(path for path in inside if not path.endswith(".safetensors"))
    assert weight_files(tree(*inside), "sub", None, "hf://o/m/sub") == ["sub/model.safetensors"]


def test_only_the_weights_that_the_index_names_are_fetched():
    files = tree(*MODEL, *SHARDS, "model.safetensors.index.json", "consolidated.safetensors")
    assert weight_files(files, "", index(*SHARDS, SHARDS[0]), "hf://o/m") == list(SHARDS)


@pytest.mark.parametrize(("content", "pattern"), [
    (b"{", "is not readable"),
    (b"[]", "is not readable"),
    (index("../../x.safetensors"), "expected safetensors next to it"),
    (index("pytorch_model.bin"), "expected safetensors next to it"),
    (index("model-00003-of-00003.safetensors"), "names files that it lacks"),
])  # fmt: skip
def test_an_index_that_cannot_be_followed_is_refused(content: bytes, pattern: str):
    with pytest.raises(InputError, match=pattern):
        weight_files(tree(*MODEL, *SHARDS), "", content, "hf://o/m")


@pytest.mark.parametrize(("files", "pattern"), [
    ((*MODEL, "pytorch_model.bin"), r"it has pickles \(pytorch_model.bin\), which run code when loaded"),
    ((*MODEL, "adapter_model.safetensors"), "it is an adapter"),
    ((*MODEL, "model.gguf"), r"it has model.gguf; name another repository"),
    (("README.md", "small/config.json"), "there is one in small: add the folder"),
])  # fmt: skip
def test_a_repository_without_loadable_weights_is_refused_in_one_sentence(files: Sequence[str], pattern: str):
    with pytest.raises(InputError, match=pattern):
        model_files(tree(*files), "", "hf://o/m")


DATA = tree(
    "README.md", "data/train_prefs-00000-of-00001.parquet", "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002-0123456789abcdef.parquet", "data/test.jsonl.gz", "easy/dev.csv", "hard/dev.csv",
    "parts/a.jsonl", "parts/b.jsonl", "script.py",
)  # fmt: skip


@pytest.mark.parametrize(("path", "found"), [
    ("data/test.jsonl.gz", ["data/test.jsonl.gz"]),
    ("test", ["data/test.jsonl.gz"]),
    ("train", ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002-0123456789abcdef.parquet"]),
    ("data/train_prefs", ["data/train_prefs-00000-of-00001.parquet"]),
    ("easy/dev", ["easy/dev.csv"]),
    ("parts", ["parts/a.jsonl", "parts/b.jsonl"]),
    ("tra", []),
    ("script", []),
])  # fmt: skip
def test_a_path_is_a_file_a_folder_or_a_split(path: str, found: list[str]):
    assert data_files(DATA, path) == found


def test_a_split_of_several_configs_is_refused_with_their_names():
    with pytest.raises(InputError, match=r"easy/dev, hard/dev\): name one"):
        data_files(DATA, "dev")
    converted = tree("easy/dev/0000.parquet", "hard/dev/0000.parquet", "easy/train/0000.parquet")
    with pytest.raises(InputError, match="name one of easy/dev, hard/dev"):
        converted_folder(converted, "dev")
    assert [converted_folder(converted, path) for path in ("train", "hard/dev", "test")] == [
        "easy/train", "hard/dev", None,
    ]  # fmt: skip


def test_an_unknown_path_is_refused_with_those_that_exist():
    assert "it has data/train" in str(no_such_data(DATA, "data/trian.parquet", "hf://datasets/o/d/x"))
    assert "scripts are never run" in str(no_such_data(tree("script.py"), "train", "hf://datasets/o/d/train"))


def test_unreadable_data_is_refused_before_it_is_fetched():
    with pytest.raises(InputError, match="at most 1 GiB are read: name one of its files"):
        check_data({"a.parquet": 2**31}, ["a.parquet"], "hf://datasets/o/d/a.parquet")
    with pytest.raises(InputError, match=r"script\.py has an unknown format"):
        check_data(DATA, ["script.py"], "hf://datasets/o/d/script.py")
