"""Claims about the whole command on a run in a bucket: a machine is lost while it trains, and another one goes on.

Prefect, Ray, vLLM and TRL on the miniature; the bucket is a real S3 server's.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.compare import difference
from tests.faults.real_run import BY_NAME, LONGEST, Run
from tests.s3_server import S3Server, new_url
from tpo.bucket import Bucket
from tpo.config import StorageConfig
from tpo.summary import read_summary

pytestmark = [pytest.mark.faults, pytest.mark.end_to_end, pytest.mark.timeout(1800)]
SECONDS = 60.0
"""To see, on a busy machine and from an empty disk, that there is nothing to do."""


def a_machine(folder: Path, storage: StorageConfig, url: str) -> Run:
    """The command on a machine that knows nothing but where the bucket is."""
    folder.mkdir()
    settings = [f"storage.endpoint_url={storage.endpoint_url}", f"storage.cache={folder / 'cache'}"]
    return Run(folder, folder / "log.txt", f'folder="{url}"', "storage.lease_seconds=10", *settings)


def copy_of(folder: Path) -> Path:
    (root,) = (folder / "cache").glob("*/run")
    return root


def test_a_run_whose_machine_is_lost_while_it_trains_ends_as_it_would_have_on_another(
    s3: S3Server, tmp_path: Path, outcome: Callable[[str, str, str], None]
):
    storage, url = s3.storage(tmp_path), new_url()
    bucket = Bucket(f"{url}/run", storage)
    lost = a_machine(tmp_path / "lost", storage, url)
    while not (sealed := [n for n in bucket.versions("iter_1/train/trainer/") if n.endswith(".seal.json")]):
        assert lost.end(0.1) is None, (tmp_path / "lost/log.txt").read_text()[-4000:]
    BY_NAME["everything is killed at once"].hit(lost, random.Random(0))
    lost.end(60.0)
    lost.clear()
    assert bucket.version("iter_1/train/manifest.json") is None, f"it had trained already: {sealed}"

    other = a_machine(tmp_path / "other", storage, url)
    assert other.end(LONGEST) == 0, (tmp_path / "other/log.txt").read_text()[-4000:]
    said = (tmp_path / "other/log.txt").read_text()
    assert "which ended without a word" in said and f"Report: {url}/run/report.html" in said
    assert other.clear() == 0, "processes outlived the run"
    assert {"summary.json", "report.html", "config.json"} <= bucket.versions().keys()
    assert not [name for name in bucket.versions() if "/trainer/" in name or "/dataset/" in name or ".tmp" in name]

    expected = tmp_path / "expected"
    expected.mkdir()
    alone = Run(expected, expected / "log.txt")
    assert alone.end(LONGEST) == 0, (expected / "log.txt").read_text()[-4000:]
    assert alone.clear() == 0
    assert not difference(expected / "run", copy_of(tmp_path / "other"))

    started = time.monotonic()
    third = a_machine(tmp_path / "third", storage, url)
    assert third.end(SECONDS) == 0
    print(f"from an empty disk, nothing to do: {time.monotonic() - started:.1f} s")
    assert "nothing to do" in (tmp_path / "third/log.txt").read_text()
    assert read_summary(copy_of(tmp_path / "third") / "summary.json").models[-1].model == "M_1"
    assert not difference(expected / "run", copy_of(tmp_path / "third"))
    outcome("everything is killed while it trains, the disk is lost", "the whole command, in a bucket", "recovers")
