"""A small run of ThinkPO on the real engines: three models are trained and measured, a second call does nothing, and
plain vLLM answers with the published model as our server does.

docs/recipes/thinkpo.md has results on the whole miniature; tests/flows/test_thinkpo.py interrupts and resumes it.
"""

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import run_recipe
from tests.end_to_end.test_publish import answers_alike

pytestmark = [pytest.mark.story("ThinkPO", 200), pytest.mark.end_to_end, pytest.mark.timeout(900)]
SMALL = ("data.per_iteration=64", "data.test=32", "recipe.sft.epochs=4", "recipe.sft.learning_rate=1e-3",
         "recipe.sft.batch_size=16", "recipe.sft.micro_batch_size=16", "engine.shard_prompts=16",
         "recipe.mismatched_answer_ratio=0.8")  # fmt: skip


def test_a_small_run_of_thinkpo_ends_with_its_page_is_not_repeated_and_can_be_published(tmp_path: Path):
    assert "ThinkPO against SFT: score" in run_recipe("thinkpo", tmp_path, *SMALL)
    run = tmp_path / "thinkpo"
    table = json.loads((run / "model_table.json").read_text())
    base, tuned, thinking = table["rows"]
    assert [row["model"] for row in table["rows"]] == ["base", "SFT", "ThinkPO"]
    assert tuned["tokens"]["low"] > base["tokens"]["high"]
    assert thinking["made_from"]["pairs"] > 10
    page = (run / "model_table.html").read_text()
    assert "<script" not in page and "ThinkPO" in page
    assert "nothing to do" in run_recipe("thinkpo", tmp_path, *SMALL)
    answers_alike(run, run / "dpo/train/epoch_1", tmp_path)
