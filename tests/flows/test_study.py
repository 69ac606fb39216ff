"""Claims about studies: what can't be one, what its numbers are, that nothing is made twice, how failed runs are named.

Whole runs are on mock engines, in a subprocess, without Prefect.
"""

import contextlib
import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.cli.study import check_budgets
from flows.study.budget import makes_models, planned_budget
from flows.study.gather import measured_as
from flows.study.runs import bring_all, to_do
from flows.study.setup import StudySetup, set_up
from tests.apart import found_apart
from tests.rows import a_config
from tpo.config.run import RunConfig
from tpo.errors import GateError, InputError, StageError
from tpo.planning.workload import training_steps
from tpo.report.study import AMOUNTS, read_study
from tpo.storage.current import keep_config

SEEDS = [3, 5, 8]


def a_profile(folder: Path, name: str = "tried", **values: Any) -> str:
    """A profile of a small run on the miniature."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "folder": str(folder / "runs"), "data": {"test": 4}} | values))
    return str(path)


def a_setup(profile: str, **changes: Any) -> StudySetup:
    given: dict[str, Any] = {"seeds": [0, 1], "iterations": 1, "against": None, "run_name": None, "judge": None}
    return set_up(profile, **{**given, "overrides": [], **changes})


def test_a_study_has_the_runs_that_the_command_would_make_with_each_seed(tmp_path: Path):
    setup = a_setup(a_profile(tmp_path), seeds=[4, 2])
    assert [(config.name, config.seed) for config in setup.sides[0].configs.values()] == [
        ("tried-seed4", 4), ("tried-seed2", 2),
    ]  # fmt: skip
    assert setup.folder.place == str(tmp_path / "runs" / "tried-study")
    named = a_setup(a_profile(tmp_path), run_name="mine", judge="armorm")
    assert [config.name for config in named.sides[0].configs.values()] == ["mine-seed0", "mine-seed1"]


def test_a_baseline_is_made_by_its_own_recipe_and_another_profile_by_the_same(tmp_path: Path):
    setup = a_setup(a_profile(tmp_path), against="direct")
    assert [side.name for side in setup.sides] == ["tried", "tried-direct"]
    assert [config.name for config in setup.sides[1].configs.values()] == ["tried-seed0-direct", "tried-seed1-direct"]
    assert [job.recipe.name for job in setup.jobs] == ["compare"] * 2
    setup = a_setup(a_profile(tmp_path), against=a_profile(tmp_path, "other"), run_name="mine")
    assert [job.config.name for job in setup.jobs] == [
        "mine-seed0", "mine-other-seed0", "mine-seed1", "mine-other-seed1",
    ]  # fmt: skip
    assert setup.name == "mine-against-other"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0]}, "only seed 0, and one training run says nothing about others: name at least two"),
        ({"seeds": []}, "SEEDS has no seed"),
        ({"seeds": [1, 2, 1]}, "SEEDS has 1 more than once"),
        ({"overrides": ["seed=4"]}, "SET has seed=4, but a study takes its seeds from SEEDS"),
        ({"against": "same.json"}, 'both profiles have the name "tried"'),
        ({"against": "no such"}, "is not a profile"),
        ({"against": "other.json", "other": {"recipe": {"kind": "self_train"}}}, 'recipe.kind is "tpo" in'),
        ({"against": "other.json", "other": {"data": {"test": 5}}}, "data.test differs: 4 in .* 5 in"),
        (
            {"against": "other.json", "other": {"data": {"test": 4, "source": {"kind": "instructions"}}}},
            "as far as test prompts go, differs",
        ),
        ({"against": "other.json", "other": {"evaluation": {"confidence": 0.9}}}, "confidence differs: 0.95 in"),
        (
            {"against": "other.json", "overrides": ['evaluation.judge={kind="pairwise"}']},
            "evaluation.judge compares responses.*or use AGAINST=direct",
        ),
        ({"run_name": "taken"}, "taken-study is the folder of a run"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_study_is_refused_before_anything_starts(
    tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    profile = a_profile(tmp_path)
    (tmp_path / "same.json").write_text(Path(profile).read_text())
    a_profile(tmp_path, "other", **changes.pop("other", {}))
    (tmp_path / "runs" / "taken-study").mkdir(parents=True)
    (tmp_path / "runs" / "taken-study" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"(?s){message}"):
        a_setup(profile, **changes)


def test_a_run_with_other_settings_is_refused_by_their_names_unless_they_only_say_where_it_runs(tmp_path: Path):
    profile = a_profile(tmp_path)
    config = a_setup(profile).sides[0].configs[1]
    config.root.mkdir(parents=True)
    keep_config(config.model_copy(update={"engine": config.engine.model_copy(update={"threads": 2})}))
    a_setup(profile)
    a_setup(profile, overrides=["metrics.port=9464"])
    with pytest.raises(InputError, match=r"tried-seed1 is a run with other settings \(sample\.k is 8 there and 4 here"):
        a_setup(profile, overrides=["sample.k=4"])


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A recipe whose run has been stopped by its gate."""

    root: Path

    def ready(self, config: RunConfig, iterations: int) -> Any:
        raise GateError(self.root, "the gate doesn't promote M_1")

    def runs(self, config: RunConfig) -> list[RunConfig]:
        return [config]


def test_a_run_that_its_gate_has_stopped_is_named_and_the_others_go_on(tmp_path: Path):
    setup = a_setup(a_profile(tmp_path))
    recipe: Any = Stopped(tmp_path)
    jobs = [dataclasses.replace(job, recipe=recipe) for job in setup.jobs]
    left = to_do(dataclasses.replace(setup, jobs=jobs))
    assert left == jobs
    ran = list[int]()

    def run(recipe: Any, config: RunConfig, iterations: int) -> None:
        ran.append(config.seed)
        if config.seed == 0:
            recipe.ready(config, iterations)

    failed = bring_all(left, 1, run, process=contextlib.nullcontext)
    assert failed == {0: "run tried-seed0: the gate doesn't promote M_1"} and ran == [0, 1]


@pytest.mark.parametrize(
    ("stage", "counts"),
    [
        ("iter_1/samples", True),
        ("iter_1/judgments", True),
        ("iter_1/train", True),
        ("iter_1/validation/epoch_1/judgments", True),
        ("iter_3/samples", False),  # past T
        ("iter_1/test/samples", False),
        ("iter_0/direct/samples", False),
        ("iter_1/against/judgments", False),
        ("iter_1/against_direct/judgments", False),
        ("iter_1/validation/second_judge/judgments", False),
        ("iter_1/validation/verifier/judgments", False),
        ("iter_1/benchmarks/gsm8k/samples", False),
        ("iter_0/ratings", False),
        ("base/test/samples", False),
        ("iter_1/sft/test/judgments", False),
        ("sft/train", True),
    ],
)
def test_a_budget_counts_what_makes_models_and_not_what_measures_them(stage: str, counts: bool):
    assert makes_models(stage, 2) is counts


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"sample": {"k": 4}}, r"samples 4,000 and 2,400 \(40 % apart\); judge calls"),
        ({"train": {"epochs": 4}}, r"training steps 39 and 52 \(25 % apart\)"),
        ({"data": {"test": 4, "per_iteration": 395}}, None),
        ({"pair": {"rho": 0.0}}, None),
    ],
)
def test_unequal_budgets_are_refused_by_name_before_anything_starts(
    tmp_path: Path, other: dict[str, Any], message: str | None
):
    from flows.cli.plan import plan_run

    setup = a_setup(a_profile(tmp_path), against=a_profile(tmp_path, "other", **other))
    configs = [side.configs[0] for side in setup.sides]
    planned = [planned_budget(config, plan_run(config, 1)) for config in configs]
    check_budgets(setup, planned, allow_unequal=True)
    with contextlib.nullcontext() if message is None else pytest.raises(InputError, match=message):
        check_budgets(setup, planned, allow_unequal=False)


@pytest.mark.parametrize(
    ("values", "models", "steps"),
    [
        ({}, ["M_0 direct", "M_0", "M_1", "M_2"], 2 * 2 * 13),
        ({"train": {"rounds": 2}}, ["M_0 direct", "M_0", "M_1", "M_2"], 2 * 2 * 3 * 7),
        ({"recipe": {"kind": "thinkpo", "sft": {}}}, ["base", "SFT", "ThinkPO"], None),
        ({"recipe": {"kind": "self_train"}}, ["base", "SFT_0", "DPO_1", "SFT_1", "DPO_2", "SFT_2"], None),
        ({"recipe": {"kind": "self_train", "dpo": False}}, ["base", "SFT_0", "SFT_1", "SFT_2"], None),
    ],
)
def test_a_study_has_the_models_of_its_recipe(tmp_path: Path, values: Any, models: list[str], steps: int | None):
    config = RunConfig.model_validate(a_config(tmp_path).model_dump() | {"data": {"per_iteration": 400}} | values)
    found = measured_as(config, 2)
    assert [each.model for each in found] == models
    assert all(each.below in models for each in found if each.below is not None)
    assert steps is None or training_steps(config, 2) == steps


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The results of the studies."""
    return found_apart("tests.flows.test_study", tmp_path_factory.mktemp("study"))


@pytest.mark.slow
@pytest.mark.story("a study", 40)
def test_a_failed_run_is_named_and_the_others_are_reported_without_it(found: Mapping[str, Any]):
    failed = found["one failed"]
    assert failed["missing"] == {"5": "run tried-seed5: the disk is full"}
    assert list(failed["models"]["M_1"]["score"]["by_seed"]) == ["3", "8"]
    assert "Seed 5 is missing: run tried-seed5: the disk is full" in failed["remarks"]


@pytest.mark.slow
@pytest.mark.story("a study", 40)
def test_a_study_of_which_one_seed_is_complete_is_refused(found: Mapping[str, Any]):
    assert "1 of 3 seeds are complete, and a study needs at least 2" in found["two failed"]
    assert "seed 5: run tried-seed5: the disk is full" in found["two failed"]


@pytest.mark.slow
@pytest.mark.story("a study", 40)
def test_only_what_is_missing_is_made_and_then_nothing(found: Mapping[str, Any]):
    assert found["made"] == [["tried-seed3", "tried-seed5", "tried-seed8"], ["tried-seed5", "tried-seed8"],
                             ["tried-seed5"], []]  # fmt: skip


@pytest.mark.slow
@pytest.mark.story("a study", 40)
def test_scores_and_differences_follow_from_the_rows(found: Mapping[str, Any]):
    models, rows = found["whole"]["models"], found["rows"]
    for model, folder in (("M_0 direct", "iter_0/direct"), ("M_0", "iter_0/test"), ("M_1", "iter_1/test")):
        means = {seed: statistics.fmean(rows[seed][folder].values()) for seed in map(str, SEEDS)}
        score = models[model]["score"]
        assert {seed: each["value"] for seed, each in score["by_seed"].items()} == pytest.approx(means)
        assert score["value"] == pytest.approx(statistics.fmean(means.values()))
        half = 4.302653 * statistics.stdev(means.values()) / 3**0.5
        assert score["over_runs"]["high"] - score["value"] == pytest.approx(half, rel=1e-4)
        assert score["over_both"]["low"] <= score["value"] <= score["over_both"]["high"]
    gains = [
        statistics.fmean(rows[seed]["iter_1/test"][i] - rows[seed]["iter_0/test"][i] for i in rows[seed]["iter_0/test"])
        for seed in map(str, SEEDS)
    ]
    assert models["M_1"]["gain"]["value"] == pytest.approx(statistics.fmean(gains))
    assert models["M_1"]["gain"] == models["M_1"]["gain_over_first"]


@pytest.mark.slow
@pytest.mark.story("a study", 40)
def test_each_runs_interval_is_the_one_in_its_own_report(found: Mapping[str, Any]):
    for seed, summary in found["summaries"].items():
        for row in summary["models"]:
            score = found["whole"]["models"][row["model"]]["score"]["by_seed"][seed]
            assert score == pytest.approx(row["score"])


@pytest.mark.slow
@pytest.mark.story("a study", 40)
def test_two_profiles_are_compared_by_seed_and_prompt(found: Mapping[str, Any]):
    study, rows, other = found["against"], found["rows"], found["rows of other"]
    lead = study["leads"]["M_1"]
    expected = {
        seed: statistics.fmean(
            rows[seed]["iter_1/test"][i] - other[seed]["iter_1/test"][i] for i in rows[seed]["iter_1/test"]
        )
        for seed in map(str, SEEDS[:2])
    }
    assert {seed: each["value"] for seed, each in lead["by_seed"].items()} == pytest.approx(expected)
    assert study["leads"]["M_0"]["value"] == 0
    assert set(study["planned"]) == set(study["spent"]) == set(AMOUNTS)
    assert study["planned"]["samples"] == study["spent"]["samples"] == 9 * 3 + 5 * 3


@pytest.mark.slow
@pytest.mark.story("a study", 40)
def test_a_judge_that_compares_compares_both_sides_of_a_baseline(found: Mapping[str, Any]):
    study = found["direct"]
    assert study["measure"] == "win_rate"
    assert all(0 <= each["value"] <= 1 for lead in study["leads"].values() for each in lead["by_seed"].values())
    assert list(study["leads"]) == ["M_0", "M_1"]


@pytest.mark.slow
@pytest.mark.story("a study", 40)
def test_self_training_is_studied_like_the_others(found: Mapping[str, Any]):
    study = found["self-train"]
    assert list(study["models"]) == ["base", "SFT_0", "DPO_1", "SFT_1"]
    assert study["models"]["SFT_1"]["below"] == "SFT_0"
    assert study["spent"]["samples"] == study["planned"]["samples"]
    assert study["spent"]["prompts"] == study["planned"]["prompts"]


def main(parent: Path) -> None:
    """Makes the studies and writes their results."""
    from tests.faults import mock_run

    with mock_run.prepared(forks=False):
        (parent / "found.json").write_text(json.dumps(_found(parent)))


def _found(parent: Path) -> dict[str, Any]:
    from flows.cli.study import study

    mock = _profile(parent, "tried")
    made = list[list[str]]()
    found: dict[str, Any] = {"made": made}
    for name, failing in {"two failed": 2, "one failed": 1, "whole": 0, "again": 0}.items():
        run = _Runs(["tried-seed5", "tried-seed8"][:failing])
        made.append(run.asked)
        try:
            found[name] = _shown(study(a_setup(mock, seeds=SEEDS), run, contextlib.nullcontext), parent)
        except StageError as error:
            found[name] = str(error)
    setup = a_setup(mock, seeds=SEEDS)
    found["rows"] = _rows(setup, 0)
    summaries = {str(seed): config.root / "summary.json" for seed, config in setup.sides[0].configs.items()}
    found["summaries"] = {seed: json.loads(path.read_text()) for seed, path in summaries.items()}
    setup = a_setup(mock, seeds=SEEDS[:2], against=_profile(parent, "other", pair={"min_margin": 0.0, "rho": 0.3}))
    found["against"] = _shown(study(setup, _Runs(), contextlib.nullcontext), parent)
    found["rows of other"] = _rows(setup, 1)
    judge = _profile(parent, "judged", evaluation={"judge": {"kind": "pairwise"}})
    found["direct"] = _shown(study(a_setup(judge, against="direct"), _Runs(), contextlib.nullcontext), parent)
    found["self-train"] = _shown(_self_trained(parent), parent)
    return found


class _Runs:
    """Runs a recipe's flow, and fails for some runs."""

    def __init__(self, failing: list[str] | None = None) -> None:
        self.failing = failing or []
        self.asked: list[str] = []

    def __call__(self, recipe: Any, config: RunConfig, iterations: int) -> Any:
        from flows.recipes import load

        self.asked.append(config.name)
        if config.name in self.failing:
            raise StageError("the disk is full")
        return load(recipe.flow)(*recipe.arguments(config, iterations))


def _self_trained(parent: Path) -> Any:
    from flows.cli.study import study
    from tests.faults.mock_engines import MockEngines
    from tests.flows.test_self_train import _config, _Pool
    from tpo.run_context import run_context, using

    config = _config(parent / "self")
    profile = parent / "self" / "self.json"
    profile.write_text(config.model_copy(update={"name": "self"}).model_dump_json())
    with using(dataclasses.replace(run_context(), engines=MockEngines(_Pool()))):
        return study(a_setup(str(profile)), _Runs(), contextlib.nullcontext)


def _profile(parent: Path, name: str, **changes: Any) -> str:
    from tests.faults import mock_run

    values = mock_run.config_of(parent / "runs", mock_run.Plan("verifier")).model_dump(mode="json")
    path = parent / f"{name}.json"
    evaluation = {"judge": {"kind": "verifier", "length_bias": 0.3}}  # scores that differ: no mock output is right
    same = {"name": name, "model": {"path": "miniature"}, "evaluation": evaluation}
    path.write_text(json.dumps(values | same | changes))
    return str(path)


def _shown(study: Any, parent: Path) -> dict[str, Any]:
    """A study as JSON, as its file has it, with models and leads by name."""
    (root,) = parent.rglob(f"{study.name}/study.json")
    assert read_study(root) == study
    values = json.loads(root.read_text())
    side = values["sides"][0]
    return {
        **values,
        "missing": side["missing"],
        "planned": side["planned"],
        "spent": side["spent"],
        "models": {model["model"]: model for model in side["models"]},
        "leads": {lead["model"]: lead["lead"] for lead in values["leads"]},
    }


def _rows(setup: StudySetup, side: int) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by seed, folder and prompt."""
    from tests.flows.test_compare import _scores

    return {
        str(seed): {folder: _scores(config.root / folder) for folder in ("iter_0/direct", "iter_0/test", "iter_1/test")}
        for seed, config in setup.sides[side].configs.items()
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
