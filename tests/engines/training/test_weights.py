"""Claims about the files of a trained model's folder besides its weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.engines.training.test_sft_trainer import some_demonstrations
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import TrainerConfig
from tpo.config.training import SftConfig
from tpo.engines.training.check import check_generation_config
from tpo.engines.training.weights import write_model
from tpo.engines.training.worker import train_from_checkpoint, write_dataset
from tpo.errors import InputError


def published(folder: Path, *, config: dict[str, Any] | None = None, generation: dict[str, Any] | None) -> Path:
    """The seed model with other values in its configs; without a generation config if it is None."""
    shutil.copytree(SHIPPED_SEED_MODEL, folder)
    for name, changes in (("config.json", config or {}), ("generation_config.json", generation)):
        if changes is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))
    return folder


def saved(model: Path, place: Path) -> Path:
    write_model(AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model), place, "bfloat16")
    return place


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.9, "top_p": 0.6},
        {"do_sample": True, "temperature": 0.6, "max_length": 4096},
        {"do_sample": False, "top_k": 20},
        {"eos_token_id": [491, 490]},
        {"pad_token_id": -1},
        {"num_beams": 1, "length_penalty": 2.0},
        {"of_another_version": {"a": 1}},
    ],
    ids=", ".join,
)
def test_a_trained_model_keeps_its_published_generation_config(tmp_path: Path, values: dict[str, Any]):
    model = published(tmp_path / "model", generation=values)
    check_generation_config(model)
    place = saved(model, tmp_path / "first")
    place = saved(place, tmp_path / "second")
    assert (place / "generation_config.json").read_bytes() == (model / "generation_config.json").read_bytes()
    assert GenerationConfig.from_pretrained(place).to_dict() == GenerationConfig.from_pretrained(model).to_dict()


def test_a_training_saves_checkpoints_and_models_with_any_generation_config(tmp_path: Path):
    torch.set_num_threads(1)
    model = published(tmp_path / "model", generation={"temperature": 0.9})
    write_dataset(some_demonstrations(9), tmp_path / "train" / "dataset")
    often = TrainerConfig.model_construct(threads=1, checkpoint_share=1e9)
    config = SftConfig(epochs=1, batch_size=4, micro_batch_size=4)
    train_from_checkpoint(
        model, tmp_path / "train", config=config, trainer=often, seed=7, on_step=lambda done, total: None
    )
    assert (tmp_path / "train" / "trainer" / "checkpoint-2.seal.json").exists()
    place = tmp_path / "train" / "epoch_1"
    assert (place / "generation_config.json").read_bytes() == (model / "generation_config.json").read_bytes()


def test_without_a_generation_config_it_gets_one_from_its_config(tmp_path: Path):
    model = published(tmp_path / "model", config={"temperature": 0.6}, generation=None)
    check_generation_config(model)
    found = GenerationConfig.from_pretrained(saved(model, tmp_path / "place"))
    assert (found.temperature, found.eos_token_id) == (0.6, 491)


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        ({"max_new_tokens": -1}, "`max_new_tokens` must be greater than 0, but is -1"),
        ({"cache_implementation": "quick"}, r"Invalid `cache_implementation` \(quick\)"),
        ({"watermarking_config": {"foo": 1}}, "TypeError"),
    ],
)
def test_an_unreadable_generation_config_is_refused_before_work(tmp_path: Path, values: dict[str, Any], pattern: str):
    model = published(tmp_path / "model", generation=values)
    with pytest.raises(
        InputError, match=rf"generation_config.json cannot be read .*{pattern}.*remove it from the file"
    ):
        check_generation_config(model)
