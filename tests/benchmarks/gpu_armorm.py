"""Throughput of our scorer with an ArmoRM of eight billion parameters: tokens per second, and share of the peak
product.

Prints the chats' own tokens per second (a prompt counts with each of its responses; padding doesn't count), the share
of tokens computed, and their share of the best matrix product that this process measures on the device, at 2 operations
per parameter and token. Weights are random. Needs an NVIDIA GPU:

    python -m tests.benchmarks.gpu_armorm
    python -m tests.benchmarks.gpu_armorm --shape tiny --device cpu     # tries the script itself
"""

import random
import tempfile
import time
from pathlib import Path

from tests.benchmarks.gpu_trainer import (
    Shape,
    arguments,
    counted_parameters,
    device_name,
    peak_product,
    synchronize,
)
from tpo.config.resources import JudgeEngineConfig
from tpo.engines.inference.reward_reader import Chat, Scorer

PROMPTS, K = 16, 8
GATE = {"num_objectives": 19, "gating_temperature": 10, "gating_hidden_dim": 1024, "gating_n_hidden": 3}


def main() -> None:
    """Measures and prints."""
    shape, device = arguments(__doc__)
    peak = peak_product(shape.product, device)
    print(
        f"{device_name(device)}: {peak / 1e12:.2f} Tflop/s in a product of {shape.product} × {shape.product}, bfloat16"
    )
    groups = _groups(shape)
    with tempfile.TemporaryDirectory() as name:
        scorer = _scorer(_random_armorm(Path(name), shape), device)
    scorer.score(groups[:1])
    synchronize(device)()
    began = time.perf_counter()
    scorer.score(groups)
    synchronize(device)()
    seconds = time.perf_counter() - began
    tokens = sum(len(chat.token_ids) for group in groups for chat in group)
    computed = sum(_computed(group) for group in groups)
    # The head is the trainer's, not ArmoRM's.
    parameters = counted_parameters(shape, shape.sizes["num_hidden_layers"]) - (
        shape.sizes["hidden_size"] * shape.sizes["vocab_size"]
    )
    share = computed / seconds * 2 * parameters / peak
    print(
        f"{PROMPTS} prompts of {K} responses, {'packed' if scorer.packs else 'padded'}: {tokens / seconds:,.0f} "
        f"tokens/s, {computed / seconds:,.0f} of them computed, {share:.1%} of the product"
    )


def _scorer(folder: Path, device: str) -> Scorer:
    from judges.armorm import load_armorm_reader

    kind = "gpu" if device == "cuda" else "cpu"
    config = JudgeEngineConfig.model_validate({"device": kind, "dtype": "bfloat16", "batch_tokens": 16_384})
    return Scorer(load_armorm_reader, folder, config)


def _random_armorm(folder: Path, shape: Shape) -> Path:
    import torch
    from transformers import LlamaConfig

    from tpo.models.armorm import ArmoRM, save_armorm

    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    model = ArmoRM(LlamaConfig(**shape.sizes, **GATE))
    torch.set_default_dtype(default)
    save_armorm(model, folder)
    return folder


def _groups(shape: Shape) -> list[list[Chat]]:
    """The chats of each prompt, which share a beginning; the gate reads at the prompt's end, the rewards at the
    chat's."""
    draw = random.Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(shape.sizes["vocab_size"]) for _ in range(length))

    groups = []
    for _ in range(PROMPTS):
        prompt = ids(shape.tokens[0] // 4)
        chats = [(*prompt, *ids(draw.randint(*shape.tokens) - len(prompt))) for _ in range(K)]
        groups.append([Chat(chat, (len(prompt) - 1, len(chat) - 1)) for chat in chats])
    return groups


def _computed(group: list[Chat]) -> int:
    """Tokens of a prompt's chats, counting shared beginnings once."""
    shared = group[0].positions[0] + 1
    return shared + sum(len(chat.token_ids) - shared for chat in group)


if __name__ == "__main__":
    main()
