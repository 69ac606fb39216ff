"""A small run of self-training on the real engines, which a second call doesn't repeat; plain vLLM answers with the
published model as our server does.

docs/recipes/self-training.md has results on the whole miniature; tests/flows/test_self_train.py interrupts and resumes
it.
"""

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import run_recipe
from tests.end_to_end.test_publish import answers_alike

pytestmark = [pytest.mark.story("self-training", 200), pytest.mark.end_to_end, pytest.mark.timeout(900)]
SMALL = ("data.per_iteration=100", "data.test=32", "engine.shard_prompts=50")


def test_a_small_run_of_self_training_is_not_repeated_and_can_be_published(tmp_path: Path):
    run_recipe("self-train", tmp_path, "--to", "1", *SMALL)
    run = tmp_path / "self-train"
    table = json.loads((run / "model_table.json").read_text())
    assert [row["model"] for row in table["rows"]] == ["base", "SFT_0", "DPO_1", "SFT_1"]
    assert "nothing to do" in run_recipe("self-train", tmp_path, "--to", "1", *SMALL)
    answers_alike(run, run / "iter_1/sft/train/epoch_6", tmp_path)
