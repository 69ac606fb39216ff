"""Attention over packed rows in one call a layer, as on GPUs, compared with one call per sequence.

Prints for both the calls a layer makes for a row of 8 pairs, the seconds of forward and backward pass (on CPUs of the
forward pass), their median ratio over five rounds of different rows, and the largest difference of the outputs. Heads
and lengths are an 8B model's in training with `--gpu 1`, and small otherwise.

On a CPU the times say nothing about a GPU: FlexAttention isn't compiled there, so it computes the square of the row.
What a CPU shows is the calls, and that the numbers are the same.

    python -m tests.benchmarks.bench_attention [--json] [--rounds 5] [--pairs 8] [--gpu 0]
"""

import functools
import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.benchmarks import measure
from tests.benchmarks.bench_dpo import SHAPE
from tests.benchmarks.gpu_trainer import SHAPES, device_name, synchronize
from tests.benchmarks.measure import Timed

if TYPE_CHECKING:
    from torch import Tensor

    from tpo.engines.training.packing import RowSpans


@dataclass
class Row:
    """A row's inputs to one layer's attention, and the calls that were made for it."""

    spans: "RowSpans"
    """Its sequences."""
    states: "list[Tensor]"
    """Query, key and value, [1, heads, tokens, size] each."""
    calls: dict[str, int] = field(default_factory=dict)
    """By the way's name."""


def main() -> None:
    """Measures and prints."""
    asked = measure.options(__doc__, rounds=5, pairs=8, gpu=0)
    print(measure.describe_machine(asked.threads))
    warnings.simplefilter("ignore")
    device = "cuda" if asked.gpu else "cpu"
    if asked.gpu:
        print(device_name(device))
    rows = {number: some_row(number, asked.pairs, device) for number in range(-1, asked.rounds)}
    ways = {
        "per sequence": functools.partial(attend, rows, device, "per sequence"),
        "one call": functools.partial(attend, rows, device, "one call"),
    }
    found = measure.alternate(ways, asked.rounds, warm_up=1)
    for name, rounds in found.items():
        seconds = measure.spread([each.seconds * 1000 for each in rounds])
        print(f"{name:13s} {rows[0].calls[name]} calls a layer and row, {seconds} ms")
    worst = max(
        float((a.found - b.found).abs().max()) for a, b in zip(found["per sequence"], found["one call"], strict=True)
    )
    print(f"outputs differ by at most {worst:.1e}")
    assert worst < (0.05 if asked.gpu else 1e-5), "the two don't attend to the same"
    assert {row.calls["one call"] for row in rows.values()} == {1}
    times = measure.ratio_of_seconds(found["per sequence"], found["one call"])
    calls = measure.spread([rows[number].calls["per sequence"] for number in range(asked.rounds)])
    print(f"seconds per sequence ÷ in one call: {times}; calls: {calls}")
    ratio = times if asked.gpu else calls
    tokens = sum(row.states[0].shape[2] for row in rows.values()) // len(rows)
    measure.report(
        measure.Row(
            row=9,
            what=f"attention of packed rows of about {tokens} tokens, one call a layer, "
            + ("seconds forward and backward" if asked.gpu else "number of calls (no GPU here)"),
            peer="one SDPA call a sequence",
            goal="≥ 1, one call a layer",
            median=ratio.median,
            low=ratio.low,
            high=ratio.high,
            limit="the kernel's arithmetic" if asked.gpu else "one call is the least",
        ),
        as_json=asked.json,
    )


def some_row(seed: int, pairs: int, device: str) -> Row:
    """A row of pairs, each with its prompt once; lengths are log-normal, as those of thoughts."""
    import torch

    from tpo.engines.training.packing import RowSpans, Spans

    sizes = (SHAPES["8b"] if device == "cuda" else SHAPE).sizes
    prompt, output = (300, 600) if device == "cuda" else (30, 60)
    draw, spans, end = random.Random(seed), [], 0
    for _ in range(pairs):
        cut = []
        for median, spread in ((prompt, 0.5), (output, 0.8), (output, 0.8)):
            begin, end = end, end + int(max(4, median * draw.lognormvariate(0, spread)))
            cut.append(slice(begin, end))
        spans.append(Spans(cut[0], cut[1:]))
    generator = torch.Generator(device).manual_seed(seed + 1)
    heads, size = sizes["num_attention_heads"], sizes["hidden_size"] // sizes["num_attention_heads"]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    states = [
        torch.randn(1, n, end, size, device=device, dtype=dtype, generator=generator, requires_grad=device == "cuda")
        for n in (heads, sizes["num_key_value_heads"], sizes["num_key_value_heads"])
    ]
    return Row(RowSpans(spans), states)


def attend(rows: Mapping[int, Row], device: str, way: str, number: int) -> "Timed[Tensor]":
    """The outputs of one layer's attention, [1, tokens, heads, size]."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    from tpo.engines.training.flex import Compiled, attention_with
    from tpo.engines.training.packing import attend_span_by_span

    row = rows[number]
    if way == "one call":
        whole = (
            COMPILED.setdefault(device, Compiled()) if device == "cuda" else functools.partial(_plain, flex_attention)
        )
        attention: Callable[..., Any] = attention_with(_counted(whole, row, way))
    else:
        attention = attend_span_by_span
        row.calls[way] = sum(len(bundle.rests) for bundle in row.spans)

    def work() -> "Tensor":
        found: Tensor = attention(torch.nn.Identity(), *row.states, None, spans=row.spans)[0]
        if device == "cuda":
            torch.autograd.grad(found.sum(), row.states)
        synchronize(device)()
        return found.detach()

    return measure.timed(work)


COMPILED: dict[str, Any] = {}


def _plain(flex: Callable[..., Any], query: Any, key: Any, value: Any, **options: Any) -> Any:
    """FlexAttention without compilation, which has no backward pass on CPUs."""
    del options["with_normalizers"]
    return flex(query, key, value, enable_gqa=key.shape[1] != query.shape[1], **options), None


def _counted(kernel: Callable[..., Any], row: Row, way: str) -> Callable[..., Any]:
    row.calls[way] = 0

    def counting(*arguments: Any, **options: Any) -> Any:
        row.calls[way] += 1
        return kernel(*arguments, **options)

    return counting


if __name__ == "__main__":
    main()
