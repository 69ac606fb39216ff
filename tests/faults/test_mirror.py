"""Claims about the mirror, on a real S3 server: the bucket never shows half a stage as complete, and loses nothing.

A machine is a folder with a working copy in it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faulty_proxy import Asked, Fault, FaultyProxy
from tests.rows import a_prompt
from tests.s3_server import S3Server, new_url
from tpo.config.run import RunConfig
from tpo.engines.training import checkpoints
from tpo.errors import DamagedError, StoreError
from tpo.records import Artifact, Prompt
from tpo.storage.bucket import Bucket, Version
from tpo.storage.disk import bring_here, make_folder, mirrored_by, write_atomically
from tpo.storage.journal import Journal, read_journal
from tpo.storage.lock import only_writer
from tpo.storage.mirror import BucketMirror, hand_over, helping, reading, writing
from tpo.storage.store import Stage, check_files, read_manifest, read_rows

LARGE = 6 * 2**20
"""Size in bytes above which a file is fetched only when used."""
SHARDS = 2

pytestmark = pytest.mark.faults

Machine = Callable[[str], RunConfig]


@pytest.fixture
def machine(s3: S3Server, tmp_path: Path) -> Machine:
    """Configs of one run on several machines."""
    url = new_url()
    return lambda name: RunConfig(name="run", folder=url, storage=s3.storage(tmp_path / name))


@contextmanager
def at_work(config: RunConfig) -> Iterator[Path]:
    with only_writer(config.root), writing(config):
        yield config.root


def a_stage(root: Path, k: int = 1) -> Stage:
    return Stage(root, "samples", Prompt, inputs={}, config={"k": k})


def rows(shard: int, k: int = 1) -> list[Prompt]:
    return [a_prompt(f"{k}-{shard}-{i}") for i in range(2)]


def make(root: Path, k: int = 1, made: list[int] | None = None) -> Artifact:
    stage = a_stage(root, k)
    if (done := stage.complete()) is not None:
        return done
    stage.begin(shard_size=2)
    for shard in range(SHARDS):
        if not stage.has_shard(shard):
            stage.write_shard(shard, rows(shard, k))
            if made is not None:
                made.append(shard)
    return stage.commit(SHARDS)


def check(done: Artifact, k: int) -> None:
    assert read_rows(done, Prompt) == [row for shard in range(SHARDS) for row in rows(shard, k)]


def bucket_of(config: RunConfig) -> Bucket:
    return Bucket(config.place, config.storage)


class Crash(Exception):
    """The end of the process."""


def crash_at(change: int) -> Callable[[], None]:
    """Ends the process before that change in the bucket."""
    remaining = iter(range(change - 1))

    def check() -> None:
        if next(remaining, None) is None:
            raise Crash

    return check


def test_wherever_a_process_ends_the_bucket_has_a_complete_stage_or_none(
    machine: Machine, s3: S3Server, tmp_path: Path
):
    """A complete stage is remade from another config: moved aside, written, committed."""
    crashes = 0
    while True:
        crashes += 1
        config = RunConfig(name="run", folder=new_url(), storage=s3.storage(tmp_path / f"first {crashes}"))
        with at_work(config) as root:
            make(root, k=1)
        mirror = BucketMirror(config.root, bucket_of(config), config.storage, crash_at(crashes))
        try:
            with mirrored_by(mirror):
                make(config.root, k=2)
            break
        except Crash:
            pass
        other = config.model_copy(update={"storage": s3.storage(tmp_path / f"other {crashes}")})
        with reading(other):
            for k in (1, 2):
                if (done := a_stage(other.root, k).complete()) is not None:
                    check(done, k)
            manifests = [read_manifest(folder) for folder in other.root.glob("samples*")]
            assert any(manifest is not None and manifest.config["k"] == 1 for manifest in manifests), "lost"
        with at_work(other) as root:
            check(make(root, k=2), 2)
            assert set(bucket_of(other).versions("samples/")) == {
                path.relative_to(root).as_posix() for path in (root / "samples").iterdir()
            }
    assert crashes == 1 + 3 * (2 * SHARDS + 2)


def test_what_did_not_reach_the_bucket_is_uploaded_next_time_and_not_remade(
    s3: S3Server, proxy: FaultyProxy, tmp_path: Path, outcome: Callable[[str, str, str], None]
):
    storage = s3.storage(tmp_path / "first", endpoint_url=proxy.endpoint, max_attempts=2)
    config = RunConfig(name="run", folder=new_url(), storage=storage)
    for file in ("part-00001.parquet", "part-00001.seal.json", "manifest.json"):

        def script(request: Asked, file: str = file) -> Fault | None:
            return Fault(cut_request=True) if request.method == "PUT" and request.path.endswith(file) else None

        proxy.script, made = script, list[int]()
        with pytest.raises(StoreError, match="saved on this machine; rerun"), at_work(config) as root:
            make(root, made=made)
    assert made == []
    proxy.script = lambda request: None
    with at_work(config) as root:
        check(make(root, made=made), 1)
    assert made == []
    other = config.model_copy(update={"storage": s3.storage(tmp_path / "other")})
    with reading(other):
        done = a_stage(other.root).complete()
        assert done is not None
        check(done, 1)
    outcome(
        "the bucket is away for longer than requests are retried",
        "a bucket",
        "stops, says so; later uploads what is missing",
    )


def test_a_machine_with_an_old_working_copy_takes_what_the_bucket_has(
    machine: Machine, capsys: pytest.CaptureFixture[str]
):
    with at_work(machine("first")) as first:
        stage = a_stage(first, k=1)
        stage.begin(shard_size=2)
        stage.write_shard(0, rows(0))
    (first / "samples/part-00007.parquet").write_bytes(b"on its way when the machine went away")
    with at_work(machine("other")) as other:
        make(other, k=2)
    with at_work(machine("first")) as first:
        assert "removed" in capsys.readouterr().err
        done = a_stage(first, k=2).complete()
        assert done is not None
        check(done, 2)
        assert not (first / "samples/part-00007.parquet").exists()
    assert bucket_of(machine("first")).version("samples/part-00007.parquet") is None


def test_a_bucket_that_was_emptied_does_not_empty_the_working_copy(machine: Machine):
    config = machine("first")
    with at_work(config) as root:
        make(root)
    bucket = bucket_of(config)
    for name in bucket.versions():
        bucket.delete(name)
    with pytest.raises(StoreError, match=r"is empty, but .* is a working copy"), at_work(config):
        pass
    assert a_stage(config.root).complete() is not None


def a_model(root: Path) -> Stage:
    return Stage(root, "model", "Model", inputs={}, config={})


def make_model(root: Path) -> bytes:
    stage, weights = a_model(root), os.urandom(LARGE)
    stage.begin()
    (stage.folder / "config.json").write_bytes(b"{}")
    (stage.folder / "model.safetensors").write_bytes(weights)
    stage.commit_files()
    return weights


def test_a_large_file_is_fetched_only_when_used(machine: Machine):
    with at_work(machine("first")) as root:
        weights = make_model(root)
    with at_work(machine("other")) as root:
        done = a_model(root).complete()
        assert done is not None and (root / "model/config.json").exists()
        assert not (root / "model/model.safetensors").exists()
        check_files(done)
        assert (root / "model/model.safetensors").read_bytes() == weights


def test_a_file_damaged_here_is_fetched_again(
    machine: Machine, capsys: pytest.CaptureFixture[str], outcome: Callable[[str, str, str], None]
):
    with at_work(machine("first")) as root:
        weights = make_model(root)
        (root / "model/model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        done = a_model(root).complete()
        assert done is not None
        check_files(done)
        assert (root / "model/model.safetensors").read_bytes() == weights
        assert "downloaded again" in capsys.readouterr().err
    outcome("a file of the working copy is damaged", "a bucket", "fetched again")


def test_a_file_damaged_in_the_bucket_is_noticed(machine: Machine, tmp_path: Path):
    config = machine("first")
    with at_work(config) as root:
        weights = make_model(root)
    (tmp_path / "wrong").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    bucket_of(config).put("model/model.safetensors", tmp_path / "wrong")
    with at_work(machine("other")) as root:
        done = a_model(root).complete()
        assert done is not None
        with pytest.raises(DamagedError, match="does not match the hash"):
            check_files(done)


def test_a_journal_resumes_from_the_bucket_or_on_the_same_machine_from_its_own_copy(s3: S3Server, tmp_path: Path):
    url = new_url()
    first = RunConfig(name="run", folder=url, storage=s3.storage(tmp_path / "first", journal_seconds=0))
    with at_work(first) as root, Journal(root / "judgments/journal-00000.jsonl") as journal:
        make_folder(root / "judgments")
        journal.write("question", "answer")
    with (root / "judgments/journal-00000.jsonl").open("ab") as file:  # what a killed process hadn't uploaded
        file.write((root / "judgments/journal-00000.jsonl").read_bytes().replace(b"question", b"question"))
    size = (root / "judgments/journal-00000.jsonl").stat().st_size
    with at_work(first):
        assert (root / "judgments/journal-00000.jsonl").stat().st_size == size
    other = first.model_copy(update={"storage": s3.storage(tmp_path / "other")})
    with at_work(other) as root:
        assert read_journal(root / "judgments/journal-00000.jsonl").answers == {"question": "answer"}
        assert (root / "judgments/journal-00000.jsonl").stat().st_size == size


def train(folder: Path, step: int) -> None:
    """Leaves what a trainer does after an epoch: its model and a sealed checkpoint."""
    make_folder(folder)
    temporary = folder / ".epoch_1.tmp"
    if not checkpoints.epoch_folder(folder, 1).is_dir():
        temporary.mkdir()
        (temporary / "model.safetensors").write_bytes(b"epoch 1")
        checkpoints.publish(temporary, checkpoints.epoch_folder(folder, 1))
    place = checkpoints.trainer_folder(folder) / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "optimizer.pt").write_bytes(bytes([step]) * LARGE)
    checkpoints.keep_only(folder, checkpoints.seal_checkpoint(place, step=step, epochs=1))


def test_a_training_resumes_elsewhere_from_the_checkpoint_that_a_worker_sealed(machine: Machine):
    with at_work(machine("first")) as root:
        handover = hand_over()
        assert handover is not None
        code = """
import pickle, sys
from pathlib import Path
from tests.faults.test_mirror import train
from tpo.storage.mirror import helping
handover = pickle.loads(sys.stdin.buffer.read())
with helping(handover, handover.root / "train"):
    train(handover.root / "train", 5)
    train(handover.root / "train", 9)
"""
        import pickle

        subprocess.run([sys.executable, "-c", code], input=pickle.dumps(handover), check=True)
        left = root / "train/trainer/checkpoint-12"
        left.mkdir()
        (left / "optimizer.pt").write_bytes(b"half")
    with at_work(machine("other")) as root:
        found = checkpoints.tidy(root / "train")
        assert found is not None and (found.step, found.epochs) == (9, 1)
        assert (found.folder / "optimizer.pt").read_bytes() == bytes([9]) * LARGE
        assert (root / "train/epoch_1/model.safetensors").read_bytes() == b"epoch 1"


def test_a_worker_whose_driver_has_lost_the_bucket_writes_no_more(machine: Machine):
    with at_work(machine("first")):
        handover = hand_over()
    assert handover is not None
    with helping(handover), pytest.raises(StoreError, match="stops writing"):
        write_atomically(handover.root / "late.json", b"{}")
    assert bucket_of(machine("first")).version("late.json") is None


class StrangeBucket(Bucket):
    """Has objects of any name, which the test server refuses."""

    names: tuple[str, ...] = ()

    def versions(self, under: str = "") -> dict[str, Version]:
        return {name: Version(4, "1-1") for name in self.names if name.startswith(under)}

    def download(self, name: str, version: Version, path: Path) -> None:
        path.write_bytes(b"evil")


def test_no_object_escapes_the_working_copy(s3: S3Server, tmp_path: Path):
    root, out = tmp_path / "run", tmp_path / "evil"
    root.mkdir()
    bucket = StrangeBucket(new_url(), s3.storage(tmp_path))
    bucket.names = (
        str(out),
        f"train/{out}",
        "../evil",
        "train/../../evil",
        "train//evil",
        "train/",
        ".hidden",
        "train/a",
    )
    mirror = BucketMirror(root, bucket, s3.storage(tmp_path), lambda: None)
    mirror.pull(same_copy=False)
    mirror.catch_up(root / "train")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == ["run/train/a"]


def test_locks_and_temporary_files_stay_here(machine: Machine):
    with at_work(machine("first")) as root:
        make_folder(root / "train")
        write_atomically(root / ".holder.json", b"{}")
        write_atomically(root / "train/.epoch_1.tmp", b"{}")
        write_atomically(root / "summary.json", b"{}")
    assert bucket_of(machine("first")).versions().keys() == {".lease.json", "summary.json"}


def test_a_run_in_a_folder_has_no_bucket(tmp_path: Path):
    config = RunConfig(name="run", folder=tmp_path)
    with reading(config), writing(config):
        assert hand_over() is None
        bring_here(tmp_path)
    script = "import sys, flows.cli.main, flows.preflight; print([m for m in sys.modules if 'boto' in m])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
