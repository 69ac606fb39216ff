"""Shapes of models: enough to compute their parameters and a token's KV cache without loading them.

A plan is made before hundreds of gigabytes are downloaded, so there may be no `config.json` yet: hence the table of
published shapes, by folder name, for the models in the shipped profiles. Other names are rejected rather than
guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo.errors import InputError
from tpo.models.model_config import NO_DECODER, read_model_config, text_part


@dataclass(frozen=True)
class ModelShape:
    """A Llama-like decoder: gated feed-forward layers, grouped keys and values."""

    layers: int
    """Decoder layers."""
    hidden: int
    """Width of the hidden states."""
    heads: int
    """Attention heads."""
    kv_heads: int
    """Key/value heads."""
    head_dim: int
    """Width of a head."""
    intermediate: int
    """Width of the feed-forward layers."""
    vocabulary: int
    """Vocabulary size."""
    context: int
    """Context length in tokens."""
    head: bool = True
    """Whether there is a separate output matrix: not with tied embeddings, nor in a reward model."""
    attention_bias: bool = False
    """Whether queries, keys and values have biases, as Qwen2's have."""

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices: what a token is multiplied with."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.hidden * (2 * queries + 2 * keys + 3 * self.intermediate)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, its two norms included."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        biases = queries + 2 * keys if self.attention_bias else 0
        return self.layer_weights + 2 * self.hidden + biases

    @property
    def parameters(self) -> int:
        """Total parameters."""
        embeddings = self.vocabulary * self.hidden * (2 if self.head else 1)
        return embeddings + self.layers * self.layer_parameters + self.hidden

    def kv_bytes(self, number_bytes: int) -> int:
        """Bytes of KV cache per token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * number_bytes

    def splits_over(self, gpus: int) -> bool:
        """Whether vLLM can split it over this many GPUs; key/value heads may be replicated on several."""
        few, many = sorted((self.kv_heads, gpus))
        return not (self.heads % gpus or self.intermediate % gpus or many % few)

    @property
    def degrees(self) -> list[int]:
        """The numbers of GPUs that vLLM can split it over."""
        return [gpus for gpus in range(1, self.heads + 1) if self.splits_over(gpus)]

    def lora_parameters(self, rank: int) -> int:
        """Parameters of LoRA adapters on every linear layer except the head."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        edges = 2 * (self.hidden + queries) + 2 * (self.hidden + keys) + 3 * (self.hidden + self.intermediate)
        return self.layers * rank * edges


@dataclass(frozen=True)
class Model:
    """A model in a plan."""

    name: str
    """The folder's name."""
    shape: ModelShape
    """Its shape."""
    known_by: str
    """The source of the shape; human-readable."""
    is_there: bool
    """Whether the folder exists."""

    @property
    def billions(self) -> str:
        """Its parameters; human-readable."""
        count = self.shape.parameters
        return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"


_LLAMA_8B = ModelShape(32, 4096, 32, 8, 128, 14336, 128256, 8192)
PUBLISHED: Mapping[str, ModelShape] = {
    "Meta-Llama-3-8B-Instruct": _LLAMA_8B,
    "Meta-Llama-3-8B": _LLAMA_8B,
    "Llama-3.1-8B-Instruct": ModelShape(32, 4096, 32, 8, 128, 14336, 128256, 131072),
    "Self-taught-evaluator-llama3.1-70B": ModelShape(80, 8192, 64, 8, 128, 28672, 128256, 131072),
    "Llama-3.1-70B-Instruct": ModelShape(80, 8192, 64, 8, 128, 28672, 128256, 131072),
    "ArmoRM-Llama3-8B-v0.1": ModelShape(32, 4096, 32, 8, 128, 14336, 128257, 8192, head=False),
    "Skywork-Reward-V2-Llama-3.1-8B": ModelShape(32, 4096, 32, 8, 128, 14336, 128256, 131072, head=False),
    "Qwen3-4B": ModelShape(36, 2560, 32, 8, 128, 9728, 151936, 40960, head=False),
    "Qwen3-8B": ModelShape(36, 4096, 32, 8, 128, 12288, 151936, 40960),
    "SmolLM3-3B": ModelShape(36, 2048, 16, 4, 128, 11008, 128256, 65536, head=False),
    "Llama-3.2-1B-Instruct": ModelShape(16, 2048, 32, 8, 64, 8192, 128256, 131072, head=False),
    "SmolLM2-135M-Instruct": ModelShape(30, 576, 9, 3, 64, 1536, 49152, 8192, head=False),
    "Qwen2.5-0.5B-Instruct": ModelShape(24, 896, 14, 2, 64, 4864, 151936, 32768, head=False, attention_bias=True),
    "Qwen2.5-1.5B-Instruct": ModelShape(28, 1536, 12, 2, 128, 8960, 151936, 32768, head=False, attention_bias=True),
    "Qwen2.5-3B-Instruct": ModelShape(36, 2048, 16, 2, 128, 11008, 151936, 32768, head=False, attention_bias=True),
    "Qwen2.5-7B-Instruct": ModelShape(28, 3584, 28, 4, 128, 18944, 152064, 32768, attention_bias=True),
    "Qwen2.5-Math-7B-Instruct": ModelShape(28, 3584, 28, 4, 128, 18944, 152064, 4096, attention_bias=True),
    "Qwen2.5-14B-Instruct": ModelShape(48, 5120, 40, 8, 128, 13824, 152064, 32768, attention_bias=True),
    "Bespoke-Stratos-7B": ModelShape(28, 3584, 28, 4, 128, 18944, 152064, 32768, attention_bias=True),
    "DeepSeek-R1-Distill-Qwen-7B": ModelShape(28, 3584, 28, 4, 128, 18944, 152064, 131072, attention_bias=True),
}
"""Published shapes by the name of the folder that a model is downloaded to.

Left out: ArmoRM's heads (a few million parameters) and Qwen3's norms of queries and keys (9,216). A test compares the
shapes with copies of the published `config.json`. No copy was found for the 70B models, Qwen2.5-3B, -14B and -Math-7B
and Bespoke-Stratos-7B: these numbers are unverified. ArmoRM's shape is read from the headers of its weights;
Skywork-Reward-V2-Llama-3.1-8B is assumed to have the shape of Llama-3.1-8B-Instruct, which it was trained from.
"""


ENCODER_DECODERS = ("t5-base", "t5-large")
"""Published models that can't be planned for."""


def find_model(folder: Path) -> Model:
    """The model in a folder, or the published one with the folder's name.

    Raises `InputError` if its shape is unknown.
    """
    if (folder / "config.json").is_file():
        return Model(folder.name, _read_shape(folder), "config.json", True)
    if (shape := PUBLISHED.get(folder.name)) is not None:
        return Model(folder.name, shape, "published shape: the folder doesn't exist yet", False)
    if folder.name in ENCODER_DECODERS:
        raise InputError(f"{folder} {NO_DECODER}")
    raise InputError(
        f"{folder} has no config.json, and its name is not that of a known model: put the model there (config.json is "
        f"enough for a plan), or rename the folder to one of {', '.join(PUBLISHED)}"
    )


def _read_shape(folder: Path) -> ModelShape:
    whole = read_model_config(folder)
    config = text_part(whole)
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        if config.get(key):
            raise InputError(
                f"{folder / 'config.json'} has {key} = {config[key]}: a plan cannot estimate memory and time of "
                "mixtures of experts; make iterate works without a plan"
            )

    def number(key: str, default: int | None = None) -> int:
        value = default if config.get(key) is None else config[key]
        if type(value) is not int or value < 1:
            raise InputError(f"{folder / 'config.json'} has {key} = {value!r}, expected a whole number from 1")
        return value

    heads, hidden = number("num_attention_heads"), number("hidden_size")
    return ModelShape(
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", hidden // heads) if config.get("head_dim") else hidden // heads,
        intermediate=number("intermediate_size"),
        vocabulary=number("vocab_size"),
        context=number("max_position_embeddings"),
        head=_has_head(whole, config),
        attention_bias=bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
    )


def _has_head(whole: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    writes = any(
        str(name).endswith(("ForCausalLM", "ForConditionalGeneration")) for name in whole.get("architectures") or ()
    )
    ties = str(config.get("model_type")).startswith("gemma")  # The default, which most configs omit.
    return writes and not config.get("tie_word_embeddings", whole.get("tie_word_embeddings", ties))
