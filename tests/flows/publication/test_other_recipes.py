"""Claims about published models of ThinkPO and self-training: what is in the folder, and where it comes from.

The runs are on mock engines whose trainer keeps the weights, without Prefect, in a process of their own.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

from flows.cli.publish import publish_run
from tests.apart import run_apart
from tests.faults import mock_run
from tests.s3_server import S3Server, new_url
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.run import RunConfig
from tpo.engines.training.job import TrainingJob
from tpo.errors import InputError
from tpo.models.folder import check_writer
from tpo.storage.disk import make_folder, write_atomically
from tpo.storage.lock import only_writer
from tpo.storage.mirror import writing
from tpo.storage.store import file_sha256

pytestmark = [pytest.mark.story("other recipes published", 40), pytest.mark.slow]
RUNS = ("thinkpo", "self_train", "classic")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Finished runs by name; classic self-training is without DPO."""
    parent = tmp_path_factory.mktemp("runs")
    run_apart("tests.flows.publication.test_other_recipes", parent)
    return {name: parent / name / "run" for name in RUNS}


def published(run: Path, folder: Path, t: int | None = None, *, pairs: bool = True) -> dict[str, Any]:
    publish_run(str(run), None, t, folder, pairs=pairs, to_hub=None)
    lineage: dict[str, Any] = json.loads((folder / "publication.json").read_text())["lineage"]
    return lineage


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "pairs" / "train-00000-of-00001.parquet").to_pylist()
    return rows


@pytest.mark.parametrize(
    ("name", "t", "model", "steps", "has_pairs"),
    [
        ("thinkpo", None, "ThinkPO", ["SFT", "ThinkPO"], True),
        ("self_train", None, "SFT_1", ["SFT_0", "DPO_1", "SFT_1"], True),
        ("self_train", 0, "SFT_0", ["SFT_0"], False),
        ("classic", 1, "SFT_1", ["SFT_0", "SFT_1"], False),
    ],
)
def test_a_model_comes_with_the_trainings_that_made_it_and_its_pairs(
    runs: Mapping[str, Path],
    tmp_path: Path,
    name: str,
    t: int | None,
    model: str,
    steps: Sequence[str],
    has_pairs: bool,
):
    folder = tmp_path / "out"
    lineage = published(runs[name], folder, t)
    assert lineage["model"] == model and [step["model"] for step in lineage["steps"]] == steps
    assert all(step["rows"] > 0 for step in lineage["steps"])
    assert lineage["numbers"][-1]["model"] == model
    assert (folder / "pairs").exists() is has_pairs
    check_writer(folder)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert "arxiv:2410.10630" not in card.data.tags
    assert ("dpo" in card.data.tags, "| loss | DPO" in card.text) == (has_pairs, has_pairs)
    made = (folder / "publication.json").stat().st_mtime_ns
    assert published(runs[name], folder, t) == lineage
    assert (folder / "publication.json").stat().st_mtime_ns == made


def test_data_goes_by_its_hash_and_no_folder_of_this_machine_is_named(runs: Mapping[str, Path], tmp_path: Path):
    lineage = published(runs["thinkpo"], tmp_path / "out")
    prompts = runs["thinkpo"].parent / "prompts.jsonl"
    assert lineage["data"] == {"prompts.jsonl": file_sha256(prompts)}
    texts = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(str(prompts.parent).encode() in text for text in texts)


def test_pairs_are_what_was_trained_on_as_messages(runs: Mapping[str, Path], tmp_path: Path):
    published(runs["thinkpo"], tmp_path / "think")
    for row in rows_of(tmp_path / "think"):
        (message,) = row["prompt"]
        assert message["role"] == "user" and message["content"].startswith("What is ")
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert chosen.startswith("One more than ") and chosen == row["chosen_response"] != rejected
        assert row["chosen_score"] is None
    published(runs["self_train"], tmp_path / "self")
    assert all(row["chosen_score"] != row["rejected_score"] for row in rows_of(tmp_path / "self"))


def test_models_that_the_run_does_not_have_are_refused_with_how_to_make_them(runs: Mapping[str, Path], tmp_path: Path):
    refused = [
        ("thinkpo", 1, "ThinkPO, which has no iterations: leave out ITER="),
        ("self_train", 2, "has reached SFT_1, expected SFT_2: run make self-train ITER=2 RUN=run"),
    ]
    for name, t, message in refused:
        with pytest.raises(InputError, match=message):
            published(runs[name], tmp_path / "out", t)
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_at_its_end_or_lacks_a_stage_is_refused(runs: Mapping[str, Path], tmp_path: Path):
    run = runs["classic"]
    stage = run / "iter_1" / "sft" / "train" / "manifest.json"
    stage.rename(aside := stage.with_name("aside"))
    with pytest.raises(InputError, match=r"SFT_1 of .* isn't complete: iter_1/sft/train is missing"):
        published(run, tmp_path / "out")
    assert published(run, tmp_path / "out", 0)["model"] == "SFT_0"
    aside.rename(stage)
    (run / "finished.json").rename(run / "aside.json")
    with pytest.raises(InputError, match=r"isn't finished, .*; run make self-train RUN=run"):
        published(run, tmp_path / "other")
    (run / "aside.json").rename(run / "finished.json")


@pytest.mark.parametrize("name", ["thinkpo", "self_train"])
def test_a_run_in_a_bucket_is_published_from_an_empty_disk(
    runs: Mapping[str, Path], tmp_path: Path, s3: S3Server, name: str
):
    place = new_url()
    moved = RunConfig.model_validate_json((runs[name] / "config.json").read_bytes()).model_copy(
        update={"folder": place, "storage": s3.storage(tmp_path / "first")}
    )
    with only_writer(moved.root), writing(moved):
        for path in sorted(path for path in runs[name].rglob("*") if path.is_file() and not path.name.startswith(".")):
            copied = moved.root / path.relative_to(runs[name])
            make_folder(copied.parent)
            write_atomically(copied, path.read_bytes())
    values = s3.storage(tmp_path / "second").model_dump(mode="json", exclude_none=True)
    storage = "".join(f"storage.{key} = {json.dumps(value)}\n" for key, value in values.items())
    (tmp_path / "bucket.toml").write_text(f'name = "{moved.name}"\nfolder = "{place}"\n{storage}')
    publish_run(None, str(tmp_path / "bucket.toml"), None, tmp_path / "out", pairs=True, to_hub=None)
    published(runs[name], tmp_path / "same")
    left, right = (
        {path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "out", tmp_path / "same")
    )
    assert left == right


@mock_run.prepared(forks=False)
def main(parent: Path) -> None:
    """Makes the runs."""
    from flows.self_train import self_train
    from flows.thinkpo import thinkpo
    from tests.faults.mock_engines import MockEngines
    from tests.flows import test_self_train, test_thinkpo
    from tpo.run_context import RunContext, using

    class Engines(MockEngines):
        def train_model(self, job: TrainingJob, **options: Any) -> Any:
            epochs = super().train_model(job, **options)
            for epoch in job.folder.glob("epoch_*"):
                (epoch / "model.safetensors").write_bytes((SHIPPED_SEED_MODEL / "model.safetensors").read_bytes())
            return epochs

    tuned = test_self_train._config(parent / "self_train")
    classic = test_self_train._config(parent / "classic")
    classic = classic.model_copy(update={"recipe": classic.recipe.model_copy(update={"dpo": False})})
    train: Callable[..., Any] = self_train.fn
    run: Callable[..., Any] = thinkpo.fn
    with using(RunContext(engines=Engines())):
        run(test_thinkpo._config(parent / "thinkpo"))
        train(tuned, 1)
        train(classic, 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
