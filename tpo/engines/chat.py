"""Chat messages to token ids, so that nothing a user writes can become structure.

In: a model's folder and chat messages. Out: the token ids of the prompt. A chat whose messages hold no control token is
encoded as a whole, as the model's makers do. In any other the template's own text is encoded with its control tokens,
and the messages apart, with control tokens switched off: `<|end|>` in an instruction stays seven letters. There is one
BOS, the template's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpo.errors import InputError
from tpo.records import Message

_SLOTS = [f"\N{OBJECT REPLACEMENT CHARACTER}{i}\N{OBJECT REPLACEMENT CHARACTER}" for i in range(8)]


class ChatEncoder:
    """Encodes chats for one model."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        if not self.tokenizer.chat_template:
            raise InputError(f"{model} has no chat template: add chat_template.jinja or use an instruction-tuned model")
        self._control = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self._structures: dict[tuple[str, ...], list[str]] = {}

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the chat with the generation prompt at its end."""
        structure = self._structure(messages)
        content = [message["content"] for message in messages]
        rendered = self._render(content, [message["role"] for message in messages])
        if rendered != _interleave(structure, content):
            content = [text.strip() for text in content]
            if rendered != _interleave(structure, content):
                raise InputError(
                    "the model's chat template rewrites what a message says, expected it to insert it as it is"
                )
        if not any(token in text for text in content for token in self._control):
            return self._ids(rendered, as_text=False)
        ids = self._ids(structure[0], as_text=False)
        for text, after in zip(content, structure[1:], strict=True):
            ids += self._ids(text, as_text=True) + self._ids(after, as_text=False)
        return ids

    def _structure(self, messages: Sequence[Message]) -> list[str]:
        """The template's own text before, between and after the messages' content."""
        roles = tuple(message["role"] for message in messages)
        if roles not in self._structures:
            pieces, rest = [], self._render(_SLOTS[: len(roles)], roles)
            for slot in _SLOTS[: len(roles)]:
                piece, found, rest = rest.partition(slot)
                if not found or slot in rest:
                    raise InputError(f"the model's chat template does not show a {roles} chat once and in order")
                pieces.append(piece)
            self._structures[roles] = [*pieces, rest]
        return self._structures[roles]

    def _render(self, content: Sequence[str], roles: Sequence[str]) -> str:
        chat = [{"role": role, "content": text} for role, text in zip(roles, content, strict=True)]
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def _ids(self, text: str, *, as_text: bool) -> list[int]:
        if not text:
            return []
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)
        return list(encoded["input_ids"])


def _interleave(structure: Sequence[str], content: Sequence[str]) -> str:
    return structure[0] + "".join(text + after for text, after in zip(content, structure[1:], strict=True))
