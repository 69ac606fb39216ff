"""Trains: one DPO step from M_{t-1} on the iteration's pairs.

In: a model and `Pair`s. Out: a checkpoint an epoch, each a model folder of safetensors; validation chooses among them.
A training that was stopped, as it is when the budget is spent, goes on from where it was.
"""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.lineage import epoch_artifact, train_stage
from tasks.retry import may_pass
from tasks.spending import training_meter
from tpo.config import RunConfig
from tpo.console import Advance, progress_bar, say
from tpo.disk import remove
from tpo.engines.checkpoints import trainer_folder
from tpo.engines.tracking import Tracked
from tpo.engines.trainer import train_dpo
from tpo.ledger import Meter
from tpo.records import Artifact, Pair
from tpo.store import SCRATCH, check_files, read_rows


@task(name="train", task_run_name="train iteration {iteration}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
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
        with (
            progress_bar(f"train iter_{iteration}", steps, "steps") as advance,
            training_meter(config, stage.name, model.path) as meter,
        ):
            meter.check()
            count = _Steps(rows, steps, config.train.epochs, meter, fresh=not trainer_folder(stage.folder).exists())
            try:
                epochs = train_dpo(
                    model.path,
                    rows,
                    stage.folder,
                    config=config.train,
                    trainer=config.trainer,
                    cluster=config.cluster,
                    seed=config.seed,
                    progress=lambda finished, _: count.reach(finished, advance),
                    stop=meter.is_spent,
                    tracked=Tracked(config.tracking, config.name, iteration, config.root.resolve()),
                )
            finally:
                count.book()
            if not epochs:
                meter.check()
        for scratch in SCRATCH:
            remove(stage.folder / scratch)
        done = stage.commit_files(facts={"steps": epochs[-1].step, "loss": epochs[-1].loss})
        say(f"{stage.name}: {epochs[-1].step} steps, loss {epochs[0].loss:.3f} → {epochs[-1].loss:.3f}")
    return [epoch_artifact(done, epoch) for epoch in range(1, config.train.epochs + 1)]


class _Steps:
    """Counts optimiser steps as tokens spent: what is done again after a crash has been done twice.

    A step counts as the mean of all of them, since pairs come shuffled.
    """

    def __init__(self, pairs: Sequence[Pair], steps: int, epochs: int, meter: Meter, *, fresh: bool) -> None:
        self._share = epochs / max(1, steps)
        self._pairs = len(pairs)
        self._tokens = sum(
            2 * len(pair.prompt_token_ids) + len(pair.chosen_token_ids) + len(pair.rejected_token_ids) for pair in pairs
        )
        self._meter = meter
        self._reached = 0 if fresh else None
        self._done = 0
        self._booked = 0

    def reach(self, step: int, advance: Advance) -> None:
        """Takes note of how far the training is; books a line now and then."""
        advance(step)
        self._meter.started()
        if self._reached is not None:
            self._done += max(0, step - self._reached)
        self._reached = step
        if self._meter.tick():
            self.book()

    def book(self) -> None:
        """Books the steps since the last line."""
        before, now = self._booked * self._share, self._done * self._share
        self._booked = self._done
        self._meter.book(
            answers=round(self._pairs * now) - round(self._pairs * before),
            tokens_in=round(self._tokens * now) - round(self._tokens * before),
        )
