"""The common part of the stages that train: from a stage to its checkpoints, with progress, booked costs and a budget.

A stopped training, such as one whose budget was spent, resumes from its last checkpoint.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.spending import device_name, training_meter
from tasks.stage import begin
from tpo.config.run import RunConfig
from tpo.config.training import TrainConfig, TrainingConfig
from tpo.console import Advance, progress_bar, say
from tpo.engines.engines import engines_of_run
from tpo.engines.training.checkpoints import references_of, trainer_folder
from tpo.engines.training.job import TrainingJob
from tpo.engines.training.rounds import ONLY_ROUND, STATE, TrainingRound
from tpo.engines.training.tracking import Tracked
from tpo.errors import InputError
from tpo.models.shape import find_model
from tpo.planning.model_flops import TrainingLoad, peak_tflops, training_load
from tpo.planning.throughput import counted
from tpo.records import Artifact, Demonstration, Epoch, Pair
from tpo.run_context import run_context
from tpo.storage.disk import remove
from tpo.storage.ledger import Meter, read_ledger
from tpo.storage.store import SCRATCH, Stage, StoredRows, check_files, combined_sha256, read_manifest


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
        epochs = _train(config, training, stage, model.path, StoredRows(rows, row_type), reference, place)
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
    rows: Collection[Pair | Demonstration],
    reference: Artifact | None,
    place: TrainingRound,
) -> Sequence[Epoch]:
    part, steps = stage.name.removesuffix("/train"), training.steps(len(rows))
    metrics = run_context().metrics
    tokens = sum(map(_tokens, rows))
    load = _load(config, training, stage, model, rows, tokens)
    job = TrainingJob(
        model,
        rows,
        stage.folder,
        config=training,
        trainer=config.trainer,
        cluster=config.cluster,
        seed=config.seed,
        reference=None if reference is None else reference.path,
        tracked=Tracked(config.tracking, config.name, part, config.root.resolve(), load, _before(config.root, part)),
        place=place,
    )
    with (
        progress_bar(f"train {part}", steps, "steps") as advance,
        training_meter(config, stage.name, model) as meter,
        metrics.training(load.peak) as show,
    ):
        meter.check()
        speed = _Speed(load, show, metrics.advanced)
        count = _Steps(len(rows), tokens, training, meter, speed, fresh=not trainer_folder(stage.folder).exists())
        try:
            epochs = engines_of_run().train_model(
                job,
                progress=lambda finished, total: count.reach(finished, advance, begun=total > 0),
                stop=meter.is_spent,
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
        self,
        rows: int,
        tokens: int,
        training: TrainingConfig,
        meter: Meter,
        speed: "_Speed",
        *,
        fresh: bool,
    ) -> None:
        an_epoch = -(-rows // training.batch_size)
        self._share = 1 / max(1, an_epoch)
        self._rows, self._tokens = rows, tokens
        self._meter = meter
        self._speed = speed
        self._reached = 0 if fresh else None
        self._done = 0
        self._booked = 0

    def reach(self, step: int, advance: Advance, *, begun: bool) -> None:
        """Updates the progress; books a line now and then. `begun` is false during the reference's pass."""
        self._meter.started()
        new = max(0, step - self._reached) if self._reached is not None else 0
        self._speed.reach(new, begun=begun)
        advance(step)
        self._done += new
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


class _Speed:
    """Shows how fast a training is, from its first report on."""

    def __init__(
        self,
        load: TrainingLoad,
        show: Callable[[float, float | None], None],
        advanced: Callable[[float], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._show = show
        self._advanced = advanced
        self._clock = clock
        self._began: float | None = None
        self._reference = load.reference_flops
        self._flops = 0.0

    def reach(self, steps: int, *, begun: bool) -> None:
        """Takes the optimizer steps made since the last call, and whether the reference's pass is over."""
        now = self._clock()
        if self._began is None:
            self._began = now
            self._advanced(0)
            if self._load.step_flops is not None:
                self._show(0.0, None)
        flops = steps * (self._load.step_flops or 0.0)
        if begun:
            flops, self._reference = flops + self._reference, 0.0
        if steps:
            self._advanced(steps * self._load.step_tokens)
        if flops:
            self._flops += flops
            self._show(flops, self._load.mfu(self._flops, now - self._began))


def _load(
    config: RunConfig,
    training: TrainingConfig,
    stage: Stage,
    model: Path,
    rows: Collection[Pair | Demonstration],
    tokens: int,
) -> TrainingLoad:
    """The arithmetic of a training on rows of `tokens` tokens in all; says once why there is no MFU, unless it runs on
    CPUs."""
    gpu = device_name(config, "gpu") if config.trainer.device == "gpu" else None
    try:
        shape = find_model(model).shape
    except InputError:
        shape = None
    if gpu is not None:
        unknown = f"the shape of {config.model.path}" if shape is None else f"the peak of {gpu}"
        message = f"MFU is not shown: {unknown} is not known"
        if (shape is None or peak_tflops(gpu) is None) and run_context().metrics.is_new(message):
            say(message)
    return training_load(
        rows,
        training,
        tokens=tokens,
        shape=shape,
        gpu=gpu,
        workers=config.trainer.workers,
        reference=isinstance(training, TrainConfig) and not references_of(stage.folder).exists(),
    )


def _before(root: Path, part: str) -> dict[str, float]:
    """What the stages before an iteration's training measured, for its tracker, by the ledger."""
    found = {}
    for name, work in (("sampling", "sample"), ("judging", "judge")):
        entries = [
            entry for entry in read_ledger(root) if entry.work == work and entry.stage.rpartition("/")[0] == part
        ]
        tokens = sum(counted(work, entry.tokens_in, entry.tokens_out) for entry in entries)
        seconds = sum(entry.seconds - entry.start_seconds for entry in entries)
        if tokens and seconds > 0:
            found[f"{name}_tokens_per_second"] = tokens / seconds
    if (errors := run_context().metrics.errors_of("judge")) is not None:
        found["judging_errors"] = errors
    return found


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
