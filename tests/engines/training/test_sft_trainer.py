"""Claims about supervised fine-tuning: its loss is TRL's; packing, several workers and interruptions change nothing.

The real trainer on the shipped seed model and made-up demonstrations. test_dpo_trainer.py, test_many_workers.py and
test_resume.py test what all trainings share.
"""

import functools
import itertools
import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from tests.engines.training.worker_group import end_of_workers, run_workers
from tests.sampling import sampled
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import TrainerConfig
from tpo.config.training import LoraConfig, SftConfig
from tpo.engines.training.row_inputs import DEMONSTRATION, output_log_probs, padded_row
from tpo.engines.training.worker import Progress, make_trainer, train_from_checkpoint, write_dataset
from tpo.records import Demonstration

SFT = SftConfig(epochs=2, batch_size=8, micro_batch_size=4, learning_rate=1e-3)
ROWS, STEPS = 21, 6


def some_demonstrations(count: int = ROWS) -> list[Demonstration]:
    draw = random.Random(0)

    def ids(length: int) -> list[int]:
        return [draw.randrange(10, 60) for _ in range(length)]

    return [
        Demonstration(f"p{i}", ids(draw.randrange(2, 9)), [*ids(draw.randrange(3, 12)), 2], "", "given")
        for i in range(count)
    ]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def nothing(done: int, total: int) -> None:
    """Ignores progress."""


def train(
    folder: Path, config: SftConfig = SFT, *, workers: int = 1, strategy: Any = "ddp", on_step: Progress = nothing
) -> list[dict[str, Any]]:
    write_dataset(some_demonstrations(), folder / "dataset")
    run_workers(workers, functools.partial(work, folder, config, workers, strategy, on_step))
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def work(folder: Path, config: SftConfig, workers: int, strategy: Any, on_step: Progress) -> None:
    trainer = TrainerConfig.model_construct(threads=1, workers=workers, strategy=strategy, checkpoint_share=1e9)
    train_from_checkpoint(SHIPPED_SEED_MODEL, folder, config=config, trainer=trainer, seed=7, on_step=on_step)


def test_the_loss_over_a_whole_batch_is_trls_and_so_is_its_gradient(tmp_path: Path):
    write_dataset(some_demonstrations(), tmp_path / "dataset")
    whole = SFT.model_copy(update={"micro_batch_size": 8})
    ours = make_trainer(
        SHIPPED_SEED_MODEL, tmp_path, config=whole, trainer=TrainerConfig(threads=1), seed=7, on_step=nothing
    )
    (inputs, *_) = [ours._prepare_inputs(inputs) for inputs in ours.get_train_dataloader()]
    rows = [ours.train_dataset[i] for i in inputs["share"].indices]
    found = ours.compute_loss(ours.model, inputs)
    padded = {name: value for name, value in padded_row(rows, DEMONSTRATION, 0).items() if name != "outputs"}
    add_fused_lm_head(ours.model, outputs=("log_probs", "entropy", "is_top1"))  # TRL logs them all.
    expected = SFTTrainer.compute_loss(ours, ours.model, padded)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    weights = list(ours.model.parameters())
    for mine, its in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        assert (mine - its).norm() <= 1e-4 * its.norm() + 1e-5


def test_outputs_become_more_likely_and_each_epoch_leaves_a_model(tmp_path: Path):
    steps = train(tmp_path, SFT.model_copy(update={"epochs": 4}))
    assert len(steps) == 12 and steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    assert all(step["margin"] is None and step["accuracy"] is None for step in steps)
    assert [(tmp_path / f"epoch_{epoch}" / "model.safetensors").exists() for epoch in (1, 4, 5)] == [True, True, False]
    (last,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()][-1:]
    assert (last["epoch"], last["step"], last["margin"]) == (4, 12, None)


@pytest.mark.parametrize(
    ("changes", "workers", "strategy"),
    [
        ({"packing": True}, 1, "ddp"),
        ({}, 2, "ddp"),
        ({"packing": True}, 2, "fsdp"),
        ({"packing": True, "lora": LoraConfig(rank=4)}, 2, "fsdp"),
    ],
    ids=["packed", "two workers", "two workers, spread, packed", "two workers, spread, packed, of adapters"],
)
def test_steps_are_the_same_in_every_setting(tmp_path: Path, changes: dict[str, Any], workers: int, strategy: str):
    plain = {"lora": changes["lora"]} if "lora" in changes else {}
    expected = train(tmp_path / "plain", SFT.model_copy(update=plain))
    found = train(tmp_path / "other", SFT.model_copy(update=changes), workers=workers, strategy=strategy)
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert [step[name] for step in found] == pytest.approx([step[name] for step in expected], abs=1e-4), name


@pytest.mark.parametrize(("at", "max_steps"), sampled("kills", list(itertools.product((1, 3, 4), (None, 5))), 2))
def test_a_training_that_is_killed_ends_the_same(tmp_path: Path, at: int, max_steps: int | None):
    config = SFT.model_copy(update={"max_steps": max_steps, "min_lr_ratio": 0.1, "weight_decay": 0.01})
    expected = train(tmp_path / "whole", config)
    write_dataset(some_demonstrations(), tmp_path / "broken" / "dataset")

    def die(done: int, total: int) -> None:
        if total and done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    assert end_of_workers(1, lambda: work(tmp_path / "broken", config, 1, "ddp", die)) == [-signal.SIGKILL]
    found = train(tmp_path / "broken", config)
    assert found == expected and len(found) == config.steps(ROWS) == (max_steps or STEPS)
    for epoch in range(1, config.passes(ROWS) + 1):
        name = f"epoch_{epoch}/model.safetensors"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    assert config.passes(ROWS) == 2


def test_the_learning_rate_falls_to_min_lr_ratio(tmp_path: Path):
    steps = train(tmp_path, SFT.model_copy(update={"epochs": 5, "min_lr_ratio": 0.1, "warmup_ratio": 0.0}))
    rates = [step["learning_rate"] for step in steps]
    assert rates[0] == SFT.learning_rate and rates == sorted(rates, reverse=True)
    assert 0.1 * rates[0] <= rates[-1] < 0.12 * rates[0]


@pytest.mark.parametrize(
    ("rows", "max_steps", "passes", "steps"),
    [(21, None, 2, 6), (21, 6, 2, 6), (21, 99, 2, 6), (21, 4, 2, 4), (21, 3, 1, 3), (21, 1, 1, 1), (3, 1, 1, 1)],
)
def test_passes_and_steps_follow_from_the_rows(rows: int, max_steps: int | None, passes: int, steps: int):
    config = SFT.model_copy(update={"max_steps": max_steps})
    assert (config.passes(rows), config.steps(rows)) == (passes, steps)


def test_a_demonstrations_prompt_does_not_count_in_its_loss(tmp_path: Path):
    rows = [{"prompt_ids": [5, 6, 7], "output_ids": [8, 9]}]
    row = padded_row(rows, DEMONSTRATION, 0)
    assert row["labels"].tolist() == [[-100, -100, -100, 8, 9]]

    def model(**_: Any) -> Any:
        return type("Found", (), {"log_probs": torch.tensor([[1.0, 2.0, 3.0, 4.0]])})

    assert output_log_probs(model, row).first.tolist() == [3.0, 4.0]  # type: ignore[arg-type]
