"""Claims about engines on several nodes: a killed node loses and duplicates no row, and one that joins is used.

On real clusters of `ray start` processes: a head and two nodes, one of which is killed during work, and one that joins.
"""

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.faults.cluster import Cluster
from tests.faults.cluster_driver import STOP

pytestmark = [pytest.mark.story("a cluster", 120), pytest.mark.faults, pytest.mark.timeout(900)]
Outcome = Callable[[str, str, str], None]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without nodes yet; everything ends with the test. Sockets need the folder's short path."""
    folder = Path(tempfile.mkdtemp(prefix="tpo-"))
    made: list[Cluster] = []
    try:
        made.append(Cluster(folder))
        yield made[0]
    finally:
        for cluster in made:
            cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


class Driver:
    """A driver of a cluster, and the events that it reported."""

    def __init__(self, cluster: Cluster, what: str, folder: Path) -> None:
        self.process = cluster.drive(what, str(folder))
        self.events: list[dict[str, Any]] = []

    def until(self, enough: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Reads events until there are enough."""
        assert self.process.stdout is not None
        while not enough(self.events):
            line = self.process.stdout.readline()
            assert line, f"the driver ended early, having reported {self.events[-3:]}"
            if line.startswith("{"):
                self.events.append(json.loads(line))

    def end(self) -> int:
        """Reads to the end; the exit status."""
        assert self.process.stdout is not None
        self.events += [json.loads(line) for line in self.process.stdout if line.startswith("{")]
        return self.process.wait()


@pytest.fixture
def drive(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[[str], Driver]]:
    """Starts drivers, and ends them before their cluster ends."""
    drivers: list[Driver] = []

    def start(what: str) -> Driver:
        drivers.append(Driver(cluster, what, tmp_path))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.process.kill()
        driver.process.wait()


def nodes_of(events: list[dict[str, Any]]) -> Counter[str]:
    return Counter(line["node"] for line in events)


def test_a_killed_node_loses_and_duplicates_nothing_and_one_that_joins_is_used(
    cluster: Cluster, drive: Callable[[str], Driver], tmp_path: Path, outcome: Outcome
):
    cluster.add(cpus=2)
    dying = cluster.add(cpus=2)
    driver = drive("square")
    driver.until(lambda events: len(nodes_of(events)) == 2 and min(nodes_of(events).values()) >= 5)
    dying.kill()
    before = len(driver.events)
    cluster.add(cpus=3)
    driver.until(lambda events: len(nodes_of(events)) == 3 and nodes_of(events).most_common()[-1][1] >= 5)
    (tmp_path / STOP).touch()
    assert driver.end() == 0
    indices = [line["index"] for line in driver.events]
    assert sorted(indices) == list(range(len(indices))) and len(indices) > before
    assert all(line["value"] == line["index"] ** 2 for line in driver.events)
    outcome("kill -9 of a node's raylet", "engines on a cluster", "its shards are redone; its engines move elsewhere")
    outcome("a node joins", "engines on a cluster", "waiting engines start there")


def test_an_engine_of_several_gpus_spans_nodes_and_gives_them_back(cluster: Cluster, drive: Callable[[str], Driver]):
    for _ in range(2):
        cluster.add(cpus=1, gpus=1)
    driver = drive("span")
    assert driver.end() == 0
    *squares, held, left = driver.events
    assert sorted(line["index"] for line in squares) == [0, 1, 2, 3]
    assert all(len(set(line["nodes"])) == 2 for line in squares)
    assert held == {"held": 2} and left == {"gpus": 2, "states": ["REMOVED"]}


def test_real_engines_sample_the_same_if_one_dies_with_its_node(
    cluster: Cluster, drive: Callable[[str], Driver], tmp_path: Path, outcome: Outcome
):
    for node in (cluster.add(cpus=1), cluster.add(cpus=1)):
        dying = node
    driver = drive("sample")
    driver.until(lambda events: events[-1:] == [{"begins": "disturbed"}])
    while len(shards(tmp_path / "disturbed")) < 5:
        assert driver.process.poll() is None
        time.sleep(0.02)
    dying.kill()
    assert driver.end() == 0
    undisturbed, disturbed = (line for line in driver.events if "ends" in line)
    assert undisturbed["rows"] == disturbed["rows"] == 1600
    assert undisturbed["fingerprint"] == disturbed["fingerprint"]
    expected, found = shards(tmp_path / "undisturbed"), shards(tmp_path / "disturbed")
    assert [path.read_bytes() for path in expected] == [path.read_bytes() for path in found] and len(found) == 50
    rows = Counter((row["prompt_id"], row["index"]) for path in found for row in pq.read_table(path).to_pylist())
    assert len(rows) == 1600 and set(rows.values()) == {1}
    outcome("kill -9 of a node's raylet", "sample", "its shard is redone with the same bytes")


def shards(run: Path) -> list[Path]:
    return sorted((run / "iter_1/samples").glob("*.parquet"))
