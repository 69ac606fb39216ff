"""Supervised fine-tuning (SFT) of a model on `Demonstration`s: one checkpoint per epoch, each a folder of
safetensors."""

from tasks.stage import stage_task
from tasks.training import run_training, training_values, training_without_effect
from tpo.config.renamed import as_noted
from tpo.config.run import RunConfig
from tpo.records import Artifact, Demonstration
from tpo.storage.store import Stage


@stage_task("fine_tune", run_name="fine-tune {folder}")
def fine_tune(config: RunConfig, folder: str, model: Artifact, demonstrations: Artifact) -> list[Artifact]:
    """The checkpoints of `model` fine-tuned on `demonstrations`, in the order of their epochs."""
    stage = fine_tune_stage(config, folder, model, demonstrations)
    return run_training(config, config.fine_tuning, stage, model, demonstrations, row_type=Demonstration)


def fine_tune_stage(config: RunConfig, folder: str, model: Artifact, demonstrations: Artifact) -> Stage:
    """The checkpoints of supervised fine-tuning in `folder`, one model folder per epoch."""
    sft = config.fine_tuning
    return Stage(
        config.root,
        f"{folder}/train",
        "Model",
        inputs={"model": model, "demonstrations": demonstrations},
        config=training_values(config, {"sft": as_noted(sft, exclude={"overlong"})}),
        without_effect=training_without_effect("sft", sft),
    )
