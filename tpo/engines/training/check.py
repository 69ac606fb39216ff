"""A check that a model can be trained as a profile asks, on its architecture alone.

The model is created without memory for its weights (torch's meta device) and, if packing is on, called: nothing is
computed, but every layer shows what attention it needs. That the numbers are right, too, is checked by the trainer with
the real weights. Raises `InputError`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpo.config.resources import TrainerConfig
from tpo.config.training import TrainingConfig
from tpo.engines.training.packing import NotPlainError, RowSpans, Spans, attend_span_by_span
from tpo.errors import InputError

_TRIED = "tpo_tried"
"""The attention's name in transformers during the check."""


def check_generation_config(folder: Path) -> None:
    """Refuses a generation config that transformers and vLLM, which both read it, can't load."""
    from transformers import GenerationConfig

    path = folder / "generation_config.json"
    if not path.is_file():
        return
    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises all kinds of errors on this file.
        cause = str(error).strip().partition("\n")[0][:300]
        raise InputError(
            f"{path} cannot be read by transformers ({type(error).__name__}: {cause}): correct that value, or remove "
            "it from the file"
        ) from error


def check_training(folder: Path, train: TrainingConfig, trainer: TrainerConfig, *, section: str = "train") -> None:
    """Refuses adapters on missing modules, packing that wouldn't be exact, and layers that can't be sharded."""
    if train.lora is None and not train.packing and trainer.strategy == "ddp":
        return
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    if train.lora is not None and not isinstance(train.lora.target_modules, str):
        _check_targets(model, train.lora.target_modules, folder, section)
    if trainer.strategy == "fsdp" and not getattr(model, "_no_split_modules", None):
        raise InputError(
            f"{folder}: transformers does not say which modules are the layers of {type(model).__name__}, so its "
            "weights cannot be spread over workers: set trainer.strategy to ddp"
        )
    if train.packing and (fault := packing_fault(model, train.max_tokens, device=trainer.device)):
        raise InputError(
            f"{folder}: {fault}, so packed rows would not give what padded ones do: set {section}.packing to false"
        )


def _check_targets(model: Any, targets: Sequence[str], folder: Path, section: str) -> None:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    inner = [name for name in linear if model.get_submodule(name) is not head]
    known = ", ".join(sorted({name.rpartition(".")[2] for name in inner}))
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in inner):
            raise InputError(
                f"{section}.lora.target_modules has {target!r}, and no linear layer of {folder} but the head ends so; "
                f"known there: {known}"
            )


def packing_fault(model: Any, max_tokens: int, *, device: str = "cpu") -> str | None:
    """Why a model on the meta device can't read packed rows of sequences up to that length, or None.

    `device` is that of the workers, as in `TrainerConfig`: a GPU's attention can do more.
    """
    import torch
    from transformers import AttentionInterface

    from tpo.engines.training.flex import attention_without_kernel

    layers = []
    attend = attention_without_kernel() if device == "gpu" else attend_span_by_span

    def noted(module: Any, *arguments: Any, **options: Any) -> Any:
        layers.append(module)
        return attend(module, *arguments, **options)

    AttentionInterface.register(_TRIED, noted)
    begin, middle, end = max_tokens - 2, max_tokens, max_tokens + 2
    positions = [*range(middle), begin, middle - 1]
    try:
        model.set_attn_implementation(_TRIED)
        model.to(torch.bfloat16)  # Without memory, experts multiply in no other precision.
        model(
            input_ids=torch.zeros(1, end, dtype=torch.long, device="meta"),
            position_ids=torch.tensor([positions], device="meta"),
            spans=RowSpans([Spans(slice(0, begin), [slice(begin, middle), slice(middle, end)])]),
            use_cache=False,
        )
    except NotPlainError:
        if device == "gpu":
            return (
                "a layer's attention is more than a softmax over earlier tokens, with a window, capped logits or sinks"
            )
        elsewhere = packing_fault(model, max_tokens, device="gpu") is None
        hint = " (which workers on GPUs can pack)" if elsewhere else ""
        return f"a layer's attention is more than a softmax over all earlier tokens{hint}"
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        return f"{type(model).__name__} does not take packed rows ({type(error).__name__}: {error})"
    wanted = model.config.get_text_config().num_hidden_layers
    if len(layers) != wanted:
        return f"{len(layers)} of its {wanted} layers ask for an attention that can keep sequences apart"
    return None
