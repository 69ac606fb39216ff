"""Claims about runs of ThinkPO: they resume, do nothing twice, and remake only what a change affects.

On mock engines, without Prefect, in a subprocess; tests/end_to_end/test_thinkpo.py has the real ones.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.apart import found_apart, remade_stages, stage_times
from tests.faults import mock_run
from tpo.engines.training.job import TrainingJob

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The results of the runs."""
    return found_apart("tests.flows.test_thinkpo", tmp_path_factory.mktemp("thinkpo"))


def test_three_models_are_measured_each_against_the_one_before(found: Mapping[str, Any]):
    assert found["rows"] == [["base", None], ["SFT", "base"], ["ThinkPO", "SFT"]]
    assert found["pairs"] > 0


def test_a_second_call_makes_nothing_and_a_third_does_not_even_start(found: Mapping[str, Any]):
    assert found["again"] == [] and found["known"]


def test_a_finished_run_with_the_keys_old_names_needs_no_work(found: Mapping[str, Any]):
    """Known to be finished before it starts; under other code, after one start without work."""
    assert found["made before"] == {"known": True, "known by other code": False, "again": [], "known then": True}


def test_an_interrupted_run_resumes_from_completed_stages_and_ends_the_same(found: Mapping[str, Any]):
    kept = {"base/test/scores", "sft/demonstrations", "sft/train", "dpo/pairs"}
    assert kept <= set(found["kept after the break"])
    assert "dpo/train" not in found["kept after the break"]
    assert found["remade after the break"] == []
    assert found["fingerprints after the break"] == found["fingerprints"]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("train", {"dpo/train"}),  # the mock trains the same model again, so nothing later changes
        ("thinkpo", {"dpo/pairs", "dpo/train", *(f"dpo/test/{name}" for name in ("samples", "judgments", "scores"))}),
        ("nothing that matters", set()),
    ],
)
def test_a_change_remakes_what_depends_on_it_and_nothing_else(found: Mapping[str, Any], change: str, again: set[str]):
    assert set(found["changed"][change]) == again
    assert not found["known with another config"]


def test_a_damaged_stage_is_noticed_before_the_run_starts_and_remade(found: Mapping[str, Any]):
    assert not found["known when damaged"]
    assert found["repaired"] == found["fingerprints"]


def test_with_swap_the_short_outputs_are_chosen(found: Mapping[str, Any]):
    plain, swapped = found["lengths"], found["lengths, swapped"]
    assert plain == [[short, long] for long, short in swapped] and all(long > short for long, short in plain)


def test_pairs_of_a_file_are_trained_on_without_fine_tuning(found: Mapping[str, Any]):
    assert found["from a file"]["rows"] == [["base", None], ["ThinkPO", "base"]]
    assert found["from a file"]["pairs"] == 20


@mock_run.prepared(forks=False)
def main(parent: Path) -> None:
    """Makes the runs and writes their results."""
    from flows.recipes import RECIPES
    from flows.thinkpo import thinkpo
    from tests.faults.mock_engines import MockEngines
    from tpo.records import Pair
    from tpo.run_context import RunContext, using

    config = _config(parent / "plain")
    run: Callable[[Any], Any] = thinkpo.fn
    found: dict[str, Any] = {}

    table = run(config)
    found["rows"] = [[row.model, row.below] for row in table.rows]
    pairs = _rows(config.root / "dpo/pairs", Pair)
    found["pairs"] = len(pairs)
    found["lengths"] = [[len(pair.chosen_token_ids), len(pair.rejected_token_ids)] for pair in pairs]
    found["fingerprints"] = _fingerprints(config.root)
    before = stage_times(config.root)
    assert run(config) == table
    found["again"] = remade_stages(config.root, before)
    found["known"] = RECIPES["thinkpo"].ready(config, 1) == table

    found["made before"] = _made_before(config, run)

    broken = _config(parent / "broken")
    trained: list[Path] = []

    class BreakOff(MockEngines):
        def train_model(self, job: TrainingJob, **options: Any) -> Any:
            trained.append(job.model)
            if len(trained) == 2:
                raise KeyboardInterrupt
            return super().train_model(job, **options)

    with contextlib.suppress(KeyboardInterrupt), using(RunContext(engines=BreakOff())):
        run(broken)
    found["kept after the break"] = sorted(_fingerprints(broken.root))
    before = stage_times(broken.root)
    run(broken)
    found["remade after the break"] = [stage for stage in remade_stages(broken.root, before) if stage in before]
    found["fingerprints after the break"] = _fingerprints(broken.root)

    found["changed"] = {}
    changes = {
        "train": {"train": config.train.model_copy(update={"beta": 0.5})},
        "thinkpo": {"recipe": config.recipe.model_copy(update={"max_pairs": 5})},
        "nothing that matters": {"tracking": config.tracking.model_copy(update={"project": "other"})},
    }
    for name, update in changes.items():
        before = stage_times(broken.root)
        changed = broken.model_copy(update=update)
        found["known with another config"] = RECIPES["thinkpo"].ready(changed, 1) is not None
        run(changed)
        found["changed"][name] = [s for s in remade_stages(broken.root, before) if ".old-" not in s]
        run(broken)

    (shard,) = (config.root / "dpo/pairs").glob("*.parquet")
    shard.write_bytes(b"PAR1")
    found["known when damaged"] = RECIPES["thinkpo"].ready(config, 1) is not None
    run(config)
    found["repaired"] = _fingerprints(config.root)

    swapped = _config(parent / "swapped", swap=True)
    run(swapped)
    pairs = _rows(swapped.root / "dpo/pairs", Pair)
    found["lengths, swapped"] = [[len(pair.chosen_token_ids), len(pair.rejected_token_ids)] for pair in pairs]

    from_file = _config(parent / "file", from_file=True)
    table = run(from_file)
    found["from a file"] = {
        "rows": [[row.model, row.below] for row in table.rows],
        "pairs": len(_rows(from_file.root / "dpo/pairs", Pair)),
    }
    (parent / "found.json").write_text(json.dumps(found))


def _made_before(config: Any, run: Callable[[Any], Any]) -> dict[str, Any]:
    """What a call does with a run whose config.json has the keys' old names."""
    from flows.recipes import RECIPES
    from tests.config.before import as_before
    from tpo.storage.current import FINISHED

    def is_known() -> bool:
        return RECIPES["thinkpo"].ready(config, 1) is not None

    (config.root / "config.json").write_text(json.dumps(as_before(config), indent=1) + "\n")
    found: dict[str, Any] = {"known": is_known()}
    noted = json.loads((config.root / FINISHED).read_text())
    (config.root / FINISHED).write_text(json.dumps(noted | {"config": "before", "code": "before"}))
    found["known by other code"] = is_known()
    before = stage_times(config.root)
    run(config)
    return found | {"again": remade_stages(config.root, before), "known then": is_known()}


def _config(folder: Path, *, swap: bool = False, from_file: bool = False) -> Any:
    from tpo.config.data import FileSource, ModelConfig, PromptConfig
    from tpo.config.recipes import PairFile, PairModels, ThinkPo
    from tpo.config.training import SftConfig

    folder.mkdir()
    config = mock_run.config_of(folder, mock_run.Plan("verifier"))
    rows = [
        {
            "instruction": f"What is {i} + 1?",
            "answer": f"one: {i + 1}",
            "work": f"One more than {i}. " * 20 + f"So {i + 1}",
        }
        for i in range(120)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"instruction": row["instruction"], "chosen": row["work"], "rejected": row["answer"]} for row in rows[:20]]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    source = FileSource(path=folder / "prompts.jsonl", reference_column="answer", demonstration_column="work")
    update = {
        "data": config.data.model_copy(update={"source": source, "max_prompt_tokens": 150}),
        "prompt": PromptConfig(variant="direct"),
        "model": ModelConfig(),
        "train": config.train.model_copy(update={"max_tokens": 2000}),
        "recipe": ThinkPo(
            sft=None if from_file else SftConfig(epochs=1, max_tokens=2000),
            source=PairFile(path=folder / "pairs.jsonl") if from_file else PairModels(),
            answer_pattern="(e)",  # which the mock engines write
            match="exact",
            swap=swap,
        ),
    }
    return config.model_copy(update=update)


def _rows(folder: Path, kind: Any) -> list[Any]:
    from tpo.records import Artifact
    from tpo.storage.store import read_manifest, read_rows

    manifest = read_manifest(folder)
    assert manifest is not None
    return list(read_rows(Artifact(folder, manifest.rows, manifest.fingerprint), kind))


def _fingerprints(root: Path) -> dict[str, str]:
    found = {}
    for path in root.rglob("manifest.json"):
        name = path.parent.relative_to(root).as_posix()
        if ".old-" not in name:
            found[name] = json.loads(path.read_text())["fingerprint"]
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
