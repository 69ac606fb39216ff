"""Checks that a model's weights match its config in names and shapes; only reads headers.

transformers itself loads the folder, as in training, but onto torch's meta device, where tensors have shapes and no
values. So its own rules apply to each family: which weights are tied, renamed, joined or optional. In a run, it would
initialize missing weights randomly with just a log line, and vLLM would leave them uninitialized: both then generate
nonsense, or an engine dies a minute later with an error that names neither file.

vLLM has its own rules as well. What it is certain to reject is rejected here; what it may reject is a note.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tpo.errors import InputError
from tpo.models.files import read_json, some_of
from tpo.models.known_models import causal_model_types
from tpo.models.model_config import quantization, text_part
from tpo.models.tensors import read_tensors

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_BUFFERS = re.compile(r"rotary_emb\.|(^|\.)(attn\.)?(masked_)?bias$|position_ids$")
"""Tensors of old checkpoints that both libraries skip."""


def load_architecture(folder: Path) -> Any:
    """The model's config, read by transformers; raises `InputError` with its error if it can't."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # The exception for an invalid value depends on the family.
        message = f"{folder / 'config.json'} is not a config that transformers can use: {_line(error)}"
        raise InputError(message) from error


def check_weights(folder: Path) -> list[str]:
    """Notes about a causal language model's weights.

    Raises `InputError` if some are missing, have another shape than in the config, or have names that vLLM doesn't
    support. Skips quantized weights, whose names and shapes are the quantizer's, and families that only vLLM supports,
    which only judges can have.
    """
    config = read_json(folder / "config.json")
    families = causal_model_types()
    if quantization(config) is not None or (families is not None and config.get("model_type") not in families):
        return []
    model, found = _load_without_numbers(folder)
    if wrong := sorted(found["mismatched_keys"]):
        raise InputError(_wrong_shape(folder, wrong))
    if missing := sorted(found["missing_keys"]):
        raise InputError(_missing(folder, model, missing))
    unexpected = sorted(name for name in found["unexpected_keys"] if not _BUFFERS.search(name))
    _check_prefix(folder, model, unexpected)
    return _about_unexpected(folder, unexpected)


def _load_without_numbers(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model on the meta device, and transformers' report on its weights' names and shapes."""
    import torch
    from transformers import AutoModelForCausalLM

    load_architecture(folder)
    try:
        with _silent_transformers():
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                device_map="meta",
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # Exceptions of a model's constructor depend on the family.
        raise InputError(
            f"transformers cannot create the model in {folder} from its config.json: {_line(error)}"
        ) from error
    return model, found


@contextlib.contextmanager
def _silent_transformers() -> Iterator[None]:
    """Hides transformers' progress bars and its report on the weights, which ours replaces."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _wrong_shape(folder: Path, wrong: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> str:
    """The error for weights with other shapes than in the config."""
    name, there, expected = wrong[0]
    more = f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
    size = text_part(read_json(folder / "config.json")).get("vocab_size")
    cause = "they are of different models or one was edited: download both again"
    if len(there) == 2 and expected[0] == size and there[0] != size and there[1] == expected[1]:
        cause = (
            f"config.json has vocab_size = {size}, but the weights have {there[0]} rows: set vocab_size to {there[0]} "
            "if that is also the tokenizer's size, or download both again"
        )
    return f"{folder} has {name} of shape {list(there)}, expected {list(expected)} by its config.json{more}: {cause}"


def _missing(folder: Path, model: Any, missing: Sequence[str]) -> str:
    """The error for missing weights."""
    there = read_tensors(folder)
    head = next((name for name, part in model.named_modules() if part is model.get_output_embeddings()), None)
    if missing == [f"{head}.weight"]:
        return (
            f"{folder} has no {head}.weight, the output matrix, and its config.json does not tie it to the "
            "embedding (tie_word_embeddings is false): set that to true if the model was trained with it, or "
            "use its ...ForCausalLM checkpoint, since a base model's has no head"
        )
    message = f"{folder} lacks {len(missing)} of the {len(model.state_dict())} tensors of {type(model).__name__}"
    layers = {int(found.group(1)) for name in there if (found := _LAYER.search(name))}
    wanted = text_part(read_json(folder / "config.json")).get("num_hidden_layers")
    if layers and type(wanted) is int and len(layers) < wanted and min(_layers(missing), default=-1) > max(layers):
        return (
            f"{message}: it has {len(layers)} layers, but num_hidden_layers in config.json is {wanted}; they are of "
            "different models, or a file is missing: download both again"
        )
    other = there.keys() - model.state_dict().keys()
    held = f" and has others, such as {some_of(other)}" if other else ""
    return f"{message}, such as {some_of(missing)},{held}: they are of another kind, or incomplete; download both again"


def _layers(names: Sequence[str]) -> list[int]:
    return [int(found.group(1)) for name in names if (found := _LAYER.search(name))]


def _check_prefix(folder: Path, model: Any, unexpected: Sequence[str]) -> None:
    """Raises `InputError` for names with a prefix that transformers accepts and vLLM doesn't.

    Only for Llama's names, `model.layers.…`: older families are published without a prefix, which vLLM supports. Not if
    transformers renames weights of the family while loading.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if model.base_model_prefix != "model" or get_checkpoint_conversion_mapping(model.config.model_type):
        return
    known = model.state_dict().keys()
    other = [name for name in read_tensors(folder) if name not in known and name not in unexpected]
    if other := [name for name in other if not _BUFFERS.search(name)]:
        raise InputError(
            f"{folder} has other names of weights than {type(model).__name__} ({some_of(other)}; expected names such "
            f"as {some_of(sorted(known - read_tensors(folder).keys())[:1])}), and vLLM supports no others: load it "
            f"with {type(model).__name__}.from_pretrained and save it again"
        )


def _about_unexpected(folder: Path, unexpected: Sequence[str]) -> list[str]:
    """A note about unused tensors; raises `InputError` if they are excess layers."""
    config = text_part(read_json(folder / "config.json"))
    wanted = config.get("num_hidden_layers")
    if type(wanted) is int and not config.get("num_nextn_predict_layers"):
        beyond = {layer for layer in _layers(unexpected) if layer >= wanted}
        if beyond:
            raise InputError(
                f"{folder} has {max(beyond) + 1} layers, but num_hidden_layers in config.json is {wanted}: they are "
                "of different models, or the config was edited; set it to the number of layers, or download both again"
            )
    if not unexpected:
        return []
    return [
        f"{folder} has tensors that the model does not use ({some_of(unexpected)}): transformers ignores them, and "
        "vLLM may refuse to start; if it does, load the model with transformers and save it again"
    ]


def _line(error: Exception) -> str:
    """A library's error on one shortened line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"
