"""Claims about fetching from the hub: the real client against a small hub on loopback."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.hub.conftest import MODEL
from tests.hub_server import GOOD_TOKEN, Hub, Repository
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.hub import hub_folder, parse_address
from tpo.config.run import RunConfig
from tpo.engines.cluster.processes import quiet_environment
from tpo.errors import InputError
from tpo.hub.fetch import fetched, looked_up, say_moves
from tpo.models.folder import check_model_folder
from tpo.storage.current import HUB, keep_config, read_pins
from tpo.storage.store import folder_artifact

pytestmark = pytest.mark.drawn(7)

WEIGHTS = "model.safetensors"
NOWHERE = "http://127.0.0.1:9"
ROWS = b"".join(json.dumps({"instruction": f"What is {i} + 1?"}).encode() + b"\n" for i in range(9))


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of the hub's model."""
    return a_run(tmp_path)


def a_run(folder: Path, model: str = "hf://o/m", **more: object) -> RunConfig:
    return RunConfig.model_validate({"folder": folder / "runs", "name": "r", "model": {"path": model}, **more})


def begin(config: RunConfig) -> None:
    """Does a flow's first step in its run folder."""
    config.root.mkdir(parents=True, exist_ok=True)
    keep_config(config)


def of_data(folder: Path, path: str) -> RunConfig:
    return a_run(folder, "miniature", data={"source": {"kind": "file", "path": path}})


def commit_of(config: RunConfig) -> str | None:
    return parse_address(config.model.path).revision


def partial_files() -> list[Path]:
    return [*Path(os.environ["HF_HOME"]).rglob("*.incomplete"), *hub_folder().rglob("*.tmp")]


def test_a_fetched_model_has_no_code_or_pickles_and_is_used_like_any_folder(hub: Hub, config: RunConfig):
    commit = hub.repository("models/o/m", {**MODEL, "modeling.py": b"import os", "model.bin": b"a pickle"})
    found = fetched(config)
    folder = found.model.folder
    assert found.model.path == f"hf://o/m@{commit.branches['main']}"
    assert {path.name for path in folder.iterdir()} == set(MODEL)
    assert check_model_folder(folder) == check_model_folder(SHIPPED_SEED_MODEL)
    assert folder_artifact(folder).fingerprint == folder_artifact(SHIPPED_SEED_MODEL).fingerprint
    assert not [request for request in hub.asked if "modeling.py" in request or "model.bin" in request]
    hub.asked.clear()
    assert fetched(found) == found and hub.asked == []  # A commit in the cache needs no request.


def test_a_run_stays_at_its_first_commit_and_says_if_the_branch_has_moved(
    hub: Hub, config: RunConfig, capsys: pytest.CaptureFixture[str]
):
    first = hub.repositories["models/o/m"].branches["main"]
    begin(fetched(config))
    assert read_pins(config.root)["hf://o/m"].address == f"hf://o/m@{first}"
    assert f"hf://o/m@{first}" in (config.root / "config.json").read_text()
    second = hub.repositories["models/o/m"].commit({**MODEL, "README.md": b"new"})
    hub.asked.clear()
    resumed = fetched(config)
    assert commit_of(resumed) == first and hub.asked == []
    say_moves(resumed)
    stderr = capsys.readouterr().err
    assert f"main has moved to commit {second}; this run stays at {first}" in stderr
    assert f"write hf://o/m@{second}" in stderr
    assert commit_of(fetched(a_run(config.root.parent.parent / "other"))) == second


@pytest.mark.slow
def test_another_commit_in_the_same_run_folder_is_reported(hub: Hub, config: RunConfig, capsys):
    begin(fetched(config))
    hub.repositories["models/o/m"].commit({**MODEL, "README.md": b"new"})
    (kept := config.root / HUB).rename(kept.with_suffix(".away"))
    newer = fetched(config)
    kept.with_suffix(".away").rename(kept)
    begin(newer)
    assert "and is now" in capsys.readouterr().err


def test_a_damaged_record_of_commits_is_refused_and_never_resolved_anew(hub: Hub, config: RunConfig):
    begin(fetched(config))
    (config.root / HUB).write_text("{")
    with pytest.raises(InputError, match="restore it, or delete it"):
        fetched(config)


def test_a_full_cache_needs_no_network(hub: Hub, config: RunConfig, monkeypatch, capsys):
    commit = commit_of(fetched(config))
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    assert commit_of(fetched(config)) == commit
    assert "the hub does not answer; using commit" in capsys.readouterr().err
    hub.asked.clear()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert commit_of(fetched(config)) == commit and hub.asked == []
    monkeypatch.setenv("HF_HOME", "/nonexistent/empty")
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE prevents downloads: fetch it on"):
        fetched(config)


def test_a_process_with_the_hub_switched_off_can_still_fetch(hub: Hub, config: RunConfig, monkeypatch):
    for name, value in quiet_environment({}).items():
        monkeypatch.setenv(name, value)
    assert fetched(config).model.folder.is_dir()


def test_a_plan_fetches_config_and_tokenizer_and_says_what_a_run_will_fetch(hub: Hub, tmp_path: Path):
    hub.repository("datasets/o/d", {"train.jsonl": ROWS})
    source = {"kind": "file", "path": "hf://datasets/o/d/train"}
    found = looked_up(a_run(tmp_path, data={"source": source}))
    model, data = found.downloads
    assert model.lacking == len(MODEL[WEIGHTS]) and model.size == sum(map(len, MODEL.values()))
    assert (data.keys, data.lacking) == (["data.source.path"], len(ROWS))
    assert {path.name for path in found.config.model.folder.iterdir()} == set(MODEL) - {WEIGHTS}
    assert not [request for request in hub.asked if request.startswith("GET cdn/") or request.endswith("train.jsonl")]


def test_a_plan_continues_without_what_cannot_be_fetched(hub: Hub, tmp_path: Path):
    hub.repositories["models/o/m"].gated = True
    found = looked_up(a_run(tmp_path))
    assert "o/m is gated" in found.faults[0] and found.config.model.path == "hf://o/m"


def test_a_plan_says_in_a_sentence_what_it_could_not_ask_about(hub: Hub, tmp_path: Path, monkeypatch):
    source = {"kind": "file", "path": "hf://datasets/o/d/train"}
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    found = looked_up(a_run(tmp_path, data={"source": source}))
    start = f"the hub could not be asked about hf://o/m, hf://datasets/o/d/train ({NOWHERE} can't be reached, ConnectE"
    assert found.faults == [] and found.unasked is not None and found.unasked.startswith(start)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "about hf://o/m (HF_HUB_OFFLINE is set)" in str(looked_up(a_run(tmp_path)).unasked)


def test_a_config_that_asks_for_code_comes_without_that(hub: Hub, config: RunConfig, capsys):
    asking = json.loads(MODEL["config.json"]) | {"auto_map": {"AutoModel": "modeling.Evil"}}
    hub.repository("models/o/m", {**MODEL, "config.json": json.dumps(asking).encode(), "modeling.py": b"import os"})
    folder = fetched(config).model.folder
    assert "left out of config.json the settings that load the repository's own code" in capsys.readouterr().err
    assert json.loads((folder / "config.json").read_text()) == json.loads(MODEL["config.json"])
    assert check_model_folder(folder) and not [request for request in hub.asked if "modeling.py" in request]
    hub.asked.clear()
    assert fetched(fetched(config)).model.folder == folder
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize(("address", "token", "pattern"), [
    ("hf://o/gated", None, r"hf://o/gated is gated: accept its conditions at {hub}/o/gated, then set HF_TOKEN or run"),
    ("hf://o/m", "hf_wrong", r"{hub} rejects the token \(HF_TOKEN\): use a valid one from {hub}/settings/tokens"),
    ("hf://o/M", None, r"there is no {hub}/o/M, or it is private: check the name, also its upper and lower case"),
    ("hf://o/m@v2", None, r"{hub}/o/m has no revision v2; it has main: name one of these"),
    ("hf://o/m@a/b", None, r"has no revision a; it has main; a slash in a revision's name is written as %2F"),
    ("hf://o/m/sub", None, r"is not a model: its repository has no config.json in sub"),
    ("hf://o/pickles", None, r"it has pickles \(model.bin\), which run code when loaded"),
])  # fmt: skip
def test_a_refusal_by_the_hub_is_one_sentence_with_a_remedy(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, token: str | None, pattern: str
):
    hub.repository("models/o/gated", MODEL, gated=True)
    hub.repository("models/o/pickles", {"config.json": b"{}", "model.bin": b"a pickle"})
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=pattern.replace("{hub}", hub.address)) as refused:
        fetched(a_run(tmp_path, address))
    assert "\n" not in str(refused.value) and "Traceback" not in str(refused.value)


def test_a_token_opens_a_gated_repository_and_is_never_written(hub: Hub, tmp_path: Path, monkeypatch, capfd):
    hub.repository("models/o/gated", MODEL, gated=True)
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    begin(fetched(a_run(tmp_path, "hf://o/gated")))
    written = [path for path in tmp_path.rglob("*") if path.is_file() and GOOD_TOKEN.encode() in path.read_bytes()]
    assert written == [] and GOOD_TOKEN not in "".join(capfd.readouterr())


def test_a_name_in_another_case_is_replaced_by_the_current_name(hub: Hub, tmp_path: Path, capsys):
    hub.names["models/O/M"] = "o/m"
    assert fetched(a_run(tmp_path, "hf://O/M")).model.path.startswith("hf://o/m@")
    assert "this repository is now o/m" in capsys.readouterr().err


def test_an_interrupted_download_resumes_where_it_was(hub: Hub, config: RunConfig):
    weights = os.urandom(24 * 2**20)
    hub.repository("models/o/m", {**MODEL, WEIGHTS: weights})
    hub.cut[WEIGHTS] = 12 * 2**20  # beyond the 10 MiB that the client reads at once
    assert (fetched(config).model.folder / WEIGHTS).read_bytes() == weights
    assert hub.ranges == [f"{WEIGHTS} {10 * 2**20}"]


@pytest.mark.parametrize(("name", "content", "pattern"), [
    (WEIGHTS, MODEL[WEIGHTS][:-1] + b"\0", "has the SHA-256 .*, expected"),
    ("config.json", MODEL["config.json"].replace(b"4", b"5", 1), "has the git hash .*, expected"),
    ("config.json", b"{}", "a downloaded file has another size than on"),
])  # fmt: skip
def test_a_file_with_other_content_is_refused_and_removed(
    hub: Hub, config: RunConfig, name: str, content: bytes, pattern: str
):
    hub.altered[name] = content
    with pytest.raises(InputError, match=pattern):
        fetched(config)
    assert not [path for path in Path(os.environ["HF_HOME"]).rglob("*") if path.is_file()
                and hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest()]  # fmt: skip
    if name == WEIGHTS:
        hub.altered.clear()
        assert (fetched(config).model.folder / name).read_bytes() == MODEL[name]


@pytest.mark.slow
def test_a_file_missing_from_the_cache_is_fetched_again(hub: Hub, config: RunConfig):
    found = fetched(config)
    (found.model.folder / WEIGHTS).resolve().unlink()
    assert (fetched(config).model.folder / WEIGHTS).read_bytes() == MODEL[WEIGHTS]


@pytest.mark.parametrize(("address", "pattern"), [
    (NOWHERE, r"http://127.0.0.1:9 can't be reached \(ConnectError.*check the network, HF_ENDPOINT and the proxy"),
    ("http://me:secret@127.0.0.1:9", r"http://127.0.0.1:9 can't be reached"),
])  # fmt: skip
def test_a_hub_that_is_down_is_reported_without_secrets(
    hub: Hub, config: RunConfig, monkeypatch, address: str, pattern: str
):
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(InputError, match=pattern) as refused:
        fetched(config)
    assert "secret" not in str(refused.value)


@pytest.mark.slow
def test_a_failing_hub_is_reported(hub: Hub, config: RunConfig):
    hub.failing = True
    with pytest.raises(InputError, match=r"can't be reached .*503"):
        fetched(config)


@pytest.mark.slow
def test_two_runs_at_once_share_the_cache(hub: Hub, tmp_path: Path):
    runs = [a_run(tmp_path / name) for name in "ab"]
    with ThreadPoolExecutor() as threads:
        first, second = threads.map(fetched, runs)
    assert first.model.folder == second.model.folder and partial_files() == []
    assert folder_artifact(first.model.folder).fingerprint == folder_artifact(SHIPPED_SEED_MODEL).fingerprint


@pytest.mark.slow
def test_a_stopped_download_leaves_no_partial_file_and_is_redone_by_the_next_start(
    hub: Hub, config: RunConfig, tmp_path: Path
):
    stalled, resume = threading.Event(), threading.Event()
    hub.stall = (WEIGHTS, stalled, resume)
    ask = json.dumps({"wants": ["hf://o/m"], "whole": True})
    command = [sys.executable, "-m", "tpo.hub.client"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        client.stdin.write(ask)
        client.stdin.close()
        assert stalled.wait(60)
        while not partial_files():
            time.sleep(0.01)
        client.send_signal(signal.SIGINT)
        assert client.wait(60) == 128 + signal.SIGINT
    resume.set()
    hub.stall = None
    assert partial_files() == []
    assert fetched(config).model.folder.is_dir()


def test_a_split_is_fetched_from_the_repositorys_files_or_the_hubs_parquet_copy(hub: Hub, tmp_path: Path):
    own = hub.repository("datasets/o/d", {"data/train-00000-of-00001.jsonl": ROWS, "data/test.jsonl": ROWS})
    found = fetched(of_data(tmp_path, "hf://datasets/o/d/train"))
    place = parse_address(found.data.source.path).folder  # type: ignore[union-attr, arg-type]
    assert [path.name for path in place.iterdir()] == ["train-00000-of-00001.jsonl"]
    scripted = hub.repository("datasets/o/scripted", {"scripted.py": b"import os"})
    commit = scripted.commit({"default/train/0000.parquet": ROWS}, "refs/convert/parquet")
    found = fetched(of_data(tmp_path / "b", "hf://datasets/o/scripted/train"))
    assert found.data.source.path == f"hf://datasets/o/scripted@{commit}/default/train"  # type: ignore[union-attr]
    assert found.hub_pins["hf://datasets/o/scripted/train"].revision == "refs/convert/parquet"
    assert own.branches["main"] in str(place) and not [request for request in hub.asked if request.endswith(".py")]


@pytest.mark.slow
def test_paths_outside_the_repository_are_never_written(hub: Hub, tmp_path: Path):
    repository: Repository = hub.repository("datasets/o/d", {"../../../../evil.jsonl": ROWS, "ok/train.jsonl": ROWS})
    fetched(of_data(tmp_path, "hf://datasets/o/d/train"))
    assert repository.branches and not [*tmp_path.rglob("evil*")]
