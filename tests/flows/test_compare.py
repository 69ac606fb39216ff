"""Claims about a run and its direct baseline: same prompts, nothing made twice, numbers that follow from the rows.

The runs are those of `tests.faults.mock_run`, on mock engines, in a subprocess.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.recipes import direct_baseline
from tests.apart import found_apart, remade_stages, stage_times
from tests.config.test_config import PROFILES
from tests.faults import mock_run
from tests.rows import a_config
from tpo.config.data import PromptConfig
from tpo.config.load import load_config
from tpo.config.recipes import Tpo
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.report.summary import read_summary

pytestmark = pytest.mark.slow
ITERATIONS = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The results of the runs, by evaluation judge."""
    return found_apart("tests.flows.test_compare", tmp_path_factory.mktemp("compare"))


JUDGES = pytest.mark.parametrize("judge", ["verifier", "pairwise"])


@JUDGES
def test_both_take_the_same_prompts_even_if_some_fit_only_without_thoughts(found: Mapping[str, Any], judge: str):
    thinking, direct = found[judge]["prompts"]
    assert thinking == direct
    assert len(thinking) == ITERATIONS + 2
    assert found[judge]["too_long"] > 0


@JUDGES
def test_a_second_call_makes_nothing_and_a_third_does_not_even_start(found: Mapping[str, Any], judge: str):
    assert found[judge]["again"] == []
    assert found[judge]["known"]


@JUDGES
def test_a_comparison_of_fewer_iterations_does_not_count_for_more(found: Mapping[str, Any], judge: str):
    assert found[judge]["shorter"]


@JUDGES
def test_the_lead_is_the_mean_over_the_prompts_of_the_rows(found: Mapping[str, Any], judge: str):
    assert found[judge]["leads"] == pytest.approx(found[judge]["expected"])
    assert found[judge]["measure"] == {"verifier": "difference", "pairwise": "win_rate"}[judge]
    assert len(found[judge]["leads"]) == ITERATIONS + 1


@JUDGES
def test_both_start_from_one_model_with_the_same_direct_answers(found: Mapping[str, Any], judge: str):
    assert found[judge]["direct_before"][0] == found[judge]["direct_before"][1]


def test_a_pairwise_judge_gives_the_seed_one_half_and_later_models_their_gain(found: Mapping[str, Any]):
    _, seed, *later = found["pairwise"]["scores"]
    assert seed == 0.5 and len(later) == ITERATIONS
    assert found["pairwise"]["gains"][2:] == pytest.approx([score - seed for score in later])


def test_both_have_the_same_synthetic_prompts(found: Mapping[str, Any]):
    thinking, direct = found["written"]["prompts"]
    assert thinking == direct
    assert [len(prompts) for prompts in thinking] == [5, 5, 9, 9]


def test_a_run_without_thoughts_has_no_direct_baseline(tmp_path: Path):
    with pytest.raises(InputError, match="starts from a run that thinks"):
        direct_baseline(a_config(tmp_path, prompt=PromptConfig(variant="direct")))


def test_prompts_written_by_a_server_are_refused_in_a_comparison(tmp_path: Path):
    synthetic = {"model": "m", "endpoint": {"base_url": "http://here/v1"}}
    config = a_config(tmp_path, judge={"kind": "pairwise"}, data={"synthetic": synthetic})
    with pytest.raises(InputError, match=r"data\.synthetic\.endpoint is set.*same in both runs"):
        direct_baseline(config)


def test_the_baseline_differs_only_in_its_prompt_and_name(tmp_path: Path):
    config = a_config(tmp_path, prompt=PromptConfig(variant="specific"))
    changed = {
        key: value for key, value in direct_baseline(config).model_dump().items() if value != config.model_dump()[key]
    }
    assert changed.keys() == {"name", "prompt", "data"}
    assert changed["data"] == {**config.data.model_dump(), "also_fits": config.prompt.model_dump()}


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_prefect_accepts_the_baseline_of_every_profile(path: Path):
    config = load_config(path)
    if isinstance(config.recipe, Tpo) and config.prompt.variant != "direct":
        RunConfig.model_validate_json(direct_baseline(config).model_dump_json())


@mock_run.prepared(forks=False)
def main(parent: Path) -> None:
    """Makes the runs and writes their results."""
    from flows.compare import compare_with_direct
    from flows.recipes import RECIPES

    ready = RECIPES["compare"].ready
    found = {}
    for judge in ("verifier", "pairwise"):
        folder = parent / judge
        folder.mkdir()
        config = _config(folder, judge)
        comparison = compare_with_direct.fn(config, ITERATIONS)
        before = stage_times(folder)
        assert compare_with_direct.fn(config, ITERATIONS) == comparison
        known = ready(config, ITERATIONS) is not None
        remade = remade_stages(folder, before)
        summary = read_summary(folder / "run" / "summary.json")
        compare_with_direct.fn(config, ITERATIONS - 1)
        found[judge] = {
            "shorter": ready(config, ITERATIONS) is None and ready(config, ITERATIONS - 1) is not None,
            "prompts": [_prompts(folder / name) for name in ("run", "run-direct")],
            "too_long": _too_long(folder / "run-direct"),
            "again": remade,
            "known": known,
            "measure": comparison.measure,
            "scores": [row.score.value for row in summary.models if row.score],
            "gains": [row.gain.value for row in summary.models if row.gain],
            "leads": [lead.overall.value for lead in comparison.leads if lead.overall],
            "expected": _expected(folder, judge),
            "direct_before": [_outputs(folder / at) for at in ("run/iter_0/direct", "run-direct/iter_0/test")],
        }
    (folder := parent / "written").mkdir()
    mock_run.make_seed(parent / "seed")
    compare_with_direct.fn(mock_run.config_of(folder, mock_run.Plan("pairwise", synthetic=True)), ITERATIONS)
    found["written"] = {"prompts": [_prompts(folder / name) for name in ("run", "run-direct")]}
    (parent / "found.json").write_text(json.dumps(found))


def _config(folder: Path, judge: str) -> Any:
    from tpo.config.data import FileSource, ModelConfig
    from tpo.config.judges import PairwiseJudge

    config = mock_run.config_of(folder, mock_run.Plan("verifier"))
    rows = [{"instruction": f"What is {i} + 1?" + " Say it." * (i % 40), "answer": str(i + 1)} for i in range(200)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FileSource(path=folder / "prompts.jsonl", reference_column="answer")
    data = config.data.model_copy(update={"source": source, "max_prompt_tokens": 150})
    evaluation = config.evaluation
    if judge == "pairwise":
        evaluation = evaluation.model_copy(update={"judge": PairwiseJudge()})
    return config.model_copy(update={"data": data, "evaluation": evaluation, "model": ModelConfig()})


def _prompts(root: Path) -> list[list[str]]:
    from tpo.records import Prompt

    places = ["iter_0/prompts/validation", "iter_0/prompts/test", *(f"iter_{t + 1}/prompts" for t in range(ITERATIONS))]
    return [[row.prompt_id for row in _rows(root / place, Prompt)] for place in places]


def _rows(folder: Path, kind: Any) -> list[Any]:
    from tpo.records import Artifact
    from tpo.storage.store import read_manifest, read_rows

    manifest = read_manifest(folder)
    assert manifest is not None
    return list(read_rows(Artifact(folder, manifest.rows, manifest.fingerprint), kind))


def _too_long(root: Path) -> int:
    manifest = json.loads((root / "iter_0/prompts/test/manifest.json").read_text())
    return int(manifest["account"]["dropped"].get("too_long", 0))


def _scores(folder: Path) -> dict[str, float]:
    from tpo.records import Score

    return {row.prompt_id: row.value for row in _rows(folder / "scores", Score) if row.value is not None}


def _outputs(folder: Path) -> list[str]:
    from tpo.records import Sample

    return [row.output for row in _rows(folder / "samples", Sample)]


def _expected(folder: Path, judge: str) -> list[float]:
    leads = []
    for t in range(ITERATIONS + 1):
        if judge == "pairwise":
            values = list(_scores(folder / "run" / f"iter_{t}/against").values())
        else:
            ours, theirs = (_scores(folder / name / f"iter_{t}/test") for name in ("run", "run-direct"))
            values = [ours[prompt] - theirs[prompt] for prompt in ours.keys() & theirs.keys()]
        leads.append(sum(values) / len(values))
    return leads


if __name__ == "__main__":
    main(Path(sys.argv[1]))
