"""Claims about the forecast needs of a run, compared with actual runs."""

import pytest

from tpo.config.data import SampleConfig
from tpo.config.judges import ArmoRMJudge, JudgeConfig, PairwiseJudge, VerifierJudge
from tpo.config.resources import ClusterConfig, EngineConfig, JudgeEngineConfig, TrainerConfig
from tpo.config.run import RunConfig
from tpo.config.training import TrainConfig
from tpo.planning.needs import GIB, disk_needed, gpus_needed, memory_needed

PARAMETERS = 883_840
"""Parameters of the shipped seed model."""
MIB = 2**20


@pytest.mark.parametrize(
    ("judge", "took_bytes"),
    [(ArmoRMJudge(), 36_393_731), (PairwiseJudge(mode="probability"), 35_254_532)],
    ids=["armorm", "pairwise"],
)
def test_three_iterations_of_the_default_take_less_than_forecast_and_not_much_less(judge: JudgeConfig, took_bytes: int):
    needed = disk_needed(RunConfig(judge=judge), range(4), parameters=PARAMETERS)
    checkpoints = 9 * 4 * PARAMETERS
    assert needed.checkpoints == checkpoints
    assert took_bytes - checkpoints < needed.rows < 20 * (took_bytes - checkpoints)
    assert took_bytes < needed.total < 200 * MIB


def test_a_finished_run_needs_no_space_and_the_seeds_evaluation_no_checkpoint():
    assert disk_needed(RunConfig(), [], parameters=PARAMETERS).total == 0
    first = disk_needed(RunConfig(), [0], parameters=PARAMETERS)
    assert (first.checkpoints, first.scratch) == (0, 0) and first.rows > 0


def test_checkpoints_grow_with_epochs_precision_and_iterations_and_existing_ones_are_subtracted():
    config = RunConfig(train=TrainConfig(epochs=10, precision="bfloat16"))
    assert disk_needed(config, [3, 4], parameters=8 * 10**9).checkpoints == 2 * 10 * 2 * 8 * 10**9
    assert disk_needed(config, [3, 4], parameters=8 * 10**9).scratch == 2 * 12 * 8 * 10**9
    assert disk_needed(config, [3], parameters=10, written=150).checkpoints == 50
    assert disk_needed(config, [3], parameters=10, written=999).checkpoints == 0


def test_between_rounds_a_model_and_the_training_state_are_kept():
    train = TrainConfig(epochs=3, precision="bfloat16", rounds=4)
    needed = disk_needed(RunConfig(train=train), [1, 2], parameters=10)
    assert needed.checkpoints == 2 * (3 * 2 + 3 * (2 + 12)) * 10
    assert needed.rows == disk_needed(RunConfig(), [1, 2], parameters=10).rows


def test_rows_grow_with_outputs_and_with_a_judge_that_explains():
    small = disk_needed(RunConfig(), [1], parameters=1).rows
    longer = RunConfig(sample=SampleConfig(k=8, max_new_tokens=256))
    assert disk_needed(longer, [1], parameters=1).rows > 1.5 * small
    explained, labelled = (
        disk_needed(RunConfig(judge=PairwiseJudge.model_validate({"mode": mode})), [1], parameters=1).rows
        for mode in ("cot", "verdict")
    )
    assert explained > 2 * labelled > 2 * small


def test_memory_holds_engines_judges_and_trainer_at_once():
    config = RunConfig(
        engine=EngineConfig(count=2, dtype="bfloat16", kv_cache_gib=3),
        judge=ArmoRMJudge(),
        judge_engine=JudgeEngineConfig(count=3, dtype="bfloat16"),
        trainer=TrainerConfig(workers=2),
        train=TrainConfig(batch_size=64),
    )
    assert memory_needed(config, {None: 1000, ArmoRMJudge().folder: 500}.__getitem__) == {
        "engine": 2 * (2000 + 3 * GIB),
        "judge_engine (armorm)": 3 * 1000,
        "trainer": 2 * 4 * 4000,
    }


@pytest.mark.parametrize(
    ("changes", "strategy", "needed"),
    [
        ({}, "ddp", 2 * 16_000),
        ({"precision": "bfloat16"}, "ddp", 2 * 16_000),
        ({}, "fsdp", 16_000),
        ({"precision": "bfloat16", "lora": {}}, "ddp", 2 * 2000),
        ({"precision": "bfloat16", "lora": {}}, "fsdp", 2000),
    ],
)
def test_training_holds_trained_parameters_in_float32_and_only_once_under_fsdp(
    changes: dict[str, object], strategy: str, needed: int
):
    config = RunConfig.model_validate(
        {
            "engine": {"device": "gpu"},
            "trainer": {"workers": 2, "strategy": strategy},
            "train": {"batch_size": 64, **changes},
        }
    )
    assert memory_needed(config, lambda _: 1000) == {"trainer": needed}


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"cluster": ClusterConfig(address="auto")},
        {"engine": EngineConfig(device="gpu"), "trainer": TrainerConfig(device="gpu")},
    ],
    ids=["cluster", "gpus"],
)
def test_parts_that_run_elsewhere_take_no_memory_here(elsewhere: dict[str, object]):
    config = RunConfig.model_validate(elsewhere)
    assert memory_needed(config, lambda _: 10**12) == {}


@pytest.mark.parametrize("judge", [VerifierJudge(), PairwiseJudge()], ids=["verifier", "pairwise"])
def test_gpus_are_those_of_engines_of_judges_and_of_the_trainer(judge: JudgeConfig):
    config = RunConfig(
        engine=EngineConfig(device="gpu", count=2, tensor_parallel=2),
        judge=judge,
        judge_engine=JudgeEngineConfig(device="gpu", tensor_parallel=4),
        trainer=TrainerConfig(device="gpu", workers=2),
        train=TrainConfig(batch_size=64),
    )
    judging = {} if judge.kind == "verifier" else {"judge_engine (pairwise)": 4}
    assert gpus_needed(config) == {"engine": 4, **judging, "trainer": 2}
