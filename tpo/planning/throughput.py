"""How fast a run will go: tokens a second of one device, by kind of work.

In: what the profile says, past runs' ledgers, and the models and hardware. Out: rates, each with where it is from.

Speeds come from the profile; else from the latest run in the same folder that did this work with a model of this size
on this device; else from an estimate: the roofline of published peaks (arithmetic, memory bandwidth) at usual shares,
plus a fixed time per step, which dominates for small models. The time that a past run's engines took to start is
counted separately, once for each stage.
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
    """Dense bfloat16 arithmetic."""
    bandwidth: float
    """Memory, in GB/s."""
    step_seconds: float = 0.008
    """What a step of an engine takes however small the model is."""


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
"""By a part of the GPU's name; the first that is in it counts."""
UNKNOWN = "A100"
"""What a GPU that isn't listed is taken for."""
CPU_THREAD = Hardware(0.05, 10, 0.012)
"""One thread of a CPU."""
_COMPUTE_SHARE, _BANDWIDTH_SHARE, _TRAINING_SHARE = 0.4, 0.6, 0.35
"""Shares of the peaks that are usual in prefill, in decoding, and in training."""
SAME_SIZE = 0.05
"""Share by which a model's parameters may differ from those that its shape tells: heads of a judge aren't in it."""
ENOUGH_ANSWERS = 50
"""Answers below which a past run shows no rate."""


@dataclass(frozen=True)
class Rate:
    """Tokens a second of one device."""

    tokens_per_second: float
    """Which tokens, the kind of work says (`config.ThroughputConfig`)."""
    source: str
    """`profile`, `past run <name>` or `guess`; human-readable."""
    start_seconds: float | None = None
    """What engines or workers take to start; None if nobody has measured it."""
    starts: int = 0
    """Starts that this is the mean of."""

    @property
    def is_guess(self) -> bool:
        """Whether nobody has measured it."""
        return self.source.startswith("guess")


@dataclass(frozen=True)
class PastRun:
    """What one run has spent."""

    name: str
    """The run's name."""
    entries: Sequence[Entry]
    """Its ledger."""


def read_past_runs(folder: Path) -> list[PastRun]:
    """The runs in a folder that have a ledger, most recent first."""
    ledgers = sorted(folder.glob(f"*/{LEDGER}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [PastRun(path.parent.name, read_ledger(path.parent)) for path in ledgers]


def alike(past: Iterable[PastRun], work: str, *, device: str, parameters: int, server: str = "") -> tuple[PastRun, ...]:
    """Of past runs those that did the same work with a model of the same size on the same device, or that asked the
    same server for the same model, with that alone."""
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
    return tuple(run for run in found if sum(entry.answers for entry in run.entries) >= ENOUGH_ANSWERS)


def past_rate(runs: Sequence[PastRun]) -> Rate | None:
    """The rate of the most recent of some runs; None if there is none."""
    for run in runs:
        tokens = sum(counted(entry.work, entry.tokens_in, entry.tokens_out) for entry in run.entries)
        seconds = sum((entry.seconds - entry.start_seconds) * max(1, entry.devices) for entry in run.entries)
        starts = sum(entry.starts for entry in run.entries)
        each = sum(entry.start_seconds for entry in run.entries) / starts if starts else None
        if tokens and seconds > 0:
            return Rate(tokens / seconds, f"past run {run.name}", each, starts)
    return None


def counted(work: str, tokens_in: float, tokens_out: float) -> float:
    """The tokens that a rate of this kind of work counts: written ones of sampling, all of judging and training."""
    return tokens_out if work.endswith("sample") else tokens_in + tokens_out


def hardware_of(device: str, threads: int) -> Hardware:
    """The peaks of a device; of a CPU, those of as many threads."""
    if device == "cpu":
        return Hardware(CPU_THREAD.tflops * threads, CPU_THREAD.bandwidth * threads, CPU_THREAD.step_seconds)
    return next((peaks for name, peaks in HARDWARE.items() if name in device), HARDWARE[UNKNOWN])


def guess_source(device: str) -> str:
    """What a guess is called."""
    if device == "cpu" or any(name in device for name in HARDWARE):
        return f"guess ({device})"
    return f"guess (as if {device} were {UNKNOWN})"


def decode_rate(
    shape: ModelShape, hardware: Hardware, *, devices: int, sequences: int, context: float, number_bytes: int
) -> float:
    """Tokens a second that each of an engine's devices writes, with so many sequences of so many tokens at once."""
    moved = shape.parameters * number_bytes + sequences * context * shape.kv_bytes(number_bytes)
    by_memory = moved / (hardware.bandwidth * 1e9 * _BANDWIDTH_SHARE * devices)
    by_arithmetic = 2 * shape.parameters * sequences / (hardware.tflops * 1e12 * _COMPUTE_SHARE * devices)
    return sequences / (max(by_memory, by_arithmetic) + hardware.step_seconds) / devices


def prefill_rate(shape: ModelShape, hardware: Hardware) -> float:
    """Tokens a second that a device reads."""
    return hardware.tflops * 1e12 * _COMPUTE_SHARE / (2 * shape.parameters)


def training_rate(shape: ModelShape, hardware: Hardware, *, checkpointing: bool, epochs: int, frozen: bool) -> float:
    """Tokens a second that a device trains on; the reference's forward pass over the pairs, once, is in it.

    Forward 2, backward 4 operations a parameter and token, 2 of them the gradients of weights, which adapters spare;
    2 more to compute activations again.
    """
    operations = (4 if frozen else 6) + (2 if checkpointing else 0) + 2 / epochs
    return hardware.tflops * 1e12 * _TRAINING_SHARE / (operations * shape.parameters)
