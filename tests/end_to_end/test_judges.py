"""Whole iterations on the shipped small judges: what each leaves, and that nothing it said is asked again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, SMALL, Iterate
from tests.end_to_end.test_iterate import artifact
from tpo.models.armorm_format import ATTRIBUTES
from tpo.records import Judgment, Sample
from tpo.report.summary import read_summary
from tpo.storage.journal import JOURNALS, read_journal
from tpo.storage.store import read_rows

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1500)]
ONE_EPOCH = "train.epochs=1"


def judgments(run: Path, stage: str) -> list[Judgment]:
    return read_rows(artifact(run / stage / "judgments"), Judgment)


def test_armorm_judges_training_and_validation_and_the_verifier_the_test(iterate: Iterate):
    done = iterate(1, "judge={kind='armorm'}", ONE_EPOCH, name="armorm")
    assert done.returncode == 0, done.stdout + done.stderr
    run = Path(iterate.folder) / "armorm"  # type: ignore[attr-defined]
    for said in judgments(run, "iter_1"):
        detail = json.loads(said.detail)
        assert set(detail["attributes"]) == set(ATTRIBUTES) and len(detail["gate"]) == len(ATTRIBUTES)
    row = read_summary(run / "summary.json").models[-1]
    assert row.judge is not None and row.judge.reference_agreement is not None
    assert row.judge.reference_agreement > 0.6
    assert row.score is not None and 0 <= row.score.low <= row.score.high <= 1
    assert 'data-judged="M_1"' in (run / "report.html").read_text()


def test_a_judge_that_compares_trains_validates_and_tests_and_killed_goes_on(iterate: Iterate):
    fewer = ("data.per_iteration=24", "data.validation=12", "data.test=24", "sample.k=6")
    settings = ("judge={kind='pairwise'}", "evaluation.judge={kind='pairwise'}", ONE_EPOCH, *fewer)
    run = Path(iterate.folder) / "pairwise"  # type: ignore[attr-defined]
    kept = _killed_while_it_judges(run, *settings)
    done = iterate(1, *settings, name="pairwise")
    assert done.returncode == 0, done.stdout + done.stderr
    said = judgments(run, "iter_1")
    assert kept <= {f"{j.prompt_id} {j.index} {j.other_index}" for j in said}
    assert not list(run.rglob(JOURNALS))
    samples = {(s.prompt_id, s.index): s for s in read_rows(artifact(run / "iter_1/samples"), Sample)}
    for j in said:
        assert j.other_index is not None
        assert samples[j.prompt_id, j.index].response != samples[j.prompt_id, j.other_index].response
    assert sum(j.outcome is None for j in said) < 0.2 * len(said)
    seed, last = (row for row in read_summary(run / "summary.json").models[1:])
    assert seed.score is not None and seed.score.value == 0.5
    assert last.score is not None and last.gain is not None
    assert last.gain.value == pytest.approx(last.score.value - 0.5)
    assert last.judge is not None and last.judge.swap_agreement is not None
    assert iterate(1, *settings, name="pairwise").stdout.count("nothing to do") == 1


def _killed_while_it_judges(run: Path, *settings: str) -> set[str]:
    """Names of the comparisons that had been answered when the run was killed."""
    command = [sys.executable, "-m", "flows", "iterate", "--to", "1", "--run-name", run.name]
    for setting in (*SMALL, f'folder="{run.parent}"', *settings):
        command += ["--set", setting]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(run.parent / "prefect")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while not (found := list((run / "iter_1" / "judgments").glob(JOURNALS))) or not read_journal(found[0]).answers:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it judged"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return set(read_journal(found[0]).answers)
