"""Whether a model's weights are those of its config, by names and shapes: nothing of them is read but the headers.

transformers itself loads the folder here, as the trainer will, but onto torch's meta device, where tensors have shapes
and no numbers. So its own rules apply, family by family: what is tied, what is renamed or joined, what may be missing.
It makes up whatever is missing and only says so in a log line, and vLLM leaves it as it was in memory: both then write
nonsense, or an engine dies a minute later for a reason that names neither file.

vLLM has rules of its own as well. What it is certain to refuse is refused here; what it may refuse is a note.
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
    """The model's config as transformers reads it; raises `InputError` with its reason if it can't."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # what it raises for an odd value depends on the family
        told = f"{folder / 'config.json'} is not a config that transformers can use: {_line(error)}"
        raise InputError(told) from error


def check_weights(folder: Path) -> list[str]:
    """What to know of a causal language model's weights.

    Raises `InputError` if some are missing, have another shape than the config says, or have names that vLLM doesn't
    know. Not looked at are quantized weights, whose names and shapes are the quantizer's, and families that vLLM alone
    knows, which only a judge can be of.
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
    """The model on the meta device, and what transformers says of its weights' names and shapes."""
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
    except Exception as error:  # a model's constructor raises whatever its family's code runs into
        raise InputError(
            f"{folder} is not a model that transformers can make from its config.json: {_line(error)}"
        ) from error
    return model, found


@contextlib.contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keeps transformers' progress bars and its report on the weights from the terminal: ours says what matters."""
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
    """The refusal of weights that have other shapes than the config says."""
    name, there, expected = wrong[0]
    more = f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
    size = text_part(read_json(folder / "config.json")).get("vocab_size")
    cause = "they are of different models or one was edited: fetch both again"
    if len(there) == 2 and expected[0] == size and there[0] != size and there[1] == expected[1]:
        cause = (
            f"config.json has vocab_size = {size}, and the weights have {there[0]} rows: set vocab_size to {there[0]} "
            "if that is the tokenizer's size as well, or fetch both again"
        )
    return f"{folder} has {name} of shape {list(there)}, and its config.json makes it {list(expected)}{more}: {cause}"


def _missing(folder: Path, model: Any, missing: Sequence[str]) -> str:
    """The refusal of weights that lack some."""
    there = read_tensors(folder)
    head = next((name for name, part in model.named_modules() if part is model.get_output_embeddings()), None)
    if missing == [f"{head}.weight"]:
        return (
            f"{folder} has no {head}.weight, the matrix that chooses tokens, and its config.json does not tie it to "
            "the embedding (tie_word_embeddings is false): set that to true if the model was trained so, or "
            "take its ...ForCausalLM checkpoint, since a base model's has no head"
        )
    told = f"{folder} lacks {len(missing)} of the {len(model.state_dict())} tensors of {type(model).__name__}"
    layers = {int(found.group(1)) for name in there if (found := _LAYER.search(name))}
    wanted = text_part(read_json(folder / "config.json")).get("num_hidden_layers")
    if layers and type(wanted) is int and len(layers) < wanted and min(_layers(missing), default=-1) > max(layers):
        return (
            f"{told}: it holds {len(layers)} layers, and num_hidden_layers in config.json is {wanted}; they are of "
            "different models, or a file is missing: fetch both again"
        )
    other = there.keys() - model.state_dict().keys()
    held = f" and holds others, such as {some_of(other)}" if other else ""
    return f"{told}, such as {some_of(missing)},{held}: they are of another kind, or not complete; fetch both again"


def _layers(names: Sequence[str]) -> list[int]:
    return [int(found.group(1)) for name in names if (found := _LAYER.search(name))]


def _check_prefix(folder: Path, model: Any, unexpected: Sequence[str]) -> None:
    """Refuses names that transformers reads with another prefix and vLLM doesn't.

    Only where they are Llama's, `model.layers.…`: older families are published without a prefix, and vLLM knows that.
    If transformers renames weights of the family as it loads them, names tell nothing.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    if model.base_model_prefix != "model" or get_checkpoint_conversion_mapping(model.config.model_type):
        return
    known = model.state_dict().keys()
    other = [name for name in read_tensors(folder) if name not in known and name not in unexpected]
    if other := [name for name in other if not _BUFFERS.search(name)]:
        raise InputError(
            f"{folder} names its weights otherwise than {type(model).__name__} does ({some_of(other)}; expected names "
            f"such as {some_of(sorted(known - read_tensors(folder).keys())[:1])}), and vLLM knows no others: load it "
            f"with {type(model).__name__}.from_pretrained and save it again"
        )


def _about_unexpected(folder: Path, unexpected: Sequence[str]) -> list[str]:
    """A note about tensors that the model has no use for; raises `InputError` if they are layers too many."""
    config = text_part(read_json(folder / "config.json"))
    wanted = config.get("num_hidden_layers")
    if type(wanted) is int and not config.get("num_nextn_predict_layers"):
        beyond = {layer for layer in _layers(unexpected) if layer >= wanted}
        if beyond:
            raise InputError(
                f"{folder} holds {max(beyond) + 1} layers, and num_hidden_layers in config.json is {wanted}: they are "
                "of different models, or the config was edited; set it to the number of layers, or fetch both again"
            )
    if not unexpected:
        return []
    return [
        f"{folder} holds tensors that the model has no use for ({some_of(unexpected)}): transformers ignores them, and "
        "vLLM may refuse to start; if it does, load the model with transformers and save it again"
    ]


def _line(error: Exception) -> str:
    """What an error of a library's says, on one line of a bearable length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"
