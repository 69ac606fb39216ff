"""The miniature's tokenizer: one token a word of the world, bytes for everything else.

In: the phrases that the model meets as wholes (the prose of our prompt templates and their markers). Out: a Hugging
Face fast tokenizer with its own chat template. Words of the world are entries of a byte-level BPE without merges, so
any text of any language still encodes, a token a byte. The prose of a prompt template is one token: a tiny model need
not spend its sequence on sentences that never change.
"""

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_SPLIT = r"\s?[A-Za-z]+|\s?[0-9]|\s?[^\sA-Za-z0-9]|\s+"
"""How text falls into words: a space belongs to the word, digit or sign that follows it."""


def words_of(texts: Iterable[str]) -> list[str]:
    """The distinct words of some texts as the tokenizer splits them, space included, sorted."""
    return sorted({word for text in texts for word in re.findall(_SPLIT, text)})


def build_tokenizer(words: Iterable[str], phrases: Iterable[str], *, max_length: int) -> PreTrainedTokenizerFast:
    """A tokenizer in which every one of `words` and `phrases` is a single token and all other text is bytes.

    `max_length` is the model's context in tokens.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    as_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [as_letters.pre_tokenize_str(word)[0][0] for word in words]
    vocabulary = {entry: i for i, entry in enumerate(dict.fromkeys([*letters, *spelled]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_SPLIT), "isolated"), as_letters])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, BOS, EOS, *ROLES)])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
