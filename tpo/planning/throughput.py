"""Throughput of a run: tokens per second of one device, by kind of work, each rate with its source.

Rates come from the profile; otherwise from the latest run in the same folder that did this work with a model of this
size on this device; otherwise from an estimate: the roofline of published peaks (arithmetic, memory bandwidth) at usual
utilization, plus a fixed time per step, which dominates for small models. The time that a past run's engines took to
start is counted separately, once per stage.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpo.models.shape import ModelShape
from tpo.storage.ledger import LEDGER, Entry, read_ledger


@dataclass(frozen=True)
class Hardware:
    """Peaks of one device, as published."""

    tflops: float
    """Dense bfloat16 arithmetic, in TFLOP/s."""
    bandwidth: float
    """Memory bandwidth, in GB/s."""
    step_seconds: float = 0.008
    """Minimum time of an engine's step, however small the model."""


HARDWARE: Mapping[str, Hardware] = {
    "B200": Hardware(2250, 8000),
    "H200": Hardware(989, 4800),
    "H100": Hardware(989, 3350),
    "A100": Hardware(312, 2000),
    "L40S": Hardware(362, 864),
    "L4": Hardware(121, 300),
    "A10": Hardware(125, 600),
    "4090": Hardware(165, 1008),
    "3090": Hardware(71, 936),
}
"""By a part of the GPU's name; the first match counts."""
UNKNOWN = "A100"
"""The GPU assumed for one that isn't listed."""
CPU_THREAD = Hardware(0.05, 10, 0.012)
"""One CPU thread."""
_COMPUTE_SHARE, _BANDWIDTH_SHARE, _TRAINING_SHARE = 0.4, 0.6, 0.35
"""Usual utilization of the peaks in prefill, decoding and training."""
SAME_SIZE = 0.05
"""Relative difference in parameters up to which models count as the same size: a shape doesn't include a judge's
head."""
MIN_ANSWERS = 50
"""Minimum number of answers for a past run to yield a rate."""


@dataclass(frozen=True)
class Rate:
    """Tokens per second of one device."""

    tokens_per_second: float
    """The kind of work says which tokens count (`config.ThroughputConfig`)."""
    source: str
    """`profile`, `past run <name>` or `guess`; human-readable."""
    start_seconds: float | None = None
    """Seconds that engines or workers take to start; None if not measured."""
    starts: int = 0
    """Number of starts that `start_seconds` is the mean of."""

    @property
    def is_guess(self) -> bool:
        """Whether it is a guess rather than measured or given."""
        return self.source.startswith("guess")


@dataclass(frozen=True)
class PastRun:
    """The spending of one past run."""

    name: str
    """The run's name."""
    entries: Sequence[Entry]
    """Its ledger."""


def read_past_runs(folder: Path) -> list[PastRun]:
    """The runs in a folder that have a ledger, most recent first."""
    ledgers = sorted(folder.glob(f"*/{LEDGER}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [PastRun(path.parent.name, read_ledger(path.parent)) for path in ledgers]


def alike(past: Iterable[PastRun], work: str, *, device: str, parameters: int, server: str = "") -> tuple[PastRun, ...]:
    """Past runs that did the same work with a model of the same size on the same device (or that called the same server
    for the same model), each with only those entries."""
    found = (
        PastRun(
            run.name,
            [
                entry
                for entry in run.entries
                if entry.work == work
                and (entry.device, entry.server) == (device, server)
                and abs(entry.parameters - parameters) <= SAME_SIZE * parameters
            ],
        )
        for run in past
    )
    return tuple(run for run in found if sum(entry.answers for entry in run.entries) >= MIN_ANSWERS)


def past_rate(runs: Sequence[PastRun]) -> Rate | None:
    """The rate of the first run that yields one; None if none does."""
    for run in runs:
        tokens = sum(counted(entry.work, entry.tokens_in, entry.tokens_out) for entry in run.entries)
        seconds = sum((entry.seconds - entry.start_seconds) * max(1, entry.devices) for entry in run.entries)
        starts = sum(entry.starts for entry in run.entries)
        each = sum(entry.start_seconds for entry in run.entries) / starts if starts else None
        if tokens and seconds > 0:
            return Rate(tokens / seconds, f"past run {run.name}", each, starts)
    return None


def counted(work: str, tokens_in: float, tokens_out: float) -> float:
    """The tokens that count in a rate of this work: written ones for sampling, all for judging and training."""
    return tokens_out if work.endswith("sample") else tokens_in + tokens_out


def hardware_of(device: str, threads: int) -> Hardware:
    """The peaks of a device; on CPUs, those of `threads` threads."""
    if device == "cpu":
        return Hardware(CPU_THREAD.tflops * threads, CPU_THREAD.bandwidth * threads, CPU_THREAD.step_seconds)
    return next((peaks for name, peaks in HARDWARE.items() if name in device), HARDWARE[UNKNOWN])


def guess_source(device: str) -> str:
    """The source shown for a guess."""
    if device == "cpu" or any(name in device for name in HARDWARE):
        return f"guess ({device})"
    return f"guess (as if {device} were {UNKNOWN})"


def decode_rate(
    shape: ModelShape, hardware: Hardware, *, devices: int, sequences: int, context: float, number_bytes: int
) -> float:
    """Tokens per second generated per device of an engine that runs `sequences` sequences of `context` tokens at
    once."""
    moved = shape.parameters * number_bytes + sequences * context * shape.kv_bytes(number_bytes)
    by_memory = moved / (hardware.bandwidth * 1e9 * _BANDWIDTH_SHARE * devices)
    by_arithmetic = 2 * shape.parameters * sequences / (hardware.tflops * 1e12 * _COMPUTE_SHARE * devices)
    return sequences / (max(by_memory, by_arithmetic) + hardware.step_seconds) / devices


def prefill_rate(shape: ModelShape, hardware: Hardware) -> float:
    """Tokens per second in prefill of a device."""
    return hardware.tflops * 1e12 * _COMPUTE_SHARE / (2 * shape.parameters)


def training_rate(shape: ModelShape, hardware: Hardware, *, checkpointing: bool, epochs: int, frozen: bool) -> float:
    """Tokens per second that a device trains on, including the reference's single forward pass over the pairs.

    Operations per parameter and token: 2 forward; 4 backward, of which adapters spare the 2 for weight gradients; 2 to
    recompute activations with checkpointing.
    """
    operations = (4 if frozen else 6) + (2 if checkpointing else 0) + 2 / epochs
    return hardware.tflops * 1e12 * _TRAINING_SHARE / (operations * shape.parameters)
