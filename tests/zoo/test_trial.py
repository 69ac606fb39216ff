"""Three families go through the whole product: tied embeddings, a hybrid thinker, and a mixture of experts.

`TPO_ZOO=all` takes every family through it, which takes about five minutes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.zoo.families import ZOO
from tests.zoo.table import trials
from tests.zoo.test_zoo import made

ROOT = Path(__file__).parents[2]
NAMES = [family.name for family in ZOO] if os.environ.get("TPO_ZOO") == "all" else ["SmolLM2", "Qwen3", "gpt-oss"]


@pytest.mark.end_to_end
@pytest.mark.timeout(1800)
def test_families_sample_judge_train_save_load_and_serve(tmp_path: Path):
    for family in ZOO:
        if family.name in NAMES:
            made(family, tmp_path)  # skips without a registry
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "tests.zoo.trial", str(tmp_path / "trial"), str(results), *NAMES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {row["name"]: row for row in map(json.loads, results.read_text().splitlines())}
    assert found == {name: trials()[name] for name in NAMES}, done.stderr[-3000:]
