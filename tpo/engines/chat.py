"""Chat messages to token ids, so that nothing a user writes can become structure.

In: a model's folder and chat messages. Out: the token ids of the prompt. A chat whose messages hold no control token is
encoded as a whole, as the model's makers do. In any other the template's own text is encoded with its control tokens,
and the messages apart, with control tokens switched off: `<|end|>` in an instruction stays seven letters. There is one
BOS, the template's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo.errors import InputError
from tpo.records import Message

_SLOTS = [f"\N{OBJECT REPLACEMENT CHARACTER}{i}\N{OBJECT REPLACEMENT CHARACTER}" for i in range(8)]


@dataclass(frozen=True)
class Piece:
    """A piece of a chat as text."""

    text: str
    """The text."""
    template: bool = False
    """Whether it is the chat template's own, in which control tokens count."""


class ChatEncoder:
    """Encodes chats for one model: to be answered or, without the generation prompt, to be read as they stand."""

    def __init__(self, model: Path, *, generation_prompt: bool = True) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        if not self.tokenizer.chat_template:
            raise InputError(f"{model} has no chat template: add chat_template.jinja or use an instruction-tuned model")
        self._control = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        self._structures: dict[tuple[str, ...], list[str]] = {}
        self._generation_prompt = generation_prompt

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the chat, with the generation prompt at its end unless the encoder was made without."""
        structure = self.structure(tuple(message["role"] for message in messages))
        content = [message["content"] for message in messages]
        rendered = self._render(content, [message["role"] for message in messages])
        if rendered != _interleave(structure, content):
            content = [text.strip() for text in content]
            if rendered != _interleave(structure, content):
                raise InputError(
                    "the model's chat template rewrites what a message says, expected it to insert it as it is"
                )
        pieces = [Piece(structure[0], True)]
        for text, after in zip(content, structure[1:], strict=True):
            pieces += [Piece(text), Piece(after, True)]
        return self.encode_pieces(pieces)

    @property
    def keeps_outer_space(self) -> bool:
        """Whether the chat template inserts a message with the white space around it."""
        return " x " in self._render([" x "], ["user"])

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of pieces of one chat, one after the other; control tokens count in the template's own alone."""
        if not any(token in piece.text for piece in pieces if not piece.template for token in self._control):
            return self.ids("".join(piece.text for piece in pieces), as_text=False)
        return [token for piece in pieces for token in self.ids(piece.text, as_text=not piece.template)]

    def structure(self, roles: tuple[str, ...]) -> list[str]:
        """The template's own text before, between and after the content of a chat of these roles."""
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
        return str(
            self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=self._generation_prompt)
        )

    def ids(self, text: str, *, as_text: bool) -> list[int]:
        """Token ids of a text; with `as_text` control tokens in it are letters like any others."""
        if not text:
            return []
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)
        return list(encoded["input_ids"])


def _interleave(structure: Sequence[str], content: Sequence[str]) -> str:
    return structure[0] + "".join(text + after for text, after in zip(content, structure[1:], strict=True))
