"""Claims about the registry: one entry defines a recipe's command, its deployment and their messages."""

import argparse
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from flows.cli.main import add_recipe
from flows.cli.make import READS, RUN
from flows.deployments import deployed
from flows.recipes import RECIPES, Recipe, config_of_run, load, resolve_config
from tests.rows import a_config

ROOT = Path(__file__).parents[2]
ABLATIONS = {f"{name} --ablation": recipe.ablation for name, recipe in RECIPES.items() if recipe.ablation is not None}
ALL: dict[str, Recipe] = {**RECIPES, **ABLATIONS}


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_names_a_flow_that_accepts_its_arguments_and_a_table(name: str, tmp_path: Path):
    recipe, config = ALL[name], a_config(tmp_path)
    inspect.signature(load(recipe.flow).fn).bind(*recipe.arguments(config, 1))
    inspect.signature(load(recipe.show)).bind(None)


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_works_with_its_own_profile(name: str):
    recipe = ALL[name]
    config = resolve_config(recipe.profile, run_name=None, judge=None, seed=None, overrides=[])
    recipe.check(config)
    assert len({run.root for run in recipe.runs(config)}) == (1 if recipe.baseline is None else 2)


@pytest.mark.parametrize(
    ("name", "done", "reached", "title"),
    [
        ("iterate", "M_2 of run x is complete", "M_2", "x to M_2"),
        ("compare", "x is compared with its direct baseline at M_2", "M_2 of both", "x against direct, to M_2"),
        ("thinkpo", "run x is complete", "x", "x, ThinkPO"),
        ("self-train", "SFT_2 of run x is complete", "SFT_2", "x, DPO-ST to SFT_2"),
        ("self-train --ablation", "SFT_2 of run x is complete", "SFT_2", "x, DPO-ST with and without DPO to SFT_2"),
    ],
)
def test_a_recipe_says_what_it_has_done(tmp_path: Path, name: str, done: str, reached: str, title: str):
    recipe, config = ALL[name], a_config(tmp_path).model_copy(update={"name": "x"})
    assert recipe.says(recipe.done, config, 2, "run {name}") == done
    assert recipe.says(recipe.reached, config, 2) == reached
    assert recipe.says(recipe.title, config, 2) == title


@pytest.mark.parametrize("name", RECIPES)
def test_make_has_a_target_for_each_recipe_with_the_variables_of_its_command(name: str):
    recipe = RECIPES[name]
    own = [*(["ITER"] if recipe.model else []), *(["ABLATION"] if recipe.ablation else [])]
    assert READS.get(name) == (*own, *RUN)
    assert f"\n{name}: ## " in (ROOT / "Makefile").read_text()


def commands(*recipes: Recipe) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    found: Any = parser.add_subparsers()
    for recipe in recipes:
        add_recipe(found, recipe)
    return parser


@pytest.mark.parametrize("name", ["thinkpo", "self-train"])
def test_a_fifth_recipe_takes_one_entry(name: str):
    fifth = dataclasses.replace(RECIPES[name], name="fifth", trigger="run-fifth", profile="laptop")
    options = commands(*RECIPES.values(), fifth).parse_args(["fifth", "--set", "sample.k=2"])
    assert (options.recipe, options.profile, options.set) == (fifth, "laptop", ["sample.k=2"])
    flow = deployed(fifth)
    assert (flow.name, flow.fn.__name__) == ("run-fifth", "run_fifth")
    assert parameter_schema(flow).properties["profile"]["default"] == "laptop"


def test_an_ablation_replaces_its_recipe_on_demand():
    recipe = RECIPES["self-train"]
    parser = commands(recipe)
    assert parser.parse_args(["self-train"]).recipe is recipe
    assert parser.parse_args(["self-train", "--ablation"]).recipe is recipe.ablation


@pytest.mark.parametrize(
    ("folder", "is_of_run"),
    [
        ("iter_2/model", True),
        ("iter_1/train/epoch_2", True),
        ("iter_1/sft/train/epoch_6", True),
        ("dpo/train/epoch_1", True),
        ("sft/train/epoch_3", True),
        ("elsewhere/model", False),
        ("model", False),
    ],
)
def test_a_model_in_a_run_folder_is_asked_as_the_run_asked_it(tmp_path: Path, folder: str, is_of_run: bool):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    assert config_of_run(tmp_path / folder) == (tmp_path / "config.json" if is_of_run else None)
