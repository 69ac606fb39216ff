"""Claims about the number of prompts that a run takes from its files, checked before work."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.preflight import preflight
from flows.prompt_counts import sized, too_few_prompts
from tests.rows import a_config
from tpo.config.data import DataConfig, FileSource, SyntheticConfig
from tpo.config.run import RunConfig
from tpo.errors import InputError


def written(path: Path, instructions: list[str]) -> Path:
    path.write_text("".join(json.dumps({"instruction": text, "reference": "1"}) + "\n" for text in instructions))
    return path


def numbered(count: int) -> list[str]:
    return [f"Question {i}?" for i in range(count)]


def on_rows(folder: Path, instructions: list[str], source: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    given = FileSource(path=written(folder / "rows.jsonl", instructions), **(source or {}))
    return a_config(folder, data=DataConfig(source=given, **{"per_iteration": 4, "validation": 3, "test": 2, **data}))


@pytest.mark.parametrize(
    ("rows", "iterations", "short"),
    [(17, 3, False), (16, 3, True), (5, 0, False), (4, 0, True), (17, 10**20, True)],
)
def test_a_file_must_have_prompts_for_all_iterations_validation_and_test(
    tmp_path: Path, rows: int, iterations: int, short: bool
):
    assert bool(list(too_few_prompts(on_rows(tmp_path, numbered(rows)), iterations))) is short


def test_equal_instructions_count_once_and_empty_ones_not_at_all(tmp_path: Path):
    config = on_rows(tmp_path, [*numbered(8), *numbered(8), "", "  "])
    (fault,) = too_few_prompts(config, 1)
    assert "rows.jsonl has 8 different prompts, but the run takes more: data.test 2 + data.validation 3" in fault
    with pytest.raises(InputError, match="8 different prompts"):
        preflight(config)


def test_the_remedy_gives_numbers_that_fit(tmp_path: Path):
    config = on_rows(tmp_path, numbered(14))
    (fault,) = too_few_prompts(config, 3)
    assert "data.per_iteration 4 × 3 iterations" in fault
    assert "lower data.per_iteration to 3 at most, or --to (ITER) to 2 at most, or add rows" in fault
    (fault,) = too_few_prompts(on_rows(tmp_path, numbered(5)), 3)
    assert fault.endswith("add rows, lower these, or give validation and test their own files")


def test_separate_files_are_counted_separately_also_those_of_each_iteration(tmp_path: Path):
    test = written(tmp_path / "test.jsonl", numbered(1))
    config = on_rows(tmp_path, numbered(15), {"test_path": test})
    assert [fault.split(" has ")[0] for fault in too_few_prompts(config, 3)] == [str(test)]
    source = {"path": tmp_path / "rows_{iteration}.jsonl"}
    for t, count in enumerate((5, 4, 3)):
        written(tmp_path / f"rows_{t}.jsonl", numbered(count))
    config = a_config(tmp_path, data=DataConfig(source=FileSource(**source), per_iteration=4, validation=3, test=2))
    assert ["rows_2.jsonl has 3 different" in fault for fault in too_few_prompts(config, 9)] == [True]


def test_prompts_that_a_model_writes_are_not_taken_from_the_file(tmp_path: Path):
    config = on_rows(tmp_path, numbered(5))
    synthetic = config.data.model_copy(update={"synthetic": SyntheticConfig(), "per_iteration": 400})
    config = config.model_copy(update={"data": synthetic})
    assert list(too_few_prompts(config, 3)) == []


def in_recipe(recipe: str, config: RunConfig) -> RunConfig:
    return RunConfig.model_validate({**dict(config), "recipe": {"kind": recipe, "sft": {}}})


@pytest.mark.parametrize("recipe", ["thinkpo", "self_train"])
def test_all_means_the_prompts_that_the_test_set_leaves(tmp_path: Path, recipe: str):
    rows = numbered(10)
    config = in_recipe(recipe, on_rows(tmp_path, rows))
    config = RunConfig.model_validate({**dict(config), "data": {**dict(config.data), "per_iteration": "all"}})
    assert list(too_few_prompts(config, 3)) == []
    assert sized(config).data.per_iteration == 8
    written(tmp_path / "rows.jsonl", numbered(2))
    (fault,) = too_few_prompts(config, 3)
    assert "data.test 2 + data.per_iteration all the rest" in fault
    (tmp_path / "rows.jsonl").unlink()
    expected = config.model_copy(update={"throughput": config.throughput.model_copy(update={"prompts": 77})})
    assert sized(expected).data.per_iteration == 77


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        (
            {"data": {"per_iteration": "all", "source": {"kind": "file", "path": "a.jsonl"}}},
            "each iteration takes fresh",
        ),
        ({"data": {"per_iteration": "all"}, "recipe": {"kind": "thinkpo", "sft": {}}}, "the miniature is unlimited"),
        ({"data": {"per_iteration": "all", "synthetic": {}}}, "a model writes the prompts"),
    ],
)
def test_all_is_refused_if_it_means_nothing(values: dict[str, Any], pattern: str):
    with pytest.raises(ValueError, match=pattern):
        RunConfig.model_validate(values)
