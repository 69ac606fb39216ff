"""Claims about the tiers: no fast test starts an engine, and a commit's draw is the same in every process."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import conftest, sampling
from tests.sampling import sampled

ROOT = Path(__file__).parents[1]
CASES = list(range(100))


def test_a_fast_test_cannot_start_ray():
    import ray

    with pytest.raises(RuntimeError, match=r"a fast test starts (gcs_server|raylet), .*mark it pytest.mark.slow"):
        ray.init(address="local", include_dashboard=False)


POPEN = "import subprocess; subprocess.Popen(['/any/raylet'])"


@pytest.mark.parametrize("code", [POPEN, "import ray; ray.init()", "import vllm.v1.engine.core"])
def test_nor_can_a_process_that_a_fast_test_starts(code: str):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "mark it pytest.mark.slow" in done.stderr


@pytest.mark.slow
def test_a_slow_test_may_start_ray():
    done = subprocess.run([sys.executable, "-c", POPEN], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "FileNotFoundError" in done.stderr


def test_a_draw_has_the_fixed_cases_and_the_requested_number_of_others_in_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(sampling.EXHAUSTIVE_VARIABLE, raising=False)
    drawn = sampled("numbers", CASES, 5, always=[3, 50])
    assert len(drawn) == 7 and {3, 50} <= {*drawn} and drawn == sorted(drawn)
    assert sampled("letters", CASES, 5) != sampled("numbers", CASES, 5)
    assert sampled("numbers", CASES[:3], 5) == CASES[:3]
    monkeypatch.setenv(sampling.EXHAUSTIVE_VARIABLE, "1")
    assert sampled("numbers", CASES, 5) == CASES


def test_the_seed_comes_from_the_environment_or_the_commit_and_every_case_gets_its_turn():
    def drawn(seed: str | None) -> str:
        code = "from tests.sampling import sampled, seed; print(seed(), sampled('', range(10), 2))"
        left_out = (sampling.SEED_VARIABLE, sampling.EXHAUSTIVE_VARIABLE)
        ours = {name: value for name, value in os.environ.items() if name not in left_out}
        if seed is not None:
            ours[sampling.SEED_VARIABLE] = seed
        return subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=ours, capture_output=True, text=True, check=True
        ).stdout

    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    expected = int(head.stdout[:8], 16) if head.returncode == 0 else 0
    assert drawn(None) == drawn(str(expected))
    assert drawn("7").startswith("7 ") and drawn("7") == drawn("7") != drawn("8")


def test_a_story_is_drawn_with_all_its_tests_however_long_it_takes_then_others_that_fit_in_the_time(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv(sampling.EXHAUSTIVE_VARIABLE, raising=False)
    seconds = {f"story {i}": sampling.STORY_SECONDS * (2 if i < 3 else 0.3) for i in range(9)}
    firsts = set[str]()
    for seed in range(200):
        monkeypatch.setattr(sampling, "seed", lambda seed=seed: seed)
        drawn = sampling.drawn_stories(seconds)
        long = [story for story in drawn if seconds[story] > sampling.STORY_SECONDS]
        assert len(drawn) == (1 if long else 3)
        firsts.update(long or drawn)
    assert firsts == seconds.keys()
    monkeypatch.setenv(sampling.EXHAUSTIVE_VARIABLE, "1")
    assert sampling.drawn_stories(seconds) == sorted(seconds)


@dataclass(frozen=True)
class Item:
    """What `drawn_tests` needs of a test."""

    name: str
    marks: tuple[str, ...]
    path: Path = Path(__file__)

    def get_closest_marker(self, mark: str) -> Any:
        return pytest.mark.drawn(2).mark if mark in self.marks else None


def test_of_a_files_marked_tests_each_tier_runs_as_many_as_the_mark_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(sampling.EXHAUSTIVE_VARIABLE, raising=False)
    kinds = [("plain",), ("drawn",), ("drawn", "slow")]
    items: list[Any] = [Item(f"{marks} {i}", marks) for marks in kinds for i in range(5)]
    drawn = [items[items.index(item)].marks for item in conftest.drawn_tests(items)]
    assert [drawn.count(marks) for marks in kinds] == [5, 2, 2]
    monkeypatch.setenv(sampling.EXHAUSTIVE_VARIABLE, "1")
    assert len(conftest.drawn_tests(items)) == 15


@pytest.mark.parametrize("tier", ["slow", "not slow"])
def test_a_file_without_a_test_of_the_tier_is_not_imported(tmp_path: Path, tier: str):
    paths = [str(ROOT / "tests" / place) for place in ("test_tiers.py", "test_sandbox.py", "deploy/test_slurm.py")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-m", tier, *paths]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    found = {name for name in ("test_tiers", "test_sandbox", "test_slurm") if f"{name}.py:" in output}
    assert found == ({"test_tiers", "test_slurm"} if tier == "slow" else {"test_tiers", "test_sandbox"})
