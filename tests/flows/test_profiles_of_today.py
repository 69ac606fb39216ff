"""Claims about the profiles of today's models, with what these models were published with except their weights.

Everything that a run looks at before it loads a model is checked: plan, preflight, weights' headers, training, prompts.
"""

import json
from math import prod
from pathlib import Path

import pytest

from flows.cli.plan import plan_run
from flows.preflight import check_templates, model_checks, preflight
from tests.hub_server import hub_server
from tests.models.published_configs import CONFIGS, PARAMETERS, tensor_shapes, write_model
from tpo.config.hub import addresses_in
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.models.shape import PUBLISHED, find_model

PROFILES = Path(__file__).parents[2] / "deploy" / "profiles"
NATIVE, LLAMA, ARMO = "miniature-native", "Skywork-Reward-V2-Llama-3.1-8B", "ArmoRM-Llama3-8B-v0.1"
MODELS = {
    "llama31-8b-skywork": ("Llama-3.1-8B-Instruct", "miniature", LLAMA),
    "qwen3-4b-native": ("Qwen3-4B", NATIVE, LLAMA),
    "qwen3-8b-native": ("Qwen3-8B", NATIVE, LLAMA),
    "smollm3-3b-lora": ("SmolLM3-3B", NATIVE, ARMO),
}
"""The model of each profile, the shipped tokenizer whose template thinks as its own does, and its judge."""


def described(profile: str, folder: Path, *overrides: str) -> RunConfig:
    """A profile with its models in folders, and the prompts of a first iteration."""
    name, speaks_as, judge = MODELS[profile]
    model, judge_folder = write_model(folder / name, name, speaks_as=speaks_as), write_model(folder / judge, judge)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(7400)))
    places = {"model.path": model, "judge.model": judge_folder, "evaluation.judge.model": judge_folder,
              "data.source.path": prompts, "folder": folder}  # fmt: skip
    return load_config(PROFILES / f"{profile}.toml", [*(f"{key}={place}" for key, place in places.items()), *overrides])


@pytest.mark.parametrize("profile", MODELS)
def test_a_plan_needs_a_network_and_no_edits(tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    model, speaks_as, judge = MODELS[profile]
    addresses = dict(addresses_in(load_config(PROFILES / f"{profile}.toml")))
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        for address, name in ((addresses["model.path"], model), (addresses["judge.model"], judge)):
            folder = write_model(tmp_path / name, name, speaks_as=speaks_as)
            files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".safetensors"}
            asking = {**CONFIGS[name], "auto_map": {"AutoModelForSequenceClassification": "modeling.Other"}}
            files |= {"config.json": json.dumps(asking).encode(), "model.safetensors": b"later", "modeling.py": b"evil"}
            hub.repository(f"models/{address.removeprefix('hf://')}", files)
        rows = {"data/train_prefs-00000-of-00001.parquet": b"later", "data/train_sft-00000-of-00001.parquet": b"other"}
        hub.repository("datasets/HuggingFaceH4/ultrafeedback_binarized", rows)
        plan = plan_run(load_config(PROFILES / f"{profile}.toml", [f"folder={tmp_path / 'runs'}"]), 3)
    assert plan.problems == [] and not [note for note in plan.notes if "the hub" in note]
    assert {key for each in plan.downloads for key in each.keys} == {*addresses}
    assert all(each.lacking == len(b"later") for each in plan.downloads)
    assert plan.models.seed.is_there and plan.models.seed.shape == PUBLISHED[model]


@pytest.mark.parametrize("name", CONFIGS)
def test_published_shapes_are_those_of_the_published_config(tmp_path: Path, name: str):
    model = find_model(write_model(tmp_path / name, name))
    assert (model.shape, model.is_there) == (PUBLISHED[name], True)
    stored = sum(prod(shape) for _, shape in tensor_shapes(CONFIGS[name]))
    assert stored == PARAMETERS.get(name, stored)
    assert model.shape.parameters == pytest.approx(stored, rel=1e-3), "without ArmoRM's heads and Qwen3's small norms"


@pytest.mark.parametrize("profile", [pytest.param(name, marks=[pytest.mark.slow] * ("8b" in name)) for name in MODELS])
def test_all_that_comes_before_loading_takes_the_models_as_they_were_published(tmp_path: Path, profile: str):
    config = described(profile, tmp_path, 'cluster.address="auto"')
    plan = plan_run(config, 1)
    assert plan.problems == []
    assert plan.models.seed.is_there and plan.models.judge is not None and plan.models.judge.is_there
    preflight(config)
    notes = [check() for check in model_checks(config)]
    assert [note for note in notes if isinstance(note, list) and note] == []
    check_templates(config)


@pytest.mark.parametrize("profile", MODELS)
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_of_a_machine_without_gpus_nothing_else_is_refused(
    tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as refused:
        preflight(described(profile, tmp_path))
    lines = str(refused.value).split("\n")
    assert [line.split(" is gpu")[0] for line in lines] == ["engine.device", "trainer.device", "judge_engine.device"]
