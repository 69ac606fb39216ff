"""Claims about several workers: any number of them, with weights replicated or sharded, makes the same steps.

The real trainer on the shipped seed model, in forked processes that form a gloo group;
tests/faults/test_trainer_killed.py kills it under Ray Train.
"""

import functools
import itertools
import json
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.engines.training.test_resume import some_pairs
from tests.engines.training.worker_group import end_of_workers, run_workers
from tests.sampling import exhaustive, sampled
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import TrainerConfig
from tpo.config.training import LoraConfig, TrainConfig
from tpo.engines.training.distributed import rank
from tpo.engines.training.worker import Progress, train_from_checkpoint, write_dataset

pytestmark = pytest.mark.slow
TRAIN = TrainConfig(epochs=7, batch_size=8, micro_batch_size=2, learning_rate=3e-4)
EACH = 15 if exhaustive() else 8
STEPS = 7 * EACH
"""Seven epochs; the last step of each has five pairs, which neither 2 nor 4 workers share evenly."""
PAIRS = some_pairs(8 * (EACH - 1) + 5)
SHORT = TRAIN.model_copy(update={"epochs": 2, "learning_rate": 1e-3})
FEW = some_pairs(21)
STRATEGIES = ("ddp", "fsdp")
LORAS = {"full": None, "lora": LoraConfig(rank=4)}
TRAININGS = list(itertools.product(STRATEGIES, LORAS))


def train(
    folder: Path,
    config: TrainConfig,
    *,
    workers: int = 1,
    strategy: str = "ddp",
    few: bool = False,
    share: float = 1e-6,
) -> list[dict[str, float]]:
    """Trains in this many processes, and returns the logged steps."""
    prepare(folder, few=few)
    run_workers(workers, functools.partial(work, folder, config, workers=workers, strategy=strategy, share=share))
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def prepare(folder: Path, *, few: bool) -> None:
    folder.mkdir(exist_ok=True)
    write_dataset(FEW if few else PAIRS, folder / "dataset")


def work(
    folder: Path,
    config: TrainConfig,
    *,
    workers: int,
    strategy: Any,
    share: float,
    on_step: Progress = lambda done, total: None,
) -> None:
    trainer = TrainerConfig.model_construct(threads=1, workers=workers, strategy=strategy, checkpoint_share=share)
    train_from_checkpoint(SHIPPED_SEED_MODEL, folder, config=config, trainer=trainer, seed=7, on_step=on_step)


def weights(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / f"epoch_{epoch}" / "model.safetensors")
    return found


def assert_same_steps(found: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float = 1e-4) -> None:
    # While the policy equals the reference, the signs of margins are rounding errors.
    first, second = ([step["accuracy"] for step in steps if abs(step["margin"]) > 1e-3] for steps in (found, expected))
    assert first == pytest.approx(second, abs=tolerance) and first
    for name in ("loss", "margin", "learning_rate"):
        assert [step[name] for step in found] == pytest.approx([step[name] for step in expected], abs=tolerance), name
    norms = [[step["gradient_norm"] for step in steps] for steps in (found, expected)]
    assert norms[0] == pytest.approx(norms[1], abs=tolerance, rel=tolerance)


def assert_same_weights(found: Path, expected: Path, epoch: int, tolerance: float = 1e-5) -> None:
    first, second = weights(found, epoch), weights(expected, epoch)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], atol=tolerance, rtol=0.0)


@pytest.fixture(scope="module")
def lone() -> Iterator[tuple[Path, list[dict[str, float]]]]:
    """One worker's training on the pairs."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name), train(Path(name), TRAIN)


@pytest.mark.parametrize(("workers", "strategy"), sampled("workers", list(itertools.product((2, 4), STRATEGIES)), 1))
def test_many_workers_make_the_steps_of_one(
    tmp_path: Path, lone: tuple[Path, list[dict[str, float]]], workers: int, strategy: str
):
    folder, expected = lone
    steps = train(tmp_path, TRAIN, workers=workers, strategy=strategy)
    assert len(steps) == STEPS and expected[-1]["loss"] < 0.1
    assert_same_steps(steps, expected)
    assert_same_weights(tmp_path, folder, epoch=7)


CHANGES: Mapping[str, Mapping[str, Any]] = {
    "irpo": {"loss": "irpo"},
    "apo_zero, length-desensitised": {"loss": "apo_zero", "length_desensitization": 0.5},
    "lora": {"lora": LoraConfig(rank=4)},
    "gradient checkpointing and packing": {"gradient_checkpointing": True, "packing": True},
    "all of these": {"lora": LoraConfig(rank=4), "gradient_checkpointing": True, "packing": True},
}


@pytest.mark.parametrize(("strategy", "what"), sampled("changes", list(itertools.product(STRATEGIES, CHANGES)), 2))
def test_many_workers_make_the_steps_of_one_under_every_setting(tmp_path: Path, strategy: str, what: str):
    changes = CHANGES[what]
    computed = ("gradient_checkpointing", "packing")
    plain = SHORT.model_copy(update={key: value for key, value in changes.items() if key not in computed})
    expected = train(tmp_path / "one", plain, few=True)
    steps = train(tmp_path / "two", SHORT.model_copy(update=changes), workers=2, strategy=strategy, few=True)
    assert len(steps) == 6 and expected[-1]["loss"] < expected[0]["loss"]
    assert_same_steps(steps, expected, tolerance=2e-4)
    assert_same_weights(tmp_path / "two", tmp_path / "one", epoch=2)


@pytest.mark.parametrize(("strategy", "lora"), sampled("bfloat16", TRAININGS, 1))
def test_bfloat16_trains_in_float32_and_saves_bfloat16(tmp_path: Path, strategy: str, lora: str):
    config = SHORT.model_copy(update={"precision": "bfloat16", "lora": LORAS[lora], "learning_rate": 1e-6})
    steps = train(tmp_path, config, workers=2, strategy=strategy, few=True, share=1e9)
    assert len(steps) == 6
    assert {weight.dtype for weight in weights(tmp_path, 2).values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "epoch_2" / "config.json").read_text())["dtype"] == "bfloat16"
    name = {"fsdp": "shard_0.pt", "ddp": "adapter_model.safetensors" if LORAS[lora] else "model.safetensors"}[strategy]
    path = tmp_path / "trainer" / "checkpoint-5" / name
    kept = torch.load(path, weights_only=True)["model"] if strategy == "fsdp" else load_file(path)
    assert {weight.dtype for weight in kept.values()} == {torch.float32}
    assert any((weight != weight.bfloat16()).any() for weight in kept.values())


def test_a_model_trained_by_many_workers_can_be_loaded_anywhere(tmp_path: Path):
    train(tmp_path, SHORT.model_copy(update={"lora": LoraConfig(rank=4)}), workers=2, strategy="fsdp", few=True)
    place = tmp_path / "epoch_2"
    seed = {path.name for path in SHIPPED_SEED_MODEL.iterdir()} - {"scores.json"}
    assert {path.name for path in place.iterdir()} == seed
    assert json.loads((place / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    model = AutoModelForCausalLM.from_pretrained(place)
    ids = AutoTokenizer.from_pretrained(place)("one two", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()


def killed(folder: Path, config: TrainConfig, *, workers: int, strategy: str, at: int) -> None:
    """Trains until the first worker has done this many steps, and is killed."""

    def die(done: int, total: int) -> None:
        if total and done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        observer = die if rank() == 0 else (lambda done, total: None)
        work(folder, config, workers=workers, strategy=strategy, share=1e9, on_step=observer)

    prepare(folder, few=True)
    ends = end_of_workers(workers, run)
    assert ends[0] == -signal.SIGKILL and all(ends), ends


@pytest.mark.parametrize(("strategy", "lora"), sampled("killed between checkpoints", TRAININGS, 1))
def test_a_training_killed_between_checkpoints_in_each_epoch_ends_the_same(tmp_path: Path, strategy: str, lora: str):
    """The same bits: the sum of two workers' gradients doesn't depend on their order."""
    config = SHORT.model_copy(update={"lora": LORAS[lora]})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, config, workers=2, strategy=strategy, few=True, share=1e9)
    for at in (2, 5):
        killed(broken, config, workers=2, strategy=strategy, at=at)
    assert not (broken / "steps.jsonl").exists()
    train(broken, config, workers=2, strategy=strategy, few=True, share=1e9)
    for name in ("steps.jsonl", "epoch_1/model.safetensors", "epoch_2/model.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
