"""Claims about triggers: which model a run aims for, what the form asks, and which stages are retried."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.exceptions import ParameterTypeError
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.deployments import DEPLOYED, next_model
from flows.recipes import RECIPES
from tasks.load_prompts import load_prompts
from tasks.stage import may_pass
from tests.finished_run import finish
from tests.rows import a_config
from tpo.errors import BudgetError, DamagedError, InputError, StageError, StoreError


@pytest.mark.parametrize(
    ("complete", "iterations", "last", "reached"),
    [(None, 1, 3, 1), (None, 1, 0, 0), (0, 1, 3, 1), (2, 1, 3, 3), (2, 5, 4, 4), (2, 1, 2, 2), (2, 1, 1, 1)],
)
def test_a_trigger_resumes_after_the_last_complete_model_and_stops_at_the_limit(
    tmp_path: Path, complete: int | None, iterations: int, last: int, reached: int
):
    config = a_config(tmp_path)
    if complete is not None:
        finish(config, complete)
    assert next_model(config, iterations, last) == reached


def test_every_recipe_is_deployed_with_its_flow_and_one_run_at_a_time():
    listed = {found["name"]: found for found in yaml.safe_load(Path("deploy/prefect.yaml").read_text())["deployments"]}
    assert list(listed) == list(RECIPES)
    for name, recipe in RECIPES.items():
        entrypoint = f"flows/deployments.py:{recipe.trigger.replace('-', '_')}"
        assert (listed[name]["entrypoint"], listed[name]["parameters"]) == (entrypoint, {"profile": recipe.profile})
        assert listed[name]["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}
        flow: Any = load_flow_from_entrypoint(entrypoint)
        assert flow.name == recipe.trigger
        flow.validate_parameters(listed[name]["parameters"])
        with pytest.raises(ParameterTypeError):
            flow.validate_parameters({"seed": -1})


def test_an_interrupted_iteration_is_the_next_to_run(tmp_path: Path):
    config = a_config(tmp_path)
    finish(config, 2)
    (config.root / "iter_2/test/scores/manifest.json").unlink()
    assert next_model(config, 1, 3) == 2


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("iterate", {"iterations": 1, "last": 3}),
        ("compare", {"iterations": 3}),
        ("thinkpo", {}),
        ("self-train", {"iterations": 3, "ablation": False}),
    ],
)
def test_the_form_describes_each_of_its_fields(name: str, last: dict[str, int]):
    form = parameter_schema(DEPLOYED[name]).model_dump()["properties"]
    first: dict[str, object] = {
        "profile": RECIPES[name].profile,
        "run_name": "",
        "judge": "the profile's",
        "seed": None,
        "overrides": [],
    }
    assert {field: found["default"] for field, found in form.items()} == {**first, **last}
    assert list(form) == [*first, *last]
    assert all(field["description"] and "{" not in field["description"] for field in form.values())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StoreError("the disk is full"), True),
        (DamagedError(Path("x"), "x is cut"), False),
        (StageError("0 pairs"), False),
        (InputError("no such file"), False),
        (BudgetError("spent"), False),
        (ValueError("a bug"), False),
    ],
)
def test_a_stage_is_retried_only_if_its_storage_failed(error: Exception, expected: bool):
    run = TaskRun(task_key="load_prompts", dynamic_key="0")
    assert may_pass(load_prompts, run, State(type=StateType.FAILED, data=error)) is expected
