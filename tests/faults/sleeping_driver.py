"""Pools of sleeping actors on a Ray of four GPUs that don't exist; prints what happened, as JSON."""

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.rows import a_config
from tpo.engines.cluster.actor_pool import ActorPool, JobSpec, Remedies
from tpo.engines.cluster.placement import Role
from tpo.engines.cluster.processes import LOOPBACK, QUIET
from tpo.engines.cluster.room import Room
from tpo.engines.engines import Engines

GPUS = 4


class Sleeper:
    """Notes its starts, and works only while it is awake."""

    def __init__(self, folder: str, how: str) -> None:
        self._how = how
        self._is_awake = False
        (Path(folder) / str(os.getpid())).touch()

    def load(self) -> None:
        self._is_awake = True

    def sleep(self) -> None:
        if self._how == "insomnia":
            raise RuntimeError("it can't sleep")
        self._is_awake = False

    def read_gpus(self) -> list[Any]:
        return []

    def work(self, number: int) -> tuple[int, str, int]:
        assert self._is_awake
        time.sleep(0.02)
        return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], 2 * number


def pool_of(folder: Path, room: Room, how: str = "", count: int = GPUS) -> ActorPool:
    folder.mkdir(exist_ok=True)
    role = Role("sleeper", Sleeper, (str(folder), how), cpus=0, gpus=1, environment={}, sleeps=True)
    return ActorPool(role, count, room)


def worked(pool: ActorPool, actors: int = GPUS) -> dict[str, Any]:
    """Gives the pool work until each of its actors has done some."""
    spec = JobSpec[int](
        prepare=lambda actor: actor.load.remote(),
        submit=lambda actor, number: actor.work.remote(number),
        fault=lambda number, result: None if result[2] == 2 * number else "wrong",
        seconds=60,
        start_seconds=120,
        model="numbers",
        remedies=Remedies(memory="", late=""),
    )
    found = dict[int, str]()
    work = itertools.takewhile(lambda _: len(found) < actors, itertools.count())
    for _, (pid, gpu, _) in pool.work(work, spec):
        found[pid] = gpu
    return {"pids": sorted(found), "gpus": sorted(found.values())}


def main(folder: Path) -> None:
    import ray

    os.environ.update(QUIET | LOOPBACK)
    ray.init(
        address="local", num_cpus=2, num_gpus=GPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )  # fmt: skip
    room = Room()
    first, second = pool_of(folder / "first", room), pool_of(folder / "second", room)
    sleepless = pool_of(folder / "sleepless", room, "insomnia", count=1)
    rounds = [{name: worked(pool) for name, pool in (("first", first), ("second", second))} for _ in range(3)]
    worked(sleepless, 1)
    held = {"first": first.holds("GPU"), "second": second.holds("GPU")}
    room.make("GPU", GPUS)
    starts = {name: len(list((folder / name).iterdir())) for name in ("first", "second", "sleepless")}
    worked(sleepless, 1)
    again = len(list((folder / "sleepless").iterdir()))
    first.close()
    after_close = worked(first)
    fits = {
        f"{engines} + {workers} on {device}": Engines().fit_beside_training(
            a_config(
                folder,
                engine={"count": engines, "device": device},
                trainer={"workers": workers, "device": device},
                train={"micro_batch_size": 8},
            )
        )
        for engines, workers, device in ((2, 2, "gpu"), (3, 2, "gpu"), (1, 1, "cpu"))
    }
    found = {"rounds": rounds, "held": held, "starts": starts, "again": again, "after_close": after_close, "fits": fits}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
