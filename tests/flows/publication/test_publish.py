"""Claims about published folders: complete, free of secrets, never overwriting what others made, and uploaded on
demand."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

from flows.cli.publish import publish_run
from flows.publication.publish import Published
from flows.publication.push import push
from prompts.thought import VARIANTS
from tests.finished_run import finish
from tests.rows import a_config
from tests.upload_server import taking_uploads
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import ModelConfig
from tpo.config.judges import PairConfig
from tpo.config.training import TrainConfig
from tpo.errors import InputError, StoreError
from tpo.models.chat import ChatEncoder, writer_encoder
from tpo.records import Pair, Prompt, Sample
from tpo.storage.store import file_sha256

ASKED = 'What is {{ 3 }} plus "4"?\n'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run at M_2 with the shipped model's weights and one pair."""
    config = a_config(tmp_path, model=ModelConfig(path="miniature"))
    prompt_ids = VARIANTS["generic"].encode(ChatEncoder(SHIPPED_SEED_MODEL), ASKED)
    outputs = {0: "Here is my thought process: a Here is my response: 7", 1: "Here is my response: 8"}
    rows: dict[str, list[Any]] = {
        "iter_2/prompts": [Prompt("p", ASKED, reference="never shown")],
        "iter_2/samples": [
            Sample("p", i, prompt_ids, [1, 2], text, "a", text.partition("response: ")[2], None, 1)
            for i, text in outputs.items()
        ],
        "iter_2/pairs": [Pair("p", "regular", prompt_ids, [1, 2], [1, 2], 0, 1, 1.0, 0.0, 1.0)],
    }
    finish(config, 2, model=SHIPPED_SEED_MODEL, rows=rows)
    return config.root


def published(run: Path, folder: Path, *, pairs: bool = True, t: int | None = None) -> list[str]:
    return publish_run(str(run), None, t, folder, pairs=pairs, to_hub=None)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_has_everything_to_load_it_and_a_second_call_does_nothing(run: Path, tmp_path: Path):
    folder = tmp_path / "out" / "mine"
    published(run, folder)
    assert {*content(folder)} == {
        *("README.md", "publication.json", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "scores.json"),
        *("parsers/thought_parser.py", "pairs/README.md", "pairs/train-00000-of-00001.parquet"),
    }
    assert (folder / "model.safetensors").samefile(run / "iter_2" / "model" / "model.safetensors")
    before, made = content(folder), folder.stat().st_ino
    assert "nothing to do" in published(run, folder)[0]
    assert (content(folder), folder.stat().st_ino) == (before, made)
    assert [path.name for path in folder.parent.iterdir() if path.suffix == ".tmp"] == []


def test_cards_parse_and_have_the_numbers_and_pairs_of_the_run(run: Path, tmp_path: Path):
    published(run, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    lineage = json.loads((tmp_path / "out" / "publication.json").read_text())["lineage"]
    assert [step["model"] for step in lineage["steps"]] == ["M_1", "M_2"]
    assert (
        lineage["steps"][1]["parent"] == lineage["steps"][0]["sha256"]
        and lineage["steps"][1]["sha256"] == lineage["sha256"]
    )
    assert lineage["data"] == {"prompts.jsonl": file_sha256(tmp_path / "prompts.jsonl")}
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["temperature"], generation["top_p"], generation["eos_token_id"]) == (0.8, 0.95, 491)
    (pair,) = pq.read_table(tmp_path / "out" / "pairs" / "train-00000-of-00001.parquet").to_pylist()
    assert pair["prompt"] == [{"role": "user", "content": ASKED}]
    assert pair["chosen"][0]["content"].startswith("Here is my thought process: a")
    assert (pair["chosen_response"], pair["chosen_score"], pair["margin"]) == ("7", 1.0, 1.0)
    assert "never shown" not in json.dumps(pair)


def test_pairs_of_all_rounds_and_replayed_ones_are_published(tmp_path: Path):
    config = a_config(
        tmp_path,
        model=ModelConfig(path="miniature"),
        train=TrainConfig(epochs=2, rounds=2),
        pair=PairConfig(replay_share=0.3),
    )
    prompt_ids = VARIANTS["generic"].encode(ChatEncoder(SHIPPED_SEED_MODEL), ASKED)
    rows: dict[str, list[Any]] = {}
    for t, number in ((1, 1), (1, 2), (2, 1), (2, 2)):
        folder, name = f"iter_{t}/round_{number}", f"p{t}{number}"
        rows[f"{folder}/prompts"] = [Prompt(name, f"Question {name}")]
        rows[f"{folder}/samples"] = [Sample(name, i, prompt_ids, [1, 2], "", "a", f"{i}", None, 1) for i in range(2)]
        rows[f"{folder}/pairs"] = [Pair(name, "regular", prompt_ids, [1, 2], [1, 2], 0, 1, 1.0, 0.0, 1.0)]
    for number, replayed in ((1, "p12"), (2, "p11")):
        rows[f"iter_2/round_{number}/replay"] = [
            *rows[f"iter_2/round_{number}/pairs"],
            *rows[f"iter_1/round_{replayed[-1]}/pairs"],
        ]
    finish(config, 2, model=SHIPPED_SEED_MODEL, rows=rows)
    published(config.root, tmp_path / "out")
    pairs = pq.read_table(tmp_path / "out" / "pairs" / "train-00000-of-00001.parquet").to_pylist()
    assert [pair["prompt"][0]["content"][-3:] for pair in pairs] == ["p21", "p12", "p22", "p11"]
    assert [pair["chosen_response"] for pair in pairs] == ["0"] * 4
    steps = json.loads((tmp_path / "out" / "publication.json").read_text())["lineage"]["steps"]
    assert [len(step["rounds"]) for step in steps] == [2, 2]
    assert "round 2: 1 prompts" in (tmp_path / "out" / "README.md").read_text()
    (config.root / "iter_2/round_1/pairs/manifest.json").unlink()
    with pytest.raises(InputError, match="isn't complete: iter_2/round_1/pairs is missing"):
        published(config.root, tmp_path / "other")


def test_pairs_are_left_out_on_request(run: Path, tmp_path: Path):
    published(run, tmp_path / "out", pairs=False)
    assert not (tmp_path / "out" / "pairs").exists()
    texts = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"{{ 3 }} plus" in text for text in texts)


def test_no_local_path_and_no_secret_is_published(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    published(run, tmp_path / "out")
    for path in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    monkeypatch.setenv("SOME_API_KEY", "verifier")
    with pytest.raises(InputError, match="would contain the value of SOME_API_KEY"):
        published(run, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_files_made_or_edited_by_others_are_never_replaced(run: Path, tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"isn't a published folder.*move it away"):
        published(run, folder)
    (folder / "thesis.txt").unlink()
    published(run, folder)
    (folder / "README.md").write_text("My own words.")
    assert "nothing to do" in published(run, folder)[0]
    with pytest.raises(InputError, match=r"has changed since \(README.md\)"):
        published(run, folder, t=1, pairs=False)
    assert (folder / "README.md").read_text() == "My own words."
    (folder / "config.json").unlink()
    (folder / "README.md").unlink()
    published(run, folder)
    assert (folder / "config.json").is_file()


def test_leftovers_of_a_killed_publish_are_removed_by_the_next(run: Path, tmp_path: Path):
    leftover = tmp_path / ".out.123.tmp"
    leftover.mkdir()
    (leftover / "config.json").write_text("{")
    published(run, tmp_path / "out")
    assert not leftover.exists()


def test_a_disk_that_fills_up_leaves_nothing_and_the_next_call_finishes(run: Path, tmp_path: Path):
    is_full = True

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if is_full and event == "tpo.sync" and str(details[0]).endswith("tokenizer.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(details[0]))

    sys.addaudithook(hook)
    try:
        with pytest.raises(StoreError, match=r"the disk is full: .*tokenizer.json could not be written"):
            published(run, tmp_path / "out")
    finally:
        is_full = False
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == [".out.lock"]
    published(run, tmp_path / "out")
    assert (tmp_path / "out" / "publication.json").is_file()


def test_what_is_complete_can_be_published_while_the_next_iteration_is_made(run: Path, tmp_path: Path):
    (run / "iter_3" / "samples").mkdir(parents=True)
    (run / "iter_3" / "samples" / "plan.json").write_text("{}")
    assert published(run, tmp_path / "out") == [f"M_2 of {run} is published: {tmp_path / 'out'}"]


@pytest.mark.parametrize("missing", ["iter_2/pairs", "iter_2/model", "iter_2/test/scores"])
def test_an_incomplete_iteration_is_refused_before_anything_is_written(run: Path, tmp_path: Path, missing: str):
    (run / missing / "manifest.json").unlink()
    with pytest.raises(
        InputError, match=rf"M_2 of .* isn't complete: {missing} is missing; run make iterate ITER=2 RUN=tried"
    ):
        published(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_run_or_iteration_is_refused_with_those_that_exist(run: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"there is no run in .*other: name one of tried in RUN="):
        published(run.with_name("other"), tmp_path / "out")
    with pytest.raises(InputError, match="has reached M_2, expected M_3: run make iterate ITER=3"):
        published(run, tmp_path / "out", t=3)
    with pytest.raises(InputError, match="M_0 is the seed model"):
        published(run, tmp_path / "out", t=0)
    (run / "finished.json").unlink()
    with pytest.raises(InputError, match="isn't finished"):
        published(run, tmp_path / "out")


def test_a_published_model_is_not_asked_for_a_thought_twice(run: Path, tmp_path: Path):
    published(run, tmp_path / "out")
    with pytest.raises(InputError, match="already includes the thought prompt"):
        writer_encoder(tmp_path / "out", ModelConfig())


def test_it_is_uploaded_to_two_private_repositories_and_weights_only_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with taking_uploads() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)  # as a process that starts with it has it
        monkeypatch.setenv("HF_TOKEN", "hf_otherwise")
        with pytest.raises(InputError, match=r"status 401.*set HF_TOKEN"):
            publish_run(str(run), None, None, tmp_path / "out", pairs=True, to_hub="org/mine")
        assert not hub.commits
        monkeypatch.setenv("HF_TOKEN", hub.token)
        for _ in range(2):
            publish_run(str(run), None, None, tmp_path / "out", pairs=True, to_hub="org/mine")
        written = {name for name in content(tmp_path / "out") if not name.startswith("pairs/")}
        assert {*hub.files["models/org/mine"]} == written
        assert {*hub.files["datasets/org/mine-pairs"]} == {"README.md", "train-00000-of-00001.parquet"}
        assert hub.private == {"models/org/mine": True, "datasets/org/mine-pairs": True}
        assert hub.uploads == 2


def test_an_unreachable_hub_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with pytest.raises(InputError, match=r"org/mine could not be uploaded \(ConnectError.*check the network"):
        push(Published(tmp_path, made=True, has_pairs=False), "org/mine", "M_1")
