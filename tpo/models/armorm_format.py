"""ArmoRM's published format (2406.12845): its attributes in order, its tensors, and the position of its gate."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpo.errors import InputError
from tpo.models.files import read_json, some_of
from tpo.models.folder import check_model_folder
from tpo.models.tensors import read_tensors

ARCHITECTURE = "LlamaForRewardModelWithGating"
"""The model's class in the published `config.json`."""
ANSWER_HEADER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
"""Where the prompt ends and the response begins; the gate reads its first token."""

ATTRIBUTES = (
    "helpsteer-helpfulness",
    "helpsteer-correctness",
    "helpsteer-coherence",
    "helpsteer-complexity",
    "helpsteer-verbosity",
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)
"""One name per objective."""


def gate_index(token_ids: Sequence[int], header: Sequence[int]) -> int:
    """The start of the last `header` in a chat's tokens; raises `InputError` if there is none."""
    for start in range(len(token_ids) - len(header), -1, -1):
        if list(token_ids[start : start + len(header)]) == list(header):
            return start
    raise InputError(
        f"the chat does not contain ArmoRM's assistant header {list(header)}, expected a tokenizer and chat template "
        "as those of Llama 3"
    )


def attribute_names(objectives: int) -> tuple[str, ...]:
    """Names of a model's objectives: the published ones, or numbers if there are more or fewer."""
    if objectives == len(ATTRIBUTES):
        return ATTRIBUTES
    return tuple(f"objective-{i}" for i in range(objectives))


def check_armorm_folder(folder: Path) -> int:
    """The model's context in tokens, after checking that the folder is ArmoRM's, without loading anything.

    Raises `InputError` that says what was found.
    """
    context = check_model_folder(folder)
    check_armorm_weights(folder)
    return context


def check_armorm_weights(folder: Path) -> dict[str, Path]:
    """The file of each tensor, after checking that the tensors are exactly ArmoRM's for the sizes in `config.json`.

    Raises `InputError` naming missing tensors, unexpected ones, and those of another shape.
    """
    config = read_json(folder / "config.json")
    if config.get("architectures") != [ARCHITECTURE]:
        raise InputError(
            f"{folder} is a {config.get('architectures')} (architectures in config.json), expected [{ARCHITECTURE!r}]; "
            "a model with one output needs judge.kind = 'reward_model'"
        )
    found, expected = read_tensors(folder), _expected_shapes(config, folder)
    both = found.keys() & expected.keys()
    wrong = [
        f"{name} is {list(found[name].shape)} (expected {list(expected[name])})"
        for name in both
        if found[name].shape != expected[name]
    ]
    faults = {
        "lacking": expected.keys() - found.keys(),
        "not expected": found.keys() - expected.keys(),
        "of another shape": wrong,
    }
    details = "; ".join(f"{fault}: {some_of(names)}" for fault, names in faults.items() if names)
    if details:
        raise InputError(f"the tensors in {folder} are not ArmoRM's for its config.json, {details}: download it again")
    return {name: tensor.file for name, tensor in found.items()}


def _expected_shapes(config: Mapping[str, Any], folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, as published; a test compares them with our module's."""

    def size(name: str, default: int | None = None) -> int:
        value = config.get(name, default)
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{folder / 'config.json'} has {name} {value!r}, expected a whole number from 1")
        return value

    temperature = config.get("gating_temperature")
    if not isinstance(temperature, int | float) or not temperature > 0:
        raise InputError(f"{folder / 'config.json'} has gating_temperature {temperature!r}, expected a number above 0")
    width, inner, objectives = size("hidden_size"), size("intermediate_size"), size("num_objectives")
    heads = size("num_attention_heads")
    head = size("head_dim", width // heads)
    queries, keys = heads * head, size("num_key_value_heads", heads) * head
    layer = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (size("vocab_size"), width),
        "model.norm.weight": (width,),
        "regression_layer.weight": (objectives, width),
        "reward_transform_matrix": (objectives, objectives),
        "gating.logit_scale": (1,),
    }
    for i in range(size("num_hidden_layers")):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    widths = [width, *[size("gating_hidden_dim")] * size("gating_n_hidden"), objectives]
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        shapes |= {f"gating.layers.{i}.weight": (after, before), f"gating.layers.{i}.bias": (after,)}
    return shapes
