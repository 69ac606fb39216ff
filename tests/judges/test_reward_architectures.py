"""Claims about reward models of all architectures that transformers has with a linear head: scores are its own.

Small models with random weights, in float32, compared with transformers one chat at a time, whatever the batch; then
the families that reward models are published in, with their real tokenizers and templates.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from judges.base import Group, Response
from judges.reward_model import check_reward_folder, load_reward_model
from tests.judges.test_reward_model import ENGINE, judge_of
from tests.models.test_chat import like_llama3
from tests.sampling import sampled
from tests.zoo.families import ZOO, RealFamily
from tests.zoo.pieces import MissingPieceError, piece
from tpo.config.resources import JudgeEngineConfig
from tpo.engines.inference.reward_reader import Chat, Scorer
from tpo.errors import InputError
from tpo.models.template_check import check_read
from tpo.records import Message

VOCABULARY, PAD, WINDOW = 320, 3, 64
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "num_labels": 1,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT: Mapping[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
EXPERTS: Mapping[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
LINEAR: Mapping[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "head_dim": 8,
}
LATENT: Mapping[str, Any] = {
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
OFTEN = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3")
"""Those that reward models of RewardBench 2 are published in, and their successors."""
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, **MIXED},
    "gemma3_text": {"head_dim": 8, **MIXED},
    "mistral": {"sliding_window": WINDOW},
    "phi3": {},
    "phimoe": {**EXPERTS, "sliding_window": WINDOW},
    "gemma": {"head_dim": 8},
    "mixtral": EXPERTS,
    "qwen2_moe": {**EXPERTS, "moe_intermediate_size": 32},
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 32, "head_dim": 8},
    "olmo2": {},
    "olmo3": MIXED,
    "smollm3": {},
    "exaone4": {"head_dim": 8, **MIXED},
    "glm4": {"head_dim": 8},
    "gpt_oss": {**EXPERTS, "head_dim": 8, **MIXED},
    "nemotron": {},
    "ministral3": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "minimax": {**EXPERTS, "head_dim": 8, "layer_types": ["full_attention", "linear_attention"]},
    "stablelm": {},
    "starcoder2": {},
    "phi": {},
    "bloom": {},
    "opt": {},
    "gpt2": GPT,
    "gpt_neox": {},
    "gptj": {**GPT, "rotary_dim": 8},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "qwen3_next": {**LINEAR, **EXPERTS, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": LINEAR,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "num_experts_per_tok": 1,
        "use_mamba_kernels": False,
    },
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "helium": {"head_dim": 8},
    "glm": {"head_dim": 8},
    "falcon": {},
    "arcee": {},
    "diffllama": {},
    "persimmon": {},
    "jetmoe": {},
}
DRAWN = [*OFTEN, *sampled("architectures of reward models", [name for name in ARCHITECTURES if name not in OFTEN], 5)]
LENGTHS = (5, 90, 40, 41, 7, 120)
"""Lengths of chats in tokens, some beyond a window."""


def a_folder(folder: Path, name: str, *, labels: int = 1) -> Path:
    """A model of an architecture, with a tokenizer like Llama 3's."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**{**SIZES, **ARCHITECTURES[name], "num_labels": labels})
    model = AutoModelForSequenceClassification.from_config(config).float()
    with torch.no_grad():
        model.score.weight.normal_()
    model.save_pretrained(folder)
    like_llama3().save_pretrained(folder)
    return folder


def some_chats() -> list[Chat]:
    """Chats with a common beginning, read at their last token."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(4, VOCABULARY, (4,), generator=generator).tolist()
    ids = [[*shared, *torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()] for length in LENGTHS]
    return [Chat(tuple(each), (len(each) - 1,)) for each in ids]


def alone(folder: Path, chats: Sequence[Chat]) -> list[float]:
    """What transformers computes for each chat by itself."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([chat.token_ids])).logits[0, 0]) for chat in chats]


@pytest.mark.parametrize("name", DRAWN)
def test_every_score_is_transformers_own_whatever_the_batch(tmp_path: Path, name: str):
    folder, chats = a_folder(tmp_path, name), some_chats()
    assert check_reward_folder(folder) == 512
    expected = alone(folder, chats)
    large, small = (Scorer(load_reward_model, folder, JudgeEngineConfig(batch_tokens=size)) for size in (4096, 64))
    for scorer, groups in ((large, [chats]), (large, [[chat] for chat in chats]), (small, [chats[::-1], chats[:2]])):
        found = scorer.score(groups)
        for group, values in zip(groups, found, strict=True):
            for chat, (value,) in zip(group, values, strict=True):
                assert value == pytest.approx(expected[chats.index(chat)], abs=1e-3)
    assert max(expected) - min(expected) > 0.5, "the chats have different scores"


def test_a_window_that_is_only_in_the_mask_is_not_packed_away(tmp_path: Path):
    folder, chats = a_folder(tmp_path, "phimoe"), some_chats()
    values = Scorer(load_reward_model, folder, ENGINE).score([chats])[0]
    assert [value for (value,) in values] == pytest.approx(alone(folder, chats), abs=1e-3)


def test_padding_that_only_the_class_knows_is_where_transformers_reads(tmp_path: Path):
    """Gemma's class pads with token 0; a config that says nothing of padding still gets it."""
    folder = a_folder(tmp_path, "gemma")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace(f'"pad_token_id": {PAD},', ""))
    ids = (9, 8, 7, 0, 0)
    judge = judge_of(folder, None)
    chat = Chat(ids, judge._positions(ids))
    assert chat.positions == (2,)
    ((values,),) = Scorer(load_reward_model, folder, ENGINE).score([[chat]])
    assert values == pytest.approx(alone(folder, [chat]), abs=1e-4)


PUBLISHED = {
    "Llama 3.1": "LlamaForSequenceClassification",
    "Qwen2.5": "Qwen2ForSequenceClassification",
    "Qwen3": "Qwen3ForSequenceClassification",
    "Mistral": "MistralForSequenceClassification",
    "Gemma 3": "Gemma3TextForSequenceClassification",
    "Phi-3": "Phi3ForSequenceClassification",
}
"""Families of reward models, and their architectures; Skywork-Reward-V2 is of the first and third."""
TEXTS = ("Yes.", "No, that is wrong.", "It depends. " * 20, "", " spaced \n", "日本語 😀", "<|im_end|> <|eot_id|> </s>")


def published(name: str) -> RealFamily:
    """A family of reward models with its real tokenizer and template; skips if no registry can be reached."""
    (family,) = (each for each in ZOO if each.name == name)
    try:
        piece(family.piece)
    except MissingPieceError as error:
        pytest.skip(f"the tokenizer of {name} cannot be fetched: {error}")
    sizes = {**family.sizes, "num_labels": 1}
    return dataclasses.replace(family, architecture=PUBLISHED[name], sizes=sizes, tied=False)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_family_is_scored_as_transformers_scores_its_chats(tmp_path: Path, name: str):
    folder = published(name).save(tmp_path / "model")
    judge = judge_of(folder, Scorer(load_reward_model, folder, ENGINE))
    group = Group("p", "Is the sky blue?", None, tuple(Response(i, text) for i, text in enumerate(TEXTS)))
    (judgments,) = judge.judge([group])
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, scored = AutoTokenizer.from_pretrained(folder), 0
    for response, judgment in zip(group.responses, judgments, strict=True):
        if judgment.outcome is None:
            continue  # a template that strips outer space can't show all of them
        chat = judge.chat_of(group.instruction, response.text)
        with torch.no_grad():
            expected = float(model(input_ids=torch.tensor([chat.token_ids])).logits[0, 0])
        assert judgment.outcome == pytest.approx(expected, abs=1e-3) and math.isfinite(expected)
        scored += 1
        if response.text in TEXTS[:3]:  # plain text: as a user of transformers would encode it
            assert list(chat.token_ids) == as_on_the_card(tokenizer, group.instruction, response.text)
    assert scored >= 6


def as_on_the_card(tokenizer: Any, instruction: str, response: str) -> list[int]:
    """The tokens of a chat as Skywork's card makes them: rendered as text, without the BOS that the tokenizer will add
    again."""
    turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    bos = tokenizer.bos_token
    adds = bos is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    if adds and text.startswith(bos):
        text = text[len(bos) :]
    return list(tokenizer(text, add_special_tokens=adds)["input_ids"])


@pytest.mark.drawn(2)
@pytest.mark.parametrize("name", ["Llama 3.1", "Gemma 3"])
def test_a_bos_that_template_and_tokenizer_both_add_occurs_once(tmp_path: Path, name: str):
    folder = published(name).save_tokenizer(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = judge_of(folder, None).chat_of("Is the sky blue?", "Yes.").token_ids
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    chat = [Message(role="user", content="Is the sky blue?"), Message(role="assistant", content="Yes.")]
    check_read(folder, [chat])  # as preflight does


REFUSED = {
    "an encoder": ("BertForSequenceClassification", "classifier.weight", "has no tensor score.weight"),
    "a head of several layers": ("LlamaForSequenceClassification", "score.0.weight", "has no tensor score.weight"),
    "its own code": ("InternLM2ForRewardModel", "v_head.weight", "is a InternLM2ForRewardModel .*with its own code"),
    "a language model": ("LlamaForCausalLM", "lm_head.weight", "is a LlamaForCausalLM .*a language model's logits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_scorer_cannot_read_is_refused_by_name_before_anything_is_loaded(tmp_path: Path, case: str):
    architecture, tensor, message = REFUSED[case]
    folder = a_folder(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor] = tensors.pop("score.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("LlamaForSequenceClassification", architecture))
    with pytest.raises(InputError, match=message):
        check_reward_folder(folder)
