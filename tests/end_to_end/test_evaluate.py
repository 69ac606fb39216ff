"""The shipped model evaluated by a real engine: on the miniature's own problems, and on the same in GSM8K's form."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import DEAD_PROXY, ROOT
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.miniature.world import problems

PROMPTS = 96


@pytest.mark.story("evaluating a model", 60)
@pytest.mark.end_to_end
@pytest.mark.timeout(900)
def test_a_model_is_measured_without_a_training_and_once(runs_folder: Path):
    drawn = list(itertools.islice(problems("test", 0), PROMPTS))
    own = [{"instruction": p.instruction, "answer": p.reference, "category": p.category} for p in drawn]
    grade = [
        {"question": p.instruction, "answer": f"So it is\n#### {p.reference}"} for p in drawn if p.reference.isdigit()
    ]
    for name, rows in (("own", own), ("grade", grade)):
        (runs_folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    profile = runs_folder / "evaluate.toml"
    profile.write_text(f"""
folder = "{runs_folder}/evaluations"
[prompt]
variant = "direct"
[[evaluation.benchmarks]]
kind = "custom"
path = "{runs_folder}/own.jsonl"
reference_column = "answer"
category_column = "category"
answer_pattern = '(?i)answer is:?\\s+((?:[^.!?\\n]|\\.(?=\\d))+)'
""")
    words = ["--profile", str(profile), "--bench", "custom", "--bench", f"gsm8k={runs_folder}/grade.jsonl"]
    command = [sys.executable, "-m", "flows", "evaluate", "miniature", *words]
    environment = {**os.environ, **DEAD_PROXY, "PREFECT_HOME": str(runs_folder / "prefect")}

    def evaluate() -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=800, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    evaluate()
    folder = runs_folder / "evaluations" / "evaluation-miniature"
    custom, gsm8k = json.loads((folder / "benchmarks.json").read_text())["tables"]
    accuracy = custom["rows"][0]["numbers"]["accuracy"]
    recorded = json.loads((SHIPPED_SEED_MODEL / "scores.json").read_text())["direct"]["right"]
    assert accuracy["value"] == pytest.approx(100 * recorded, abs=4 * 50 / PROMPTS**0.5)
    assert len(custom["rows"][0]["by_category"]) > 1
    assert gsm8k["prompts"] == len(grade) and 0 <= gsm8k["rows"][0]["numbers"]["accuracy"]["value"] <= 100
    assert not list(folder.rglob("train"))
    assert "is complete: nothing to do" in evaluate()
