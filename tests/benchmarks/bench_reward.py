"""Speed of our scorer, compared with the usual loop: transformers on padded batches in order of arrival.

Prints the ratio of the chats' own tokens per second (padding doesn't count, and a prompt counts with each of its
responses) and the largest difference of the scores. Both run in this process, alternating, on one thread, with the same
float32 weights: a Llama of 4 layers and width 256 with random weights, since the speed doesn't depend on them.

The usual loop is `AutoModelForSequenceClassification` on batches of 8 in order of arrival: the 8 responses of one
prompt, each padded to the longest. Lengths are log-normal: prompts around 150 tokens (σ 0.8), responses around 350,
with σ 0.5 between prompts and 0.35 among the responses to one. Run with `python -m tests.benchmarks.bench_reward`;
takes about a minute.
"""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from judges.reward_model import load_reward_model
from tests.benchmarks import measure
from tpo.config.resources import JudgeEngineConfig
from tpo.engines.inference.reward_reader import Chat, Scorer, Values
from tpo.models.shape import ModelShape, find_model
from tpo.planning.model_flops import Reads, forward_flops

PROMPTS, K, ROUNDS, VOCABULARY, PAD = 20, 8, 5, 4000, 0
ENGINE = JudgeEngineConfig(batch_tokens=4096)


def main() -> None:
    """Measures and prints."""
    chosen = measure.options(__doc__, threads=1, rounds=ROUNDS)
    print(measure.describe_machine(chosen.threads))
    with tempfile.TemporaryDirectory() as name:
        folder = _random_model(Path(name))
        ours = Scorer(load_reward_model, folder, ENGINE)
        usual, shape = _usual_model(folder), find_model(folder).shape
        groups = _groups(np.random.default_rng(0))
        each = PROMPTS // chosen.rounds
        parts = [groups[i * each : (i + 1) * each] for i in range(chosen.rounds)]
        found = measure.alternate(
            {
                "usual": lambda number: measure.timed(lambda: _usual_way(usual, parts[number])),
                "ours": lambda number: measure.timed(lambda: ours.score(parts[number])),
            },
            chosen.rounds,
            warm_up=1,
        )
    worst = max(
        float(np.abs(np.concatenate(a.found) - np.concatenate(b.found)).max())
        for a, b in zip(found["usual"], found["ours"], strict=True)
    )
    assert worst < 1e-4, f"scores differ by {worst:.1e}"
    tokens = sum(len(chat.token_ids) for part in parts for group in part for chat in group)
    padded = sum(len(group) * max(len(chat.token_ids) for chat in group) for part in parts for group in part)
    print(f"{each * chosen.rounds} prompts of {K} responses, {tokens} tokens, {tokens / padded:.2f} of the padded ones")
    print(
        f"scores differ by at most {worst:.1e}; CPU {measure.ratio_of_seconds(found['usual'], found['ours'], cpu=True)}"
    )
    ratio = measure.ratio_of_seconds(found["usual"], found["ours"])
    peer = f"padded batches in order of arrival, {measure.versions('transformers')}"
    peak = measure.peak_product()
    shares = [_operations(shape, part) / each.seconds / peak for part, each in zip(parts, found["ours"], strict=True)]
    limit = (
        f"arithmetic: needed operations (a shared prompt's once for all its responses) at {measure.spread(shares)} of "
        f"the {peak / 1e9:.0f} GFLOP/s of a float32 product"
    )
    row = measure.Row(7, "reward model's real tokens/s", peer, "≥ 2.5", ratio.median, ratio.low, ratio.high, limit)
    measure.report(row, as_json=chosen.json)


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


def _operations(shape: ModelShape, groups: Sequence[Sequence[Chat]]) -> float:
    """Operations that no reader can do without: each group's common beginning is read once."""
    total = 0.0
    for group in groups:
        ids = [chat.token_ids for chat in group]
        shared = len(list(itertools.takewhile(lambda same: len(set(same)) == 1, zip(*ids, strict=False))))
        rests = [len(each) - shared for each in ids]
        attended = _triangle(shared) + sum(_triangle(shared + rest) - _triangle(shared) for rest in rests)
        total += forward_flops(shape, Reads(shared + sum(rests), 0, attended))
    return total


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


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
