"""Speed of our scorer, compared with the usual loop: transformers on padded batches in order of arrival.

Prints for both the chats' own tokens per second (padding doesn't count, and a prompt counts with each of its
responses), their ratio, and the largest difference of the scores. Both run in this process, alternating, on one thread,
with the same float32 weights: a Llama of 4 layers and width 256 with random weights, since the speed doesn't depend on
them.

The usual loop is `AutoModelForSequenceClassification` on batches of 8 in order of arrival: the 8 responses of one
prompt, each padded to the longest. Lengths are log-normal: prompts around 150 tokens (σ 0.8), responses around 350,
with σ 0.5 between prompts and 0.35 among the responses to one. Run with `python -m tests.benchmarks.bench_reward`;
takes about a minute.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from judges.reward_model import load_reward_model
from tpo.config.resources import JudgeEngineConfig
from tpo.engines.cluster.processes import environment
from tpo.engines.inference.reward_reader import Chat, Scorer, Values

PROMPTS, K, ROUNDS, VOCABULARY, PAD = 12, 8, 3, 4000, 0
ENGINE = JudgeEngineConfig(batch_tokens=4096)


@dataclass
class Clock:
    """Seconds that one of the two has taken."""

    wall: float = 0.0
    """Wall-clock time, which includes the machine's other work."""
    cpu: float = 0.0
    """CPU time of this process alone."""

    def time(self, work: Callable[..., list[list[Values]]], *arguments: object) -> list[list[Values]]:
        """The result of `work`, whose seconds are added."""
        wall, cpu = time.perf_counter(), time.process_time()
        found = work(*arguments)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return found


def main() -> None:
    """Measures and prints."""
    variables = environment(1)
    if not variables.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name], {**os.environ, **variables})
    with tempfile.TemporaryDirectory() as name:
        folder = _random_model(Path(name))
        ours = Scorer(load_reward_model, folder, ENGINE)
        usual = _usual_model(folder)
        groups = _groups(np.random.default_rng(0))
        _padded(usual, groups[0][:2])
        ours.score([groups[0][:2]])
        clocks, worst = {"transformers, padded": Clock(), "our scorer": Clock()}, 0.0
        for first in range(0, PROMPTS, PROMPTS // ROUNDS):
            part = groups[first : first + PROMPTS // ROUNDS]
            expected = clocks["transformers, padded"].time(_usual_way, usual, part)
            found = clocks["our scorer"].time(ours.score, part)
            worst = max(worst, float(np.abs(np.concatenate(expected) - np.concatenate(found)).max()))
    tokens = sum(len(chat.token_ids) for group in groups for chat in group)
    padded = sum(len(group) * max(len(chat.token_ids) for chat in group) for group in groups)
    print(f"{PROMPTS} prompts of {K} responses, {tokens} tokens, {tokens / padded:.2f} of the padded batches")
    for way, clock in clocks.items():
        print(f"{way:20s} {tokens / clock.wall:8.0f} tokens/s, {tokens / clock.cpu:8.0f} tokens/s of CPU")
    slow, fast = clocks.values()
    print(f"quotient {slow.wall / fast.wall:.2f}, of CPU {slow.cpu / fast.cpu:.2f} (goal 2.5)")
    print(f"scores differ by at most {worst:.1e}")


def _groups(rng: np.random.Generator) -> list[list[Chat]]:
    """The chats of each prompt, in order of arrival; no token is padding."""

    def tokens(median: float, spread: float) -> list[int]:
        length = int(np.clip(median * np.exp(spread), 8, 2000))
        return [int(token) for token in rng.integers(1, VOCABULARY, length)]

    groups = []
    for _ in range(PROMPTS):
        prompt, pace = tokens(150, 0.8 * rng.normal()), 0.5 * rng.normal()
        chats = [(*prompt, *tokens(350, pace + 0.35 * rng.normal())) for _ in range(K)]
        groups.append([Chat(ids, (len(ids) - 1,)) for ids in chats])
    return groups


def _usual_way(model: Any, groups: Sequence[Sequence[Chat]]) -> list[list[Values]]:
    return [_padded(model, chats) for chats in groups]


def _padded(model: Any, chats: Sequence[Chat]) -> list[Values]:
    """The values of a prompt's chats, read as one batch."""
    import torch

    longest = max(len(chat.token_ids) for chat in chats)
    ids = torch.tensor([[*chat.token_ids, *[PAD] * (longest - len(chat.token_ids))] for chat in chats])
    with torch.inference_mode():
        values: list[Values] = model(input_ids=ids, attention_mask=(ids != PAD).long()).logits.tolist()
    return values


def _usual_model(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()


def _random_model(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, num_labels=1, pad_token_id=PAD,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
