"""Claims about runs of self-training: what each model is made from, nothing made twice, what the ablation leaves out.

The runs are on mock engines, in a subprocess, without Prefect.
"""

import dataclasses
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.recipes import Recipe, without_dpo
from tests.apart import found_apart, remade_stages, stage_times
from tests.rows import a_config
from tpo.config.recipes import SelfTrain
from tpo.config.run import RunConfig
from tpo.engines.training.job import TrainingJob
from tpo.errors import InputError
from tpo.run_context import RunContext, using

pytestmark = pytest.mark.slow
ITERATIONS = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The results of the runs."""
    return found_apart("tests.flows.test_self_train", tmp_path_factory.mktemp("self_train"))


def test_each_model_is_compared_with_the_one_that_it_was_made_from(found: Mapping[str, Any]):
    assert found["rows"] == [
        ["base", None], ["SFT_0", "base"],
        ["DPO_1", "SFT_0"], ["SFT_1", "SFT_0"],
        ["DPO_2", "SFT_1"], ["SFT_2", "SFT_1"],
    ]  # fmt: skip


def test_every_sft_starts_from_the_base_and_every_dpo_from_the_sft_before(found: Mapping[str, Any]):
    trained = found["trained"]
    assert {trained[f"iter_{t}/sft"] for t in range(ITERATIONS + 1)} == {found["seed"]}
    assert [trained[f"iter_{t}/dpo"] for t in (1, 2)] == [found["models"][f"iter_{t}/sft"] for t in (0, 1)]


def test_the_sft_model_writes_the_pairs_and_the_dpo_model_the_labels(found: Mapping[str, Any]):
    models = found["models"]
    assert [found["writers"][f"iter_{t}/dpo"] for t in (1, 2)] == [models[f"iter_{t}/sft"] for t in (0, 1)]
    assert [found["writers"][f"iter_{t}/sft"] for t in (1, 2)] == [models[f"iter_{t}/dpo"] for t in (1, 2)]


def test_without_dpo_the_sft_model_writes_the_labels_itself_and_nothing_is_paired(found: Mapping[str, Any]):
    plain = found["plain"]
    assert [row for row, _ in plain["rows"]] == ["base", "SFT_0", "SFT_1", "SFT_2"]
    assert [plain["writers"][f"iter_{t}/sft"] for t in (1, 2)] == [plain["models"][f"iter_{t}/sft"] for t in (0, 1)]
    assert not any("dpo" in folder for folder in plain["trained"])


def test_only_right_outputs_and_given_ones_are_imitated(found: Mapping[str, Any]):
    assert found["given"] == 4
    for labels in found["labels"]:
        assert labels["wrong"] == 0
        assert labels["given"] == 4
        assert labels["sampled"] > 0


def test_a_stopped_run_resumes_from_completed_stages_and_ends_the_same(found: Mapping[str, Any]):
    assert found["stopped"]["kept"]
    assert found["stopped"]["same"]


def test_a_second_call_makes_nothing_and_a_third_does_not_even_start(found: Mapping[str, Any]):
    assert found["again"] == []
    assert found["known"] == {"1": True, "2": True, "3": False}


def test_the_ablation_compares_each_sft_with_the_one_without_dpo_prompt_by_prompt(found: Mapping[str, Any]):
    ablation = found["ablation"]
    assert [row for row in ablation["rows"] if row[1]] == [[f"SFT_{t}", f"SFT_{t} without"] for t in range(3)]
    assert ablation["gains"] == pytest.approx(ablation["expected"])
    assert ablation["gains"][0] == 0.0


def test_an_ablation_is_remade_if_one_of_its_runs_was_measured_again(found: Mapping[str, Any]):
    assert found["ablation known"] == {"as it was": True, "run changed": False, "plain changed": False}


def test_self_training_needs_a_judge_that_knows_the_right_answers(tmp_path: Path):
    values = a_config(tmp_path).model_dump()
    with pytest.raises(ValueError, match="doesn't know the right answer"):
        RunConfig.model_validate({**values, "recipe": {"kind": "self_train"}, "judge": {"kind": "armorm"}})


def test_an_ablation_needs_a_run_with_the_dpo_step(tmp_path: Path):
    config = RunConfig.model_validate(a_config(tmp_path).model_dump() | {"recipe": {"kind": "self_train"}})
    plain = without_dpo(config)
    assert (plain.name, plain.recipe) == ("tried-plain", SelfTrain(dpo=False))
    for other, pattern in (
        (plain, r"set recipe\.dpo to true"),
        (a_config(tmp_path), 'kind is "tpo", expected "self_train"'),
    ):
        with pytest.raises(InputError, match=pattern):
            without_dpo(other)


class _Stopped(Exception):
    """Ends a run, as any fault could."""


def main(parent: Path) -> None:
    """Makes the runs on mock engines, without Prefect, and writes their results."""
    from tests.faults.mock_engines import MockEngines
    from tests.faults.mock_run import without_drawing
    from tests.without_prefect import without_prefect

    with without_prefect(), without_drawing(), using(RunContext(engines=MockEngines(_Pool()))):
        (parent / "found.json").write_text(json.dumps(_found(parent)))


def _found(parent: Path) -> dict[str, Any]:
    from flows import self_train
    from flows.recipes import RECIPES
    from tasks.handles import seed_model

    recipe = RECIPES["self-train"]
    assert recipe.ablation is not None
    folder = parent / "whole"
    config = _config(folder)
    ablation = self_train.self_train_and_plain.fn(config, ITERATIONS)
    before = stage_times(folder)
    assert self_train.self_train_and_plain.fn(config, ITERATIONS) == ablation
    remade = remade_stages(folder, before)
    found = {
        **_seen(config.root),
        "plain": _seen(without_dpo(config).root),
        "seed": seed_model(config).fingerprint,
        "again": remade,
        "known": {str(t): recipe.ready(config, t) is not None for t in (1, 2, 3)},
        "ablation": _ablation(config, ablation),
        "stopped": _stopped(parent / "stopped", config),
    }
    assert recipe.ablation.ready(config, ITERATIONS) == ablation
    found["ablation known"] = _known(recipe.ablation, config)
    return found


def _known(ablation: Recipe, config: RunConfig) -> dict[str, bool]:
    """Whether the ablation is complete: as it was, and after one of its two runs changed to other scores."""
    from tpo.report.model_table import MODEL_TABLE, page_of, read_model_table, write_model_table
    from tpo.storage.current import mark_finished

    known = {"as it was": ablation.ready(config, ITERATIONS) is not None}
    for name, run in (("run", config), ("plain", without_dpo(config))):
        path = run.root / MODEL_TABLE
        before, table = path.read_bytes(), read_model_table(path)
        rows = [*table.rows[:-1], dataclasses.replace(table.rows[-1], score=None)]
        path.write_bytes(write_model_table(dataclasses.replace(table, rows=rows)))
        mark_finished(run, MODEL_TABLE, page_of(MODEL_TABLE))
        known[f"{name} changed"] = ablation.ready(config, ITERATIONS) is not None
        path.write_bytes(before)
        mark_finished(run, MODEL_TABLE, page_of(MODEL_TABLE))
    return known


class _Pool:
    """Answers right, wrong or not at all, by model, prompt and seed."""

    def generate(
        self, model: Any, shards: Any, sample: Any, *, n: int, **_: Any
    ) -> Iterator[tuple[int, list[list[Any]]]]:
        """Outputs that name one of four answers, one of which is right."""
        from tpo.engines.inference.sampler import Output

        def output(request: Any, index: int) -> Any:
            dice = random.Random(f"{model.fingerprint} {request.seed} {index}")
            words = " ".join(dice.choices(["red", "blue", "hat", "cup", "first", "up"], k=4))
            text = f"{words} The answer is {dice.choice([0, 1, 2, 3])}."
            return Output(list(text.encode()), text, dice.random() < 0.9, 1)

        for i, shard in enumerate(shards):
            yield i, [[output(request, j) for j in range(n)] for request in shard]


def _config(folder: Path) -> RunConfig:
    from tests.faults import mock_run
    from tpo.config.data import FileSource, ModelConfig

    folder.mkdir()
    values = mock_run.config_of(folder, mock_run.Plan("verifier")).model_dump()
    rows = [
        {"q": f"What is {i} less {i - i % 4}?", "a": str(i % 4), "w": f"first. The answer is {i % 4}."}
        for i in range(40)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FileSource(
        path=folder / "questions.jsonl", instruction_column="q", reference_column="a", demonstration_column="w"
    )
    return RunConfig.model_validate(
        values
        | {
            "model": ModelConfig(),
            "data": {"source": source, "per_iteration": 12, "test": 10},
            "prompt": {"variant": "direct"},
            "recipe": {
                "kind": "self_train",
                "sft": {"epochs": 1},
                "demonstrations": 4,
                "pair_outputs": 4,
                "label_outputs": 2,
            },
        }
    )


def _seen(root: Path) -> dict[str, Any]:
    """What is in a run's folder."""
    from tasks.training import epoch_artifacts
    from tpo.records import Demonstration
    from tpo.report.model_table import read_model_table

    trained = {folder.parent.relative_to(root).as_posix(): folder for folder in sorted(root.glob("iter_*/*/train"))}
    writers = sorted(root.glob("iter_*/*/samples"))
    labels = [_rows(root / f"iter_{t}/sft/demonstrations", Demonstration) for t in range(1, ITERATIONS + 1)]
    references = _references(root)
    return {
        "rows": [[row.model, row.below] for row in read_model_table(root / "model_table.json").rows],
        "trained": {name: _manifest(folder)["inputs"]["model"] for name, folder in trained.items()},
        "models": {name: epoch_artifacts(_artifact(folder))[-1].fingerprint for name, folder in trained.items()},
        "writers": {
            folder.parent.relative_to(root).as_posix(): _manifest(folder)["inputs"]["model"] for folder in writers
        },
        "given": len(_rows(root / "iter_0/sft/demonstrations", Demonstration)),
        "labels": [_counts(rows, references) for rows in labels],
    }


def _counts(rows: Sequence[Any], references: Mapping[str, str]) -> dict[str, int]:
    return {
        "wrong": sum(not row.output.endswith(f"is {references[row.prompt_id]}.") for row in rows),
        "given": sum(row.origin == "given" for row in rows),
        "sampled": sum(row.origin == "sampled" for row in rows),
    }


def _references(root: Path) -> dict[str, str]:
    from tpo.records import Prompt

    return {row.prompt_id: row.reference for row in _rows(root / "base/prompts/train", Prompt)}


def _ablation(config: RunConfig, table: Any) -> dict[str, Any]:
    from tpo.records import Score

    def scores(root: Path, t: int) -> dict[str, float]:
        return {row.prompt_id: row.value for row in _rows(root / f"iter_{t}/sft/test/scores", Score)}

    expected = []
    for t in range(ITERATIONS + 1):
        ours, theirs = scores(config.root, t), scores(without_dpo(config).root, t)
        expected.append(sum(ours[prompt] - theirs[prompt] for prompt in ours) / len(ours))
    return {
        "rows": [[row.model, row.below] for row in table.rows],
        "gains": [row.gain.value for row in table.rows if row.gain],
        "expected": expected,
    }


def _stopped(folder: Path, whole: RunConfig) -> dict[str, bool]:
    """A run that an exception ends before its second DPO, then the same run resumed."""
    from flows import self_train
    from tests.faults.mock_engines import MockEngines
    from tpo.report.model_table import read_model_table

    config = _config(folder)

    class Stopping(MockEngines):
        def train_model(self, job: TrainingJob, **options: Any) -> Any:
            if job.folder.is_relative_to(config.root / "iter_2/dpo"):
                raise _Stopped
            return super().train_model(job, **options)

    with pytest.raises(_Stopped), using(RunContext(engines=Stopping(_Pool()))):
        self_train.self_train.fn(config, ITERATIONS)
    before = stage_times(config.root)
    table = self_train.self_train.fn(config, ITERATIONS)
    after = stage_times(config.root)
    same = read_model_table(whole.root / "model_table.json") == table
    return {"kept": bool(before) and all(after[path] == time for path, time in before.items()), "same": same}


def _manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def _artifact(folder: Path) -> Any:
    from tpo.records import Artifact
    from tpo.storage.store import read_manifest

    manifest = read_manifest(folder)
    assert manifest is not None
    return Artifact(folder, manifest.rows, manifest.fingerprint)


def _rows(folder: Path, kind: Any) -> list[Any]:
    from tpo.storage.store import read_rows

    return list(read_rows(_artifact(folder), kind))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
