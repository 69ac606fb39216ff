"""Trains: one DPO step from M_{t-1} on the iteration's pairs.

In: a model and `Pair`s. Out: a checkpoint an epoch, each a model folder of safetensors; validation chooses among them.
A training that was stopped goes on from where it was.
"""

import shutil

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.lineage import epoch_artifact, train_stage
from tpo.config import RunConfig
from tpo.console import progress_bar, say
from tpo.engines.trainer import train_dpo
from tpo.records import Artifact, Pair
from tpo.store import check_files, read_rows


@task(name="train", task_run_name="train iteration {iteration}", cache_policy=NO_CACHE)
def train(config: RunConfig, iteration: int, model: Artifact, pairs: Artifact) -> list[Artifact]:
    """The checkpoints of one DPO step, in the order of their epochs."""
    stage = train_stage(config, iteration, model, pairs)
    done = stage.complete()
    if done is None:
        for change in stage.begin():
            say(f"{stage.name}: made again, {change}")
        rows = read_rows(pairs, Pair)
        check_files(model)
        steps = config.train.epochs * -(-len(rows) // config.train.batch_size)
        with progress_bar(f"train iter_{iteration}", steps, "steps") as advance:
            epochs = train_dpo(
                model.path,
                rows,
                stage.folder,
                config=config.train,
                trainer=config.trainer,
                cluster=config.cluster,
                seed=config.seed,
                progress=lambda finished, _: advance(finished),
            )
        for scratch in ("dataset", "ray", "trainer"):
            shutil.rmtree(stage.folder / scratch, ignore_errors=True)
        done = stage.commit_files(facts={"steps": epochs[-1].step, "loss": epochs[-1].loss})
        say(f"{stage.name}: {epochs[-1].step} steps, loss {epochs[0].loss:.3f} → {epochs[-1].loss:.3f}")
    return [epoch_artifact(done, epoch) for epoch in range(1, config.train.epochs + 1)]
