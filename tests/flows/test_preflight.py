"""Claims about what is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from flows.preflight import preflight
from tests.rows import a_config, a_model
from tpo.config import (
    ClusterConfig,
    DataConfig,
    EngineConfig,
    FileSource,
    ModelConfig,
    PromptConfig,
    RunConfig,
    TrainerConfig,
)
from tpo.errors import InputError

NO_GPU = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")


def refusal(config: RunConfig) -> str:
    with pytest.raises(InputError) as refused:
        preflight(config)
    return str(refused.value)


def on_files(folder: Path, **source: Any) -> RunConfig:
    return a_config(folder, data=DataConfig(source=FileSource(**{"path": folder / "prompts.jsonl", **source})))


def test_a_run_that_can_work_passes_and_leaves_nothing_behind(tmp_path: Path):
    config = a_config(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    preflight(config)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_is_not_there_is_refused(tmp_path: Path):
    told = refusal(a_config(tmp_path, model=ModelConfig(path=str(tmp_path / "nowhere"))))
    assert "nowhere is not a folder: expected one with" in told


def test_a_context_that_is_too_small_is_refused_with_both_numbers(tmp_path: Path):
    config = a_config(tmp_path)
    a_model(tmp_path / "model", context=256 + 96 - 1)
    assert "is 352, more than the 351 tokens of context" in refusal(config)
    a_model(tmp_path / "model", context=256 + 96)
    preflight(config)


@NO_GPU
@pytest.mark.parametrize(
    ("engine", "trainer", "named"),
    [
        ("gpu", "cpu", "engine.device is gpu"),
        ("cpu", "gpu", "trainer.device is gpu"),
        ("gpu", "gpu", "engine.device and trainer.device is gpu"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, trainer: str, named: str
):
    monkeypatch.setenv("PATH", str(tmp_path))
    config = a_config(
        tmp_path,
        engine=EngineConfig.model_validate({"device": engine}),
        trainer=TrainerConfig.model_validate({"device": trainer}),
    )
    told = refusal(config)
    assert named in told
    assert "set cluster.address" in told


@NO_GPU
def test_a_cluster_may_have_the_gpus_that_this_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    preflight(a_config(tmp_path, engine=EngineConfig(device="gpu"), cluster=ClusterConfig(address="auto")))


@pytest.mark.parametrize("field", ["path", "validation_path", "test_path"])
def test_a_prompt_file_that_is_not_there_is_refused(tmp_path: Path, field: str):
    a_config(tmp_path)
    assert "gone.jsonl does not exist" in refusal(on_files(tmp_path, **{field: tmp_path / "gone.jsonl"}))


def test_a_prompt_file_without_any_text_is_refused(tmp_path: Path):
    config = on_files(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"instruction": " "}\n{"instruction": null}')
    assert "has no text in column 'instruction'" in refusal(config)


def test_a_damaged_prompt_file_is_refused_by_its_line(tmp_path: Path):
    config = on_files(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"instruction": "a"}\n{"instruction": ')
    assert "line 2, is not JSON" in refusal(config)


def test_a_template_that_is_not_there_is_refused(tmp_path: Path):
    assert "gone.jinja" in refusal(a_config(tmp_path, prompt=PromptConfig(user_template=tmp_path / "gone.jinja")))


def test_a_run_folder_below_a_file_is_refused(tmp_path: Path):
    (tmp_path / "taken").write_text("a file")
    config = a_config(tmp_path).model_copy(update={"folder": tmp_path / "taken" / "runs"})
    assert "taken is not a folder that can be written to" in refusal(config)
