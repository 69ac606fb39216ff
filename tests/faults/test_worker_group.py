"""Claims about training workers that outlive a training: the next one ends as in new workers, whatever came before, and
workers that died meanwhile are replaced."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.engines.training.test_resume import some_pairs
from tests.faults.test_trainer_killed import result
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import ClusterConfig, TrainerConfig
from tpo.config.training import TrainConfig
from tpo.engines.cluster.processes import start_ray
from tpo.engines.cluster.room import Room
from tpo.engines.training.group import WorkerGroup
from tpo.engines.training.job import TrainingJob
from tpo.engines.training.launch import train_model
from tpo.errors import StageError

pytestmark = [pytest.mark.drawn(3), pytest.mark.faults, pytest.mark.timeout(900)]
TRAINER = TrainerConfig(threads=1)


@pytest.fixture
def group() -> Iterator[WorkerGroup]:
    start_ray(ClusterConfig())
    with contextlib.closing(WorkerGroup(TRAINER, ClusterConfig(), Room())) as found:
        yield found


def train(group: WorkerGroup, folder: Path, precision: Literal["float32", "bfloat16"]) -> dict[str, bytes]:
    config = TrainConfig(epochs=1, batch_size=8, micro_batch_size=4, precision=precision)
    job = TrainingJob(SHIPPED_SEED_MODEL, some_pairs(24), folder, config, TRAINER, ClusterConfig(), seed=3)
    assert train_model(job, progress=lambda done, total: None, group=group)
    return result(folder)


def workers(group: WorkerGroup) -> list[Any]:
    import ray

    assert group._fit is not None
    return list(ray.get(group._fit.desk.get.remote()).workers)


def test_a_training_ends_as_in_new_workers_whatever_came_before(tmp_path: Path, group: WorkerGroup):
    fresh = train(group, tmp_path / "fresh", "float32")
    first = workers(group)
    train(group, tmp_path / "other", "bfloat16")
    assert train(group, tmp_path / "again", "float32") == fresh
    assert workers(group) == first


def test_workers_that_died_while_idle_are_replaced(tmp_path: Path, group: WorkerGroup):
    import ray

    fresh = train(group, tmp_path / "fresh", "float32")
    (worker,) = workers(group)
    ray.kill(worker)
    assert train(group, tmp_path / "again", "float32") == fresh
    assert workers(group) != [worker]


def test_an_error_of_one_training_does_not_reach_the_next(tmp_path: Path, group: WorkerGroup):
    (tmp_path / "model").mkdir()
    broken = TrainingJob(
        tmp_path / "model", some_pairs(2), tmp_path / "broken", TrainConfig(), TRAINER, ClusterConfig(), seed=0
    )
    with pytest.raises(StageError, match="training failed"):
        train_model(broken, progress=lambda done, total: None, group=group)
    assert train(group, tmp_path / "after", "float32")


def test_workers_make_way_when_idle(tmp_path: Path, group: WorkerGroup):
    group.start_early()
    assert group.holds("CPU") == 1 and group.holds("GPU") == 0
    assert group.make_way("CPU")
    assert group.holds("CPU") == 0
