"""Claims about crashes: in any state of the disk, a stage reads as complete with its rows or as missing.

The real code runs once, and its file operations are recorded. Each state that a crash may leave (`crash_states`) is
read with the real code, which is then rerun. `python -m tests.faults.test_crash_states` prints the states by
scenario.
"""

import contextlib
import datetime
import functools
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.crash_states import Disk, Explored, Explorer, Operation, Scenario, State, recording, standing, table
from tests.rows import a_prompt
from tests.sampling import exhaustive, seed
from tpo.errors import DamagedError
from tpo.records import Artifact, External, Prompt
from tpo.storage.disk import write_atomically
from tpo.storage.journal import SYNC_SECONDS, Journal, read_journal
from tpo.storage.store import Clock, Stage, check_files, read_manifest, read_rows, remaking_damaged

ORDER = (2, 0, 1)
"""Shards finish in any order."""
STATES = 10_000 if exhaustive() else 900
"""Minimum number of distinct states: drawn anew for each commit, or 10,000 in `make exhaustive`."""
DRAW = {} if exhaustive() else {"limit": 10, "recoveries": 6, "seed": seed()}

pytestmark = pytest.mark.faults

Operations = list[Operation]


class OneMoment(Clock):
    """A clock that stands still, so that manifests differ only if stages do."""

    def now(self) -> datetime.datetime:
        return datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def monotonic(self) -> float:
        return 0.0


MOMENT = OneMoment()


def a_stage(root: Path, k: int = 1) -> Stage:
    return Stage(root, "prompts", Prompt, inputs={"model": External("m0")}, config={"k": k}, clock=MOMENT)


def rows(index: int, k: int = 1) -> list[Prompt]:
    return [a_prompt(f"{k}-{index}-{i}") for i in range(2)]


def all_rows(k: int = 1) -> list[Prompt]:
    return [row for index in sorted(ORDER) for row in rows(index, k)]


def make(root: Path, k: int = 1) -> Artifact:
    """Makes the stage as a task does: keeps it if complete, else resumes it."""
    stage = a_stage(root, k)
    if (done := stage.complete()) is not None:
        return done
    stage.begin(shard_size=2)
    for index in ORDER:
        if not stage.has_shard(index):
            stage.write_shard(index, rows(index, k))
    return stage.commit(len(ORDER))


def read(root: Path, k: int = 1) -> frozenset[str]:
    """The complete stages, in place or moved aside; checks that each has its own rows."""
    found = {k: a_stage(root, k).complete()}
    for folder in root.glob("prompts*"):
        manifest = read_manifest(folder)
        if manifest is not None and found.get(manifest.config["k"]) is None:
            assert folder.name != "prompts" or manifest.config["k"] != k
            found[manifest.config["k"]] = Artifact(folder, manifest.rows, manifest.fingerprint)
    done = {config: artifact for config, artifact in found.items() if artifact is not None}
    for config, artifact in done.items():
        assert (read_rows(artifact, Prompt), artifact.fingerprint) == (all_rows(config), fingerprint(config))
    return frozenset(f"k={config}" for config in done)


@functools.cache
def fingerprint(k: int) -> str:
    """The fingerprint of an undisturbed stage."""
    with standing() as root:
        return make(root, k).fingerprint


def stop_halfway(root: Path) -> None:
    """Leaves what a process that died would: one shard sealed, one complete without its seal, one half written, one
    damaged."""
    stage = a_stage(root)
    stage.begin(shard_size=2)
    for index in (0, 1):
        stage.write_shard(index, rows(index))
    stage.shard(1).with_suffix(".seal.json").unlink()
    (stage.folder / ".part-00002.parquet.77.tmp").write_bytes(stage.shard(0).read_bytes()[:100])


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5] + b"wrong")


def stop_halfway_with_damage(root: Path) -> None:
    stop_halfway(root)
    damage(a_stage(root).shard(0))


def make_damaged(root: Path) -> None:
    damage(make(root).path / "part-00001.parquet")


def make_and_read(root: Path) -> Artifact:
    def made_and_read() -> Artifact:
        artifact = make(root)
        read_rows(artifact, Prompt)
        return artifact

    return remaking_damaged(made_and_read)


def read_around_damage(root: Path) -> frozenset[str]:
    """What is there: the damaged stage, in place or moved aside, and the one made instead."""
    damaged = [path for path in root.glob("prompts*/part-00001.parquet") if path.read_bytes().endswith(b"wrong")]
    there = {"damaged" for path in damaged if (path.parent / "manifest.json").exists()}
    try:
        done = a_stage(root).complete()
        assert done is None or (read_rows(done, Prompt), done.fingerprint) == (all_rows(), fingerprint(1))
    except DamagedError as error:
        if "part-00001" not in error.what or error.folder not in [path.parent for path in damaged]:
            raise
        done = None
    return frozenset(there | ({"made"} if done else set()))


MODEL = {f"epoch_{n}/{name}": f"{n} {name} ".encode() * 9 for n in (1, 2) for name in ("config.json", "weights")}


def a_model(root: Path) -> Stage:
    return Stage(root, "model", "Model", inputs={"pairs": External("p")}, config={}, clock=MOMENT)


def make_model(root: Path) -> None:
    """Writes files as another process would, without syncing, then commits."""
    stage = a_model(root)
    if stage.complete() is not None:
        return
    stage.begin()
    for name, data in MODEL.items():
        path = stage.folder / name
        if not path.parent.is_dir():
            sys.audit("tpo.mkdir", str(path.parent))
            path.parent.mkdir()
        sys.audit("tpo.write", str(path), data)
        path.write_bytes(data)
    stage.commit_files()


def read_model(root: Path) -> frozenset[str]:
    done = a_model(root).complete()
    if done is None:
        return frozenset()
    check_files(done)
    assert {name: (done.path / name).read_bytes() for name in MODEL} == MODEL
    assert done.rows == len(MODEL)
    return frozenset({"model"})


def make_chosen(root: Path) -> None:
    """Makes the stage that chooses an epoch: its files are links to that epoch's."""
    from tasks.validate import _bring_files

    stage = Stage(root, "chosen", "Model", inputs={"model": External("m")}, config={}, clock=MOMENT)
    if stage.complete() is None:
        stage.begin()
        _bring_files(a_model(root).folder / "epoch_2", stage.folder, root)
        stage.commit_files()


def read_chosen(root: Path) -> frozenset[str]:
    done = Stage(root, "chosen", "Model", inputs={"model": External("m")}, config={}, clock=MOMENT).complete()
    if done is None:
        return read_model(root)
    check_files(done)
    for name in ("config.json", "weights"):
        assert (done.path / name).read_bytes() == MODEL[f"epoch_2/{name}"]
    return read_model(root) | {"chosen"}


ANSWERS = {f"question {i}": {"answer": i, "why": "because " * i} for i in range(7)}
SYNCED_AFTER = ("question 2", "question 3")
"""The answers that end a second, at which the journal is synced."""


def ask_all(root: Path) -> None:
    seconds = 0.0
    with Journal(root / "journal-00000.jsonl", clock=lambda: seconds) as journal:
        for key, answer in ANSWERS.items():
            if key not in journal.answers:
                seconds += 2 * SYNC_SECONDS * (key in SYNCED_AFTER)
                journal.write(key, answer)


def ask_all_and_damage_one(root: Path) -> None:
    ask_all(root)
    path = root / "journal-00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"question 2", b"question 8"))


def read_answers(root: Path) -> frozenset[str]:
    answers = read_journal(root / "journal-00000.jsonl").answers
    assert answers.items() <= ANSWERS.items()
    return frozenset(answers)


def answers_synced(done: Sequence[Operation]) -> frozenset[str]:
    """The answers whose line was written before the journal's last sync, or in a second that has ended."""
    syncs = [
        i for i, operation in enumerate(done) if (operation.kind, operation.path) == ("sync", "journal-00000.jsonl")
    ]
    ended = [i for i, key in enumerate(answered(done)[:-1]) if key in SYNCED_AFTER]
    return frozenset(answered(done[: syncs[-1] if syncs else 0]) + answered(done)[: ended[-1] + 1 if ended else 0])


def answered(done: Sequence[Operation]) -> list[str]:
    data = b"".join(operation.data for operation in done if operation.kind == "append")
    return [key for key in ANSWERS if f'["{key}", '.encode() in data]


def read_config(root: Path) -> frozenset[str]:
    data = (root / "config.json").read_bytes()
    assert data in (b"old" * 30, b"new" * 40)
    return frozenset({"new"} if data == b"new" * 40 else set())


NOTHING: Callable[[Path], None] = lambda root: None  # noqa: E731
OLD, NEW = frozenset({"k=1"}), frozenset({"k=2"})
SCENARIOS = {
    "a fresh stage": Scenario(NOTHING, make, read, OLD, tidied="prompts"),
    "an interrupted stage": Scenario(stop_halfway, make, read, OLD, tidied="prompts"),
    "the same with a damaged shard": Scenario(stop_halfway_with_damage, make, read, OLD, tidied="prompts"),
    "a complete stage": Scenario(make, make, read, OLD, kept=OLD, tidied="prompts"),
    "a stage remade from another config": Scenario(
        make,
        functools.partial(make, k=2),
        functools.partial(read, k=2),
        NEW,
        kept=OLD,
        tidied="prompts",
    ),
    "a damaged stage, moved aside and remade": Scenario(
        make_damaged,
        make_and_read,
        read_around_damage,
        frozenset({"made"}),
        kept=frozenset({"damaged"}),
        tidied="prompts",
    ),
    "a model whose files another process wrote": Scenario(
        NOTHING, make_model, read_model, frozenset({"model"}), tidied="model"
    ),
    "a model whose files are links to another's": Scenario(
        make_model,
        make_chosen,
        read_chosen,
        frozenset({"chosen"}),
        kept=frozenset({"model"}),
        tidied="chosen",
    ),
    "a journal": Scenario(NOTHING, ask_all, read_answers, frozenset(ANSWERS), promised=answers_synced),
    "a journal with a damaged line": Scenario(
        ask_all_and_damage_one,
        ask_all,
        read_answers,
        frozenset(ANSWERS),
        kept=frozenset(ANSWERS) - {"question 2"},
        promised=answers_synced,
    ),
    "a replaced file": Scenario(
        lambda root: write_atomically(root / "config.json", b"old" * 30),
        lambda root: write_atomically(root / "config.json", b"new" * 40),
        read_config,
        frozenset({"new"}),
    ),
}


@contextlib.contextmanager
def in_silence() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


@functools.cache
def explored(name: str) -> Explored:
    with in_silence():
        return Explorer(SCENARIOS[name], **DRAW).explore()


@pytest.mark.parametrize("name", SCENARIOS)
def test_after_any_crash_a_stage_is_complete_or_missing_and_can_be_resumed(name: str):
    found = explored(name)
    assert not found.violations, f"{len(found.violations)} of {len(found.found)} states:\n{found.violations[0]}"


@pytest.mark.timeout(900)  # if run alone, on a busy machine
def test_the_minimum_number_of_states_was_visited():
    every = {name: explored(name) for name in SCENARIOS}
    print(the_table(every))
    assert len(set[bytes]().union(*(states.found for states in every.values()))) >= STATES


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_change_is_announced(name: str):
    with in_silence(), standing() as root:
        SCENARIOS[name].before(root)
        with recording(root) as done:
            SCENARIOS[name].command(root)
        assert done.unannounced == []


def sync(path: str) -> Operation:
    return Operation("sync", path)


def rename(path: str, target: str) -> Operation:
    return Operation("rename", path, target)


WRITTEN = Operation("write", "t", data=b"new")
TORN = [b"", b"n", b"ne", b"\0\0\0", b"n\0\0", b"ne\0"]
MODELLED: dict[str, tuple[State, Operations, list[State]]] = {
    "synced content and names are kept": ({}, [WRITTEN, sync("t"), sync(".")], [{"t": b"new"}]),
    "an unsynced name may be lost": ({}, [WRITTEN, sync("t")], [{}, {"t": b"new"}]),
    "unsynced content may be torn": (
        {},
        [WRITTEN, sync(".")],
        [{"t": b"new"}, *({"t": torn} for torn in TORN)],
    ),
    "a rename shows the old or the new": (
        {"f": b"old", "t": b"new"},
        [rename("t", "f")],
        [{"f": b"old", "t": b"new"}, {"f": b"new"}],
    ),
    "a renamed unsynced file may be torn": (
        {"f": b"old"},
        [WRITTEN, rename("t", "f"), sync(".")],
        [{"f": b"new"}, *({"f": torn} for torn in TORN)],
    ),
    "a lost folder takes its content along": (
        {},
        [Operation("mkdir", "d"), Operation("write", "d/t", data=b"new"), sync("d/t"), sync("d")],
        [{}, {"d": None, "d/t": b"new"}],
    ),
    "later changes may survive earlier ones": (
        {"a": b"1", "b": b"2"},
        [Operation("remove", "a"), Operation("remove", "b")],
        [{"a": b"1", "b": b"2"}, {"a": b"1"}, {"b": b"2"}, {}],
    ),
    "a removed tree may be half there": (
        {"d": None, "d/t": b"new"},
        [Operation("remove", "d")],
        [{"d": None, "d/t": b"new"}, {"d": None}, {}],
    ),
    "appended content may have holes": (
        {"f": b"1"},
        [Operation("append", "f", data=b"2"), Operation("append", "f", data=b"3")],
        [{"f": content} for content in (b"1", b"12", b"123", b"1\0", b"12\0", b"1\0\0", b"1\x003")],
    ),
}


@pytest.mark.parametrize("what", MODELLED)
def test_of_a_crash(what: str):
    start, operations, expected = MODELLED[what]
    disk = Disk(start)
    for operation in operations:
        disk.apply(operation)
    found = {frozenset(state.items()) for state in disk.after_crash(random.Random(0), 1000)}
    assert found == {frozenset(state.items()) for state in expected}


def without_syncs(named: str) -> Callable[[Operations], Operations]:
    return lambda operations: [
        operation for operation in operations if operation.kind != "sync" or named not in operation.path
    ]


def without_syncs_of(folder: str) -> Callable[[Operations], Operations]:
    return lambda operations: [
        operation for operation in operations if (operation.kind, operation.path) != ("sync", folder)
    ]


def committed_before_the_last_shard(operations: Operations) -> Operations:
    late = [operation for operation in operations if f"part-{ORDER[-1]:05d}" in operation.path]
    rest = [operation for operation in operations if operation not in late]
    return rest + late


def written_in_place(operations: Operations) -> Operations:
    return [Operation("write", "config.json", data=b"new" * 40), Operation("sync", "config.json")]


SPOILED: dict[str, tuple[str, Callable[[Operations], Operations]]] = {
    "shards are renamed unsynced": ("a fresh stage", without_syncs(".parquet.")),
    "the manifest is renamed unsynced": ("a fresh stage", without_syncs("manifest.json.")),
    "names of shards are not synced": ("a fresh stage", without_syncs_of("prompts")),
    "the stage's own name is not synced": ("a fresh stage", without_syncs_of(".")),
    "the manifest comes first": ("a fresh stage", committed_before_the_last_shard),
    "the move aside is not synced": ("a stage remade from another config", without_syncs_of(".")),
    "files of a model are not synced": ("a model whose files another process wrote", without_syncs("epoch_1/")),
    "folders of a model are not synced": (
        "a model whose files another process wrote",
        without_syncs_of("model/epoch_2"),
    ),
    "answers are not synced": ("a journal", without_syncs("journal")),
    "a file is written in place": ("a replaced file", written_in_place),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_protocol_that_lacks_a_step_is_detected(spoiled: str):
    name, spoil = SPOILED[spoiled]
    with in_silence():
        found = Explorer(SCENARIOS[name], limit=20, recoveries=0, most=1).explore(spoil)
    assert found.violations


def the_table(every: dict[str, Explored]) -> str:
    return table(every, {name: scenario.goal for name, scenario in SCENARIOS.items()})


if __name__ == "__main__":
    print(the_table({name: explored(name) for name in SCENARIOS}))
