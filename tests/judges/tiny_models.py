"""Tiny reward models with random weights for tests, in folders like published ones."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.models.test_chat import like_llama3
from tpo.models.armorm import ArmoRM, save_armorm

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}
GATE: dict[str, Any] = {"gating_temperature": 10, "gating_hidden_dim": 16, "gating_n_hidden": 3}


def tiny_armorm(*, objectives: int = 19, seed: int = 0, vocabulary: int = 300, **sizes: object) -> ArmoRM:
    """Random weights; the gate's are large, so that it distinguishes prompts."""
    torch.manual_seed(seed)
    config = LlamaConfig(**SIZES | {"vocab_size": vocabulary, "num_objectives": objectives} | GATE | sizes)
    model = ArmoRM(config)
    model.reward_transform_matrix[min(4, objectives - 1)] -= torch.rand(objectives)
    for name, parameter in model.gating.named_parameters():
        parameter.data *= 1.5 if name == "logit_scale" else 4
    return model.eval()


def armorm_folder(folder: Path, model: ArmoRM | None = None) -> Path:
    """An ArmoRM with a tokenizer like Llama 3's."""
    tokenizer = like_llama3()
    save_armorm(model or tiny_armorm(vocabulary=len(tokenizer)), folder)
    tokenizer.save_pretrained(folder)
    return folder


def reward_folder(folder: Path, *, outputs: int = 1, pad: str | None = None) -> Path:
    """A Llama for sequence classification with a tokenizer like Llama 3's; `pad` is its padding token."""
    torch.manual_seed(1)
    tokenizer = like_llama3()
    token = None if pad is None else tokenizer.convert_tokens_to_ids(pad)
    config = LlamaConfig(**SIZES, vocab_size=len(tokenizer), num_labels=outputs, pad_token_id=token)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
