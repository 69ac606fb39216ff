"""The shipped small judges on the samples of a real run: their scores, and that nothing is asked twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flows.recipes import PROFILES
from tasks import handles
from tasks.estimates import values_of
from tasks.handles import JudgedSamples, training_spec
from tasks.judge import judge
from tests.end_to_end.conftest import ROOT, SMALL
from tests.end_to_end.test_iterate import artifact
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.models.armorm_format import ATTRIBUTES
from tpo.records import Judgment, Sample
from tpo.storage.journal import JOURNALS, read_journal
from tpo.storage.store import read_manifest, read_rows

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]
PAIRWISE = ("judge={kind='pairwise'}", "evaluation.judge={kind='pairwise'}")


def config_for(folder: Path, *settings: str) -> RunConfig:
    return load_config(PROFILES / "laptop.toml", [*SMALL, *settings, f'folder="{folder}"', "name=judged"])


def judge_training(config: RunConfig, run: Path) -> JudgedSamples:
    """Judges the training samples of M_1 as a run of this config would."""
    samples, prompts = artifact(run / "iter_1/samples"), artifact(run / "iter_1/prompts")
    return judge.fn(config, training_spec(config, 1), samples, prompts)


def health_of(answers: JudgedSamples) -> dict[str, Any]:
    manifest = read_manifest(answers.scores.path)
    assert manifest is not None
    found: dict[str, Any] = manifest.facts["health"]
    return found


def test_armorm_gives_every_attribute_and_agrees_with_the_references(small_run: Path, tmp_path: Path):
    config = config_for(tmp_path, "judge={kind='armorm'}")
    answers = judge_training(config, small_run)
    for judgment in read_rows(artifact(config.root / "iter_1/judgments"), Judgment):
        detail = json.loads(judgment.detail)
        assert set(detail["attributes"]) == set(ATTRIBUTES) and len(detail["gate"]) == len(ATTRIBUTES)
    assert health_of(answers)["reference_agreement"] > 0.6


@pytest.mark.story("a killed judge", 70)
def test_a_killed_pairwise_judge_resumes_without_compiling_or_asking_again(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    config = config_for(tmp_path, *PAIRWISE, "data.per_iteration=24")
    kept = killed_while_it_judges(config, small_run)
    assert not list((tmp_path / "compiled").rglob("*.so"))
    answers = judge_training(config, small_run)
    judgments = read_rows(artifact(config.root / "iter_1/judgments"), Judgment)
    assert kept <= {f"{j.prompt_id} {j.index} {j.other_index}" for j in judgments}
    assert not list(config.root.rglob(JOURNALS))
    samples = {(s.prompt_id, s.index): s for s in read_rows(answers.samples, Sample)}
    for j in judgments:
        assert j.other_index is not None
        assert samples[j.prompt_id, j.index].response != samples[j.prompt_id, j.other_index].response
    assert sum(j.outcome is None for j in judgments) < 0.2 * len(judgments)
    assert health_of(answers)["swap_agreement"] is not None
    assert judge_training(config, small_run) == answers


def test_a_pairwise_judge_gives_the_seed_one_half_and_a_trained_model_its_win_rate(small_run: Path, tmp_path: Path):
    config = config_for(tmp_path, *PAIRWISE)
    prompts, seed = (artifact(small_run / "iter_0" / name) for name in ("prompts/test", "test/samples"))
    of_seed = judge.fn(config, handles.evaluation_spec(config, "iter_0"), seed, prompts, seed)
    assert {*values_of(of_seed).values()} == {0.5}
    trained = artifact(small_run / "iter_1/test/samples")
    values = values_of(judge.fn(config, handles.evaluation_spec(config, "iter_1"), trained, prompts, seed)).values()
    assert all(0 <= value <= 1 for value in values) and {*values} != {0.5}


def killed_while_it_judges(config: RunConfig, run: Path) -> set[str]:
    """Kills a judging process; returns the names of the comparisons answered by then."""
    code = f"""
from pathlib import Path
from tests.end_to_end.test_judges import judge_training
from tpo.config.run import RunConfig
from tpo.engines.engines import open_engines
with open_engines():
    judge_training(RunConfig.model_validate_json({config.model_dump_json()!r}), Path({str(run)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 600
    while not (found := list(config.root.rglob(JOURNALS))) or not read_journal(found[0]).answers:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it judged"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return set(read_journal(found[0]).answers)
