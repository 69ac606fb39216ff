"""One DPO step from M_{t-1} on an iteration's pairs, or on those of one of its rounds: one checkpoint per epoch, each a
folder of safetensors.

Rounds are one training whose pairs come in parts: each continues from the weights and the optimizer state that the one
before left (`tpo.engines.training.rounds`), with M_{t-1} as the model that both began with. Of a round before the last,
only the last epoch's checkpoint is kept, which the next round samples from.
"""

from typing import Any

from tasks.stage import stage_task
from tasks.training import run_training, training_values, training_without_effect
from tpo.config.renamed import as_noted
from tpo.config.run import RunConfig
from tpo.engines.training.rounds import TrainingRound
from tpo.records import Artifact, Pair
from tpo.storage.store import Stage


@stage_task("train", run_name="train {folder}")
def train(
    config: RunConfig,
    folder: str,
    model: Artifact,
    reference: Artifact,
    pairs: Artifact,
    number: int = 1,
    carried: Artifact | None = None,
) -> list[Artifact]:
    """The checkpoints of one DPO step on `model` with `reference` as reference model, in the order of their epochs.

    `number` is the round's; `carried` is the state that the round before left.
    """
    stage = train_stage(config, folder, model, reference, pairs, number, carried)
    other = None if reference.fingerprint == model.fingerprint else reference
    place = TrainingRound(number, config.train.rounds)
    return run_training(
        config, config.train, stage, model, pairs, row_type=Pair, reference=other, place=place, carried=carried
    )


def train_stage(
    config: RunConfig,
    folder: str,
    model: Artifact,
    reference: Artifact,
    pairs: Artifact,
    number: int = 1,
    carried: Artifact | None = None,
) -> Stage:
    """The checkpoints of one DPO step in `folder`, one model folder per epoch."""
    inputs = {"model": model, "pairs": pairs}
    if reference.fingerprint != model.fingerprint:
        inputs["reference"] = reference
    if carried is not None:
        inputs["state"] = carried
    values: dict[str, Any] = {"train": as_noted(config.train, exclude={"reference", "rounds"})}
    if config.train.rounds > 1:
        values["round"] = {"number": number, "of": config.train.rounds}
    return Stage(
        config.root,
        f"{folder}/train",
        "Model",
        inputs=inputs,
        config=training_values(config, values),
        without_effect=training_without_effect("train", config.train),
    )


def reference_of(config: RunConfig, seed: Artifact, model: Artifact) -> Artifact:
    """The reference model of DPO on `model`."""
    return seed if config.train.reference == "seed" else model
