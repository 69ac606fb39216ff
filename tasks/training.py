"""The common part of the stages that train: from a stage to its checkpoints, with progress, booked costs and a budget.

A stopped training, such as one whose budget was spent, resumes from its last checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.spending import training_meter
from tasks.stage import begin
from tpo.config.run import RunConfig
from tpo.config.training import TrainConfig, TrainingConfig
from tpo.console import Advance, progress_bar, say
from tpo.engines.engines import engines_of_run
from tpo.engines.training.checkpoints import trainer_folder
from tpo.engines.training.job import TrainingJob
from tpo.engines.training.rounds import ONLY_ROUND, STATE, TrainingRound
from tpo.engines.training.tracking import Tracked
from tpo.records import Artifact, Demonstration, Epoch, Pair
from tpo.storage.disk import remove
from tpo.storage.ledger import Meter
from tpo.storage.store import SCRATCH, Stage, check_files, combined_sha256, read_manifest, read_rows


def run_training(
    config: RunConfig,
    training: TrainingConfig,
    stage: Stage,
    model: Artifact,
    rows: Artifact,
    *,
    row_type: type[Pair] | type[Demonstration],
    reference: Artifact | None = None,
    place: TrainingRound = ONLY_ROUND,
    carried: Artifact | None = None,
) -> list[Artifact]:
    """The checkpoints of a stage that trains `model` on `rows`, in the order of their epochs.

    `reference` is DPO's reference model, if that isn't `model`; `place` is the training's among an iteration's rounds,
    `carried` the state that the round before left.
    """
    done = stage.complete()
    if done is None:
        begin(stage)
        for used in filter(None, (model, reference, carried)):
            check_files(used)
        place = replace(place, carried=None if carried is None else carried.path)
        epochs = _train(config, training, stage, model.path, read_rows(rows, row_type), reference, place)
        for scratch in SCRATCH:
            remove(stage.folder / scratch)
        facts = {"epochs": len(epochs), "steps": epochs[-1].step, "loss": epochs[-1].loss}
        done = stage.commit_files(facts=facts)
        say(f"{stage.name}: {epochs[-1].step} steps, loss {epochs[0].loss:.3f} → {epochs[-1].loss:.3f}")
    return epoch_artifacts(done)


def _train(
    config: RunConfig,
    training: TrainingConfig,
    stage: Stage,
    model: Path,
    rows: Sequence[Pair | Demonstration],
    reference: Artifact | None,
    place: TrainingRound,
) -> Sequence[Epoch]:
    part, steps = stage.name.removesuffix("/train"), training.steps(len(rows))
    job = TrainingJob(
        model,
        rows,
        stage.folder,
        config=training,
        trainer=config.trainer,
        cluster=config.cluster,
        seed=config.seed,
        reference=None if reference is None else reference.path,
        tracked=Tracked(config.tracking, config.name, part, config.root.resolve()),
        place=place,
    )
    with (
        progress_bar(f"train {part}", steps, "steps") as advance,
        training_meter(config, stage.name, model) as meter,
    ):
        meter.check()
        count = _Steps(rows, training, meter, fresh=not trainer_folder(stage.folder).exists())
        try:
            epochs = engines_of_run().train_model(
                job, progress=lambda finished, _: count.reach(finished, advance), stop=meter.is_spent
            )
        finally:
            count.book()
        if not epochs:
            meter.check()
    return epochs


class _Steps:
    """Counts optimizer steps as tokens spent; steps repeated after a crash count twice.

    Each step counts as the mean step, since rows are shuffled.
    """

    def __init__(
        self, rows: Sequence[Pair | Demonstration], training: TrainingConfig, meter: Meter, *, fresh: bool
    ) -> None:
        an_epoch = -(-len(rows) // training.batch_size)
        self._share = 1 / max(1, an_epoch)
        self._rows = len(rows)
        self._tokens = sum(map(_tokens, rows))
        self._meter = meter
        self._reached = 0 if fresh else None
        self._done = 0
        self._booked = 0

    def reach(self, step: int, advance: Advance) -> None:
        """Updates the progress; books a line now and then."""
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
            answers=round(self._rows * now) - round(self._rows * before),
            tokens_in=round(self._tokens * now) - round(self._tokens * before),
        )


def _tokens(row: Pair | Demonstration) -> int:
    """Tokens that one pass over a row reads."""
    if isinstance(row, Demonstration):
        return len(row.prompt_token_ids) + len(row.output_token_ids)
    return 2 * len(row.prompt_token_ids) + len(row.chosen_token_ids) + len(row.rejected_token_ids)


def training_values(config: RunConfig, training: Mapping[str, Any]) -> dict[str, Any]:
    """The config values that a training's result depends on."""
    trainer = config.trainer
    return {"seed": config.seed, **training, "workers": trainer.workers, "strategy": trainer.strategy}


def training_without_effect(section: str, training: TrainingConfig) -> set[str]:
    """Values of a training that only affect how it is computed, and those that its other values leave unused.

    Different micro-batches change the result by rounding only: they may change after an out-of-memory error, and the
    training resumes.
    """
    names = {"micro_batch_size", "packing", "gradient_checkpointing"}
    if training.lr_scheduler == "constant":
        names.add("warmup_share")
    if isinstance(training, TrainConfig):
        if training.loss != "irpo":
            names.add("alpha")
        if training.divergence != "alpha_divergence":
            names.add("divergence_alpha")
    return {f"{section}.{name}" for name in names}


def epoch_artifacts(train: Artifact) -> list[Artifact]:
    """The checkpoints of a training stage, in the order of its epochs; those that weren't kept are left out."""
    manifest = read_manifest(train.path)
    assert manifest is not None
    epochs = [epoch_artifact(train, epoch) for epoch in range(1, manifest.facts["epochs"] + 1)]
    return [epoch for epoch in epochs if epoch.rows]


def epoch_artifact(train: Artifact, epoch: int) -> Artifact:
    """One checkpoint of a training stage as a model artifact; its hashes come from the manifest."""
    return _part(train.path, f"epoch_{epoch}")


def state_after(checkpoint: Artifact) -> Artifact:
    """What a round that ended with `checkpoint` left for the next one."""
    return _part(checkpoint.path.parent, STATE)


def _part(folder: Path, name: str) -> Artifact:
    """A folder of a training stage's files as an artifact."""
    manifest = read_manifest(folder)
    prefix = f"{name}/"
    files = [
        {**file, "name": file["name"].removeprefix(prefix)}
        for file in (manifest.files if manifest else ())
        if file["name"].startswith(prefix)
    ]
    return Artifact(folder / name, len(files), combined_sha256(files))
