"""Claims about what a trigger does before it does anything: where it goes, and what its form asks."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.deployments import advance, compare_runs, next_model, run_self_train, run_thinkpo
from tasks.load_prompts import load_prompts
from tasks.stage import may_pass
from tests.finished_run import finish
from tests.rows import a_config
from tpo.errors import BudgetError, DamagedError, InputError, StageError, StoreError


@pytest.mark.parametrize(
    ("complete", "iterations", "last", "reached"),
    [(None, 1, 3, 1), (None, 1, 0, 0), (0, 1, 3, 1), (2, 1, 3, 3), (2, 5, 4, 4), (2, 1, 2, 2), (2, 1, 1, 1)],
)
def test_a_trigger_goes_on_from_the_last_complete_model_and_no_further_than_the_last(
    tmp_path: Path, complete: int | None, iterations: int, last: int, reached: int
):
    config = a_config(tmp_path)
    if complete is not None:
        finish(config, complete)
    assert next_model(config, iterations, last) == reached


def test_every_deployment_names_a_flow_that_takes_its_parameters():
    listed = yaml.safe_load(Path("deploy/prefect.yaml").read_text())["deployments"]
    assert [deployment["name"] for deployment in listed] == ["iterate", "compare", "thinkpo", "self-train"]
    for deployment in listed:
        flow: Any = load_flow_from_entrypoint(deployment["entrypoint"])
        flow.validate_parameters(deployment["parameters"])
        assert deployment["concurrency_limit"]["limit"] == 1


def test_an_interrupted_iteration_is_the_next_one(tmp_path: Path):
    config = a_config(tmp_path)
    finish(config, 2)
    (config.root / "iter_2/test/scores/manifest.json").unlink()
    assert next_model(config, 1, 3) == 2


@pytest.mark.parametrize(
    ("flow", "last"),
    [
        (advance, ["iterations", "last"]),
        (compare_runs, ["iterations"]),
        (run_thinkpo, []),
        (run_self_train, ["iterations", "ablation"]),
    ],
)
def test_the_form_says_what_each_of_its_fields_is(flow: Flow[..., State], last: list[str]):
    form = parameter_schema(flow).model_dump()["properties"]
    assert list(form) == ["profile", "run_name", "judge", "seed", "overrides", *last]
    assert all(field["description"] and "default" in field for field in form.values())


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
def test_a_stage_is_called_again_only_where_its_storage_failed(error: Exception, expected: bool):
    run = TaskRun(task_key="load_prompts", dynamic_key="0")
    assert may_pass(load_prompts, run, State(type=StateType.FAILED, data=error)) is expected
