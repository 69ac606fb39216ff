"""One DPO step from M_{t-1} on an iteration's pairs: one checkpoint per epoch, each a folder of safetensors."""

from tasks.stage import stage_task
from tasks.training import run_training, training_values, training_without_effect
from tpo.config.renamed import as_noted
from tpo.config.run import RunConfig
from tpo.records import Artifact, Pair
from tpo.storage.store import Stage


@stage_task("train", run_name="train {folder}")
def train(config: RunConfig, folder: str, model: Artifact, reference: Artifact, pairs: Artifact) -> list[Artifact]:
    """The checkpoints of one DPO step on `model` with `reference` as reference model, in the order of their epochs."""
    stage = train_stage(config, folder, model, reference, pairs)
    other = None if reference.fingerprint == model.fingerprint else reference
    return run_training(config, config.train, stage, model, pairs, row_type=Pair, reference=other)


def train_stage(config: RunConfig, folder: str, model: Artifact, reference: Artifact, pairs: Artifact) -> Stage:
    """The checkpoints of one DPO step in `folder`, one model folder per epoch."""
    inputs = {"model": model, "pairs": pairs}
    if reference.fingerprint != model.fingerprint:
        inputs["reference"] = reference
    return Stage(
        config.root,
        f"{folder}/train",
        "Model",
        inputs=inputs,
        config=training_values(config, {"train": as_noted(config.train, exclude={"reference"})}),
        without_effect=training_without_effect("train", config.train),
    )


def reference_of(config: RunConfig, seed: Artifact, model: Artifact) -> Artifact:
    """The reference model of DPO on `model`."""
    return seed if config.train.reference == "seed" else model
