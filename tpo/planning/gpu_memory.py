"""What a GPU's memory will hold, part by part: engines that sample or judge, reward models, workers that train.

In: a config and the shapes of its models. Out: bytes by part for the fullest GPU, against what there is. Arithmetic.

Weights, gradients, optimiser and KV cache are exact. Activations are an estimate, by what transformers keeps for the
backward pass: with gradient checkpointing each layer's input and one layer in full, else every layer in full, which is
(4 hidden + 2 query + 2 key-value + 4 feed-forward) numbers a token. TRL computes log-probabilities in tiles, so that no
logits stand there whole. Every process is given 1.5 GiB for CUDA's context, its kernels and what NCCL holds. What
activations and allocators really take has not been measured by us: where less than a tenth is left, the plan says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tpo.config.contexts import context_of, contexts
from tpo.config.judges import PairwiseJudge
from tpo.config.resources import EngineConfig, JudgeEngineConfig
from tpo.config.run import RunConfig
from tpo.config.training import TrainingConfig
from tpo.models.shape import ModelShape
from tpo.planning.needs import BYTES, GIB
from tpo.planning.placement import Models
from tpo.planning.workload import Kind, judge_longest

CONTEXT_BYTES = 3 * GIB // 2
"""CUDA's context, kernels, graphs and communication buffers of one process."""
TIGHT = 0.1
"""Share of the memory below which what is left is called little."""
_MASTER = 4
"""Bytes of a number that is trained: weights, gradients and Adam's two moments are float32."""
_TILE_BYTES = GIB // 2
"""Log-probabilities in tiles."""
_BATCHED_TOKENS = 8192
"""Tokens that vLLM computes at once, or the context where that is more."""


@dataclass(frozen=True)
class GpuMemory:
    """What one GPU holds while one kind of work is done."""

    work: Kind
    """Which kind of work."""
    parts: Mapping[str, int]
    """Bytes by part; the KV cache, which takes what is left, isn't one."""
    there: int
    """Bytes that may be taken."""
    cache: int = 0
    """Bytes left for the KV cache; 0 if there is none."""
    sequences: int | None = None
    """Longest sequences that the KV cache holds; None if there is none."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether it does: the parts, and of an engine's KV cache one sequence at least."""
        return self.total <= self.there and (self.sequences is None or self.sequences >= 1)


def run_memory(config: RunConfig, models: Models, gpu_bytes: int) -> list[GpuMemory]:
    """What the fullest GPU holds in each kind of work; a test judge that holds what the judge holds isn't listed."""
    found = list[GpuMemory]()
    if not gpu_bytes:
        return found
    if config.engine.device == "gpu":
        for asked in contexts(config):
            kind, shape = Kind.named(asked.work), models.by_folder(config)[asked.folder].shape
            # M_0's engines do all that M_0 is asked for.
            if asked.folder is not None or kind is Kind.SAMPLE:
                context = context_of(config, kind)
                found.append(engine_memory(kind, shape, config.engine, context=context, gpu_bytes=gpu_bytes))
    if config.judge_engine.device == "gpu":
        for kind, judge, model in (
            (Kind.JUDGE, config.judge, models.judge),
            (Kind.TEST_JUDGE, config.evaluation.judge, models.evaluation),
        ):
            if model is None:
                continue
            longest = judge_longest(judge, model.shape.context)
            if isinstance(judge, PairwiseJudge):
                held = engine_memory(kind, model.shape, config.judge_engine, context=longest, gpu_bytes=gpu_bytes)
            else:
                held = reader_memory(kind, model.shape, config.judge_engine, longest=longest, gpu_bytes=gpu_bytes)
            if not any(replace(held, work=other.work) == other for other in found):
                found.append(held)
    if config.trainer.device == "gpu":
        found += trainings_memory(config, models.seed.shape, gpu_bytes=gpu_bytes)
    return found


def engine_memory(work: Kind, shape: ModelShape, engine: EngineConfig, *, context: int, gpu_bytes: int) -> GpuMemory:
    """A vLLM engine whose longest sequence has `context` tokens."""
    number = BYTES[engine.dtype]
    batched = max(_BATCHED_TOKENS, context)
    parts = {
        "weights": shape.parameters * number // engine.tensor_parallel,
        "activations": batched * (4 * shape.hidden + 3 * shape.intermediate // engine.tensor_parallel) * number
        + 2 * engine.max_num_seqs * shape.vocabulary * 4,
        "CUDA": CONTEXT_BYTES,
    }
    there = int(gpu_bytes * engine.gpu_memory_utilization)
    cache = max(0, there - sum(parts.values()))
    # Where there are more GPUs than heads of keys and values, each holds one of them all the same.
    each = shape.kv_bytes(number) * max(1, shape.kv_heads // engine.tensor_parallel) // shape.kv_heads
    return GpuMemory(work, parts, there, cache, cache // (each * context))


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
    """A worker in each training of a run, fine-tuning first."""
    found = [training_memory(config, config.train, shape, outputs=2, gpu_bytes=gpu_bytes)]
    if config.sft is not None:
        found.insert(0, training_memory(config, config.sft, shape, outputs=1, gpu_bytes=gpu_bytes))
    return found


def training_memory(
    config: RunConfig, train: TrainingConfig, shape: ModelShape, *, outputs: int, gpu_bytes: int
) -> GpuMemory:
    """A worker that trains on rows of so many outputs each."""
    workers = config.trainer.workers
    shards = workers if config.trainer.strategy == "fsdp" else 1
    number = BYTES[train.precision]
    trained = shape.lora_parameters(train.lora.rank) if train.lora else shape.parameters
    parts = {"weights": trained * _MASTER // shards}
    if train.lora:
        parts["frozen weights"] = shape.parameters * number // shards
    parts["gradients"] = trained * _MASTER // shards
    parts["optimiser"] = 2 * trained * _MASTER // shards
    if shards > 1:
        # One layer at a time, and what is no layer all the time: gathered, with its gradients before they are spread.
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
