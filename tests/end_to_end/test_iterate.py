import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.end_to_end.conftest import Iterate
from tpo.records import Artifact, Pair, Prompt, Sample, Score
from tpo.report.comparison import read_comparison
from tpo.report.summary import read_summary
from tpo.storage.store import read_manifest, read_rows

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1500)]


def artifact(folder: Path) -> Artifact:
    manifest = read_manifest(folder)
    assert manifest is not None, folder
    return Artifact(folder, manifest.rows, manifest.fingerprint)


def test_a_run_leaves_every_stage_complete_and_accounted_for(small_run: Path):
    for t in (1, 2):
        for stage in ("prompts", "samples", "judgments", "scores", "pairs", "train", "model", "test/scores"):
            manifest = read_manifest(small_run / f"iter_{t}" / stage)
            assert manifest is not None, (t, stage)
            if manifest.account is not None:
                assert manifest.account["rows_in"] == manifest.account["rows_out"] + sum(
                    manifest.account["dropped"].values()
                )
    assert (small_run / "report.html").stat().st_size > 20_000
    assert json.loads((small_run / "config.json").read_text())["name"] == "small"


def test_the_summary_has_a_row_per_model_with_intervals(small_run: Path):
    summary = read_summary(small_run / "summary.json")
    assert [row.model for row in summary.models] == ["M_0 direct", "M_0", "M_1", "M_2"]
    for row in summary.models:
        assert row.score is not None and row.score.low <= row.score.value <= row.score.high and row.score.n == 48
        assert 0 <= row.parse_error_rate <= 1
    assert all(row.win_rate is not None and row.rho is not None and row.seconds for row in summary.models[2:])


def test_the_model_is_trained_on_the_tokens_that_were_sampled(small_run: Path):
    samples = {(s.prompt_id, s.index): s for s in read_rows(artifact(small_run / "iter_1/samples"), Sample)}
    tokenizer = AutoTokenizer.from_pretrained(small_run / "iter_1/model")
    pairs = read_rows(artifact(small_run / "iter_1/pairs"), Pair)
    assert pairs
    for pair in pairs:
        chosen = samples[pair.prompt_id, pair.chosen_index]
        rejected = samples[pair.prompt_id, pair.rejected_index]
        assert pair.prompt_token_ids == chosen.prompt_token_ids == rejected.prompt_token_ids
        assert pair.chosen_token_ids == chosen.output_token_ids
        assert pair.rejected_token_ids == rejected.output_token_ids
        assert pair.prompt_token_ids.count(tokenizer.bos_token_id) == 1
        assert chosen.parse_error is None and pair.chosen_token_ids[-1] == tokenizer.eos_token_id


def test_prompts_of_iterations_validation_and_test_are_disjoint(small_run: Path):
    folders = ["iter_0/prompts/validation", "iter_0/prompts/test", "iter_1/prompts", "iter_2/prompts"]
    sets = [{p.instruction for p in read_rows(artifact(small_run / folder), Prompt)} for folder in folders]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 24 + 48 + 48 + 48


def test_samples_hold_thoughts_and_judgments_do_not(small_run: Path):
    samples = {(s.prompt_id, s.index): s for s in read_rows(artifact(small_run / "iter_1/samples"), Sample)}
    scores = read_rows(artifact(small_run / "iter_1/scores"), Score)
    assert any(sample.thought for sample in samples.values())
    assert len(scores) == len(samples)
    for score in scores:
        sample = samples[score.prompt_id, score.index]
        assert (score.value is None) == (sample.parse_error is not None)
        assert score.response_chars == len(sample.response)
        assert sample.parse_error or not sample.thought or sample.thought not in sample.response


def test_a_trained_model_is_plain_safetensors(small_run: Path):
    folder = small_run / "iter_2/model"
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000


def test_running_again_does_nothing_and_says_so(small_run: Path, iterate: Iterate):
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("*") if path.is_file()}
    again = iterate(2)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in small_run.rglob("*") if path.is_file()} == before


@pytest.mark.story("another iteration", 90)
def test_a_second_call_adds_an_iteration_and_keeps_those_before(small_run: Path, iterate: Iterate):
    run = small_run.with_name("longer")
    shutil.copytree(small_run, run)
    kept = {path: path.read_text() for path in run.rglob("manifest.json")}
    done = iterate(3, name="longer")
    assert done.returncode == 0, done.stderr
    assert kept and kept == {path: path.read_text() for path in kept}
    assert (run / "iter_3/model/manifest.json").exists()


@pytest.mark.story("a comparison", 90)
def test_a_comparison_reuses_the_run_and_adds_its_direct_baseline(small_run: Path, iterate: Iterate):
    before = {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()}
    done = iterate(1, flow="compare")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "After 1 iteration each, thinking is " in " ".join(done.stdout.split())
    assert {path: path.read_bytes() for path in before} == before
    comparison = read_comparison(small_run / "comparison.json")
    direct = read_summary(small_run.parent / "small-direct" / "summary.json")
    assert comparison.direct == direct and [row.model for row in direct.models] == ["M_0 direct", "M_0", "M_1"]
    assert all(row.thought_chars == 0 for row in direct.models)
    assert [lead.overall is not None and lead.overall.n for lead in comparison.leads] == [48, 48]
    assert "Kinds of instruction" in (small_run / "comparison.html").read_text()
    again = iterate(1, flow="compare")
    assert again.returncode == 0 and "nothing to do" in again.stdout
