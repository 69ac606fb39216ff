"""Claims about addresses on the model hub: their grammar, and the fields that take them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.utils._hf_uris import parse_hf_uri

from tpo.config.hub import HubAddress, addresses_in, hub_folder, local_path, parse_address, with_addresses
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.errors import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADDRESSES = {
    "hf://org/name": HubAddress("model", "org/name"),
    "hf://models/org/name": HubAddress("model", "org/name"),
    "hf://Qwen/Qwen2.5-0.5B-Instruct@v1.0": HubAddress("model", "Qwen/Qwen2.5-0.5B-Instruct", "v1.0"),
    f"hf://org/name@{COMMIT}/a/folder": HubAddress("model", "org/name", COMMIT, "a/folder"),
    "hf://org/name@refs/pr/3/folder": HubAddress("model", "org/name", "refs/pr/3", "folder"),
    "hf://org/name@feature%2Fx": HubAddress("model", "org/name", "feature/x"),
    "hf://datasets/org/name/train": HubAddress("dataset", "org/name", None, "train"),
    "hf://datasets/org/name@main/data/a b.jsonl".replace(" ", "_"): HubAddress(
        "dataset", "org/name", "main", "data/a_b.jsonl"
    ),
    "hf://datasets/org/name@refs/convert/parquet/default/train": HubAddress(
        "dataset", "org/name", "refs/convert/parquet", "default/train"
    ),
}
MISTAKES = {
    "hf://org": "expected an organization and a name",
    "hf:/org/name": "expected an address on the hub",
    "HF://org/name": "expected an address on the hub",
    "hf://org/na me": "cannot hold ' '",
    "hf://org/../name": "'..' cannot be a name",
    "hf://org//name": "'' cannot be a name",
    "hf://org/name@": "'' cannot be a revision",
    "hf://org/name@a..b": "'a..b' cannot be a revision",
    "hf://org/name@-x": "'-x' cannot be a revision",
    f"hf://org/name@{COMMIT.upper()}": "write the commit in lower case",
    "hf://org/name/../other": "leave out empty parts",
    "hf://org/name/folder@main": "the revision follows the repository's name",
    "hf://org/name@%2e%2e%2fx": "cannot be a revision",
    "hf://spaces/org/name": "names one of the hub's spaces",
    "hf://datasets/org/name/train": "an address of data",
    "hf://org/name/model.safetensors": "names the file model.safetensors, expected the whole model: hf://org/name",
    "https://huggingface.co/org/name/tree/v2": "is the address of a web page: write hf://org/name@v2",
}
MISTAKES_IN_DATA = {
    "hf://org/name/train.jsonl": "is an address of a model, expected that of data: hf://datasets/org/name/train.jsonl",
    "hf://datasets/org/name": "names neither a file nor a split: for example hf://datasets/org/name/train",
    "hf://datasets/org/name/{iteration}.jsonl": "is for files of this machine",
    "https://huggingface.co/datasets/org/name": "write hf://datasets/org/name",
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_an_address_is_read_as_the_hubs_own_client_reads_it(text: str):
    found = parse_address(text)
    parsed = parse_hf_uri(text)
    assert found == ADDRESSES[text]
    assert (found.kind, found.repo, found.revision) == (parsed.type, parsed.id, parsed.revision)
    assert found.path == parsed.path_in_repo
    assert parse_address(str(found)) == found


@pytest.mark.parametrize(("key", "text", "message"), [
    *(("model.path", text, message) for text, message in MISTAKES.items()),
    *(("data.source.path", text, message) for text, message in MISTAKES_IN_DATA.items()),
])  # fmt: skip
def test_a_mistake_in_an_address_is_refused_with_the_key_and_what_is_meant(key: str, text: str, message: str):
    with pytest.raises(InputError) as refused:
        load_config(Path("deploy/profiles/laptop.toml"), ["data.source.kind=file", f"{key}={text}"])
    assert message in str(refused.value) and key.split(".")[0] in str(refused.value)


def everywhere() -> RunConfig:
    return RunConfig.model_validate({
        "model": {"path": "hf://o/m"},
        "judge": {"kind": "pairwise", "model": "hf://o/judge"},
        "evaluation": {"judge": {"kind": "reward_model", "model": "hf://o/reward"}},
        "data": {
            "source": {"kind": "file", "path": "hf://datasets/o/d/train", "test_path": "hf://datasets/o/d/test"},
            "synthetic": {"model": "hf://o/writer", "avoid": [{"path": "hf://datasets/o/bench/test"}]},
        },
    })  # fmt: skip


def test_addresses_are_found_and_replaced_wherever_a_model_or_data_may_be_named():
    config = everywhere()
    found = dict(addresses_in(config))
    assert found == {
        "model.path": "hf://o/m",
        "judge.model": "hf://o/judge",
        "evaluation.judge.model": "hf://o/reward",
        "data.source.path": "hf://datasets/o/d/train",
        "data.source.test_path": "hf://datasets/o/d/test",
        "data.synthetic.model": "hf://o/writer",
        "data.synthetic.avoid[0].path": "hf://datasets/o/bench/test",
    }
    pinned = {address: str(parse_address(address).at(COMMIT)) for address in found.values()}
    replaced = with_addresses(config, pinned)
    assert dict(addresses_in(replaced)) == {key: pinned[address] for key, address in found.items()}
    assert RunConfig.model_validate_json(replaced.model_dump_json()) == replaced
    assert replaced.model.folder == hub_folder() / "models" / COMMIT / "o/m"


def test_a_model_behind_an_endpoint_is_the_servers_and_not_the_hubs():
    judge = {"kind": "pairwise", "model": "hf://o/judge", "endpoint": {"base_url": "http://localhost:1/v1"}}
    assert [*addresses_in(RunConfig.model_validate({"judge": judge}))] == []


def test_a_plain_path_stays_one():
    assert local_path("models/M") == local_path(Path("models/M")) == Path("models/M")


@pytest.mark.parametrize("variables", [
    {"HF_HOME": "/a/home"}, {"XDG_CACHE_HOME": "/a/cache"}, {"HF_ASSETS_CACHE": "/assets", "HF_HOME": "/b"}, {},
])  # fmt: skip
def test_fetched_files_are_next_to_the_hub_clients_cache(variables: dict[str, str], monkeypatch):
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_ASSETS_CACHE", "HUGGINGFACE_ASSETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = "import json; from huggingface_hub import constants; print(json.dumps(constants.HF_ASSETS_CACHE))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert hub_folder() == Path(json.loads(done.stdout)) / "tpo"
