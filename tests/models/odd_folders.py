"""Realistic model folders that can't work: odd values, other formats, files that don't belong together.

Each changes a copy of the shipped seed model.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hostile_files import change_json

Change = Callable[[Path], object]
Tensors = dict[str, Any]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@dataclass(frozen=True)
class Odd:
    """One folder."""

    make: Change
    """Makes it from a sound one."""
    pattern: str
    """Pattern of the message."""


def config(name: str = "config.json", **values: object) -> Change:
    return lambda folder: change_json(folder / name, **values)


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def with_file(name: str, content: bytes = b"\0") -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def several(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def weights(change: Callable[[Tensors], Tensors]) -> Change:
    """Other tensors; the same file name."""

    def rewrite(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = folder / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)

    return rewrite


def renamed(old: str, new: str) -> Change:
    """Weights whose names have another prefix."""
    return weights(
        lambda tensors: {
            new + name.removeprefix(old) if name.startswith(old) else name: tensor for name, tensor in tensors.items()
        }
    )


def into_sub_folder(folder: Path) -> None:
    inner = folder / "snapshots" / "0123abc"
    inner.mkdir(parents=True)
    for path in [path for path in folder.iterdir() if path.is_file()]:
        shutil.move(path, inner)


def with_index(files: Mapping[str, str], *, names: Mapping[str, str] | None = None) -> Change:
    """An index in place of the one file, which is renamed to the first of `files`' values."""

    def change(folder: Path) -> None:
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", "pt") as opened:
            places = dict.fromkeys(opened.keys(), "model-00001-of-00002.safetensors")
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**places, **files}}))

    return change


def more_words(folder: Path) -> None:
    """A tokenizer with more tokens than the embedding has rows."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {**vocabulary, **{f"word{i}": 600 + i for i in range(3)}}
    path.write_text(json.dumps(tokenizer))


def without_head(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


CONFIGS: Mapping[str, Odd] = {
    **{
        f"{key} {value!r}": Odd(config(**dict[str, Any]({key: value})), rf"config.json has {key} = .*, expected")
        for key, value in [
            ("num_attention_heads", 0), ("num_attention_heads", "4"), ("num_attention_heads", None),
            ("num_attention_heads", 4.0), ("num_attention_heads", True), ("num_hidden_layers", -1),
            ("hidden_size", 10**30), ("vocab_size", 10**12), ("vocab_size", "504"), ("intermediate_size", []),
            ("num_key_value_heads", "4"), ("max_position_embeddings", 10**12), ("max_position_embeddings", None),
            ("head_dim", -32), ("rms_norm_eps", "1e-6"), ("rms_norm_eps", 0), ("attention_dropout", 7),
            ("tie_word_embeddings", "yes"), ("attention_bias", 1), ("sliding_window", "all"), ("model_type", 5),
            ("architectures", "LlamaForCausalLM"), ("architectures", [1]), ("quantization_config", "int4"),
            ("text_config", [1]), ("eos_token_id", "<|end|>"), ("eos_token_id", [[491]]), ("pad_token_id", 1.5),
            ("rope_scaling", 2), ("layer_types", "full"),
        ]
    },
    "a dtype that does not exist": Odd(config(dtype="float17"), "dtype = 'float17', expected one of bfloat16, float16"),
    "an old dtype that does not exist": Odd(config(torch_dtype="torch.int"), "torch_dtype = 'torch.int', expected one"),
    "an activation that does not exist": Odd(config(hidden_act="swiggle"), "hidden_act = 'swiggle', expected one that"),
    "hidden_size that heads do not divide": Odd(config(hidden_size=130), "which num_attention_heads = 4 does not div"),
    "kv heads that do not divide heads": Odd(config(num_key_value_heads=3), "= 3, which does not divide num_att"),
    "a pad token beyond the vocabulary": Odd(config(pad_token_id=504), "pad_token_id = 504, and vocab_size = 504"),
    "types for too few layers": Odd(config(layer_types=["full_attention"]), "layer_types of 1 layers, and num_hidden"),
    "rotary scaling of unknown type": Odd(
        config(rope_parameters={"rope_type": "spiral"}), "rope_parameters with rope_type = 'spiral', expected one of"
    ),
    "rotary scaling without a factor": Odd(
        config(rope_scaling={"type": "dynamic"}), "rope_scaling with factor = None, expected a number above 0"
    ),
    "rotary scaling of Llama 3's type without its numbers": Odd(
        config(rope_scaling={"rope_type": "llama3", "factor": 8}), "rope_scaling with low_freq_factor = None"
    ),
    "rotary scaling by layer": Odd(
        config(rope_parameters={"full_attention": {"rope_type": 5}}), "rope_parameters with rope_type = 5"
    ),
    "an unknown family": Odd(
        config(model_type="hal9000"), "model_type = 'hal9000', which the installed transformers does not support"
    ),
    "a family that does not generate": Odd(
        config(model_type="clip"), "model_type = 'clip', for which the installed transformers has no causal language"
    ),
    "an unknown architecture": Odd(
        config(architectures=["Hal9000"]), r"architectures = \['Hal9000'\], which the installed vLLM does not support"
    ),
    "a reward model": Odd(
        config(architectures=["LlamaForSequenceClassification"]), "scores text and does not generate it"
    ),
    "an encoder and a decoder": Odd(config(is_encoder_decoder=True), "is an encoder-decoder model"),
    "a model that reads images": Odd(
        lambda folder: (folder / "config.json").write_text(
            json.dumps(
                {
                    "model_type": "gemma3",
                    "architectures": ["Gemma3ForConditionalGeneration"],
                    "text_config": json.loads((folder / "config.json").read_text()),
                    "vision_config": {},
                }
            )
        ),
        "is a Gemma3ForConditionalGeneration, which also reads images or sound.*save its text part",
    ),
    **{
        f"weights quantized by {method}": Odd(
            config(quantization_config={"quant_method": method}),
            rf"says that the weights are quantized \({method}\), but training needs unquantized ones",
        )
        for method in ("bitsandbytes", "gptq", "awq", "fp8", "mxfp4", "compressed-tensors")
    },
    "weights quantized without a name": Odd(config(quantization_config={"load_in_4bit": True}), r"\(bitsandbytes\)"),
}  # fmt: skip
"""Found from `config.json` alone."""

FILES: Mapping[str, Odd] = {
    **{
        f"generation_config.json, {key} {value!r}": Odd(
            config("generation_config.json", **{key: value}), rf"generation_config.json has {key} = .*, expected"
        )
        for key, value in [
            ("eos_token_id", "<|end|>"), ("eos_token_id", [[491]]), ("temperature", "hot"), ("top_p", [1]),
            ("top_k", "a"), ("do_sample", "yes"), ("max_new_tokens", -1), ("pad_token_id", {}),
        ]
    },
    **{
        f"{name}, {key} {value!r}": Odd(config(name, **{key: value}), rf"{name} has {key} = .*, expected")
        for name, key, value in [
            ("tokenizer_config.json", "eos_token", 7), ("tokenizer_config.json", "eos_token", ["<|end|>"]),
            ("tokenizer_config.json", "pad_token", {"text": "x"}), ("tokenizer_config.json", "chat_template", 5),
            ("tokenizer_config.json", "chat_template", ["{{ messages }}"]),
            ("tokenizer_config.json", "chat_template", [{"name": "default", "template": 5}]),
            ("tokenizer_config.json", "added_tokens_decoder", [1]),
            ("tokenizer_config.json", "added_tokens_decoder", {"1": "x"}),
            ("tokenizer_config.json", "additional_special_tokens", "<x>"),
            ("tokenizer_config.json", "model_max_length", "long"), ("tokenizer_config.json", "tokenizer_class", 5),
            ("tokenizer_config.json", "padding_side", "up"), ("special_tokens_map.json", "eos_token", 7),
            ("special_tokens_map.json", "additional_special_tokens", [[1]]),
        ]
    },
    "templates without a default": Odd(
        config("tokenizer_config.json", chat_template=[{"name": "rag", "template": "x"}]),
        "tokenizer_config.json has chat templates named rag and none named default",
    ),
    "a tokenizer larger than the embedding": Odd(
        more_words, "tokenizer.json has tokens up to number 602, and the model's embedding has 504 rows"
    ),
    "only an adapter": Odd(
        several(
            without("model.safetensors"), without("config.json"), with_file("adapter_config.json", b"{}"),
            with_file("adapter_model.safetensors"),
        ),
        r"contains an adapter \(adapter_config.json, adapter_model.safetensors\).*merge",
    ),
    "GGUF alone": Odd(
        several(without("model.safetensors"), without("config.json"), with_file("model.Q4_K_M.gguf")),
        r"contains weights in formats that we do not load \(model.Q4_K_M.gguf\)",
    ),
    "only a pickle": Odd(
        several(without("model.safetensors"), with_file("pytorch_model.bin")), "contains pickles .*convert weights"
    ),
    **{
        f"an LFS pointer in place of {name}": Odd(with_file(name, POINTER), f"{name} is a Git LFS pointer")
        for name in ("model.safetensors", "tokenizer.json", "tokenizer.model", "config.json")
    },
    "a model in a sub-folder": Odd(into_sub_folder, "no config.json; there is a model in .*/snapshots/0123abc: name"),
    "weights under another name": Odd(
        lambda folder: (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors"),
        "nor model.safetensors.index.json; it has model-00001-of-00002.safetensors: download the index",
    ),
    "a shard that is not there": Odd(
        with_index({"lm_head.weight": "model-00002-of-00002.safetensors"}), "00002-of-00002.safetensors is missing"
    ),
    "an index of a tensor that is not there": Odd(
        with_index({"model.layers.9.w": "model-00001-of-00002.safetensors"}), "names tensors that its files lack"
    ),
    "quantized weights that the config does not mention": Odd(
        weights(lambda tensors: {name: tensor.char() for name, tensor in tensors.items()}), r"quantized weights \(I8\)"
    ),
}  # fmt: skip
"""Found from the files, before a library is loaded."""

WEIGHTS: Mapping[str, Odd] = {
    "a vocabulary of another size": Odd(
        config(vocab_size=600),
        r"lm_head.weight of shape \[504, 128\].*has vocab_size = 600, but the weights have 504 row",
    ),
    "layers of another width": Odd(config(intermediate_size=328), r"of shape \[128, 320\], expected"),
    "no head, though it is not tied": Odd(
        weights(without_head), "has no lm_head.weight, the output matrix.*tie_word_embeddings is false"
    ),
    "missing layers": Odd(config(num_hidden_layers=6), "it has 4 layers, but num_hidden_layers in config.js"),
    "extra layers": Odd(config(num_hidden_layers=3), "has 4 layers, but num_hidden_layers in config.json is 3"),
    "missing biases": Odd(config(attention_bias=True), "lacks 16 of the 55 tensors of LlamaForCausalLM, such as"),
    "names of another library": Odd(
        renamed("model.", "transformer."), "lacks 38 of the 39 tensors .*has others, such as transformer.embed_tokens"
    ),
    "names of a base model": Odd(
        renamed("model.", ""), "has other names of weights than LlamaForCausalLM .*and vLLM supports no others"
    ),
    "names with a prefix twice": Odd(
        renamed("model.", "model.model."), "has other names of weights than LlamaForCausalLM"
    ),
    "another family": Odd(
        config(model_type="gpt2", n_embd=128, architectures=["GPT2LMHeadModel"]), "of GPT2LMHeadModel"
    ),
}
"""Found only from the model's architecture."""

SOUND: Mapping[str, Change] = {
    "unchanged": lambda folder: None,
    "without architectures": config(architectures=None),
    "a head and an embedding that it is tied to": config(tie_word_embeddings=True),
    "no head, and it is tied": several(config(tie_word_embeddings=True), weights(without_head)),
    "templates by name": config("tokenizer_config.json", chat_template=[{"name": "default", "template": "x"}]),
    "settings of null": config(num_key_value_heads=None, head_dim=None, rope_scaling=None, quantization_config=None),
    "generation settings of null": config("generation_config.json", temperature=None, eos_token_id=[491]),
    "a token as an object": config("tokenizer_config.json", eos_token={"content": "<|end|>", "special": True}),
    "old buffers": weights(lambda tensors: {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": _ones()}),
}
"""Accepted silently."""


def _ones() -> Any:
    import torch

    return torch.ones(16)
