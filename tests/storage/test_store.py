"""Claims about the run folder: what is written is either complete or absent, and damage is noticed."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rows import a_prompt
from tpo.errors import DamagedError, StoreError
from tpo.records import (
    Artifact,
    Demonstration,
    Epoch,
    External,
    Generation,
    Judgment,
    Pair,
    Prompt,
    RowCounts,
    Sample,
    Score,
)
from tpo.storage.disk import write_atomically
from tpo.storage.store import (
    FORMAT,
    READ_AT_ONCE,
    Stage,
    check_files,
    combined_sha256,
    folder_artifact,
    read_manifest,
    read_rows,
    remaking_damaged,
)

ROWS = [a_prompt("a"), a_prompt("b", reference="no")]


def a_stage(
    root: Path, name: str = "prompts", *, record: type | str = Prompt, model: str = "m0", **config: Any
) -> Stage:
    return Stage(root, name, record, inputs={"model": External(model)}, config=config)


def made(stage: Stage, *shards: list[Prompt]) -> Stage:
    stage.begin()
    for i, rows in enumerate(shards or [ROWS]):
        stage.write_shard(i, rows)
    stage.commit(len(shards) or 1)
    return stage


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        list[int]: st.lists(st.integers(0, 2**31 - 1)),
        list[str]: st.lists(st.text()),
        list[float]: st.lists(st.floats(allow_nan=False)),
        type(None): st.none(),
    }
    return (
        plain[hint]
        if hint in plain
        else st.one_of([values_of(o) if o in plain else st.just(o) for o in get_args(hint)])
    )


def rows_of(record: type) -> st.SearchStrategy[list[Any]]:
    hints = get_type_hints(record)
    return st.lists(st.builds(record, **{f.name: values_of(hints[f.name]) for f in dataclasses.fields(record)}))


RECORDS = (Prompt, Generation, Sample, Judgment, Score, Pair, Demonstration, Epoch)
"""The records that can be stored."""


@pytest.mark.parametrize("record", RECORDS)
@settings(max_examples=10)
@given(data=st.data())
def test_what_is_stored_is_read_again(record: type, data: st.DataObject):
    shards = data.draw(st.lists(rows_of(record), max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        stage = a_stage(Path(folder), record=record)
        stage.begin()
        for i, rows in enumerate(shards):
            stage.write_shard(i, rows)
        artifact = stage.commit(len(shards))
        assert read_rows(artifact, record) == [row for rows in shards for row in rows]
        assert artifact.rows == sum(map(len, shards))


@dataclasses.dataclass(frozen=True)
class EarlierPrompt:
    """A prompt from before it could have constraints."""

    prompt_id: str
    instruction: str
    reference: str | None = None
    category: str | None = None
    difficulty: int | None = None
    demonstration: str | None = None


EarlierPrompt.__name__ = "Prompt"


def test_rows_from_before_a_record_had_a_field_are_read_with_its_default(tmp_path: Path):
    stage = a_stage(tmp_path, record=EarlierPrompt)
    stage.begin()
    stage.write_shard(0, [EarlierPrompt(*list(vars(row).values())[:6]) for row in ROWS])
    artifact = stage.commit(1)
    assert read_rows(artifact, Prompt) == ROWS


def test_equal_rows_have_equal_fingerprints_and_others_do_not(tmp_path: Path):
    first, same, other = (
        made(a_stage(tmp_path, name), rows).complete() for name, rows in (("1", ROWS), ("2", ROWS), ("3", ROWS[::-1]))
    )
    assert first and same and other
    assert first.fingerprint == same.fingerprint != other.fingerprint


def test_only_its_manifest_makes_a_stage_complete(tmp_path: Path):
    stage = a_stage(tmp_path)
    assert stage.complete() is None
    stage.begin()
    assert stage.complete() is None
    stage.write_shard(0, ROWS)
    assert stage.complete() is None
    artifact = stage.commit(1, account=RowCounts(3, 2, {"empty": 1}), facts={"rho": 0.2})
    assert a_stage(tmp_path).complete() == artifact
    manifest = read_manifest(stage.folder)
    assert manifest is not None
    assert (manifest.account, manifest.facts) == ({"rows_in": 3, "rows_out": 2, "dropped": {"empty": 1}}, {"rho": 0.2})


@pytest.mark.parametrize("other", [{"model": "m1"}, {"k": 3}, {"nested": {"a": 2}}, {"new": 1}])
def test_a_stage_made_from_anything_else_is_not_complete(tmp_path: Path, other: dict[str, Any]):
    made(a_stage(tmp_path, k=2, nested={"a": 1}))
    assert a_stage(tmp_path, **{"k": 2, "nested": {"a": 1}, **other}).complete() is None


def test_a_changed_stage_is_moved_aside_whole_and_the_message_names_what_changed(tmp_path: Path):
    made(a_stage(tmp_path, k=2, source={"path": "a"}))
    changes = a_stage(tmp_path, model="m1", k=4, source={"path": "a"}).begin()
    assert changes == ["input model", "k: 2 → 4"]
    aside = tmp_path / "prompts.old-1"
    assert read_manifest(aside) is not None
    assert (aside / "part-00000.parquet").exists()
    assert a_stage(tmp_path, model="m1", k=5).begin() == ["k: 4 → 5", "source.path: 'a' → None"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts", "prompts.old-1", "prompts.old-2"]


def test_shards_of_an_unfinished_stage_are_kept(tmp_path: Path):
    stopped = a_stage(tmp_path)
    stopped.begin(shard_size=1)
    stopped.write_shard(1, ROWS[1:])
    resumed = a_stage(tmp_path)
    assert resumed.begin(shard_size=1) == []
    assert [resumed.has_shard(i) for i in range(3)] == [False, True, False]
    resumed.write_shard(0, ROWS[:1])
    assert read_rows(resumed.commit(2), Prompt) == ROWS


def test_a_resumed_stage_keeps_its_shard_size(tmp_path: Path):
    stopped = a_stage(tmp_path)
    stopped.begin(shard_size=50)
    stopped.write_shard(0, ROWS)
    resumed = a_stage(tmp_path)
    assert resumed.begin(shard_size=10) == []
    assert resumed.shard_size == 50
    assert resumed.has_shard(0)


def test_a_shard_without_its_seal_does_not_count(tmp_path: Path):
    stage = a_stage(tmp_path)
    stage.begin()
    stage.write_shard(0, ROWS)
    (stage.folder / "part-00000.seal.json").unlink()
    assert not stage.has_shard(0)


@pytest.mark.parametrize("expected", [1, 3])
def test_a_stage_that_lacks_a_shard_is_not_committed(tmp_path: Path, expected: int):
    stage = a_stage(tmp_path)
    stage.begin()
    stage.write_shard(2, ROWS)
    with pytest.raises(StoreError, match=rf"part-00000\.parquet was never written, expected {expected} shards"):
        stage.commit(expected)


def test_a_stage_with_other_rows_than_it_accounts_for_is_not_committed(tmp_path: Path):
    stage = a_stage(tmp_path)
    stage.begin()
    stage.write_shard(0, ROWS)
    with pytest.raises(StoreError, match="has 2 rows, expected 3"):
        stage.commit(1, account=RowCounts(3, 3, {}))
    assert stage.complete() is None


def test_partial_files_of_a_killed_process_are_removed(tmp_path: Path):
    stage = a_stage(tmp_path)
    stage.begin()
    (stage.folder / ".part-00000.parquet.123.tmp").write_bytes(b"half")
    a_stage(tmp_path).begin()
    assert [path.name for path in stage.folder.iterdir()] == ["plan.json"]


def test_a_folder_that_no_stage_made_is_never_deleted(tmp_path: Path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "mine.txt").write_text("precious")
    a_stage(tmp_path).begin()
    assert (tmp_path / "prompts.old-1" / "mine.txt").read_text() == "precious"


def test_a_stage_of_files_is_identified_by_the_content_of_all_of_them(tmp_path: Path):
    stage = a_stage(tmp_path, "model", record="Model")
    stage.begin()
    (stage.folder / "epoch_1").mkdir()
    (stage.folder / "epoch_1" / "model.safetensors").write_bytes(b"weights")
    (stage.folder / "log.jsonl").write_bytes(b"{}")
    artifact = stage.commit_files(facts={"steps": 3})
    manifest = read_manifest(stage.folder)
    assert manifest is not None
    assert [file["name"] for file in manifest.files] == ["epoch_1/model.safetensors", "log.jsonl"]
    assert artifact.fingerprint == manifest.fingerprint == combined_sha256(manifest.files)


def test_an_external_model_folder_is_identified_by_the_content_of_its_files(tmp_path: Path):
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "model.safetensors").write_bytes(weights)
    a, b, c = (folder_artifact(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_a_large_file_of_a_model_folder_is_not_read_again_at_every_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    with weights.open("wb") as file:
        file.truncate(READ_AT_ONCE + 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    first = folder_artifact(weights.parent)
    assert folder_artifact(weights.parent, read=lambda path: pytest.fail(f"{path} is read again")) == first


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


Damage = Callable[[Path], object]
DAMAGES: dict[str, Damage] = {
    "a flipped bit": flip_a_bit,
    "a cut end": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "a missing file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_is_noticed_when_it_is_read(tmp_path: Path, damage: Damage):
    stage = made(a_stage(tmp_path))
    artifact = stage.complete()
    assert artifact is not None
    damage(stage.shard(0))
    with pytest.raises(StoreError, match=r"part-00000\.parquet"):
        read_rows(artifact, Prompt)


def test_a_missing_or_cut_file_is_noticed_before_anything_is_read(tmp_path: Path):
    stage = made(a_stage(tmp_path))
    stage.shard(0).write_bytes(b"short")
    with pytest.raises(StoreError, match=r"not \d+ bytes long.*move .* away and rerun"):
        stage.complete()


def test_rows_are_not_read_as_another_record_type(tmp_path: Path):
    artifact = made(a_stage(tmp_path)).complete()
    assert artifact is not None
    with pytest.raises(StoreError, match="has no complete Score rows"):
        read_rows(artifact, Score)


def test_rows_without_a_manifest_are_not_read(tmp_path: Path):
    stage = made(a_stage(tmp_path))
    artifact = stage.complete()
    assert artifact is not None
    (stage.folder / "manifest.json").unlink()
    assert stage.complete() is None
    with pytest.raises(StoreError, match="run the stage that writes them"):
        read_rows(artifact, Prompt)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json"])
def test_another_format_is_refused_with_the_version_that_wrote_it(tmp_path: Path, name: str):
    stage = a_stage(tmp_path)
    stage.begin()
    (stage.folder / name).write_text(json.dumps({"format": FORMAT + 1, "code": "9.9", "whatever": 1}))
    pattern = rf"format {FORMAT + 1}, expected {FORMAT}: use the version that wrote it \(9\.9\)"
    with pytest.raises(StoreError, match=pattern):
        _ = stage.complete(), stage.begin()
    assert (stage.folder / name).exists()


BROKEN = ["", "{", "[]", "null", "\ufeff{}", "{}", f'{{"format": {FORMAT}, "stage": "x"}}', '{"format": "new"}']


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_manifest_is_damage(tmp_path: Path, text: str):
    stage = made(a_stage(tmp_path))
    (stage.folder / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=r"manifest\.json .* move .* away and rerun"):
        stage.complete()


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_plan_restarts_the_stage_and_keeps_the_old_files(tmp_path: Path, text: str):
    stage = a_stage(tmp_path)
    stage.begin()
    stage.write_shard(0, ROWS)
    (stage.folder / "plan.json").write_text(text)
    (change,) = a_stage(tmp_path).begin()
    assert "plan.json" in change
    assert (tmp_path / "prompts.old-1" / "part-00000.parquet").exists()
    assert not stage.has_shard(0)


@pytest.mark.parametrize("text", BROKEN)
def test_a_shard_with_a_broken_seal_is_remade(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]):
    stage = a_stage(tmp_path)
    stage.begin()
    stage.write_shard(0, ROWS)
    (stage.folder / "part-00000.seal.json").write_text(text)
    assert not stage.has_shard(0)
    assert "part-00000.seal.json" in capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_shard_of_an_unfinished_stage_is_remade(
    tmp_path: Path, damage: Damage, capsys: pytest.CaptureFixture[str]
):
    stage = a_stage(tmp_path)
    stage.begin()
    stage.write_shard(0, ROWS)
    damage(stage.shard(0))
    assert not a_stage(tmp_path).has_shard(0)
    assert "part-00000.parquet does not match its seal: redone" in capsys.readouterr().err
    stage.write_shard(0, ROWS)
    assert read_rows(stage.commit(1), Prompt) == ROWS


@pytest.mark.parametrize(
    ("name", "damage"),
    [("part-00000.parquet", damage) for damage in DAMAGES.values()] + [("manifest.json", flip_a_bit)],
)
def test_a_damaged_stage_is_moved_aside_and_remade_with_the_same_fingerprint(tmp_path: Path, name: str, damage: Damage):
    first = made(a_stage(tmp_path)).complete()
    assert first is not None
    damage(first.path / name)

    def make() -> Artifact:
        found = a_stage(tmp_path).complete() or made(a_stage(tmp_path)).complete()
        assert found is not None
        read_rows(found, Prompt)
        return found

    assert remaking_damaged(make) == first
    assert (tmp_path / "prompts.old-1").is_dir()


def test_a_stage_that_is_damaged_again_at_once_is_an_error(tmp_path: Path):
    def make() -> None:
        stage = made(a_stage(tmp_path))
        flip_a_bit(stage.shard(0))
        artifact = stage.complete()
        assert artifact is not None
        read_rows(artifact, Prompt)

    with pytest.raises(DamagedError, match=r"part-00000\.parquet is damaged"):
        remaking_damaged(make)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_noticed_before_it_is_used(tmp_path: Path, damage: Damage):
    stage = a_stage(tmp_path, "train", record="Model")
    stage.begin()
    for epoch in ("epoch_1", "epoch_2"):
        (stage.folder / epoch).mkdir()
        (stage.folder / epoch / "model.safetensors").write_bytes(b"weights")
    stage.commit_files()
    damage(stage.folder / "epoch_2" / "model.safetensors")
    check_files(Artifact(stage.folder / "epoch_1", 1, "first"))
    for folder in (stage.folder / "epoch_2", stage.folder):
        with pytest.raises(DamagedError, match=r"epoch_2.model\.safetensors") as caught:
            check_files(Artifact(folder, 1, "second"))
        assert caught.value.folder == stage.folder


def test_none_in_a_field_that_does_not_allow_it_is_refused_before_it_is_stored(tmp_path: Path):
    stage = a_stage(tmp_path)
    stage.begin()
    with pytest.raises(ValueError, match="instruction"):
        stage.write_shard(0, [Prompt("p", None)])  # type: ignore[arg-type]
    assert not stage.has_shard(0)


def test_a_file_is_replaced_atomically(tmp_path: Path):
    path = tmp_path / "config.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("config.json", b"new")]


def test_a_write_that_fails_leaves_no_temporary_file_and_the_old_content(tmp_path: Path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "by").write_text("someone")
    with pytest.raises(StoreError, match="taken"):
        write_atomically(tmp_path / "taken", b"data")
    assert [p.name for p in tmp_path.rglob("*")] == ["taken", "by"]


def test_an_account_that_does_not_add_up_is_a_bug():
    with pytest.raises(AssertionError, match="lost count"):
        RowCounts(rows_in=3, rows_out=1, dropped={"tie": 1})
