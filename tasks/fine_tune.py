"""Fine-tunes: a model learns to write given outputs, by supervised fine-tuning (SFT).

In: a model and `Demonstration`s. Out: a checkpoint an epoch, each a model folder of safetensors.
"""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.lineage import fine_tune_stage
from tasks.retry import may_pass
from tasks.training import run_training
from tpo.config.run import RunConfig
from tpo.records import Artifact, Demonstration


@task(name="fine_tune", task_run_name="fine-tune {folder}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def fine_tune(config: RunConfig, folder: str, model: Artifact, demonstrations: Artifact) -> list[Artifact]:
    """The checkpoints of `model` fine-tuned on `demonstrations`, in the order of their epochs."""
    stage = fine_tune_stage(config, folder, model, demonstrations)
    return run_training(config, config.fine_tuning, stage, model, demonstrations, row_type=Demonstration)
