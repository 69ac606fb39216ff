"""Claims about profiles: they contain each published table of hyperparameters, number by number."""

from pathlib import Path

import pytest

from flows.preflight import check_thinkpo
from tpo.config.load import load_config
from tpo.config.recipes import PairFile, PairModels, ThinkPo

PROFILES = Path(__file__).parents[2] / "deploy" / "profiles"
TABLE_7 = {
    "thinkpo-r1-distill-7b": ("DeepSeek-R1-Distill-Qwen-7B", 1e-7),
    "thinkpo-bespoke-7b": ("Bespoke-Stratos-7B", 5e-7),
    "thinkpo-reproduced-7b": ("Qwen2.5-7B-Instruct", 3e-7),
    "thinkpo-qwen2.5-3b": ("Qwen2.5-3B-Instruct", 5e-7),
    "thinkpo-qwen2.5-7b": ("Qwen2.5-7B-Instruct", 8e-8),
    "thinkpo-qwen2.5-14b": ("Qwen2.5-14B-Instruct", 1e-7),
}
"""ThinkPO (2502.13173), Table 7: model and learning rate; batch 48 and β 0.01 for all."""


@pytest.mark.parametrize("name", TABLE_7)
def test_thinkpos_table_7_is_in_its_profiles(name: str):
    config = load_config(PROFILES / f"{name}.toml")
    model, learning_rate = TABLE_7[name]
    assert (Path(config.model.path).name, config.train.learning_rate) == (model, learning_rate)
    train = config.train
    assert (train.batch_size, train.beta, train.epochs, train.max_tokens) == (48, 0.01, 1, 8192)
    assert (train.loss, train.lr_scheduler, train.warmup_ratio, train.reference) == ("dpo", "cosine", 0.1, "previous")


@pytest.mark.parametrize("name", TABLE_7)
def test_thinkpos_fine_tuning_and_short_outputs_follow_its_code(name: str):
    config = load_config(PROFILES / f"{name}.toml")
    recipe = config.recipe_as(ThinkPo)
    if recipe.sft is None:
        assert isinstance(recipe.source, PairFile)
        return
    sft, source = recipe.sft, recipe.source
    assert (sft.learning_rate, sft.epochs, sft.max_tokens, sft.overlong) == (1e-5, 3, 10240, "truncate")
    assert (sft.lr_scheduler, sft.warmup_ratio, sft.precision) == ("cosine", 0.1, "bfloat16")
    assert isinstance(source, PairModels) and Path(source.short).name == "Qwen2.5-Math-7B-Instruct"
    assert (source.short_sample.temperature, source.short_sample.top_p) == (0.7, 0.9)
    assert source.short_sample.max_new_tokens == 1024


def test_every_table_of_thinkpo_has_a_profile_and_every_profile_a_table():
    assert {path.stem for path in PROFILES.glob("thinkpo-*.toml")} == set(TABLE_7)


def test_the_miniature_has_a_thinkpo_profile():
    check_thinkpo(load_config(PROFILES / "thinkpo.toml"))
