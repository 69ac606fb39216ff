"""Share of a judge's prefill saved by the engine's prefix cache: our order of comparisons against a random one.

Prints for each order the prefill tokens that vLLM computed (by its own counters: tokens queried minus tokens found in
its prefix cache), divided by the size of the trie of all prompts, the minimum that must be computed. Lengths are
realistic (log-normal, medians 150 and 350 tokens), K = 8, every ordered pair, with a cache of 96k tokens, so that what
isn't reused soon is evicted. The model is random and tiny: caching doesn't depend on weights. Run with `python -m
tests.benchmarks.bench_prefix`; takes about a minute.
"""

import itertools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from judges.askers import ComparisonEncoder, ResponsePair
from prompts.verdict import PROMPTS
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.resources import JudgeEngineConfig
from tpo.engines.cluster.processes import engine_environment
from tpo.engines.inference.reply import Decoding
from tpo.engines.inference.sampler import Engine
from tpo.miniature.world import WORDS
from tpo.models.chat import ChatEncoder
from tpo.storage.store import folder_artifact

GROUPS, K, CONTEXT, CACHE_TOKENS = 16, 8, 4096, 98_304
ENGINE = JudgeEngineConfig()


def main() -> None:
    """Measures and prints."""
    variables = engine_environment(ENGINE)
    if not variables.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name], {**os.environ, **variables})
    with tempfile.TemporaryDirectory() as folder:
        model = _random_model(Path(folder))
        prompts = ComparisonEncoder(PROMPTS["cot"], ChatEncoder(model)).encode(_comparisons())
        engine = _CountingEngine(ENGINE, CONTEXT)
        engine.load(folder_artifact(model))
        shuffled = [prompts[i] for i in np.random.default_rng(1).permutation(len(prompts))]
        trie = _trie_tokens(prompts)
        print(f"{len(prompts)} comparisons, {sum(map(len, prompts))} tokens, {trie} in the trie")
        for name, order in (("our order", prompts), ("shuffled", shuffled)):
            computed = engine.prefill(order)
            print(f"{name:10s} computed {computed} prefill tokens, {computed / trie:.3f} of the trie")


class _CountingEngine(Engine):
    """The product's engine, with vLLM's counters switched on and a small cache."""

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        blocks = CACHE_TOKENS // settings["block_size"]
        return {**settings, "disable_log_stats": False, "num_gpu_blocks_override": blocks}

    def prefill(self, prompts: list[list[int]]) -> int:
        """Prefill tokens computed for some prompts, from an empty cache."""
        self._llm.reset_prefix_cache()
        before = self._counted()
        replies = self.reply(prompts, Decoding(1), [])
        computed = self._counted() - before
        by_request = sum(reply.input_tokens - reply.cached_tokens for reply in replies)
        assert computed == by_request, f"vLLM's counters say {computed}, its replies {by_request}"
        return computed

    def _counted(self) -> int:
        counters = {metric.name: metric.value for metric in self._llm.get_metrics() if hasattr(metric, "value")}
        return int(counters["vllm:prefix_cache_queries"] - counters["vllm:prefix_cache_hits"])


def _comparisons() -> list[ResponsePair]:
    rng = np.random.default_rng(0)

    def text(median: float) -> str:
        words = int(min(900, median * rng.lognormal(0, 0.5)))
        return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=words))

    groups = [(text(150), [text(350) for _ in range(K)]) for _ in range(GROUPS)]
    return [
        ResponsePair(question, *pair) for question, responses in groups for pair in itertools.permutations(responses, 2)
    ]


def _trie_tokens(prompts: list[list[int]]) -> int:
    """Nodes of the trie: tokens that no earlier prompt in sorted order shares at the same position after the same
    prefix."""
    total, before = 0, list[int]()
    for prompt in sorted(prompts):
        shared = next((i for i, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), len(before))
        total += len(prompt) - min(shared, len(prompt))
        before = prompt
    return total


def _random_model(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = ChatEncoder(SHIPPED_SEED_MODEL).tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=CONTEXT,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
