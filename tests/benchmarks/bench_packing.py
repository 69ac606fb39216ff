"""Speed of a training step on pairs of uneven lengths in packed rows, compared with padded ones.

Prints for both the pairs' own tokens per second of forward and backward pass (a prompt counts with each of its outputs;
padding doesn't count), their ratio, and the largest difference of the log-probabilities. Both run in this process,
alternating, on one thread, with the same float32 weights: a Llama of 4 layers and width 256 with random weights.

Lengths are log-normal: prompts around 60 tokens (σ 0.5), outputs around 120 with σ 0.8, like thoughts of very different
lengths; 8 pairs at once. Run with `python -m tests.benchmarks.bench_packing`; takes about a minute.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tpo.engines.cluster.processes import environment

BATCHES, PAIRS, VOCABULARY = 8, 8, 4000
Pair = Mapping[str, list[int]]


def main() -> None:
    """Measures and prints."""
    variables = environment(1)
    if not variables.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name], {**os.environ, **variables})
    from tpo.engines.training.packing import PACKED, register_packed_attention
    from tpo.engines.training.row_inputs import PAIR, packed_row, padded_row

    register_packed_attention()
    model = _model()
    plain = model.config._attn_implementation
    ways: dict[str, tuple[str, Callable[[Sequence[Pair]], Any]]] = {
        "padded": (plain, lambda pairs: padded_row(pairs, PAIR, 0)),
        "packed": (PACKED, lambda pairs: packed_row(pairs, PAIR)),
    }
    batches = _batches(np.random.default_rng(0))
    seconds, worst = dict.fromkeys(ways, 0.0), 0.0
    for number, batch in enumerate([batches[0], *batches]):
        found = {}
        for way, (attention, row) in ways.items():
            model.set_attn_implementation(attention)
            began = time.perf_counter()
            found[way] = _step(model, row(batch))
            seconds[way] += (time.perf_counter() - began) * (number > 0)
        worst = max(worst, float(np.abs(found["packed"] / found["padded"] - 1).max()))
    tokens = sum(_tokens(pair) for batch in batches for pair in batch)
    padded = sum(2 * len(batch) * max(map(_longest, batch)) for batch in batches)
    print(f"{BATCHES} batches of {PAIRS} pairs, {tokens} tokens, {tokens / padded:.2f} of the padded batches")
    for way, spent in seconds.items():
        print(f"{way} {tokens / spent:8.0f} tokens/s")
    print(f"quotient {seconds['padded'] / seconds['packed']:.2f}")
    print(f"log-probabilities differ by at most {worst:.1e} of themselves")


def _step(model: Any, row: Any) -> np.ndarray:
    """One forward and backward pass; the outputs' log-probabilities."""
    from tpo.engines.training.row_inputs import output_log_probs

    model.zero_grad()
    chosen, rejected = output_log_probs(model, row).sums()
    (chosen - rejected).sum().backward()
    return np.concatenate([chosen.detach().numpy(), rejected.detach().numpy()])


def _model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    add_fused_lm_head(model)
    return model


def _batches(rng: np.random.Generator) -> list[list[Pair]]:
    def ids(median: float, spread: float) -> list[int]:
        length = int(np.clip(median * np.exp(spread * rng.normal()), 4, 1000))
        return [int(token) for token in rng.integers(1, VOCABULARY, length)]

    return [
        [{"prompt_ids": ids(60, 0.5), "chosen_ids": ids(120, 0.8), "rejected_ids": ids(120, 0.8)} for _ in range(PAIRS)]
        for _ in range(BATCHES)
    ]


def _tokens(pair: Pair) -> int:
    return 2 * len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


def _longest(pair: Pair) -> int:
    return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))


if __name__ == "__main__":
    main()
