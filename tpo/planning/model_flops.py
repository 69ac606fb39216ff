"""The arithmetic that a training takes, and its share of what the GPUs could do: model FLOPs utilization (MFU).

MFU is the operations that the model needs for the tokens read, divided by the time that took and the published dense
bfloat16 peak of the GPUs (PaLM, 2204.02311, appendix B). Per token, in a decoder of L layers, hidden size d, h heads of
size e:

- forward: 2 per weight of the layers' matrices; 4·L·h·e per earlier token attended to (queries with keys, weights with
  values), itself included; 2·d·vocabulary if a log-probability is computed there, as only at outputs' tokens;
- backward: twice that; with LoRA once plus the attention's second half, since frozen weights need no gradient, and 6
  per weight of the adapters;
- the reference: one forward pass over all rows, before the first step.

PaLM's 12·L·h·e·T counts attention to later tokens too; we count what is needed. Recomputed activations aren't counted,
nor is padding. Only decoders with a shape that `tpo.models.shape` reads have a number of operations.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tpo.config.training import TrainingConfig
from tpo.models.shape import ModelShape
from tpo.records import Demonstration, Pair

PEAK_TFLOPS: Sequence[tuple[str, float]] = (
    (r"B200", 2250),
    (r"H200 NVL", 836),
    (r"H200", 989),
    (r"H100 PCIe", 756),
    (r"H100 NVL", 835),
    (r"H100", 989),
    (r"A100|A800", 312),
    (r"A30", 165),
    (r"L40S", 362),
    (r"L40", 181),
    (r"L4", 121),
    (r"A10", 125),
)
"""Published dense bfloat16 peaks in TFLOP/s by a whole word of the GPU's name as the driver gives it; the first match
counts. A name without a form factor, as `cluster.gpu` may have it, is the SXM board. Consumer and laptop GPUs are left
out, since their clocks vary by board."""
_NO_WHOLE_GPU = re.compile(r"\bMIG\b|GeForce|RTX|Laptop")


@dataclass(frozen=True)
class Reads:
    """What a forward pass processes."""

    tokens: int
    """Tokens through the layers."""
    scored: int
    """Those whose log-probability is computed."""
    attended: int
    """Over all tokens, the number of tokens that each attends to, itself included."""

    def __add__(self, other: "Reads") -> "Reads":
        return Reads(self.tokens + other.tokens, self.scored + other.scored, self.attended + other.attended)


@dataclass(frozen=True)
class TrainingLoad:
    """The arithmetic and tokens of one training."""

    step_tokens: float
    """Mean tokens of an optimizer step; a pair's prompt counts twice, as in the ledger."""
    step_flops: float | None = None
    """Mean operations of an optimizer step; None if the model's shape is unknown."""
    reference_flops: float = 0.0
    """Operations of the reference's forward pass."""
    peak: float | None = None
    """Peak of all workers' GPUs, in operations per second; None on CPUs and unknown GPUs."""

    def mfu(self, flops: float, seconds: float) -> float | None:
        """Model FLOPs utilization; None if it can't be known."""
        return flops / seconds / self.peak if self.step_flops and self.peak and seconds > 0 else None


def peak_tflops(gpu: str) -> float | None:
    """Published dense bfloat16 peak of a GPU; None if we don't know it."""
    if _NO_WHOLE_GPU.search(gpu):
        return None
    return next((peak for name, peak in PEAK_TFLOPS if re.search(rf"\b({name})\b", gpu)), None)


def reads_of(row: Pair | Demonstration, *, packed: bool) -> Reads:
    """What one pass over a row processes; packed, a pair's prompt is read once."""
    prompt = len(row.prompt_token_ids)
    if isinstance(row, Demonstration):
        outputs = [len(row.output_token_ids)]
    else:
        outputs = [len(row.chosen_token_ids), len(row.rejected_token_ids)]
    if not packed:
        wholes = [prompt + output for output in outputs]
        return Reads(sum(wholes), sum(outputs), sum(map(_triangle, wholes)))
    # The prompt's last token precedes each output (`tpo.engines.training.row_inputs`).
    shared, rests = prompt - 1, [output + 1 for output in outputs]
    attended = _triangle(shared) + sum(_triangle(shared + rest) - _triangle(shared) for rest in rests)
    return Reads(shared + sum(rests), sum(outputs), attended)


def forward_flops(shape: ModelShape, reads: Reads) -> float:
    """Operations of a forward pass."""
    layers = 2 * shape.layers * shape.layer_weights * reads.tokens
    return layers + 2 * shape.hidden * shape.vocabulary * reads.scored + attention_flops(shape, reads)


def attention_flops(shape: ModelShape, reads: Reads) -> float:
    """The part of them that multiplies tokens with tokens."""
    return 4 * shape.layers * shape.heads * shape.head_dim * reads.attended


def step_flops(shape: ModelShape, reads: Reads, training: TrainingConfig) -> float:
    """Operations of a forward and a backward pass."""
    forward = forward_flops(shape, reads)
    if training.lora is None:
        return 3 * forward
    adapters = 6 * shape.lora_parameters(training.lora.rank) * reads.tokens
    return 2 * forward + attention_flops(shape, reads) + adapters


def training_load(
    rows: Collection[Pair | Demonstration],
    training: TrainingConfig,
    *,
    tokens: int,
    shape: ModelShape | None,
    gpu: str | None,
    workers: int,
    reference: bool,
) -> TrainingLoad:
    """The load of a training on `rows`, which have `tokens` tokens.

    Args:
        rows: What it trains on.
        training: How.
        tokens: Tokens that one pass counts in the ledger.
        shape: The model's; None if unknown.
        gpu: The GPU's name; None for CPUs.
        workers: Number of workers.
        reference: Whether a reference's log-probabilities are still to be computed.
    """
    steps = max(1, -(-len(rows) // training.batch_size))
    if shape is None:
        return TrainingLoad(tokens / steps)
    none = Reads(0, 0, 0)
    reads = sum((reads_of(row, packed=training.packing) for row in rows), none)
    peak = peak_tflops(gpu) if gpu is not None else None
    return TrainingLoad(
        step_tokens=tokens / steps,
        step_flops=step_flops(shape, reads, training) / steps,
        reference_flops=forward_flops(shape, reads) if reference else 0.0,
        peak=peak * 1e12 * workers if peak is not None else None,
    )


def _triangle(tokens: int) -> int:
    """Tokens that each of a sequence's tokens attends to, itself included, over all of them."""
    return tokens * (tokens + 1) // 2
