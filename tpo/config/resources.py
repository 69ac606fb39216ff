"""Where a run works and what it may spend: engines, trainers, cluster, storage, prices. No result depends on these."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from tpo.config.base import Address, Section


class EngineConfig(Section):
    """The vLLM engines that sample: where and how fast they run, not what they sample."""

    count: int = Field(1, ge=1)
    """Number of engines, each in its own Ray actor; those that don't fit in the cluster yet join later."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Device of each engine."""
    threads: int = Field(1, ge=1)
    """CPU threads per engine."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision in which an engine computes."""
    quantization: Literal["none", "fp8_per_channel"] = "none"
    """`fp8_per_channel` has vLLM round linear layers to FP8 when it loads a model, a byte a weight, and compute in FP8:
    for GPUs that can (compute capability 8.9 and above). It changes scores and samples
    ([performance.md](performance.md#fp8)), and needs bfloat16 or float16. Reward models can't have it: torch reads
    them."""
    kv_cache_gib: float = Field(1.0, gt=0)
    """Size of a CPU engine's KV cache in GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that an engine uses."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs per engine, on one node or several."""
    max_num_seqs: int = Field(256, ge=1)
    """Maximum number of outputs that an engine works on at once."""
    shard_prompts: int = Field(25, ge=1)
    """Prompts per shard, the unit of work: a crash loses at most the shards in progress."""
    shard_seconds: float = Field(900.0, gt=0)
    """Time limit for one shard; several that an engine works on at once have as many times as long. An engine that
    exceeds it is assumed to hang and is replaced."""
    start_seconds: float = Field(900.0, gt=0)
    """Time limit for starting an engine, including loading its model."""

    @property
    def precision(self) -> dict[str, str]:
        """What an engine's results depend on, as stages record it. Runs from before there was quantization stay
        current."""
        return {"dtype": self.dtype} | ({} if self.quantization == "none" else {"quantization": self.quantization})

    @model_validator(mode="after")
    def _quantized_from_half(self) -> "EngineConfig":
        if self.quantization != "none" and self.dtype == "float32":
            raise ValueError(
                f"quantization is {self.quantization} with dtype float32, and vLLM quantizes only 16-bit weights: set "
                "dtype to bfloat16 (or float16), or quantization to none"
            )
        return self


class JudgeEngineConfig(EngineConfig):
    """The engines of a judge that is a local model: vLLM for `pairwise`, torch for reward models."""

    batch_tokens: int = Field(4096, ge=64)
    """Tokens that a reward model reads at once; a longer chat is read alone. A GPU can take more."""


class TrainerConfig(Section):
    """The workers that train: where and how fast they run, not what they train."""

    workers: int = Field(1, ge=1)
    """Data-parallel workers of Ray Train; a step has the same pairs with the same weights for any number of workers."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` gives every worker the whole model; `fsdp` shards weights, gradients and optimizer state over the
    workers."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Device of each worker."""
    threads: int = Field(2, ge=1)
    """CPU threads per worker."""
    checkpoint_share: float = Field(0.05, gt=0, le=1)
    """Maximum share of training time spent on saving checkpoints for resuming: after a save that took a minute, the
    next is due 20 minutes later."""
    stall_seconds: float = Field(1800.0, gt=0)
    """Time without a step after which a worker counts as hung: it is killed, and training resumes from the last
    checkpoint."""

    @model_validator(mode="after")
    def _spread_over_several(self) -> "TrainerConfig":
        if self.strategy == "fsdp" and self.workers < 2:
            raise ValueError(
                f"strategy is fsdp with {self.workers} worker: set workers to 2 or more, or strategy to ddp"
            )
        return self


class TrackingConfig(Section):
    """The experiment tracker that receives the trainer's metrics of each step."""

    to: Literal["tensorboard", "wandb", "mlflow", "trackio", "none"] = "tensorboard"
    """The tracker. `tensorboard` writes to the run's folder; the others are installed separately and take their servers
    and keys from their own environment variables (`WANDB_MODE`, `MLFLOW_TRACKING_URI`, …)."""
    project: str = Field("tpo", min_length=1)
    """The project (W&B, trackio) or experiment (MLflow) in which trainings appear, named `<run>-iter_<t>`."""


class MetricsConfig(Section):
    """Metrics for Prometheus while a run works ([observability.md](observability.md)). The terminal and the tracker
    show rates without it."""

    port: int | None = Field(None, ge=1, le=65535)
    """Port on 127.0.0.1 that serves `/metrics`, such as 9464; None for none. A port that is in use stops the run before
    any work."""


class ClusterConfig(Section):
    """The Ray cluster to use, and its hardware for the plan."""

    address: str | None = None
    """Address of a running Ray cluster (`auto` finds one on this machine), or None to start Ray for this run."""
    nodes: int = Field(1, ge=1)
    """Machines that the plan assumes."""
    gpus: int | None = Field(None, ge=1)
    """GPUs per machine that the plan assumes; None for the number on this machine."""
    gpu_memory_gib: float | None = Field(None, gt=0)
    """Memory of each GPU, in GiB as `nvidia-smi` shows it (an 80 GB H100 has 79.6); None for that of this machine's."""
    gpu: str | None = None
    """Model of the GPUs, such as `H100`: a first forecast guesses their speed from it, and the ledger records it. None
    for this machine's."""


class ThroughputConfig(Section):
    """Speeds and lengths for the plan's forecast; None for what past runs measured, or else a guess. A device is a GPU
    or, on CPUs, one engine or worker."""

    sample: float | None = Field(None, gt=0)
    """Tokens per second that a device writes when sampling."""
    judge: float | None = Field(None, gt=0)
    """Tokens per second, read and written, of a judging device, or of all calls to a server together."""
    train: float | None = Field(None, gt=0)
    """Tokens of pairs per second that a device trains on, counting every pass."""
    prompt_tokens: float | None = Field(None, gt=0)
    """Mean prompt length in tokens, including thought prompt and chat template."""
    output_tokens: float | None = Field(None, gt=0)
    """Mean output length in tokens, thought plus response."""
    response_share: float = Field(0.5, gt=0, le=1)
    """Share of an output that is its response, the only part that judges read."""
    prompts: int | None = Field(None, ge=1)
    """Number of prompts to assume for `data.per_iteration = "all"` while the file isn't there to be counted."""
    judgment_tokens: float | None = Field(None, gt=0)
    """Mean tokens that a judge writes per comparison, if it explains itself."""


class PricesConfig(Section):
    """What things cost, in the same currency as an endpoint's prices."""

    gpu_hour: float = Field(0.0, ge=0)
    """Price of one GPU for an hour."""


class BudgetConfig(Section):
    """Caps on what a run may spend by its ledger, including earlier starts and attempts; None for no limit.

    Checked before each shard of sampling and judging, when shards in progress are kept, and twice a second during
    training, whose steps are booked every half minute. At a cap the run stops; everything complete is kept, and a
    training leaves a checkpoint. With a higher cap, the same command resumes.
    """

    hours: float | None = Field(None, gt=0)
    """Working hours of all stages together."""
    tokens: int | None = Field(None, ge=1)
    """Tokens read and written: sampled, judged and, counting every pass, trained on."""
    cost: float | None = Field(None, gt=0)
    """Money, by `prices` and the prices of endpoints."""

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return any(cap is not None for cap in (self.hours, self.tokens, self.cost))


def _kind_of_folder(value: Any) -> str:
    return "url" if ":/" in str(value) else "path"


def _check_url(url: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9!_.*'()-]+)*", url):
        raise ValueError("expected a folder, or s3://bucket or s3://bucket/prefix in letters, digits and !_.*'()-")
    return url


BucketUrl = Annotated[str, AfterValidator(_check_url)]
"""`s3://bucket` or `s3://bucket/prefix`, in characters that every server takes unescaped."""


class ReportConfig(Section):
    """What is written to be looked at."""

    samples_mib: int = Field(512, ge=0)
    """Limit on the sample browser's files in the run folder (`report/`), in MiB of the samples and judgments that they
    show. Beyond it the rounds of the oldest iterations are left out; 0 writes no files. `tpo view` shows all anyway."""


class StorageConfig(Section):
    """How to reach the bucket, if `folder` is in one.

    Keys are never written to a file: they, and anything not set here, come from where AWS's tools look for them
    (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_DEFAULT_REGION, the machine's role).
    """

    endpoint_url: Address | None = None
    """Address of a server other than AWS's, or None for AWS's or the one in AWS_ENDPOINT_URL."""
    region: str | None = None
    """Region of the bucket, or None for that of AWS_DEFAULT_REGION or the user's AWS profile."""
    cache: Path = Path(".cache/tpo")
    """Local folder for the working copies of runs in buckets; if it is deleted, they are fetched again."""
    max_attempts: int = Field(8, ge=1)
    """Attempts per request while a server is overloaded, slow or drops connections, with growing pauses up to 20 s."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Maximum time to wait for a connection or for a silent server."""
    lease_seconds: float = Field(60.0, ge=2)
    """Time without a renewal of the lease after which another machine may take over a run."""
    journal_seconds: float = Field(10.0, ge=0)
    """Minimum time between two uploads of the journal of a judge's answers; if the machine is lost, the
    judge repeats the answers since the last one."""
    part_mib: int = Field(64, ge=5, le=5120)
    """Size in MiB above which a file is uploaded in parts of that size, and fetched only when it is used."""
