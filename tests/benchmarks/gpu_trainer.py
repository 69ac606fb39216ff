"""Throughput of DPO steps on one device: tokens per second, and the share of the device's peak matrix product.

Prints for adapters and for all weights the pairs' own tokens per second (a prompt counts with each of its two outputs;
padding doesn't count), and the share of the best matrix product that this process measures on the device. The model has
Llama-3-8B's shape and random weights, which doesn't affect the speed. Needs an NVIDIA GPU:

    python -m tests.benchmarks.gpu_trainer
    python -m tests.benchmarks.gpu_trainer --shape tiny --device cpu     # tries the script itself

The share counts 6 operations per parameter and token if all weights are trained, and 4 with adapters, since frozen
weights need no gradients. Recomputation for gradient checkpointing, attention, and the head on prompts don't count.
Training all weights takes 16 bytes per parameter, 128 GB for eight billion: on a smaller GPU, layers are removed until
it fits, and their number is printed.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tpo.config.resources import TrainerConfig
from tpo.config.training import LoraConfig, TrainConfig
from tpo.engines.training.packing import PACKED
from tpo.records import Pair

VOCABULARY = 128_256
PAIRS, BATCH, WARM_UP = 24, 4, 2
"""Pairs, pairs per step, and steps that aren't measured."""
ROWS = {"padded": None, "packed, a call per sequence": PACKED, "packed, one call a layer": "tpo_packed_in_one_call"}
"""Ways to lay out a micro-batch, with the attention that reads it."""
_TRAINED_BYTES, _ROOM_GB = 16, 14
"""Bytes per trained parameter; gigabytes left for activations and the weights of a layer in bfloat16."""


@dataclass(frozen=True)
class Shape:
    """What is trained, and on which data."""

    sizes: dict[str, int]
    """The Llama's config."""
    tokens: tuple[int, int]
    """Minimum and maximum length of a sequence."""
    product: int
    """Rows and columns of the matrices whose product is the yardstick."""


SHAPES = {
    "8b": Shape(
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 8192,
        },
        (1024, 2048),
        16384,
    ),
    "tiny": Shape(
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 504,
            "max_position_embeddings": 512,
        },
        (64, 128),
        512,
    ),
}


def main() -> None:
    """Measures and prints."""
    shape, device = arguments(__doc__)
    import torch

    peak = peak_product(shape.product, device)
    print(
        f"{device_name(device)}: {peak / 1e12:.2f} Tflop/s in a product of {shape.product} × {shape.product}, bfloat16"
    )
    pairs = some_pairs(shape)
    for rows in ROWS:
        for way in ("adapters", "all weights"):
            lora = LoraConfig() if way == "adapters" else None
            layers = _layers_that_fit(shape, device) if lora is None else shape.sizes["num_hidden_layers"]
            with tempfile.TemporaryDirectory() as name:
                folder = random_llama(Path(name) / "model", shape, layers, device)
                seconds = step_seconds(folder, pairs, Path(name) / "run", lora=lora, rows=rows, device=device)
            parameters = counted_parameters(shape, layers)
            tokens = _tokens(pairs) / len(pairs) * BATCH
            rate = tokens / seconds
            share = rate * parameters * (4 if lora else 6) / peak
            less = "" if layers == shape.sizes["num_hidden_layers"] else f" of {layers} layers, which is what fits"
            print(
                f"{way}{less}, {rows}: {rate:,.0f} tokens/s, {share:.1%} of the product, "
                f"{seconds:.2f} s a step of {BATCH} pairs"
            )
            if device == "cuda":
                print(f"  at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of the GPU's memory")
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()


def arguments(doc: str | None) -> tuple[Shape, str]:
    """The command line's options; exits with a message if they need a GPU and there is none."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    found = parser.parse_args()
    import torch

    if found.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "nothing is measured: there is no NVIDIA GPU here (try --shape tiny --device cpu for the script itself)"
        )
    return SHAPES[found.shape], found.device


def device_name(device: str) -> str:
    """Name of the measured device."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def peak_product(size: int, device: str, *, seconds: float = 3.0) -> float:
    """Operations per second in products of square bfloat16 matrices."""
    import torch

    first, second = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    for _ in range(3):
        first @ second
    wait()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(10):
            first @ second
        wait()
        done += 10
    return done * 2 * size**3 / (time.perf_counter() - began)


def random_llama(folder: Path, shape: Shape, layers: int, device: str, *, precision: str = "bfloat16") -> Path:
    """A folder with random weights and a tokenizer that is never used."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(**{**shape.sizes, "num_hidden_layers": layers}, dtype=precision)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(getattr(torch, precision))
    model.save_pretrained(folder)
    del model
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    return folder


def counted_parameters(shape: Shape, layers: int) -> int:
    """Parameters that every token is multiplied with: all except the embedding's."""
    sizes = shape.sizes
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    keys = width // heads * sizes["num_key_value_heads"]
    layer = 2 * width * width + 2 * width * keys + 3 * width * sizes["intermediate_size"]
    return layers * layer + width * sizes["vocab_size"]


def some_pairs(shape: Shape) -> list[Pair]:
    """Pairs whose lengths are drawn from the shape's range; a quarter of the shorter one is prompt."""
    draw = random.Random(0)

    def ids(length: int) -> list[int]:
        return [draw.randrange(2, shape.sizes["vocab_size"]) for _ in range(length)]

    pairs = []
    for i in range(PAIRS):
        first, second = (draw.randint(*shape.tokens) for _ in range(2))
        prompt = min(first, second) // 4
        pairs.append(
            Pair(str(i), "regular", ids(prompt), ids(first - prompt), ids(second - prompt), 0, 1, 1.0, 0.0, 1.0)
        )
    return pairs


def step_seconds(
    folder: Path, pairs: list[Pair], run: Path, *, lora: LoraConfig | None, rows: str, device: str
) -> float:
    """Median seconds of an optimizer step after the first ones, without the reference's log-probabilities."""
    from transformers import TrainerCallback

    from tpo.engines.training.worker import make_trainer, write_dataset

    class Clock(TrainerCallback):
        """Records when steps end."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            synchronize(device)()
            self.ends.append(time.perf_counter())
            control.should_training_stop = len(self.ends) == PAIRS // BATCH
            control.should_epoch_stop = control.should_training_stop

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_save = False

    kind: Literal["cpu", "gpu"] = "gpu" if device == "cuda" else "cpu"
    config = TrainConfig(
        epochs=1, batch_size=BATCH, micro_batch_size=1, max_tokens=8192, precision="bfloat16", learning_rate=1e-6,
        gradient_checkpointing=True, lora=lora, packing=rows != "padded",
    )  # fmt: skip
    write_dataset(pairs, run / "dataset")
    dpo = make_trainer(
        folder, run, config=config, trainer=TrainerConfig(device=kind), seed=0, on_step=lambda done, total: None
    )
    if (attention := ROWS[rows]) is not None and device == "cuda":
        dpo._unwrapped().set_attn_implementation(attention)
    for callback in [each for each in dpo.callback_handler.callbacks if type(each).__name__ == "Keeper"]:
        dpo.remove_callback(callback)  # no model is written: that would measure the disk
    clock = Clock()
    dpo.add_callback(clock)
    dpo.train()
    times = sorted(
        later - earlier for earlier, later in zip(clock.ends[WARM_UP:], clock.ends[WARM_UP + 1 :], strict=False)
    )
    return times[len(times) // 2]


def synchronize(device: str) -> Callable[[], None]:
    """A function that waits for a device."""
    import torch

    return torch.cuda.synchronize if device == "cuda" else (lambda: None)


def _layers_that_fit(shape: Shape, device: str) -> int:
    """The number of layers for which the device has memory to train all weights."""
    import torch

    layers = shape.sizes["num_hidden_layers"]
    if device == "cpu":
        return layers
    room = torch.cuda.get_device_properties(0).total_memory - _ROOM_GB * 10**9
    embedding = shape.sizes["hidden_size"] * shape.sizes["vocab_size"]
    while layers > 1 and (counted_parameters(shape, layers) + embedding) * _TRAINED_BYTES > room:
        layers -= 1
    return layers


def _tokens(pairs: list[Pair]) -> int:
    return sum(2 * len(p.prompt_token_ids) + len(p.chosen_token_ids) + len(p.rejected_token_ids) for p in pairs)


if __name__ == "__main__":
    main()
