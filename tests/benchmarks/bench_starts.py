"""Starts of engines and judges in each iteration of a run shaped like the profile `llama3-8b-armorm` (row 5).

Eight engines, eight scorers and eight training workers share eight GPUs, ten epochs an iteration are validated. Ray,
the pools and the flow are real; the GPUs are only counted by Ray, and engines, scorers and the trainer answer almost at
once. A start is a new process of an engine or a scorer: on real GPUs it takes half a minute to two minutes.

Run with `python -m tests.benchmarks.bench_starts`; takes a few minutes.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import measure
from tests.benchmarks.bench_own_time import a_run
from tests.faults.mock_engines import mock_train_model
from tests.without_prefect import without_prefect
from tpo.config.base import SHIPPED_MODELS
from tpo.config.run import RunConfig
from tpo.engines.cluster.processes import LOOPBACK, QUIET
from tpo.engines.engines import Engines
from tpo.engines.training.job import TrainingJob
from tpo.records import Epoch
from tpo.run_context import RunContext, using

GPUS, EPOCHS, ITERATIONS = 8, 10, 3
SHARD_SECONDS = 1.0
"""Time that a shard takes, so that an engine doesn't do all before the others are ready."""
STARTS = "STARTS"
"""The environment variable with the folder in which starts are noted."""


class _Counted:
    def __init__(self, *_: Any) -> None:
        (Path(os.environ[STARTS]) / f"{self.kind}-{os.getpid()}").touch()

    kind = ""

    def load(self, *_: Any) -> None:
        """Does nothing."""

    def sleep(self) -> None:
        """Does nothing."""

    def read_gpus(self) -> list[Any]:
        """None."""
        return []


class CountedEngine(_Counted):
    """Notes its start; writes outputs of different lengths."""

    kind = "engine"

    def generate(self, requests: Sequence[Any], _: Any, n: int, *__: Any) -> list[list[Any]]:
        """Outputs that parse."""
        from tpo.engines.inference.sampler import Output

        def output(seed: int) -> Any:
            words = "right " * (1 + seed % 7)
            text = f"Here is my thought process: {words}\nHere is my response: {words}"
            return Output([seed % 97, 5, 2], text, True, 1)

        time.sleep(SHARD_SECONDS)
        return [[output(request.seed + j) for j in range(n)] for request in requests]


class CountedScorer(_Counted):
    """Notes its start; prefers short chats."""

    kind = "judge"

    def score(self, groups: Sequence[Sequence[Any]]) -> list[list[list[float]]]:
        """One value per chat."""
        time.sleep(SHARD_SECONDS)
        return [[[-float(len(chat.token_ids))] for chat in group] for group in groups]


class CountedEngines(Engines):
    """The product's pools with these actors, and a trainer that holds its GPUs for a moment."""

    def sampler_pool(self, *arguments: Any, **options: Any) -> Any:
        return with_actor(super().sampler_pool(*arguments, **options), CountedEngine)

    def scorer_pool(self, *arguments: Any, **options: Any) -> Any:
        return with_actor(super().scorer_pool(*arguments, **options), CountedScorer)

    def train_model(self, job: TrainingJob, *, progress: Callable[..., None], **_: Any) -> list[Epoch]:
        import ray
        from ray.util.placement_group import placement_group, remove_placement_group

        self._room.make("GPU", GPUS)
        held = placement_group([{"GPU": 1}] * GPUS)
        ray.get(held.ready())
        try:
            return mock_train_model(job, progress)
        finally:
            remove_placement_group(held)


def main() -> None:
    """Counts and prints."""
    chosen = measure.options(__doc__, threads=1)
    import ray

    with tempfile.TemporaryDirectory() as folder, without_prefect():
        os.environ.update(QUIET | LOOPBACK | {STARTS: str(Path(folder) / "starts")})
        Path(os.environ[STARTS]).mkdir()
        ray.init(
            address="local", num_cpus=2, num_gpus=GPUS, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR", _node_ip_address="127.0.0.1",
        )  # fmt: skip
        engines = CountedEngines()
        with using(RunContext(engines=engines)):
            later = _count(_like_8b(Path(folder)))[2:]
        engines.close()
    worst = {kind: max(starts[kind] for starts in later) for kind in later[0]}
    what = (
        f"starts an iteration of 8 engines and 8 judges on 8 GPUs, {EPOCHS} epochs: engines {worst['engine']:g}, judges"
    )
    limit = "none: both sleep while others have their GPUs"
    row = measure.Row(5, what, "one a checkpoint", "engines 0, judges 1", worst["judge"], 0, worst["judge"], limit)
    measure.report(row, as_json=chosen.json)


def _count(config: RunConfig) -> list[dict[str, float]]:
    """The starts of each iteration by kind, from M_0, in units of all engines."""
    from flows.iterate import iterate

    seen, found = {"engine": 0, "judge": 0}, []
    print("starts, in units of eight engines or eight scorers at once")
    for t in range(ITERATIONS + 1):
        iterate(config, t)
        now = {kind: len([*Path(os.environ[STARTS]).glob(f"{kind}-*")]) for kind in seen}
        found.append({kind: (now[kind] - seen[kind]) / GPUS for kind in seen})
        print(f"M_{t}: " + ", ".join(f"{kind} {starts:g}" for kind, starts in found[-1].items()), flush=True)
        seen = now
    return found


def _like_8b(folder: Path) -> RunConfig:
    on_gpus = {"count": GPUS, "device": "gpu", "shard_prompts": 1}
    judge = {"kind": "armorm", "model": str(SHIPPED_MODELS["miniature"].parent / "armorm")}
    values = a_run(folder, 4 * GPUS, "miniature").model_dump(mode="json", exclude_defaults=True)
    changes = {
        "judge": judge,
        "evaluation": {"judge": judge},
        "engine": on_gpus,
        "judge_engine": on_gpus,
        "trainer": {"workers": GPUS, "device": "gpu", "strategy": "fsdp"},
        "train": {**values.get("train", {}), "epochs": EPOCHS, "batch_size": GPUS, "micro_batch_size": 1},
        "data": {**values["data"], "validation": 2 * GPUS, "test": 2 * GPUS},
        "pair": {"rho": 0.0},
    }
    return RunConfig.model_validate({**values, **changes})


def with_actor(pool: Any, actor: type) -> Any:
    """A pool whose processes are these actors."""
    pool.actor_pool._role = dataclasses.replace(pool.actor_pool._role, make=actor)
    return pool


if __name__ == "__main__":
    main()
