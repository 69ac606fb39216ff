"""What published models say of themselves: `config.json`, as copies in public repositories have it.

Settings that no part of ours reads are left out. Such a folder has header-only weights: files of the right size that
take no space on disk, since they are sparse.

Of two models no copy of the whole file was found. ArmoRM: shapes come from the headers of its weights, the rest from
the code that its authors publish with it. Skywork-Reward-V2-Llama-3.1-8B: it is loaded everywhere as a plain
`LlamaForSequenceClassification` with one output, over Llama-3.1-8B-Instruct; its number of embedding rows isn't known
(the first Skywork-Reward has 128,257, one more than Llama).
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from tpo.config.base import SHIPPED_MODELS

Config = Mapping[str, Any]

_LLAMA: Config = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
_LLAMA_3: Config = {**_LLAMA, "eos_token_id": 128009, "max_position_embeddings": 8192, "rope_scaling": None,
                    "transformers_version": "4.40.0.dev0"}  # fmt: skip
_LLAMA_3_1: Config = {
    **_LLAMA, "eos_token_id": [128001, 128008, 128009], "max_position_embeddings": 131072, "mlp_bias": False,
    "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "transformers_version": "4.43.0.dev0",
}  # fmt: skip
_QWEN_3: Config = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3", "num_attention_heads": 32,
    "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
_QWEN_2_5: Config = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 32768, "model_type": "qwen2",
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
CONFIGS: Mapping[str, Config] = {
    "Qwen3-4B": {**_QWEN_3, "hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    "Qwen3-8B": {**_QWEN_3, "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    "Llama-3.1-8B-Instruct": _LLAMA_3_1,
    "SmolLM3-3B": {
        "architectures": ["SmolLM3ForCausalLM"], "bos_token_id": 128000, "eos_token_id": 128012, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 65536, "model_type": "smollm3",
        "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "pad_token_id": 128004, "pretraining_tp": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 5000000.0, "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 128256,
    },
    "Meta-Llama-3-8B-Instruct": _LLAMA_3,
    "Meta-Llama-3-8B": {**_LLAMA_3, "eos_token_id": 128001},
    "Llama-3.2-1B-Instruct": {
        **_LLAMA_3_1, "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "rope_scaling": {**_LLAMA_3_1["rope_scaling"], "factor": 32.0}, "tie_word_embeddings": True,
    },
    "SmolLM2-135M-Instruct": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 576,
        "intermediate_size": 1536, "max_position_embeddings": 8192, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-05,
        "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "vocab_size": 49152,
    },
    "Qwen2.5-0.5B-Instruct": {
        **_QWEN_2_5, "hidden_size": 896, "intermediate_size": 4864, "max_window_layers": 21, "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "sliding_window": 32768, "tie_word_embeddings": True,
    },
    "Qwen2.5-1.5B-Instruct": {
        **_QWEN_2_5, "hidden_size": 1536, "intermediate_size": 8960, "max_window_layers": 21,
        "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "sliding_window": 32768,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-7B-Instruct": {
        **_QWEN_2_5, "hidden_size": 3584, "intermediate_size": 18944, "max_window_layers": 28,
        "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": None,
        "tie_word_embeddings": False, "vocab_size": 152064,
    },
    "DeepSeek-R1-Distill-Qwen-7B": {
        **_QWEN_2_5, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_size": 3584, "intermediate_size": 18944,
        "max_position_embeddings": 131072, "max_window_layers": 28, "num_attention_heads": 28,
        "num_hidden_layers": 28, "num_key_value_heads": 4, "rope_theta": 10000, "tie_word_embeddings": False,
        "vocab_size": 152064,
    },
    "ArmoRM-Llama3-8B-v0.1": {
        **_LLAMA_3, "architectures": ["LlamaForRewardModelWithGating"], "gating_hidden_dim": 1024,
        "gating_n_hidden": 3, "gating_temperature": 10, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
        "num_objectives": 19, "vocab_size": 128257,
    },
    "Skywork-Reward-V2-Llama-3.1-8B": {
        **_LLAMA_3_1, "architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    },
}  # fmt: skip
"""Configs by the name of the model."""
GENERATION: Mapping[str, Config] = {
    "qwen3": {"bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
              "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0"},
}  # fmt: skip
"""`generation_config.json` by family, of those that were found."""
PARAMETERS: Mapping[str, int] = {
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Llama-3.1-8B-Instruct": 8_030_261_248,
    "SmolLM3-3B": 3_075_098_624,
}
"""Parameters as the hub counts them."""


def write_model(folder: Path, name: str, *, speaks_as: str = "miniature") -> Path:
    """A published model's folder: its config, weights without content, and a tokenizer that is here.

    The tokenizer is the miniature's, whose few tokens all have a row in the embedding.
    """
    config = CONFIGS[name]
    folder.mkdir(parents=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (path := SHIPPED_MODELS[speaks_as] / file).is_file():
            shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps(config))
    if (generation := GENERATION.get(config["model_type"])) is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    write_header(folder / "model.safetensors", dict(tensor_shapes(config)))
    return folder


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A sparse safetensors file of bfloat16 tensors."""
    header, end = dict[str, Any](), 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def tensor_shapes(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a model's tensors."""
    width, inner, family = config["hidden_size"], config["intermediate_size"], config["model_type"]
    head = config.get("head_dim", width // config["num_attention_heads"])
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    layer = {
        "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width), "self_attn.k_proj.weight": (keys, width),
        "self_attn.v_proj.weight": (keys, width), "self_attn.o_proj.weight": (width, queries),
        "mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }  # fmt: skip
    if family == "qwen3":
        layer |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    if family == "qwen2":
        layer |= {"self_attn.q_proj.bias": (queries,), "self_attn.k_proj.bias": (keys,)}
        layer |= {"self_attn.v_proj.bias": (keys,)}
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    for i in range(config["num_hidden_layers"]):
        yield from ((f"model.layers.{i}.{name}", shape) for name, shape in layer.items())
    yield "model.norm.weight", (width,)
    (architecture,) = config["architectures"]
    if architecture == "LlamaForRewardModelWithGating":
        yield from _gate(config)
    elif architecture.endswith("ForSequenceClassification"):
        yield "score.weight", (1, width)
    elif not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], width)


def _gate(config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """ArmoRM's heads, as the headers of its files have them."""
    width, objectives = config["hidden_size"], config["num_objectives"]
    yield "regression_layer.weight", (objectives, width)
    yield "reward_transform_matrix", (objectives, objectives)
    yield "gating.logit_scale", (1,)
    for i, (out, into) in enumerate([(1024, width), (1024, 1024), (1024, 1024), (objectives, 1024)]):
        yield f"gating.layers.{i}.weight", (out, into)
        yield f"gating.layers.{i}.bias", (out,)
