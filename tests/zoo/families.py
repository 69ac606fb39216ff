"""The zoo: real families of models, each with its tokenizer, its chat template and two layers of its architecture.

Weights are random and hidden sizes tiny; vocabularies, control tokens, templates and layers are those of the family.
Templates are those that TRL's wheel holds, or, if it has none, written here after the published ones.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.models.template_families import BY_NAME
from tests.sampling import sampled
from tests.zoo.pieces import piece

SIZES: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}
"""The sizes of every model in the zoo."""
OLMO_2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
PHI_4 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)


@dataclass(frozen=True)
class RealFamily:
    """A family of published models."""

    name: str
    """Its common name."""
    piece: str
    """Its tokenizer in `tests.zoo.pieces.PIECES`, or the closest one."""
    architecture: str
    """Its class in transformers."""
    template: str | None = None
    """Its chat template: the name of one in TRL's wheel, or Jinja source; None if the tokenizer brings it."""
    nearest: str | None = None
    """How the tokenizer or template differs from the family's own; None if it doesn't."""
    added: Mapping[str, dict[str, bool]] = field(default_factory=dict)
    """Control tokens that the closest tokenizer lacks."""
    dropped: tuple[str, ...] = ()
    """Added tokens of the closest tokenizer that the family doesn't have."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """bos_token, eos_token, … if the family's differ from the tokenizer's."""
    stops: tuple[str, ...] = ()
    """Tokens at which generation_config.json stops; none for the tokenizer's EOS alone."""
    adds_bos: bool = True
    """Whether its tokenizer puts BOS before a text, if the tokenizer used here does."""
    tied: bool = False
    """Whether its output head is tied to its embedding."""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    """Settings that its architecture needs besides `SIZES`."""

    def save_tokenizer(self, folder: Path) -> Path:
        """A model folder without weights: tokenizer, template, and the configs' tokens at which sampling stops."""
        folder.mkdir(parents=True)
        for path in piece(self.piece).iterdir():
            shutil.copy(path, folder)
        self._change_tokens(folder)
        if self.template is not None:
            (folder / "chat_template.jinja").write_text(_template(self.template), encoding="utf-8")
        tokenizer = _tokenizer(folder)
        ids = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
        stops = [ids[token] for token in self.stops] or [tokenizer.eos_token_id]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        (folder / "config.json").write_text(json.dumps(self.config(tokenizer).to_diff_dict(), default=str))
        return folder

    def save(self, folder: Path) -> Path:
        """The same with random weights, in float32."""
        import torch
        import transformers

        self.save_tokenizer(folder)
        kept = (folder / "generation_config.json").read_text()
        torch.manual_seed(0)
        model = getattr(transformers, self.architecture)(self.config(_tokenizer(folder)))
        model.save_pretrained(folder)
        (folder / "generation_config.json").write_text(kept)
        return folder

    def config(self, tokenizer: Any) -> Any:
        """The architecture's config at the zoo's sizes."""
        import transformers

        kind = getattr(transformers, self.architecture).config_class
        vocabulary = max(tokenizer.get_vocab().values()) + 1
        return kind(
            **{
                **SIZES,
                "vocab_size": -(-vocabulary // 64) * 64,
                "tie_word_embeddings": self.tied,
                "architectures": [self.architecture],
                "dtype": "float32",
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                **self.sizes,
            }
        )

    def _change_tokens(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        inner = json.loads(path.read_text(encoding="utf-8"))
        kept = [token for token in inner["added_tokens"] if token["content"] not in self.dropped]
        last = max([token["id"] for token in kept] + list(inner["model"]["vocab"].values()))
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        kept += [
            {"id": last + i, "content": content, **plain, **how}
            for i, (content, how) in enumerate(self.added.items(), 1)
        ]
        inner |= {"added_tokens": kept} | ({} if self.adds_bos else {"post_processor": None})
        path.write_text(json.dumps(inner, ensure_ascii=False), encoding="utf-8")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        decoder = settings.get("added_tokens_decoder", {})
        settings["added_tokens_decoder"] = {k: v for k, v in decoder.items() if v["content"] not in self.dropped} | {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in (kept if self.added else [])
        }
        if not settings["added_tokens_decoder"]:
            del settings["added_tokens_decoder"]
        for name in ("additional_special_tokens", *([] if self.template is None else ["chat_template"])):
            settings.pop(name, None)
        settings |= dict(self.tokens) | ({} if self.adds_bos else {"add_bos_token": False})
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _template(name: str) -> str:
    import trl

    if "{" in name:
        return name
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


LLAMA_3 = ("<|end_of_text|>", "<|eot_id|>")
QWEN = ("<|im_end|>", "<|endoftext|>")
QWEN_THINKS = ("<tool_response>", "</tool_response>", "<think>", "</think>")
RSTRIP = {"rstrip": True}
CHATML_CL100K: dict[str, dict[str, bool]] = {"<|im_start|>": {}, "<|im_end|>": {}}
QWEN_3_5 = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
ZOO: tuple[RealFamily, ...] = (
    RealFamily("Llama 3", "llama3", "LlamaForCausalLM", "llama3", stops=LLAMA_3),
    RealFamily("Llama 3.1", "llama3_1", "LlamaForCausalLM", "llama3_1", stops=LLAMA_3),
    RealFamily("Llama 3.2", "llama3_1", "LlamaForCausalLM", "llama3_2", stops=LLAMA_3, tied=True),
    RealFamily(
        "Qwen2.5",
        "qwen3",
        "Qwen2ForCausalLM",
        "qwen2_5",
        nearest="tokenizer: Qwen3's, without the four tokens that Qwen3 added",
        dropped=QWEN_THINKS,
        stops=QWEN,
        tied=True,
    ),
    RealFamily("Qwen3", "qwen3", "Qwen3ForCausalLM", "qwen3", stops=QWEN, tied=True),
    RealFamily("Qwen3-2507", "qwen3", "Qwen3ForCausalLM", "qwen3_instruct_2507", stops=QWEN),
    RealFamily(
        "Qwen3.5",
        "qwen3",
        "Qwen3_5ForCausalLM",
        "qwen3_5_think",
        nearest="tokenizer: Qwen3's, of 152k tokens instead of 248k",
        stops=QWEN,
        tied=True,
        sizes=QWEN_3_5,
    ),
    RealFamily(
        "Qwen3.6",
        "qwen3",
        "Qwen3_5ForCausalLM",
        "qwen3_6",
        nearest="tokenizer: Qwen3's, of 152k tokens instead of 248k",
        stops=QWEN,
        sizes=QWEN_3_5,
    ),
    RealFamily(
        "Gemma 3",
        "gemma3",
        "Gemma3ForCausalLM",
        "gemma3",
        stops=("<eos>", "<end_of_turn>"),
        tied=True,
        sizes={"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512},
    ),
    RealFamily(
        "Mistral",
        "mistral",
        "MistralForCausalLM",
        BY_NAME["mistral"].template,
        nearest="template: written after that of v0.3",
    ),
    RealFamily(
        "Phi-3",
        "llama2",
        "Phi3ForCausalLM",
        "phi3",
        nearest="tokenizer: Llama 2's, which it extends, with the control tokens of its chats",
        added={
            "<|endoftext|>": {},
            "<|assistant|>": RSTRIP,
            "<|system|>": RSTRIP,
            "<|end|>": RSTRIP,
            "<|user|>": RSTRIP,
        },
        tokens={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        stops=("<|endoftext|>", "<|assistant|>", "<|end|>"),
        adds_bos=False,
    ),
    RealFamily(
        "Phi-4",
        "cl100k",
        "Phi3ForCausalLM",
        PHI_4,
        nearest="tokenizer: cl100k, which it extends, with its chats' control tokens; template: written after its",
        added={**CHATML_CL100K, "<|im_sep|>": {}},
        tokens={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        stops=("<|endoftext|>", "<|im_end|>"),
    ),
    RealFamily("SmolLM2", "smollm2", "LlamaForCausalLM", tied=True),
    RealFamily(
        "OLMo 2",
        "cl100k",
        "Olmo2ForCausalLM",
        OLMO_2,
        nearest="tokenizer: cl100k, which it extends; template: written after its",
        tokens={"pad_token": "<|fim_suffix|>"},
    ),
    RealFamily(
        "OLMo 3",
        "cl100k",
        "Olmo3ForCausalLM",
        BY_NAME["chatml"].template,
        nearest="tokenizer: cl100k, which it extends, with ChatML's tokens; template: ChatML",
        added=CHATML_CL100K,
        tokens={"eos_token": "<|im_end|>", "pad_token": "<|fim_suffix|>"},
        stops=("<|im_end|>", "<|endoftext|>"),
        sizes={"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 512},
    ),
    RealFamily(
        "DeepSeek-R1-distill",
        "deepseek_v3",
        "Qwen2ForCausalLM",
        "deepseek_r1_distill",
        nearest="tokenizer: DeepSeek-V3's, with the same control tokens",
    ),
    RealFamily(
        "gpt-oss",
        "gptoss",
        "GptOssForCausalLM",
        "gptoss",
        stops=("<|return|>", "<|endoftext|>"),
        sizes={"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
)
"""The families, in the order of the table."""
OFTEN = [family for family in ZOO if family.name in ("Llama 3.1", "Qwen3")]
DRAWN = [
    *sampled("families used most", OFTEN, 1),
    *sampled("families", [family for family in ZOO if family not in OFTEN], 1),
]
"""Those that this commit tests: one of those used most, and one of the others."""
