"""Claims about scoring chats together: no number depends on which chats share a batch, or on how they are read."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, BloomConfig, Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from tpo.config.resources import JudgeEngineConfig
from tpo.engines.inference.reward_reader import Chat, Load, Reader, Scorer, Values

VOCABULARY = 90
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "max_position_embeddings": 512,
}
MODELS: dict[str, tuple[Callable[[], Any], bool]] = {
    "llama": (lambda: LlamaConfig(**SIZES), True),
    "qwen2": (lambda: Qwen2Config(**SIZES), True),
    "gpt2": (lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3), True),
    "mistral, window of 64": (lambda: MistralConfig(**SIZES, sliding_window=64), True),
    "mistral, window of 16": (lambda: MistralConfig(**SIZES, sliding_window=16), False),
    "gemma2, capped logits": (lambda: Gemma2Config(**SIZES, head_dim=8, sliding_window=512), False),
    "bloom, distance biases": (
        lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3),
        False,
    ),
}


def loader(config: Callable[[], Any]) -> Load:
    """Random weights for any folder; the values are the hidden states themselves."""

    def load(folder: Path, dtype: str) -> Reader:
        torch.manual_seed(0)
        model = AutoModel.from_config(config(), dtype=getattr(torch, dtype)).eval()
        return Reader(model, model, lambda hidden: hidden.flatten(1).float())

    return load


def scorer(name: str = "llama", *, batch_tokens: int = 512) -> Scorer:
    return Scorer(loader(MODELS[name][0]), Path(), JudgeEngineConfig(batch_tokens=batch_tokens))


@functools.cache
def plain(name: str) -> Any:
    return loader(MODELS[name][0])(Path(), "float32").model


def one_at_a_time(name: str, chat: Chat) -> torch.Tensor:
    """Without our batching: transformers' own attention on one unpadded row."""
    model = plain(name)
    with torch.inference_mode():
        hidden = model(input_ids=torch.tensor([chat.token_ids])).last_hidden_state[0]
    found: torch.Tensor = hidden[list(chat.positions)].flatten()
    return found


def a_group(prompt: int, *responses: int, seed: int = 0) -> list[Chat]:
    """Chats with given lengths of prompt and responses; values are read in the prompt and at the end."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randint(VOCABULARY, (prompt,), generator=generator).tolist()
    chats = []
    for length in responses:
        ids = [*shared, *torch.randint(VOCABULARY, (length,), generator=generator).tolist()]
        chats.append(Chat(tuple(ids), (prompt // 2, len(ids) - 1)))
    return chats


def assert_same(name: str, found: Sequence[Sequence[Values]], groups: Sequence[Sequence[Chat]]) -> None:
    for group, values in zip(groups, found, strict=True):
        for chat, value in zip(group, values, strict=True):
            torch.testing.assert_close(torch.tensor(value), one_at_a_time(name, chat), atol=1e-5, rtol=1e-5)


GROUPS = [a_group(9, 30, 2, 17, seed=1), a_group(40, 3, 8, 60, seed=2), a_group(1, 5, seed=3)]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_each_chat_the_same_numbers_as_alone_with_any_attention(name: str):
    made = scorer(name)
    assert made.packs == MODELS[name][1]
    assert_same(name, made.score(GROUPS), GROUPS)


@pytest.mark.parametrize("batch_tokens", [64, 100, 512])
@pytest.mark.parametrize("name", ["llama", "gemma2, capped logits"])
def test_the_size_of_a_batch_changes_nothing(name: str, batch_tokens: int):
    assert_same(name, scorer(name, batch_tokens=batch_tokens).score(GROUPS), GROUPS)


@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 60), st.lists(st.integers(1, 60), min_size=1, max_size=4)), min_size=1, max_size=4
    ),
    batch_tokens=st.sampled_from([64, 90, 300]),
)
@settings(max_examples=15)
def test_any_mixture_of_lengths_gives_the_same_as_one_at_a_time(
    lengths: list[tuple[int, list[int]]], batch_tokens: int
):
    groups = [a_group(prompt, *responses, seed=i) for i, (prompt, responses) in enumerate(lengths)]
    assert_same("llama", scorer(batch_tokens=batch_tokens).score(groups), groups)


def test_equal_chats_and_chats_within_chats_get_the_right_numbers():
    ids = tuple(range(20))
    group = [Chat(ids, (3, 19)), Chat(ids, (3, 19)), Chat(ids[:12], (3, 11)), Chat(ids[:1], (0, 0)), Chat(ids, (3, 5))]
    groups = [group, [], group[:1]]
    assert_same("llama", scorer().score(groups), groups)


def test_a_prompts_tokens_are_read_once_for_all_its_responses(monkeypatch: pytest.MonkeyPatch):
    made = scorer()
    read: list[int] = []
    made._reader.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    made.score([a_group(100, 10, 20, 30)])
    assert read == [160]


def test_padded_batches_hold_chats_of_similar_lengths_within_the_limit():
    made = scorer("gemma2, capped logits", batch_tokens=64)
    read: list[tuple[int, ...]] = []
    made._reader.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    made.score([a_group(4, 6, 80, 5, 40, 7, 6)])
    assert sorted(read) == [(1, 44), (1, 84), (4, 11)]


def test_a_window_prevents_packing_only_if_it_is_shorter_than_the_chats():
    made = scorer("mistral, window of 64")
    shapes: list[tuple[int, ...]] = []
    made._reader.backbone.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    made.score([a_group(10, 20, 30)])
    made.score([a_group(10, 20, 80)])
    assert shapes == [(1, 60), (2, 90)]
