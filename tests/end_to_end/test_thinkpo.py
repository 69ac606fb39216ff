"""A small run of ThinkPO on the real engines: three models are made and measured, and a second call does nothing.

docs/recipes/thinkpo.md has results on the whole miniature; tests/flows/test_thinkpo.py interrupts and resumes it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.story("ThinkPO", 120), pytest.mark.end_to_end, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SMALL = ("data.per_iteration=64", "data.test=32", "recipe.sft.epochs=4", "recipe.sft.learning_rate=1e-3",
         "recipe.sft.batch_size=16", "recipe.sft.micro_batch_size=16", "engine.shard_prompts=16",
         "recipe.mismatched_answer_ratio=0.8")  # fmt: skip


def test_a_small_run_of_thinkpo_ends_with_its_page_and_a_second_call_does_nothing(tmp_path: Path):
    command = [sys.executable, "-m", "flows", "thinkpo"]
    for setting in (*SMALL, f'folder="{tmp_path}"'):
        command += ["--set", setting]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}

    def call() -> str:
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "ThinkPO against SFT: score" in call()
    run = tmp_path / "thinkpo"
    table = json.loads((run / "model_table.json").read_text())
    base, tuned, thinking = table["rows"]
    assert [row["model"] for row in table["rows"]] == ["base", "SFT", "ThinkPO"]
    assert tuned["tokens"]["low"] > base["tokens"]["high"]
    assert thinking["made_from"]["pairs"] > 10
    page = (run / "model_table.html").read_text()
    assert "<script" not in page and "ThinkPO" in page
    assert "nothing to do" in call()
