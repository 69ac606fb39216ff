"""Encodes chat messages as token ids so that nothing a user writes can become structure.

A chat is encoded as a whole, as the model's authors do, with control tokens recognized only in the template's own text:
`<|end|>` in an instruction remains seven characters. There is one BOS, the template's. Native thinking is switched off
if the template supports that, unless a chat requests it.

If no message contains a control token, and none arises where texts meet, the result is the tokenizer's own encoding of
the whole. Otherwise, the text between the template's control tokens is encoded with control tokens disabled. Either
way, the control tokens in the result must be the template's, or the chat is rejected.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tpo.config.data import ModelConfig
from tpo.errors import InputError
from tpo.models.thinking_template import TAGS, Kind, thinking_template
from tpo.records import Message
from tpo.storage.disk import explained

ASKS_ALREADY = "The thought prompt is in here."
"""Marks a published chat template that includes a thought prompt or a prefill (`prompts.asking_template`)."""
_MAX_STRUCTURES = 64
"""Maximum number of role sequences whose structure is cached: a server may receive any."""
_GUARDS = ("\n", "\x00", "~", "é")
"""Texts to put before a text inside a chat, for tokenizers that encode the beginning of a text differently."""


@dataclass(frozen=True)
class Piece:
    """A piece of a chat as text."""

    text: str
    """The text."""
    template: bool = False
    """Whether it comes from the chat template, in which control tokens count."""


class ChatEncoder:
    """Encodes chats for one model: with the generation prompt to be answered, without it to be scored."""

    def __init__(
        self,
        model: Path,
        *,
        generation_prompt: bool = True,
        options: Mapping[str, Any] = MappingProxyType({}),
        kind: Kind | None = None,
    ) -> None:
        """Loads the tokenizer and tests its template. `options` are the template's own variables for every chat; `kind`
        is the kind of native thinking, if its template doesn't show that."""
        with explained(model):
            self.tokenizer: Any = _load_tokenizer(model)
        if not self.tokenizer.chat_template:
            raise InputError(f"{model} has no chat template: add chat_template.jinja or use an instruction-tuned model")
        self._generation_prompt = generation_prompt
        self._options = dict(options)
        self.thinking = thinking_template(self.tokenizer, options=self._options, kind=kind)
        if (switch := self.thinking.switch) in self._options:
            raise InputError(
                f"model.chat_template_options sets {switch}, which prompt.variant decides: "
                '"native" switches it on, every other variant off'
            )
        self._structures: dict[tuple[tuple[str, ...], bool], list[str]] = {}
        self.control = {
            str(token): index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }
        self._stripping = {str(token): token for token in self.tokenizer.added_tokens_decoder.values()}
        self._control_text = _any_of(self.control)
        # Use the tokenizers library directly: transformers' own call takes three times as long for a short text.
        self._backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        # The unknown token isn't treated as control: any text may produce it.
        self._control_ids = {*self.control.values()} - {self.tokenizer.unk_token_id}
        self._begins_otherwise = self._reads_beginnings_otherwise()

    def reading(self) -> "ChatEncoder":
        """The same model's encoder without the generation prompt."""
        reader = copy.copy(self)
        reader._generation_prompt, reader._structures = False, {}
        return reader

    def encode(self, messages: Sequence[Message], *, thinking: bool = False, prefill: str = "") -> list[int]:
        """Token ids of the chat, with the generation prompt unless the encoder has none.

        `thinking` switches native thinking on; `prefill` is the beginning of the answer, in which control tokens count
        as in the template's own text.

        Raises `InputError` if the template rejects the chat, changes a message, other than by removing the thoughts of
        earlier answers, or if a message isn't valid Unicode.
        """
        roles = tuple(message["role"] for message in messages)
        rendered = self._render([message["content"] for message in messages], roles, thinking=thinking)
        forms = [self._forms(message, earlier=i < len(messages)) for i, message in enumerate(messages, 1)]
        shown = _shown(rendered, self.structure(roles, thinking=thinking), forms)
        if shown is None:
            # A template that writes the date changes its structure at midnight.
            self._structures.pop((roles, thinking))
            shown = _shown(rendered, self.structure(roles, thinking=thinking), forms)
        if shown is None:
            raise InputError("the model's chat template changes the text of a message, expected it unchanged")
        structure = self.structure(roles, thinking=thinking)
        pieces = [Piece(structure[0], True)]
        for text, after in zip(shown, structure[1:], strict=True):
            pieces += [Piece(text), Piece(after, True)]
        return self.encode_pieces([*pieces, Piece(prefill, True)] if prefill else pieces)

    def encode_output(self, text: str) -> list[int]:
        """Token ids of an output, including the token that ends the turn; control tokens in it are plain text.

        Raises `InputError` if the tokenizer has no such token.
        """
        end = self.tokenizer.eos_token_id
        if end is None:
            raise InputError("the model's tokenizer has no eos_token, which must end an output to train on")
        return [*self.ids(text, as_text=True), int(end)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def tag_ids(self, tag: str) -> tuple[int, ...]:
        """The tokens of a tag around thoughts; empty if its ends would merge with the text next to it."""
        ids = self.ids(tag, as_text=False)
        added = self.tokenizer.added_tokens_decoder
        return tuple(ids) if ids and ids[0] in added and ids[-1] in added else ()

    def ending_ids(self) -> tuple[int, ...]:
        """The tokens with which a model ends its native thought and begins its response; empty if it has none."""
        thinking = self.thinking
        if thinking.closing is None:
            return ()
        if thinking.heading is None:
            # The model decides what follows the tag: templates and models differ in it.
            return tuple(self.ids(f"\n{thinking.closing}", as_text=False))
        turn = self.structure(("user",))[-1].rstrip().rpartition(thinking.closing)[2]
        return tuple(self.ids(f"{thinking.closing}{turn}{thinking.heading}", as_text=False))

    @property
    def asks_for_answer(self) -> bool:
        """Whether chats end with the generation prompt."""
        return self._generation_prompt

    @property
    def keeps_outer_space(self) -> bool:
        """Whether the chat template preserves white space around a message."""
        return " x " in self._render([" x "], ["user"])

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of a chat's pieces, concatenated; control tokens count only in the template's own."""
        text = "".join(piece.text for piece in pieces)
        own, offset = list[re.Match[str]](), 0
        spans = list[tuple[int, int]]()
        for piece in pieces:
            if piece.template:
                found = list(self._control_text.finditer(piece.text))
                own += found
                spans += [(offset + match.start(), offset + match.end()) for match in found]
            offset += len(piece.text)
        expected = [index for match in own if (index := self.control[match.group()]) in self._control_ids]
        if [match.span() for match in self._control_text.finditer(text)] == spans:
            ids = self.ids(text, as_text=False)
            if self._controls(ids) == expected:
                return ids
        ids = self._between(text, spans)
        if self._controls(ids) != expected:
            raise InputError(
                "a message becomes control tokens although they are disabled, expected text: the tokenizer's "
                "vocabulary or normalizer produces them from other characters"
            )
        return ids

    def structure(self, roles: tuple[str, ...], *, thinking: bool = False) -> list[str]:
        """The template's own text before, between and after the messages of a chat with these roles."""
        if (roles, thinking) not in self._structures:
            if len(self._structures) == _MAX_STRUCTURES:
                self._structures.clear()
            slots = [f"\N{OBJECT REPLACEMENT CHARACTER}{i}\N{OBJECT REPLACEMENT CHARACTER}" for i in range(len(roles))]
            pieces, rest = list[str](), self._render(slots, roles, thinking=thinking)
            for slot in slots:
                piece, found, rest = rest.partition(slot)
                if not found or slot in rest:
                    raise InputError(
                        f"the model's chat template does not render each message of a {roles} chat once and in order"
                    )
                pieces.append(piece)
            self._structures[roles, thinking] = [*pieces, rest]
        return self._structures[roles, thinking]

    def ids(self, text: str, *, as_text: bool) -> list[int]:
        """Token ids of a text; with `as_text`, control tokens in it are ordinary text."""
        if not text:
            return []
        try:
            if self._backend is None:
                encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=as_text)
                return list(encoded["input_ids"])
            self._backend.encode_special_tokens = as_text
            return list(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        except TypeError as error:
            # The tokenizers library's error for an unpaired surrogate, which is possible in JSON but not in UTF-8.
            if (half := re.search("[\ud800-\udfff]", text)) is None:
                raise
            raise InputError(
                f"a message contains {half.group()!r}, an unpaired surrogate, expected Unicode text"
            ) from error

    def render(self, messages: Sequence[Message], **variables: Any) -> str:
        """The chat as the template renders it, with `variables` for the template."""
        return self._render(
            [message["content"] for message in messages], [message["role"] for message in messages], **variables
        )

    def by_template(self, messages: Sequence[Message], *, thinking: bool = False) -> list[int]:
        """Token ids of the chat by transformers, which recognizes control tokens in messages, too."""
        return list(
            self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=True,
                add_generation_prompt=self._generation_prompt,
                return_dict=False,
                **self._options,
                **self.thinking.variables(thinking=thinking),
            )
        )

    def _render(self, content: Sequence[str], roles: Sequence[str], *, thinking: bool = False, **variables: Any) -> str:
        chat = [{"role": role, "content": text} for role, text in zip(roles, content, strict=True)]
        try:
            rendered = self.tokenizer.apply_chat_template(
                chat,
                tokenize=False,
                add_generation_prompt=self._generation_prompt,
                **(self._options | self.thinking.variables(thinking=thinking) | variables),
            )
        except Exception as error:  # A template can raise any exception.
            raise InputError(f"the model's chat template rejects a {tuple(roles)} chat: {error}") from error
        return str(rendered)

    def _forms(self, message: Message, *, earlier: bool) -> list[str]:
        """The forms in which a template may render a message: unchanged, stripped or, for earlier answers, without the
        thought, which most templates of thinking models remove."""
        text = message["content"]
        forms = [text, text.strip()]
        _, closed, response = text.rpartition(self.thinking.closing or TAGS[0][1])
        if earlier and closed and message["role"] == "assistant":
            forms += [response, response.lstrip("\n"), response.strip()]
        return forms

    def _controls(self, ids: Sequence[int]) -> list[int]:
        return [index for index in ids if index in self._control_ids]

    def _between(self, text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Token ids of a text with control tokens at `spans` and nowhere else."""
        ids, start, trim = list[int](), 0, False
        for begin, end in (*spans, (len(text), len(text))):
            token = self._stripping.get(text[begin:end])
            section = text[start:begin].lstrip() if trim else text[start:begin]
            ids += self._letters(section.rstrip() if token and token.lstrip else section, within=start > 0)
            if token is not None:
                ids.append(self.control[str(token)])
            start, trim = end, bool(token and token.rstrip)
        return ids

    def _letters(self, text: str, *, within: bool) -> list[int]:
        """Token ids of ordinary text, at the beginning of a chat or `within` one."""
        if text and within and self._begins_otherwise:
            for guard in _GUARDS:
                before, after = (self.ids(part, as_text=True) for part in (guard, guard + text))
                if after[: len(before)] == before:
                    return after[len(before) :]
        return self.ids(text, as_text=True)

    def _reads_beginnings_otherwise(self) -> bool:
        """Whether a text alone has other tokens than the same text after a control token (SentencePiece's space)."""
        if not self.control:
            return False
        token, index = next(iter(self.control.items()))
        return self.ids(f"{token}a", as_text=False) != [index, *self.ids("a", as_text=False)]


def writer_encoder(model: Path, config: ModelConfig) -> ChatEncoder:
    """The chat encoder of M_0 or a model trained from it.

    Raises `InputError` for a published model, whose template already includes the thought prompt.
    """
    encoder = ChatEncoder(model, options=config.chat_template_options, kind=config.thinking_kind)
    if ASKS_ALREADY in str(encoder.tokenizer.chat_template):
        raise InputError(
            f"{model} was published by tpo publish, and its chat template already includes the thought prompt, which "
            "would be added twice: use the model's folder in its run, or serve this one with vllm serve as its card "
            "says"
        )
    return encoder


def _load_tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # The tokenizers library, written in Rust, panics with more than `Exception`s.
        if isinstance(error, OSError) and error.errno is not None:
            raise  # A disk error, not a fault of the files.
        message = " ".join(str(error).split())[:300]
        raise InputError(
            f"the tokenizer in {model} cannot be loaded ({type(error).__name__}: {message}): download its files again"
        ) from error


def _shown(rendered: str, structure: Sequence[str], forms: Sequence[Sequence[str]]) -> list[str] | None:
    """The form of each message in a rendered chat: the first that matches; None if none does."""
    shown, place = [], len(structure[0])
    for some, after in zip(forms, structure[1:], strict=True):
        for form in some:
            if rendered.startswith(form + after, place):
                shown.append(form)
                place += len(form) + len(after)
                break
        else:
            return None
    return shown if place == len(rendered) and rendered.startswith(structure[0]) else None


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of some tokens; nothing if there is none."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
