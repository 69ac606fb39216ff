"""A run on text not written for it: the AlpacaEval instructions, if they lie next to the checkout."""

from pathlib import Path

import pytest

from flows.recipes import PROFILES
from tasks.handles import seed_model, training_spec
from tasks.judge import judge
from tasks.load_prompts import load_prompts
from tasks.pair import pair
from tasks.sample import sample
from tests.end_to_end.conftest import ROOT, SMALL
from tpo.config.load import load_config
from tpo.records import Artifact
from tpo.storage.store import read_manifest

INSTRUCTIONS = ROOT.parent / "shared" / "data" / "alpaca_eval_instructions.jsonl"

pytestmark = [
    pytest.mark.story("real instructions", 40),
    pytest.mark.end_to_end,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not INSTRUCTIONS.exists(), reason="no AlpacaEval instructions here"),
]
# No answer of the miniature's model is right here: only the judge's length preference tells responses apart.
SETTINGS = (
    f'data.source={{kind="file", path="{INSTRUCTIONS}", reference_column="dataset"}}',
    *("data.per_iteration=100", "data.validation=50", "data.test=50", "data.max_prompt_tokens=416"),
    *("judge.length_bias=1.0", "pair.min_margin=0"),
)


def dropped(artifact: Artifact, reason: str) -> int:
    manifest = read_manifest(artifact.path)
    assert manifest is not None and manifest.account is not None
    count: int = manifest.account["dropped"].get(reason, 0)
    return count


def test_the_alpaca_eval_instructions_are_sampled_judged_and_paired(tmp_path: Path):
    config = load_config(PROFILES / "laptop.toml", [*SMALL, *SETTINGS, f'folder="{tmp_path}"', "name=alpaca"])
    seed, spec = seed_model(config), training_spec(config, 1)
    validation = load_prompts.fn(config, "iter_0/prompts/validation", seed, [])
    test = load_prompts.fn(config, "iter_0/prompts/test", seed, [validation])
    prompts = load_prompts.fn(config, "iter_1/prompts", seed, [validation, test])
    assert max(dropped(one, "too_long") for one in (validation, test, prompts)) > 0
    answers = judge.fn(config, spec, sample.fn(config, spec, seed, prompts), prompts)
    assert answers.scores.rows == 100 * config.sample.k
    assert pair.fn(config, 1, answers).rows > 0
