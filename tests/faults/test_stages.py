"""Claims about every stage: after any fault, the run ends the same, or says what is wrong and what to do.

A commit tests each fault in one stage and each stage with some fault; `make exhaustive` tests every fault in every
stage. The stages are the real ones, on engines that answer at once (`mock_run`), in a subprocess that can fork.
"""

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults import mock_run
from tests.faults.mock_run import FAULTS, STAGES
from tests.sampling import dice, exhaustive

ROOT = Path(__file__).parents[2]
ROUNDS = mock_run.Plan("verifier", iterations=2, rounds=2, gate=True)
MORE = {
    "synthesize": mock_run.Plan("pairwise", iterations=1, synthetic=True),
    "replay": ROUNDS,
    "gate": ROUNDS,
}
"""Stages that few runs have: where a model writes prompts, and where iterations have rounds, replayed pairs and a
gate."""
MATRIX = [
    (fault.name, stage)
    for fault in FAULTS
    if fault.everywhere
    for stage in (*STAGES, *MORE)
    if (fault.name, stage) != ("the disk fails at a read", "report")  # it reads only other stages' files
]
"""Every fault in every stage; those of `MORE` in runs that have them."""


def drawn(matrix: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each fault in one stage, and some fault in each stage."""
    draw, faults, stages = dice("faults"), *(sorted({*names}) for names in zip(*matrix, strict=True))
    while not {*(chosen := list(zip(faults, itertools.cycle(stages), strict=False)))} <= {*matrix}:
        draw.shuffle(stages)
    return [case for case in matrix if exhaustive() or case in chosen]


CASES = drawn(MATRIX)
DESCRIBED = {
    "disk": "stops, names the disk and what to do; then recovers",
    "folder": "stops, says so; then recovers",
    "memory": "stops, says so; then recovers",
}

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The result of one run per case, each forked by one process."""
    parent = tmp_path_factory.mktemp("broken")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.test_stages", str(parent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: Mapping[str, Any] = json.loads((parent / "broken.json").read_text())
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("fault", "stage"), CASES)
def test_a_run_ends_the_same_after_a_fault_in_any_stage(
    broken: Mapping[str, Any], outcome: Callable[[str, str, str], None], fault: str, stage: str
):
    found = broken[f"{fault}, {stage}"]
    assert found["stopped"], "no fault was injected"
    assert found["recovered"], found["log"]
    assert found["difference"] == [0, 0, 0], found["log"]
    assert found["known"], "it is complete, but would be restarted"
    assert found["stale"] == [0, 0, 0], "it counted as finished, but wasn't"
    outcome(fault, stage, next((text for word, text in DESCRIBED.items() if word in fault.split()), "recovers"))


def _distinct() -> list[mock_run.Plan]:
    plans = list(MORE.values())
    return [plan for i, plan in enumerate(plans) if plan not in plans[:i]]


@mock_run.prepared()
def main(parent: Path) -> None:
    """Breaks a run per case and writes the results."""
    mock_run.make_seed(parent / "seed")
    loaded = mock_run.an_example(parent / "example", mock_run.Plan("pairwise", iterations=1))
    examples = [(plan, mock_run.an_example(parent / f"example_{i}", plan)) for i, plan in enumerate(_distinct())]
    others = {stage: next(example for made, example in examples if made == plan) for stage, plan in MORE.items()}
    faults = {fault.name: fault for fault in FAULTS}
    found = {}
    for name, stage in CASES:
        example = others.get(stage, loaded)
        with mock_run.folder_for_runs(parent) as folder:
            broken = mock_run.break_run(faults[name], random.Random(f"{name} {stage}"), folder, example, stage)
        found[f"{name}, {stage}"] = {
            "stopped": broken.stopped,
            "recovered": broken.recovered,
            "difference": [broken.difference.lost, broken.difference.duplicated, broken.difference.changed],
            "stale": [broken.stale.lost, broken.stale.duplicated, broken.stale.changed],
            "known": broken.known,
            "log": broken.log[-4000:],
        }
    (parent / "broken.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
