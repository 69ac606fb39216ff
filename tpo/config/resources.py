"""Where a run works and what it may spend: engines, trainers, cluster, storage, prices. No result depends on it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from tpo.config.base import Address, Section


class EngineConfig(Section):
    """The vLLM engines that sample; says where and how fast, not what."""

    count: int = Field(1, ge=1)
    """Engines, each in a Ray actor of its own; those that Ray has no room for join when it has."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What an engine runs on."""
    threads: int = Field(1, ge=1)
    """CPU threads an engine."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What an engine computes in."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """KV cache of a CPU engine in GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that an engine takes."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs an engine, on one node or on several."""
    max_num_seqs: int = Field(256, ge=1)
    """Outputs that an engine works on at once."""
    shard_prompts: int = Field(25, ge=1)
    """Prompts handed to an engine at a time: what is done again after a crash."""
    shard_seconds: float = Field(900.0, gt=0)
    """Longest time for one shard; an engine that takes longer is taken to hang and replaced."""
    start_seconds: float = Field(900.0, gt=0)
    """Longest time for an engine to start, its model loaded."""


class JudgeEngineConfig(EngineConfig):
    """The engines that judge, where the judge is a model of our own: vLLM for `pairwise`, torch for reward models."""

    batch_tokens: int = Field(4096, ge=64)
    """Tokens that a reward model reads at once; a longer chat is read alone. A GPU wants more."""


class TrainerConfig(Section):
    """The workers that train; says where and how fast, not what."""

    workers: int = Field(1, ge=1)
    """Data-parallel workers of Ray Train; a step takes the same pairs and weighs them alike however many there are."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` gives every worker the whole model; `fsdp` spreads weights, gradients and optimiser over the workers."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What a worker runs on."""
    threads: int = Field(2, ge=1)
    """CPU threads a worker."""
    checkpoint_share: float = Field(0.05, gt=0, le=1)
    """Largest share of the training time that may be spent on saving checkpoints, from which a training that was
    stopped resumes: after a save that took a minute, the next is due 20 minutes later."""
    stall_seconds: float = Field(1800.0, gt=0)
    """Time without any step after which a worker counts as hung: it is killed, and goes on from its last checkpoint."""

    @model_validator(mode="after")
    def _spread_over_several(self) -> "TrainerConfig":
        if self.strategy == "fsdp" and self.workers < 2:
            raise ValueError(
                f"strategy is fsdp with {self.workers} worker: set workers to 2 or more, or strategy to ddp"
            )
        return self


class TrackingConfig(Section):
    """Where to watch a training from: what the trainer measures in each step goes there too."""

    to: Literal["tensorboard", "wandb", "mlflow", "trackio", "none"] = "tensorboard"
    """The tracker. `tensorboard` writes to the run's folder; the others are installed apart, take their servers and
    keys from their own environment variables (`WANDB_MODE`, `MLFLOW_TRACKING_URI`, …), and send where those say."""
    project: str = Field("tpo", min_length=1)
    """The project (W&B, trackio) or experiment (MLflow) that trainings appear in; each is named `<run>-iter_<t>`."""


class ClusterConfig(Section):
    """Where Ray is."""

    address: str | None = None
    """Address of a running Ray cluster (`auto` finds one on this machine), or None to start Ray for this run."""
    nodes: int = Field(1, ge=1)
    """Machines that the plan reckons with."""
    gpus: int | None = Field(None, ge=1)
    """GPUs a machine that the plan reckons with; None for those of this machine."""
    gpu_memory_gib: float | None = Field(None, gt=0)
    """Memory of each, in GiB as `nvidia-smi` shows it (an H100 of 80 GB has 79.6); None for what this machine's
    have."""
    gpu: str | None = None
    """What they are called, as in `H100`: a first forecast guesses their speed by it, and the ledger notes it. None for
    what this machine's are called."""


class ThroughputConfig(Section):
    """What the plan reckons with; None for what past runs show, or else a guess. A device is a GPU, or on CPUs one
    engine or worker."""

    sample: float | None = Field(None, gt=0)
    """Tokens a second that a device writes when it samples."""
    judge: float | None = Field(None, gt=0)
    """Tokens a second, read and written, of a device that judges; of a server, of all its calls together."""
    train: float | None = Field(None, gt=0)
    """Tokens of pairs a second that a device trains on, each pass counted."""
    prompt_tokens: float | None = Field(None, gt=0)
    """Mean tokens of a prompt, thought prompt and chat template included."""
    output_tokens: float | None = Field(None, gt=0)
    """Mean tokens of an output, thought and response."""
    response_share: float = Field(0.5, gt=0, le=1)
    """Share of an output that is its response, which is all that judges read."""
    prompts: int | None = Field(None, ge=1)
    """Prompts that `data.per_iteration = "all"` is taken for as long as the file isn't there to be counted."""
    judgment_tokens: float | None = Field(None, gt=0)
    """Mean tokens that a judge writes a comparison, where it explains."""


class PricesConfig(Section):
    """What things cost, in the currency in which an endpoint's prices are too."""

    gpu_hour: float = Field(0.0, ge=0)
    """An hour of one GPU."""


class BudgetConfig(Section):
    """Caps on what a run may spend by its ledger, earlier starts and attempts included; None for no limit.

    Looked at before each shard of sampling and judging, and twice a second while a model trains, whose steps are booked
    every half minute. At a cap the run stops with all that is complete kept, and of a training a checkpoint; with a
    higher one the same command goes on.
    """

    hours: float | None = Field(None, gt=0)
    """Hours that the stages have worked."""
    tokens: int | None = Field(None, ge=1)
    """Tokens read and written: sampled, judged and, each pass counted, trained on."""
    cost: float | None = Field(None, gt=0)
    """Money, by `prices` and the prices of endpoints."""


def _kind_of_folder(value: Any) -> str:
    return "url" if ":/" in str(value) else "path"


def _check_url(url: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9!_.*'()-]+)*", url):
        raise ValueError("expected a folder, or s3://bucket or s3://bucket/prefix in letters, digits and !_.*'()-")
    return url


BucketUrl = Annotated[str, AfterValidator(_check_url)]
"""`s3://bucket` or `s3://bucket/prefix`, in letters that every server takes as they are."""


class StorageConfig(Section):
    """How a bucket is reached, where `folder` names one.

    Keys stand in no file of ours: they, and what is left out here, come from where AWS's tools look for them
    (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_DEFAULT_REGION, the machine's role).
    """

    endpoint_url: Address | None = None
    """Address of a server other than AWS's, or None for AWS's or the one in AWS_ENDPOINT_URL."""
    region: str | None = None
    """Region of the bucket, or None for that of AWS_DEFAULT_REGION or the user's AWS profile."""
    cache: Path = Path(".cache/tpo")
    """Folder of this machine for the working copies of runs in buckets; deleted, it is fetched again."""
    max_attempts: int = Field(8, ge=1)
    """Times that a server is asked that is overloaded, slow, or cuts a connection, with growing pauses up to 20 s."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Longest silence of a server that is connected to or asked."""
    lease_seconds: float = Field(60.0, ge=2)
    """Time without a sign of life after which another machine may take over a run."""
    journal_seconds: float = Field(10.0, ge=0)
    """Least time between two puts of the journal of what a judge says: what is asked again after a machine is lost."""
    part_mib: int = Field(64, ge=5, le=5120)
    """Size in MiB above which a file goes in parts of that size, and is fetched only when it is used."""
