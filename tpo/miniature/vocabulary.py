"""The miniature's tokenizer: one token per word of the world, bytes for everything else.

It is a Hugging Face fast tokenizer with its own chat template. Words of the world are entries of a byte-level BPE
without merges, so any text in any language still encodes, one token per byte. Phrases, such as the prose of a prompt
template, are one token each: a tiny model needn't spend its context on sentences that never change.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class ChatStyle:
    """How a chat is laid out as tokens."""

    bos: str
    """Begins every chat."""
    eos: str
    """Ends an assistant's turn."""
    pad: str
    """Pads batches."""
    control: tuple[str, ...]
    """The other control tokens."""
    template: str
    """Jinja source of the chat template."""


OWN_CHAT = ChatStyle(
    bos="<|begin|>",
    eos="<|end|>",
    pad="<|pad|>",
    control=("<|system|>", "<|user|>", "<|assistant|>"),
    template=(
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
)
"""Short: one control token per turn."""
LLAMA_3_CHAT = ChatStyle(
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad="[PAD]",
    control=("<|start_header_id|>", "<|end_header_id|>"),
    template=(
        "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
)
"""The layout of Llama-3-Instruct, which ArmoRM reads."""

_SPLIT = r"\s?[A-Za-z]+|\s?[0-9]|\s?[^\sA-Za-z0-9]|\s+"
"""How text is split into words: a space belongs to the word, digit or sign that follows it."""


def words_of(texts: Iterable[str]) -> list[str]:
    """The distinct words of some texts as the tokenizer splits them, with leading spaces, sorted."""
    return sorted({word for text in texts for word in re.findall(_SPLIT, text)})


def build_tokenizer(
    words: Iterable[str], phrases: Iterable[str], *, max_length: int, chat: ChatStyle = OWN_CHAT
) -> PreTrainedTokenizerFast:
    """A tokenizer in which each of `words` and `phrases` is a single token and all other text is bytes.

    `max_length` is the model's context in tokens.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [as_letters.pre_tokenize_str(word)[0][0] for word in words]
    vocabulary = {entry: i for i, entry in enumerate(dict.fromkeys([*letters, *spelled]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_SPLIT), "isolated"), as_letters])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True) for token in (chat.pad, chat.bos, chat.eos, *chat.control)]
    )
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=chat.bos,
        eos_token=chat.eos,
        pad_token=chat.pad,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat.template
    return fast
