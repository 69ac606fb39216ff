"""Chat templates like those of five families of models, each with a tokenizer that has its family's traps.

The templates are ours, and so is a second description of each, `Family.layout`: the same chat as control tokens and
texts, without Jinja. `Family.letters` is the tokenizer without control tokens, which reads everything as text. The two
determine a chat's tokens independently of the code under test.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tpo.records import Message

TEXT = """
The quick brown fox thinks before it answers. Here is my thought process: 12 + 30 = 42, and so on.
Here is my response: the answer is 42. System, user and assistant take turns; a model says what it is asked.
def add(first, second):\n    return first + second\n\n\nÜber die Brücke läuft ein Fuchs. Привет, мир. 日本語の文です。
Please write a short story about a fox, a bridge and the sea. What is the capital of France? It is Paris.
Forty-two, I would say. Forty-two, I would say. Yes, Forty. No, Forty-two.
"""
WORDS = r"'[a-z]+|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPACE = "▁"


@dataclass(frozen=True)
class Control:
    """A control token of a layout."""

    token: str
    """Its name."""


Layout = list["Control | str"]
"""A chat as control tokens and texts."""


@dataclass(frozen=True)
class Family:
    """A family's chat template, and its tokenizer."""

    name: str
    """Its name in tests."""
    template: str
    """Jinja source, ours."""
    layout: Callable[[Sequence[Message], bool], Layout | None]
    """The same chat without Jinja, with or without the generation prompt; None if the template refuses or rewrites
    it."""
    control: tuple[str, ...]
    """Control tokens; BOS first if there is one."""
    bos: str | None
    """The BOS of every chat, which the tokenizer also adds to a text by itself."""
    end_of_turn: str
    """The token that ends an assistant's turn."""
    spaces: str | None = None
    """None for a byte-level vocabulary, else how a SentencePiece-like one treats the beginning of a text: `first` puts
    a space there, `never` does not."""
    markers: tuple[str, ...] = ()
    """Tokens added to the vocabulary that aren't control tokens."""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer in transformers, with its chat template."""
        inner = _vocabulary(self.name)
        inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self.control])
        inner.add_tokens([AddedToken(token, normalized=False) for token in self.markers])
        if self.bos is not None:
            inner.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", special_tokens=[(self.bos, inner.token_to_id(self.bos))]
            )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            bos_token=self.bos,
            eos_token=self.end_of_turn,
            unk_token="<unk>" if self.spaces else None,
            clean_up_tokenization_spaces=False,
        )
        fast.chat_template = self.template
        return fast

    def letters(self) -> Tokenizer:
        """The tokenizer without control tokens, for texts within a chat."""
        inner = _vocabulary(self.name)
        # Placeholders that no text contains replace the control tokens, so that all other tokens keep their ids.
        inner.add_tokens([f"\N{NULL}in place of {i}" for i, _ in enumerate(self.control) if self.spaces is None])
        inner.add_tokens([AddedToken(token, normalized=False) for token in self.markers])
        if self.spaces is not None:
            inner.pre_tokenizer = _metaspace("never")
        return inner

    def save(self, folder: Path, **config: Any) -> Path:
        """A model folder with this tokenizer, without weights."""
        tokenizer = self.tokenizer()
        tokenizer.save_pretrained(folder)
        values = {
            "model_type": "llama",
            "max_position_embeddings": 4096,
            "eos_token_id": tokenizer.eos_token_id,
        } | config
        (folder / "config.json").write_text(json.dumps(values))
        return folder


def _llama(messages: Sequence[Message], to_answer: bool) -> Layout | None:
    layout: Layout = [Control("<|begin_of_text|>")]
    for message in messages:
        layout += [*_llama_header(message["role"]), message["content"].strip(), Control("<|eot_id|>")]
    return [*layout, *_llama_header("assistant")] if to_answer else layout


def _llama_header(role: str) -> Layout:
    return [Control("<|start_header_id|>"), role, Control("<|end_header_id|>"), "\n\n"]


def _chatml(messages: Sequence[Message], to_answer: bool) -> Layout | None:
    layout: Layout = []
    for message in messages:
        layout += [Control("<|im_start|>"), f"{message['role']}\n", message["content"], Control("<|im_end|>"), "\n"]
    return [*layout, Control("<|im_start|>"), "assistant\n"] if to_answer else layout


def _qwen(messages: Sequence[Message], to_answer: bool) -> Layout | None:
    *earlier, last = messages
    if last["role"] == "assistant" and "</think>" in last["content"]:
        return None
    messages = [*map(_without_thought, earlier), last]
    if messages[0]["role"] != "system":
        messages = [Message(role="system", content="You are a helpful assistant."), *messages]
    return _chatml(messages, to_answer)


def _without_thought(message: Message) -> Message:
    if message["role"] != "assistant" or "</think>" not in message["content"]:
        return message
    return Message(role="assistant", content=message["content"].split("</think>")[-1].lstrip("\n"))


def _mistral(messages: Sequence[Message], to_answer: bool) -> Layout | None:
    layout: Layout = [Control("<s>")]
    system, turns = "", list(messages)
    if turns[0]["role"] == "system":
        system = turns.pop(0)["content"].strip() + "\n\n"
    for i, turn in enumerate(turns):
        if turn["role"] != ("user", "assistant")[i % 2]:
            return None
        content = turn["content"].strip()
        if turn["role"] == "user":
            layout += [Control("[INST]"), f"{system}{content}", Control("[/INST]")]
            system = ""
        else:
            layout += [f" {content}", Control("</s>")]
    return layout


def _gemma(messages: Sequence[Message], to_answer: bool) -> Layout | None:
    if any(message["role"] == "system" for message in messages):
        return None
    layout: Layout = [Control("<bos>")]
    for message in messages:
        role = "model" if message["role"] == "assistant" else "user"
        layout += [Control("<start_of_turn>"), f"{role}\n", message["content"].strip(), Control("<end_of_turn>"), "\n"]
    return [*layout, Control("<start_of_turn>"), "model\n"] if to_answer else layout


_CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
FAMILIES = (
    Family(
        name="llama3",
        template=(
            "{{- bos_token }}{% macro header(role) %}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}"
            "{% endmacro %}{% for turn in messages %}{{ header(turn.role) ~ (turn.content | trim) ~ '<|eot_id|>' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ header('assistant') }}{% endif %}"
        ),
        layout=_llama,
        control=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        end_of_turn="<|eot_id|>",
    ),
    Family(
        name="qwen",
        template=(
            "{%- if messages[0].role != 'system' %}"
            "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
            "{%- for m in messages %}{%- set content = m.content %}"
            "{%- if m.role == 'assistant' and '</think>' in content %}"
            "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
            "{{- '<|im_start|>' ~ m.role ~ '\n' ~ content ~ '<|im_end|>\n' }}{%- endfor %}"
            "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
        ),
        layout=_qwen,
        control=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        end_of_turn="<|im_end|>",
        markers=("<think>", "</think>"),
    ),
    Family(
        name="mistral",
        template=(
            "{{- bos_token }}{%- if messages[0].role == 'system' %}"
            "{%- set before = messages[0].content | trim ~ '\n\n' %}{%- set turns = messages[1:] %}"
            "{%- else %}{%- set before = '' %}{%- set turns = messages %}{%- endif %}"
            "{%- for turn in turns %}"
            "{%- if turn.role != ('user' if loop.index0 is even else 'assistant') %}"
            "{{- raise_exception('user and assistant must take turns') }}{%- endif %}"
            "{%- if turn.role == 'user' %}"
            "{{- '[INST]' ~ (before if loop.first else '') ~ turn.content | trim ~ '[/INST]' }}"
            "{%- else %}{{- ' ' ~ turn.content | trim ~ eos_token }}{%- endif %}{%- endfor %}"
        ),
        layout=_mistral,
        control=("<s>", "</s>", "[INST]", "[/INST]", "<unk>"),
        bos="<s>",
        end_of_turn="</s>",
        spaces="first",
    ),
    Family(
        name="gemma",
        template=(
            "{{ bos_token }}{% for turn in messages %}{% if turn.role == 'system' %}"
            "{{ raise_exception('there is no system turn') }}{% endif %}"
            "{{ '<start_of_turn>' ~ ('model' if turn.role == 'assistant' else turn.role) ~ '\n'"
            " ~ turn.content | trim ~ '<end_of_turn>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
        ),
        layout=_gemma,
        control=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<unk>"),
        bos="<bos>",
        end_of_turn="<end_of_turn>",
        spaces="never",
    ),
    Family(
        name="chatml",
        template=_CHATML,
        layout=_chatml,
        control=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        end_of_turn="<|im_end|>",
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}


def rendered(layout: Layout) -> str:
    """A layout as text."""
    return "".join(part.token if isinstance(part, Control) else part for part in layout)


def sections(layout: Layout) -> Layout:
    """A layout with adjacent texts joined."""
    joined: Layout = []
    for part in layout:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return joined


def _vocabulary(name: str) -> Tokenizer:
    return Tokenizer.from_str(_trained(name))


@cache
def _trained(name: str) -> str:
    """A tokenizer without control tokens, as JSON; merges come from `TEXT`."""
    family = BY_NAME[name]
    if family.spaces is None:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(
            [TEXT], trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
        )
        return str(tokenizer.to_str())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=True)
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learned = json.loads(tokenizer.to_str())["model"]
    entries = [*family.control, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={entry: i for i, entry in enumerate(entries)},
            merges=[tuple(merge) for merge in learned["merges"]],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    if family.spaces == "first":
        tokenizer.pre_tokenizer = _metaspace("first")
        strips = [decoders.Strip(" ", 1, 0)]
    else:
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        strips = []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strips]
    )
    return str(tokenizer.to_str())


def _metaspace(scheme: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
