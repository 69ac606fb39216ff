"""Claims about a training in rounds: it is one training whose rows come in parts, wherever it is stopped.

The real trainer on the shipped seed model. All rows of a round are one batch, so that rounds on the same rows must make
the steps that one training makes in as many epochs.
"""

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.engines.training.test_resume import EVERY_STEP, Stopped, some_pairs, stop_at
from tests.engines.training.worker_group import run_workers
from tests.sampling import sampled
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import TrainerConfig
from tpo.config.training import LoraConfig, TrainConfig
from tpo.engines.training.rounds import ONLY_ROUND, STATE, TrainingRound
from tpo.engines.training.worker import Progress, finished, train_from_checkpoint, write_dataset
from tpo.records import Pair

ROWS = some_pairs(8)
TRAIN = TrainConfig(epochs=1, batch_size=8, micro_batch_size=4, learning_rate=1e-3, warmup_ratio=0.25)
KINDS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "adapters": {"lora": LoraConfig(rank=4)},
    "a cosine to a tenth": {"min_lr_ratio": 0.1},
    "a constant rate": {"lr_scheduler": "constant"},
}
Steps = list[dict[str, float]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(
    folder: Path,
    config: TrainConfig,
    place: TrainingRound = ONLY_ROUND,
    *,
    rows: Sequence[Pair] = ROWS,
    on_step: Progress = lambda done, total: None,
    trainer: TrainerConfig = EVERY_STEP,
) -> Steps:
    folder.mkdir(parents=True, exist_ok=True)
    write_dataset(rows, folder / "dataset")
    work = functools.partial(
        train_from_checkpoint,
        SHIPPED_SEED_MODEL,
        folder,
        config=config,
        trainer=trainer,
        seed=7,
        on_step=on_step,
        place=place,
    )
    if trainer.workers > 1:
        run_workers(trainer.workers, work)
    else:
        work()
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def in_rounds(folder: Path, config: TrainConfig, count: int, **options: Any) -> Steps:
    steps, carried = Steps(), None
    for number in range(1, count + 1):
        steps += train(folder / f"round_{number}", config, TrainingRound(number, count, carried), **options)
        carried = folder / f"round_{number}" / STATE
    return steps


def assert_same(rounds: Steps, whole: Steps, tolerance: float = 1e-5) -> None:
    assert len(rounds) == len(whole)
    for name in ("loss", "margin", "gradient_norm", "learning_rate"):
        found, expected = ([step[name] for step in steps] for steps in (rounds, whole))
        assert found == pytest.approx(expected, rel=1e-3, abs=tolerance), name


@pytest.mark.parametrize("kind", sampled("rounds as epochs", list(KINDS), 1))
def test_rounds_on_the_same_rows_are_the_epochs_of_one_training(tmp_path: Path, kind: str):
    config = TRAIN.model_copy(update=KINDS[kind])
    whole = train(tmp_path / "whole", config.model_copy(update={"epochs": 4}))
    rounds = in_rounds(tmp_path, config, 4)
    assert whole[-1]["loss"] < whole[0]["loss"]
    assert_same(rounds, whole)
    first, second = (
        load_file(tmp_path / place / "model.safetensors") for place in ("whole/epoch_4", "round_4/epoch_1")
    )
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], atol=1e-4, rtol=1e-2)


def test_weights_of_a_bfloat16_training_are_not_rounded_between_rounds(tmp_path: Path):
    config = TRAIN.model_copy(update={"precision": "bfloat16", "learning_rate": 1e-6, "warmup_ratio": 0.0})
    train(tmp_path, config, TrainingRound(1, 2))
    state, saved = (
        load_file(tmp_path / STATE / "worker_0.safetensors"),
        load_file(tmp_path / "epoch_1/model.safetensors"),
    )
    name = "model.layers.0.mlp.up_proj.weight"
    seed, kept = load_file(SHIPPED_SEED_MODEL / "model.safetensors")[name].float(), state[f"weight {name}"]
    assert saved[name].dtype is torch.bfloat16 and kept.dtype is torch.float32
    assert (kept != seed).float().mean() > 0.5
    assert (saved[name] == seed.bfloat16()).float().mean() > 0.9, "a step this small isn't lost to rounding"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "kind"), sampled("rounds", list(itertools.product(("ddp", "fsdp"), ("all weights", "adapters"))), 1)
)
def test_several_workers_continue_too(tmp_path: Path, strategy: Any, kind: str):
    config = TRAIN.model_copy(update=KINDS[kind])
    trainer = TrainerConfig.model_construct(threads=1, workers=2, strategy=strategy, checkpoint_share=1e-6)
    whole = train(tmp_path / "whole", config.model_copy(update={"epochs": 2}))
    assert_same(in_rounds(tmp_path, config, 2, trainer=trainer), whole, tolerance=1e-4)
    files = {path.name for path in (tmp_path / "round_1" / STATE).iterdir()}
    assert files == {f"worker_{rank}.safetensors" for rank in range(2 if strategy == "fsdp" else 1)}


def test_without_the_state_of_the_round_before_it_would_be_another_training(tmp_path: Path):
    config = TRAIN.model_copy(update={"lr_scheduler": "constant"})
    whole = train(tmp_path / "whole", config.model_copy(update={"epochs": 2}))
    (again,) = train(tmp_path / "again", config)
    assert again["loss"] == pytest.approx(whole[0]["loss"]) != pytest.approx(whole[1]["loss"])


def test_a_round_is_an_equal_part_of_the_schedule_whatever_its_number_of_steps(tmp_path: Path):
    config = TRAIN.model_copy(update={"warmup_ratio": 0.0, "lr_scheduler": "linear"})
    first = train(tmp_path / "1", config, TrainingRound(1, 2), rows=some_pairs(32))
    second = train(tmp_path / "2", config, TrainingRound(2, 2, tmp_path / "1" / STATE), rows=ROWS)
    peak = config.learning_rate
    assert [step["learning_rate"] for step in first] == pytest.approx([peak * (1 - i / 8) for i in range(4)])
    assert [step["learning_rate"] for step in second] == pytest.approx([peak / 2])


def test_only_the_last_round_leaves_the_models_of_earlier_epochs_and_no_state(tmp_path: Path):
    config = TRAIN.model_copy(update={"epochs": 3})
    in_rounds(tmp_path, config, 2)
    left = {
        number: {path.name for path in (tmp_path / f"round_{number}").iterdir()} - {"dataset", "trainer"}
        for number in (1, 2)
    }
    logs = {"log.jsonl", "steps.jsonl"}
    assert left == {1: {"epoch_3", STATE} | logs, 2: {"epoch_1", "epoch_2", "epoch_3"} | logs}
    assert finished(tmp_path / "round_1", 3, TrainingRound(1, 2)) and finished(tmp_path / "round_2", 3)


@pytest.mark.parametrize(
    ("kind", "number"), sampled("stopped rounds", list(itertools.product(("all weights", "adapters"), (1, 2))), 1)
)
def test_a_round_that_is_stopped_ends_as_one_that_was_not(tmp_path: Path, kind: str, number: int):
    config = TRAIN.model_copy(update=KINDS[kind] | {"epochs": 3})
    in_rounds(tmp_path, config, 2)
    whole, broken = tmp_path / f"round_{number}", tmp_path / "broken"
    place = TrainingRound(number, 2, tmp_path / "round_1" / STATE if number == 2 else None)
    for step in (1, 2, 3):
        with pytest.raises(Stopped):
            train(broken, config, place, on_step=stop_at(step))
        assert not finished(broken, 3, place)
    train(broken, config, replace(place))
    for path in [*whole.glob("epoch_*/*"), *whole.glob(f"{STATE}/*"), whole / "steps.jsonl"]:
        assert (broken / path.relative_to(whole)).read_bytes() == path.read_bytes(), path
