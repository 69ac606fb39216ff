"""The contents of a GPU's memory, part by part: for engines that sample or judge, reward models and training workers.

All of it is arithmetic on the config and the shapes of its models, for the fullest GPU. Weights, gradients, optimizer
and KV cache are exact. Activations are an estimate of what transformers keeps for the backward pass: with gradient
checkpointing each layer's input and one layer in full, otherwise every layer in full, which is (4 hidden + 2 query + 2
key-value + 4 feed-forward) numbers per token. TRL computes log-probabilities in tiles, so the logits never exist in
full. 1.5 GiB per process are added for CUDA's context, kernels and NCCL. The actual use of activations and allocators
hasn't been measured: if less than a tenth of the memory is left, the plan warns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tpo.config.contexts import context_of, contexts
from tpo.config.judges import (
    EnsembleJudge,
    GenerativeJudge,
    JudgeConfig,
    SingleJudge,
    members_of,
)
from tpo.config.resources import EngineConfig, JudgeEngineConfig
from tpo.config.run import RunConfig
from tpo.config.training import TrainingConfig
from tpo.models.shape import Model, ModelShape
from tpo.planning.needs import BYTES, GIB
from tpo.planning.placement import Models
from tpo.planning.workload import Kind, judge_longest

CONTEXT_BYTES = 3 * GIB // 2
"""CUDA's context, kernels, graphs and communication buffers of one process."""
TIGHT = 0.1
"""Free share of the memory below which the fit is called tight."""
_MASTER = 4
"""Bytes per trained number: weights, gradients and Adam's two moments are float32."""
_TILE_BYTES = GIB // 2
"""Log-probabilities, computed in tiles."""
_BATCHED_TOKENS = 8192
"""Tokens that vLLM computes at once; the context, if that is longer."""


@dataclass(frozen=True)
class GpuMemory:
    """The memory of one GPU during one kind of work."""

    work: Kind
    """The kind of work."""
    parts: Mapping[str, int]
    """Bytes by part, without the KV cache, which takes the rest."""
    there: int
    """Bytes that may be used."""
    cache: int = 0
    """Bytes left for the KV cache; 0 if there is none."""
    sequences: int | None = None
    """Number of sequences of the full context that fit into the KV cache; None if there is no cache."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether all parts fit and, for an engine, the KV cache has room for at least one sequence."""
        return self.total <= self.there and (self.sequences is None or self.sequences >= 1)


def run_memory(config: RunConfig, models: Models, gpu_bytes: int) -> list[GpuMemory]:
    """The fullest GPU's memory in each kind of work; a test judge that needs the same as the judge isn't listed
    again."""
    found = list[GpuMemory]()
    if not gpu_bytes:
        return found
    if config.engine.device == "gpu":
        for asked in contexts(config):
            kind, shape = Kind.named(asked.work), models.by_folder(config)[asked.folder].shape
            # The engines that sample do all of M_0's work, so it is listed once.
            if asked.folder is not None or kind is Kind.SAMPLE:
                context = context_of(config, kind)
                found.append(engine_memory(kind, shape, config.engine, context=context, gpu_bytes=gpu_bytes))
    if config.judge_engine.device == "gpu":
        for kind, judge, model in (
            *_single(Kind.JUDGE, config.judge, models.judge, models),
            *_single(Kind.TEST_JUDGE, config.evaluation.judge, models.evaluation, models),
        ):
            longest = judge_longest(judge, model.shape.context)
            if isinstance(judge, GenerativeJudge):
                held = engine_memory(kind, model.shape, config.judge_engine, context=longest, gpu_bytes=gpu_bytes)
            else:
                held = reader_memory(kind, model.shape, config.judge_engine, longest=longest, gpu_bytes=gpu_bytes)
            if not any(replace(held, work=other.work) == other for other in found):
                found.append(held)
        if (rater := config.evaluation.fine_grained) is not None and models.rater is not None:
            shape, engine = models.rater.shape, config.judge_engine
            context = min(rater.max_tokens, shape.context)
            found.append(engine_memory(Kind.RATE, shape, engine, context=context, gpu_bytes=gpu_bytes))
    if config.trainer.device == "gpu":
        found += trainings_memory(config, models.seed.shape, gpu_bytes=gpu_bytes)
    return found


def _single(
    kind: Kind, judge: JudgeConfig, model: Model | None, models: Models
) -> Iterator[tuple[Kind, SingleJudge, Model]]:
    """A judge that runs a model here, or each such member of an ensemble."""
    for each in members_of(judge):
        held = models.of_member(each) if isinstance(judge, EnsembleJudge) else model
        if held is not None:
            yield kind, each, held


def engine_memory(work: Kind, shape: ModelShape, engine: EngineConfig, *, context: int, gpu_bytes: int) -> GpuMemory:
    """A vLLM engine with a context of `context` tokens."""
    number = BYTES[engine.dtype]
    batched = max(_BATCHED_TOKENS, context)
    parts = {
        "weights": _weight_bytes(shape, engine) // engine.tensor_parallel,
        "activations": batched * (4 * shape.hidden + 3 * shape.intermediate // engine.tensor_parallel) * number
        + 2 * engine.max_num_seqs * shape.vocabulary * 4,
        "CUDA": CONTEXT_BYTES,
    }
    there = int(gpu_bytes * engine.gpu_memory_utilization)
    cache = max(0, there - sum(parts.values()))
    # With more GPUs than key/value heads, every GPU still has one head.
    each = shape.kv_bytes(number) * max(1, shape.kv_heads // engine.tensor_parallel) // shape.kv_heads
    return GpuMemory(work, parts, there, cache, cache // (each * context))


def _weight_bytes(shape: ModelShape, engine: EngineConfig) -> int:
    """All weights of a vLLM engine: in FP8, a layer's matrices take a byte a number, and the rest isn't quantized."""
    number = BYTES[engine.dtype]
    in_fp8 = 0 if engine.quantization == "none" else shape.layers * shape.layer_weights
    return shape.parameters * number - in_fp8 * (number - 1)


def reader_memory(
    work: Kind, shape: ModelShape, engine: JudgeEngineConfig, *, longest: int, gpu_bytes: int
) -> GpuMemory:
    """A reward model that reads chats of up to `longest` tokens."""
    number = BYTES[engine.dtype]
    read = max(engine.batch_tokens, longest)
    parts = {
        "weights": shape.parameters * number,
        "activations": read * (6 * shape.hidden + 3 * shape.intermediate) * number,
        "CUDA": CONTEXT_BYTES,
    }
    return GpuMemory(work, parts, gpu_bytes)


def trainings_memory(config: RunConfig, shape: ModelShape, *, gpu_bytes: int) -> list[GpuMemory]:
    """One worker in each training of a run, fine-tuning first."""
    found = [training_memory(config, config.train, shape, outputs=2, gpu_bytes=gpu_bytes)]
    if config.sft is not None:
        found.insert(0, training_memory(config, config.sft, shape, outputs=1, gpu_bytes=gpu_bytes))
    return found


def training_memory(
    config: RunConfig, train: TrainingConfig, shape: ModelShape, *, outputs: int, gpu_bytes: int
) -> GpuMemory:
    """A worker that trains on rows with `outputs` outputs each."""
    workers = config.trainer.workers
    shards = workers if config.trainer.strategy == "fsdp" else 1
    number = BYTES[train.precision]
    trained = shape.lora_parameters(train.lora.rank) if train.lora else shape.parameters
    parts = {"weights": trained * _MASTER // shards}
    if train.lora:
        parts["frozen weights"] = shape.parameters * number // shards
    parts["gradients"] = trained * _MASTER // shards
    parts["optimizer"] = 2 * trained * _MASTER // shards
    if shards > 1:
        # FSDP gathers one layer at a time (two at most are in memory), and keeps parameters outside of layers gathered;
        # gradients are full until they are scattered.
        rest = shape.parameters - shape.layers * shape.layer_parameters
        parts["gathered"] = (rest + 2 * shape.layer_parameters) * (number + _MASTER)
    elif workers > 1:
        parts["gradients in buckets"] = trained * _MASTER
    tokens = outputs * train.micro_batch_size * train.max_tokens
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    full = tokens * (4 * shape.hidden + 2 * queries + 2 * keys + 4 * shape.intermediate) * number
    inputs = tokens * shape.hidden * number * shape.layers
    parts["activations"] = (inputs + 2 * full if train.gradient_checkpointing else shape.layers * full) + _TILE_BYTES
    parts["CUDA"] = CONTEXT_BYTES
    return GpuMemory(Kind.TRAIN if outputs == 2 else Kind.SFT_TRAIN, parts, gpu_bytes)
