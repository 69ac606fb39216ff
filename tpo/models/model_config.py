"""Checks of a model folder's `config.json`, shared by preflight, plan, serving and `check-model`.

`read_model_config` rejects values that no model can have: the libraries would end in a traceback, minutes later and
after the engines have started. `check_use` rejects a valid model that can't be used as intended: to generate text, or
to be trained. Both only read files and take milliseconds; checks that need the libraries are in `weights_check`.

Only settings that exist are checked. A missing one has a default in transformers, and if that doesn't fit the weights,
the check of their shapes fails.
"""

import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tpo.errors import InputError
from tpo.models.files import read_json
from tpo.models.known_models import (
    architectures_that_score,
    architectures_that_write,
    causal_model_types,
    model_types,
    multimodal_architectures,
)

NO_DECODER = (
    "is an encoder-decoder model, such as T5, which neither vLLM nor our trainer supports: use a causal language model "
    "(...ForCausalLM)"
)
"""The fault of a model that has an encoder."""
DTYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "half", "float", "double")
"""Names of torch dtypes of weights."""
ROPE_TYPES: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "su": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    **dict.fromkeys(("proportional", "mrope", "ntk", "deepseek_yarn", "deepseek_llama_scaling", "openpangu"), ()),
}
"""The supported kinds of RoPE scaling, and the settings that each requires."""
ACTIVATIONS = (
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"),
    *("gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu"),
    *("relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu"),
)
"""Names of activations that transformers knows."""
CONTEXT = ("max_position_embeddings", "n_positions")
"""Model families' names for the context in tokens."""
_WHOLE: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "num_key_value_heads"), 1 << 14),
    **dict.fromkeys(("head_dim", "hidden_size", "n_embd", "intermediate_size", "moe_intermediate_size"), 1 << 22),
    **dict.fromkeys(("vocab_size", *CONTEXT, "original_max_position_embeddings"), 1 << 27),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok"), 1 << 16),
}
"""Settings that are positive integers, with maxima far above any model and far below what exhausts a machine."""
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
_MAY_BE_NULL = (*_EXPERTS, "head_dim", "num_key_value_heads", "intermediate_size", "original_max_position_embeddings")
_HEADS_DIVIDE = (
    *("arcee", "gemma", "gemma2", "granite", "llama", "mistral", "olmo", "olmo2", "olmo3", "phi", "phi3", "qwen2"),
    *("smollm3", "stablelm", "starcoder2"),
)
"""Families whose heads divide the hidden size, unless `head_dim` is set; others have their own head sizes."""
_MAY_BE_LIST = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size", "head_dim")
"""Settings with one number per layer in families whose layers differ."""
_POSITIVE = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta")
_SHARES = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "partial_rotary_factor")
_SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_cache", "is_encoder_decoder")
_EXTRACT = (
    "save its text part as a separate model: AutoModelForCausalLM.from_pretrained(folder, config=AutoConfig"
    ".from_pretrained(folder).text_config).save_pretrained(new), and the tokenizer into the same folder"
)
_SCORING = ("ForSequenceClassification", "ForTokenClassification", "ForRewardModel", "RewardModel")
_NEEDS_PACKAGE: Mapping[str, tuple[str, ...]] = {"bitsandbytes": ("bitsandbytes",)}
"""Packages that vLLM needs for a quantization method in addition to those installed with it."""
_NEEDS_TORCHVISION = ("Qwen3_5",)
"""Prefixes of architectures for whose text models vLLM imports torchvision, since a vision model is in the same
file."""
_NEEDS_PACKAGE_ON_CPU: Mapping[str, tuple[str, ...]] = {"gptq": ("optimum", "gptqmodel"), "awq": ("gptqmodel",)}
"""Packages that transformers needs for them; CPU engines use transformers to verify their weights."""


def read_model_config(folder: Path) -> dict[str, Any]:
    """The object in `config.json`.

    Raises `InputError` if it is missing, or if a setting has an invalid value.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a model: it has no config.json")
    config = read_json(path)
    if config.get("is_encoder_decoder") is True:
        raise InputError(f"{folder} {NO_DECODER}")
    fault = next(_faults(config), None)
    if fault is not None:
        raise InputError(f"{path} has {fault}; fetch the file again, or correct it")
    return config


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the language model: all, or the text section of a model that also reads images or sound."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def context_tokens(folder: Path, config: Mapping[str, Any]) -> int:
    """The context in tokens; raises `InputError` if the config doesn't have it."""
    text = text_part(config)
    for key in CONTEXT:
        if type(text.get(key)) is int:
            return int(text[key])
    raise InputError(f"{folder / 'config.json'} has no max_position_embeddings, expected the context in tokens")


def check_use(folder: Path, config: Mapping[str, Any], *, trained: bool, device: str = "gpu") -> None:
    """Checks that a model can generate text on `device` and, if it is to be `trained`, can be trained.

    Raises `InputError` for what is certain to fail: an architecture that returns scores instead of text or that no
    library supports, weights that can't be trained or loaded, a model that reads more than text.
    """
    path = folder / "config.json"
    if (method := quantization(config)) is not None:
        _check_quantization(path, method, trained=trained, device=device)
    names = config.get("architectures") or []
    if scoring := [name for name in names if name in architectures_that_score() or name.endswith(_SCORING)]:
        raise InputError(
            f"{path} has architectures = {scoring}: this model scores text and does not generate it; use a "
            '...ForCausalLM model, or use it as a judge (judge.kind = "reward_model")'
        )
    if any(name.startswith(_NEEDS_TORCHVISION) for name in names) and find_spec("torchvision") is None:
        raise InputError(
            f"{path} has architectures = {names}, for which vLLM needs torchvision, which is not installed: use a "
            "machine set up with GPU=1, or a model of another family (torchvision's builds do not work with the CPU's "
            "torch)"
        )
    kind = config.get("model_type")
    if trained and _is_multimodal(config):
        raise InputError(
            f"{folder} is a {names[0] if names else kind}, which also reads images or sound, and only text "
            f"models alone: {_EXTRACT}"
        )
    writing, known, causal = architectures_that_write(), model_types(), causal_model_types()
    if trained and known is not None and kind not in known:
        raise InputError(
            f"{path} has model_type = {kind!r}, which the installed transformers does not support: use a model of a "
            "supported family, or a newer release of this project"
        )
    if trained and causal is not None and kind not in causal:
        raise InputError(
            f"{path} has model_type = {kind!r}, for which the installed transformers has no causal language model: use "
            "a ...ForCausalLM model"
        )
    if writing is not None and names and not _may_write(names, kind, writing, causal or frozenset()):
        raise InputError(
            f"{path} has architectures = {names}, which the installed vLLM does not support: use a model of a "
            "supported family, or correct the name (for example LlamaForCausalLM)"
        )


def check_generation_config(folder: Path) -> None:
    """Raises `InputError` for invalid values in `generation_config.json`; it may be missing."""
    path = folder / "generation_config.json"
    config = read_json(path)
    fault = next(_generation_faults(config), None)
    if fault is not None:
        raise InputError(f"{path} has {fault}; correct it, or delete the setting")


def _generation_faults(config: Mapping[str, Any]) -> Iterator[str]:
    yield from _wrong_tokens(config)
    for key in ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "top_k"):
        if config.get(key) is not None and not is_number(config[key]):
            yield f"{key} = {shown(config[key])}, expected a number"
    for key in ("max_length", "max_new_tokens", "num_beams"):
        if (value := config.get(key)) is not None and (type(value) is not int or value < 1):
            yield f"{key} = {shown(value)}, expected a whole number from 1"
    if config.get("do_sample") is not None and not isinstance(config["do_sample"], bool):
        yield f"do_sample = {shown(config['do_sample'])}, expected true or false"


def quantization(config: Mapping[str, Any]) -> str | None:
    """The quantization method in the config; None for unquantized weights."""
    for part in (config, text_part(config)):
        for key in ("quantization_config", "compression_config"):
            found = part.get(key)
            if isinstance(found, dict) and found:
                packed = "bitsandbytes" if found.get("load_in_4bit") or found.get("load_in_8bit") else "unnamed"
                return str(found.get("quant_method") or packed)
    return None


def experts(config: Mapping[str, Any]) -> int:
    """Experts per layer of a mixture of experts; 0 for other models."""
    part = text_part(config)
    found = [part.get(name) for name in ("num_local_experts", "num_experts", "n_routed_experts")]
    return max((number for number in found if isinstance(number, int)), default=0)


def _check_quantization(path: Path, method: str, *, trained: bool, device: str) -> None:
    if trained:
        raise InputError(
            f"{path} says that the weights are quantized ({method}), but training needs unquantized ones: use the "
            "model's unquantized version (bfloat16), or dequantize it and save that without quantization_config"
        )
    needed = (*_NEEDS_PACKAGE.get(method, ()), *(_NEEDS_PACKAGE_ON_CPU.get(method, ()) if device == "cpu" else ()))
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise InputError(
            f"{path} says that the weights are quantized ({method}), which needs packages that are not installed "
            f"({', '.join(missing)}): use the model's unquantized version, or install them"
        )


def _is_multimodal(config: Mapping[str, Any]) -> bool:
    names = config.get("architectures") or []
    sees = any(isinstance(config.get(f"{sense}_config"), dict) for sense in ("vision", "audio"))
    return isinstance(config.get("text_config"), dict) and (sees or bool(multimodal_architectures() & set(names)))


def _may_write(names: list[str], kind: object, writing: frozenset[str], causal: frozenset[str]) -> bool:
    """Whether vLLM has a class for one of the names, or can run the family with its transformers backend."""
    if writing & set(names):
        return True
    # vLLM can run families of transformers with transformers' own code, and treats a base class as its causal model.
    return kind in causal and any(name.endswith(("ForCausalLM", "LMHeadModel", "Model")) for name in names)


def _faults(config: Mapping[str, Any]) -> Iterator[str]:
    """A config's fault, to follow "config.json has"; None if there is none."""
    if not isinstance(config.get("model_type"), str):
        yield f"model_type = {config.get('model_type')!r}, expected the name of a family such as 'llama'"
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        yield f"architectures = {names!r}, expected a list of names such as ['LlamaForCausalLM']"
    part = config.get("text_config")
    if part is not None and not isinstance(part, dict):
        yield f"text_config = {shown(part)}, expected an object"
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None and not isinstance(config[key], dict):
            yield f"{key} = {shown(config[key])}, expected an object"
    for settings in (config, part if isinstance(part, dict) else {}):
        yield from _wrong_numbers(settings)
        yield from _wrong_dtype(settings)
        yield from _wrong_tokens(settings)
        yield from _wrong_rope(settings)
    yield from _wrong_heads(text_part(config))
    yield from _wrong_layers(text_part(config))


def _wrong_numbers(config: Mapping[str, Any]) -> Iterator[str]:
    for key, largest in _WHOLE.items():
        value = config.get(key)
        if key not in config or (value is None and key in _MAY_BE_NULL) or (value == 0 and key in _EXPERTS):
            continue
        for number in value if isinstance(value, list) and value and key in _MAY_BE_LIST else [value]:
            if type(number) is not int or number < 1:
                yield f"{key} = {shown(value)}, expected a whole number from 1"
            elif number > largest:
                yield f"{key} = {shown(number)}, expected at most {largest}"
    for key in _POSITIVE:
        if key in config and config[key] is not None and not (is_number(config[key]) and config[key] > 0):
            yield f"{key} = {shown(config[key])}, expected a number above 0"
    for key in _SHARES:
        if key in config and config[key] is not None and not (is_number(config[key]) and 0 <= config[key] <= 1):
            yield f"{key} = {shown(config[key])}, expected a number from 0 to 1"
    for key in _SWITCHES:
        if key in config and config[key] is not None and not isinstance(config[key], bool):
            yield f"{key} = {shown(config[key])}, expected true or false"
    window = config.get("sliding_window")
    if window is not None and (type(window) is not int or window < 0):
        yield f"sliding_window = {shown(window)}, expected a whole number of tokens, or null"
    for key in ("hidden_act", "hidden_activation", "activation_function"):
        if isinstance(act := config.get(key), str) and act not in ACTIVATIONS:
            yield f"{key} = {shown(act)}, expected one that transformers knows, such as silu or gelu"
        elif act is not None and not isinstance(act, str | dict):
            yield f"{key} = {shown(act)}, expected a name such as silu"


def _wrong_dtype(config: Mapping[str, Any]) -> Iterator[str]:
    for key in ("dtype", "torch_dtype"):
        value = config.get(key)
        for name in value.values() if isinstance(value, dict) else [value]:
            if name is not None and name not in DTYPES:
                yield f"{key} = {shown(value)}, expected one of {', '.join(DTYPES[:4])}"


def _wrong_tokens(config: Mapping[str, Any]) -> Iterator[str]:
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (fault := token_fault(config.get(key), several=key != "pad_token_id")) is not None:
            yield f"{key} = {shown(config[key])}, {fault}"
    pad, size = config.get("pad_token_id"), config.get("vocab_size")
    if type(pad) is int and type(size) is int and pad >= size:
        yield f"pad_token_id = {pad}, and vocab_size = {size}: the model has no such token"


def token_fault(value: object, *, several: bool) -> str | None:
    """Why a value isn't a token id or, if allowed, a list of them; None if it is."""
    ids = value if isinstance(value, list) and several else [] if value is None else [value]
    # Some published configs have -1 for no such token.
    if all(type(token) is int and token >= -1 for token in ids):
        return None
    return "expected a token's id" + (" or a list of ids" if several else "")


def _wrong_rope(config: Mapping[str, Any]) -> Iterator[str]:
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            yield f"{key} = {shown(value)}, expected an object or null"
            continue
        # Families whose layers differ have one object per kind of layer.
        each = [part for part in value.values() if isinstance(part, dict)] or [value]
        for part in each:
            yield from (f"{key} with {fault}" for fault in _rope_faults(part, config))


def _rope_faults(rope: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        yield f"rope_type = {shown(kind)}, expected one of {', '.join(ROPE_TYPES)}"
        return
    for name in ROPE_TYPES[kind]:
        value = rope.get(name, config.get(name))
        if name.startswith(("short_", "long_")):
            if not (isinstance(value, list) and value and all(map(is_number, value))):
                yield f"{name} = {shown(value)}, expected a list of numbers"
        elif not (is_number(value) and value > 0):
            yield f"{name} = {shown(value)}, expected a number above 0"
    theta = rope.get("rope_theta")
    if theta is not None and not (is_number(theta) and theta > 0):
        yield f"rope_theta = {shown(theta)}, expected a number above 0"


def _wrong_heads(config: Mapping[str, Any]) -> Iterator[str]:
    heads, keys, hidden = (config.get(key) for key in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if type(heads) is not int or heads < 1:
        return
    if type(keys) is int and keys > 0 and heads % keys:
        yield f"num_key_value_heads = {keys}, which does not divide num_attention_heads = {heads}"
    # Llama's own class requires this even if head_dim is given.
    kind = config.get("model_type")
    derived = kind == "llama" or (kind in _HEADS_DIVIDE and not config.get("head_dim"))
    if type(hidden) is int and hidden % heads and derived:
        yield f"hidden_size = {hidden}, which num_attention_heads = {heads} does not divide"


def _wrong_layers(config: Mapping[str, Any]) -> Iterator[str]:
    kinds, layers = config.get("layer_types"), config.get("num_hidden_layers")
    if kinds is None:
        return
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        yield f"layer_types = {shown(kinds)}, expected a list of names"
    elif type(layers) is int and len(kinds) != layers:
        yield f"layer_types of {len(kinds)} layers, and num_hidden_layers = {layers}"


def is_number(value: object) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def shown(value: object) -> str:
    """A JSON value for a message, shortened."""
    if type(value) is int and value.bit_length() > 100:
        return f"a number of about {round(value.bit_length() * math.log10(2))} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
