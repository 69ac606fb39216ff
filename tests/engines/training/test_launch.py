"""Claims about the trainer that need no training: its first check, and how the driver reports failures.

Resuming: test_resume.py; with Ray: tests/faults/test_trainer_killed.py and end_to_end/.
"""

import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from tests.engines.training.worker_group import TIMEOUT_S, run_workers
from tpo.config.resources import ClusterConfig, TrainerConfig
from tpo.config.training import TrainConfig
from tpo.engines.training.dpo_trainer import check_first_loss
from tpo.engines.training.group import _torch_config, death_of
from tpo.errors import StageError, StoreError

DIED = WorkerHealthCheckFailedError("A worker health check failed.", failure=ActorDiedError())
KILLED = WorkerHealthCheckFailedError("", failure=OutOfMemoryError("killed due to the node running low on memory"))
UNREADABLE = WorkerHealthCheckFailedError("", failure=TypeError("no such argument"))
LOST = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1024")


@pytest.mark.parametrize(("precision", "loss"), [("float32", math.log(2) + 5e-5), ("bfloat16", math.log(2) - 0.015)])
def test_a_first_loss_of_ln_2_up_to_rounding_passes(precision: str, loss: float):
    check_first_loss(loss, TrainConfig.model_validate({"precision": precision}))


@pytest.mark.parametrize("loss", [0.533382, 2.533382, 0.6934, 0.0, math.inf, math.nan])
def test_any_other_first_loss_says_that_the_reference_is_not_the_model(loss: float):
    """0.533382 is the DPO loss of golden vector G12 (SPEC §7), whose policy has already left its reference."""
    with pytest.raises(StageError, match=r"expected ln 2 = 0\.693147: the reference log-probs are not those"):
        check_first_loss(loss, TrainConfig())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WorkerGroupError("", {0: DIED}), "a worker died"),
        (WorkerGroupError("", {0: LOST, 1: DIED}), "a worker died"),
        (WorkerGroupError("", {0: LOST}), "a worker died"),
        (WorkerGroupError("", {0: LOST, 1: KILLED}), "a worker ran out of memory"),
        (ControllerError(WorkerGroupStartupFailedError()), "a worker died"),
        (ActorDiedError(), "a worker died"),
    ],
    ids=["died", "another died", "another was lost", "ran out of memory", "died as it started", "the controller died"],
)
def test_a_workers_death_is_not_an_error_of_the_training(error: Exception, message: str):
    assert death_of(error) == message


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (WorkerGroupError("", {0: StageError("no pairs")}), "^training failed: no pairs$"),
        (WorkerGroupError("", {0: StoreError("the disk is full")}), "^training failed: the disk is full$"),
        (WorkerGroupError("", {0: LOST, 1: StageError("no pairs")}), "^training failed: no pairs$"),
        (WorkerGroupError("", {0: DIED, 1: StageError("no pairs")}), "^training failed: no pairs$"),
        (WorkerGroupError("where", {0: KeyError("x")}), r"^training failed: KeyError: 'x'\n[\s\S]*where"),
        (WorkerGroupError("", {0: UNREADABLE}), "TypeError: no such argument"),
        (WorkerGroupError("", {0: MemoryError()}), "lower train.micro_batch_size"),
        (WorkerGroupError("", {0: RuntimeError("CUDA out of memory")}), "lower train.micro_batch_size"),
        (
            ControllerError(WorkerGroupStartupTimeoutError(9)),
            "not started all of 9 workers in time: .* lower trainer.w",
        ),
        (ControllerError(ValueError("no such backend")), "ValueError: no such backend"),
    ],
)
def test_the_trainings_own_error_is_reported_and_not_its_consequences(error: Exception, message: str):
    with pytest.raises(StageError, match=message):
        death_of(error)


@pytest.mark.parametrize("cluster", [ClusterConfig(), ClusterConfig(address="auto")], ids=["one machine", "cluster"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_workers_wait_for_each_other_longer_than_for_a_step(cluster: ClusterConfig, device: str):
    trainer = TrainerConfig.model_validate({"device": device, "stall_seconds": 7200.5})
    assert _torch_config(trainer, cluster, Path("rendezvous")).timeout_s > 7200.5


def test_a_process_group_has_the_given_timeout():
    def waits() -> None:
        group = dist.group.WORLD
        assert group is not None
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=TIMEOUT_S)

    run_workers(2, waits)
