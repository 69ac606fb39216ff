"""Claims about when a finished run is current, and what makes it outdated."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.finished_run import finish
from tests.rows import a_config, a_model
from tpo.config.run import RunConfig
from tpo.records import External, Prompt
from tpo.report.summary import REPORT, SUMMARY
from tpo.storage.current import FINISHED, is_current, iterations_made, keep_config, mark_finished
from tpo.storage.store import Stage, external_file, set_aside

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A finished run, made from a model, a prompt file, a template and a judge's folder."""
    (tmp_path / "mine.jinja").write_text("Say <R> before: {{ instruction }}")
    config = a_config(
        tmp_path,
        prompt={"variant": "specific", "user_template": tmp_path / "mine.jinja"},
        judge={"kind": "reward_model", "model": str(a_model(tmp_path / "judge"))},
    )
    finish(config, 2)
    return config


def test_a_finished_run_is_current_and_nothing_is_before(config: RunConfig, tmp_path: Path):
    assert is_current(config)
    assert not is_current(config.model_copy(update={"name": "another"}))


@pytest.mark.parametrize("section", ["seed", "train", "sample", "pair", "engine", "data", "health"])
def test_a_run_is_current_only_under_its_own_config(config: RunConfig, section: str):
    changes = {
        "seed": 5,
        "train": config.train.model_copy(update={"beta": 0.33}),
        "sample": config.sample.model_copy(update={"temperature": 0.33}),
        "pair": config.pair.model_copy(update={"min_margin": 0.33}),
        "engine": config.engine.model_copy(update={"count": 3}),
        "data": config.data.model_copy(update={"per_iteration": 3}),
        "health": config.health.model_copy(update={"min_pairs": 0.33}),
    }
    other = config.model_copy(update={section: changes[section]})
    assert not is_current(other)
    keep_config(other)  # as a flow killed right after its start leaves it
    assert not is_current(other) and not is_current(config)


def every_manifest(config: RunConfig) -> list[Path]:
    return sorted(config.root.rglob("manifest.json"))


def test_every_stage_must_be_complete(config: RunConfig):
    manifests = every_manifest(config)
    assert len(manifests) > 30
    for path in manifests:
        content = path.read_bytes()
        path.unlink()
        assert not is_current(config), path
        path.write_bytes(content)
    assert is_current(config)


def test_every_file_must_be_complete(config: RunConfig):
    files = sorted(config.root.rglob("*.safetensors"))
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"?")
        assert not is_current(config), path
        path.unlink()
        assert not is_current(config), path
        path.write_bytes(content)
    assert is_current(config)


@pytest.mark.parametrize("name", ["model/model.safetensors", "prompts.jsonl", "mine.jinja", "judge/config.json"])
def test_every_external_file_must_be_unchanged(config: RunConfig, tmp_path: Path, name: str):
    path = tmp_path / name
    content = path.read_bytes()
    for changed in (content + b" ", b"", content.replace(b"e", b"E", 1)):
        path.write_bytes(changed)
        assert not is_current(config)
    path.unlink()
    assert not is_current(config)
    path.write_bytes(content)
    assert is_current(config)


def test_another_file_in_the_models_folder_is_another_model(config: RunConfig, tmp_path: Path):
    (tmp_path / "model" / "added.json").write_text("{}")
    assert not is_current(config)


def test_after_a_stage_is_remade_with_another_result_the_run_must_be_finished_again(config: RunConfig):
    path = config.root / "iter_1" / "test" / "scores"
    manifest = json.loads((path / "manifest.json").read_text())
    set_aside(path)
    path.mkdir()
    manifest["fingerprint"] = "another"
    (path / "manifest.json").write_bytes(signed(manifest))
    assert not is_current(config)
    mark_finished(config, SUMMARY, REPORT)
    assert is_current(config)


def signed(manifest: dict[str, object]) -> bytes:
    """A manifest with the checksum that fits it."""
    from tpo.storage.store import _to_json, _with_checksum

    return _to_json(_with_checksum(manifest))


def test_a_manifest_without_external_files_is_checked_by_the_recipe(config: RunConfig):
    """Manifests of earlier versions don't: such a run is checked stage by stage."""
    path = config.root / "iter_1" / "samples" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["external"].keys() == {str(config.prompt.user_template), config.model.path}
    del manifest["external"]
    path.write_bytes(signed(manifest))
    assert not is_current(config)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda noted: {**noted, "code": "0.0.1"},
        lambda noted: {**noted, "config": "another"},
        lambda noted: {**noted, "stages": {**noted["stages"], "iter_9/pairs": "f"}},
        lambda noted: {**noted, "stages": None},
        lambda noted: {},
        lambda noted: [noted],
    ],
)
def test_a_missing_note_or_one_of_another_version_makes_nothing_current(
    config: RunConfig, spoil: Callable[[dict[str, object]], object]
):
    path = config.root / FINISHED
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    assert not is_current(config)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null"])
def test_an_unreadable_note_makes_nothing_current(config: RunConfig, content: bytes):
    (config.root / FINISHED).write_bytes(content)
    assert not is_current(config)
    (config.root / FINISHED).unlink()
    assert not is_current(config)


@pytest.mark.parametrize("name", [SUMMARY, REPORT])
def test_its_results_must_be_those_made_from_its_stages(config: RunConfig, name: str):
    """For example if a run is killed after its report, or between a remade stage and its report."""
    content = (config.root / name).read_bytes()
    (config.root / name).write_bytes(content + b" ")
    assert not is_current(config)
    (config.root / name).unlink()
    assert not is_current(config)
    (config.root / name).write_bytes(content)
    assert is_current(config)


def test_a_run_interrupted_while_being_extended_stays_current_up_to_its_former_end(config: RunConfig):
    stage = Stage(config.root, "iter_3/prompts", Prompt, inputs={}, config={})
    stage.begin()
    assert is_current(config)
    stage.commit(0)
    assert is_current(config)


def test_leftovers_that_no_stage_remakes_do_not_make_a_run_outdated(config: RunConfig, tmp_path: Path):
    """Such as a comparison's judgments of another run that has changed since, or a stage of another config."""
    (tmp_path / "theirs").write_text("1")
    made(config, "iter_1/against/judgments", external_file(tmp_path / "theirs"))
    made(config, "iter_9/samples", External("x"))
    mark_finished(config, SUMMARY, REPORT)
    assert is_current(config)
    (tmp_path / "theirs").write_text("2")
    (config.root / "iter_9" / "samples" / "manifest.json").write_text("{")
    assert not is_current(config)
    mark_finished(config, SUMMARY, REPORT)
    assert is_current(config)


@pytest.mark.parametrize("earlier", [{"theirs": "at another path"}, None], ids=["elsewhere", "not named"])
def test_a_stage_found_complete_records_its_files_as_they_are_now(
    config: RunConfig, tmp_path: Path, earlier: dict[str, str] | None
):
    """A model that was moved, or a run of an earlier version, costs one start without work."""
    (tmp_path / "theirs").write_text("1")
    stage = made(config, "iter_1/extra", external_file(tmp_path / "theirs"))
    named = {str(tmp_path / "theirs"): stage.inputs["source"]}
    path = stage.folder / "manifest.json"
    path.write_bytes(signed({**json.loads(path.read_text()), "external": earlier}))
    before = stage.manifest()
    artifact = stage.complete()
    after = stage.manifest()
    assert before and after and artifact and after.external == named
    assert dataclasses.replace(after, external=earlier, checksum="") == dataclasses.replace(before, checksum="")
    mark_finished(config, SUMMARY, REPORT)
    (tmp_path / "theirs").write_text("2")
    assert not is_current(config)
    written = path.stat().st_mtime_ns
    assert stage.complete() == artifact and path.stat().st_mtime_ns == written


def made(config: RunConfig, name: str, source: External) -> Stage:
    stage = Stage(config.root, name, Prompt, inputs={"source": source}, config={})
    stage.begin()
    stage.commit(0)
    return stage


def test_a_model_of_another_run_can_be_the_seed(tmp_path: Path):
    other = a_config(tmp_path)
    finish(other, 1)
    config = a_config(tmp_path, name="next", model={"path": str(other.root / "iter_1" / "model")})
    finish(config, 0)
    assert is_current(config)
    (other.root / "iter_1" / "model" / "model.safetensors").write_bytes(b"another")
    assert not is_current(config)


def test_stages_moved_aside_do_not_count(config: RunConfig):
    aside = config.root / "iter_1" / "pairs.old-1"
    aside.mkdir()
    (aside / "manifest.json").write_text("not read")
    mark_finished(config, SUMMARY, REPORT)
    assert is_current(config)


def test_files_that_ship_with_the_package_are_found_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = a_config(tmp_path, model={"path": "miniature"})
    finish(config, 0)
    named = {path for manifest in every_manifest(config) for path in json.loads(manifest.read_text())["external"]}
    assert "package:tpo/miniature/seed_model" in named and not any(str(ROOT) in path for path in named)
    monkeypatch.chdir(tmp_path)
    assert is_current(config)


@pytest.mark.parametrize("edited", ["prompts/templates/generic.jinja", "prompts/thought.py", "tasks/pair.py"])
def test_wording_and_code_that_identify_stages_count_too(config: RunConfig, tmp_path: Path, edited: str):
    package = tmp_path / "elsewhere"
    for folder in ("prompts", "tasks", "tpo"):
        shutil.copytree(ROOT / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__", "miniature"))
    assert is_current(config, package=package)
    (package / "tasks" / "pair.pyc").write_bytes(b"compiled")
    assert is_current(config, package=package)
    with (package / edited).open("a") as file:
        file.write("\n")
    assert not is_current(config, package=package)


def test_iterations_are_counted_only_under_the_runs_own_config(config: RunConfig):
    assert iterations_made(config) == 2
    assert iterations_made(config.model_copy(update={"seed": 5})) == -1
    (config.root / "iter_1" / "test" / "scores" / "manifest.json").unlink()
    assert iterations_made(config) == 0
