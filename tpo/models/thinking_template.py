"""How a model's chat template handles native thinking, and whether that can be switched off.

Found by rendering a chat that requests an answer, with thinking on and off, and an answer with a thought. The weights
aren't considered: a model may think less, or more, than its template suggests.

Four kinds (docs/models.md): `none`; `hybrid`, the model opens a thought itself; `prefilled`, the prompt has already
opened it, so that an output has only the closing tag; `channels`, thought and response are separate messages.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from tpo.errors import InputError
from tpo.records import Message

SWITCHES = ("enable_thinking", "thinking")
"""Variables with which templates switch thinking on and off."""
TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""Known tags around thoughts, for templates that never render one."""
_THOUGHT, _ANSWER = "I add the two.", "Forty-two, I would say."
_ASKED = [Message(role="user", content="Say hello.")]


Kind = Literal["none", "hybrid", "prefilled", "channels"]


@dataclass(frozen=True)
class ThinkingTemplate:
    """A chat template's handling of native thoughts."""

    kind: Kind = "none"
    """How a thought begins: never, by the model, in the prompt, or as a separate message."""
    opening: str | None = None
    """The text that opens a thought, such as `<think>`; None for the kind `none`."""
    closing: str | None = None
    """The text that closes it."""
    switch: str | None = None
    """The template's variable that switches thinking on and off; None if there is none."""
    heading: str | None = None
    """Text that opens the response, for `channels`: such a thought has ended only when the response begins."""

    def variables(self, *, thinking: bool) -> dict[str, bool]:
        """The template's variables that switch native thinking on or off."""
        return {self.switch: thinking} if self.switch else {}

    @property
    def always_thinks(self) -> bool:
        """Whether every output begins with a thought, whatever the prompt says."""
        return self.kind in ("prefilled", "channels") and self.switch is None

    @property
    def tags(self) -> tuple[str, ...]:
        """The texts around a thought, opening first."""
        return tuple(tag for tag in (self.opening, self.closing) if tag)


def thinking_template(
    tokenizer: Any, *, options: Mapping[str, Any] = MappingProxyType({}), kind: Kind | None = None
) -> ThinkingTemplate:
    """The native thinking of a tokenizer's chat template; `none` for one that rejects a plain question.

    `options` are the template's own variables. `kind` overrides what the template shows, with the tags found or, if
    none are found, `<think>` and `</think>`.

    Raises `InputError` if `kind` is `channels` and the template has none: only the template has their headings.
    """
    found = _thinking_template(tokenizer, options)
    if kind is None or kind == found.kind:
        return found
    if kind == "channels":
        raise InputError(
            f'model.thinking is "channels", and the chat template shows none but is of kind {found.kind!r}'
        )
    if kind == "none":
        return ThinkingTemplate(switch=found.switch)  # It stays off.
    opening, closing = (found.opening, found.closing) if found.opening and found.closing else TAGS[0]
    return ThinkingTemplate(kind, opening, closing, found.switch)


def _thinking_template(tokenizer: Any, options: Mapping[str, Any]) -> ThinkingTemplate:

    def render(chat: list[dict[str, str]], *, to_answer: bool = False, **variables: bool) -> str:
        given = {**options, **variables}
        try:
            return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=to_answer, **given))
        except Exception:  # noqa: BLE001 - a template can raise any exception; its user will report it
            return ""

    asked = [{"role": turn["role"], "content": turn["content"]} for turn in _ASKED]
    switch = next((name for name in SWITCHES if _differs(render, asked, name)), None)
    thinking = {switch: True} if switch else {}
    on = render(asked, to_answer=True, **thinking)
    tags = _shown_tags(render, asked, on, thinking) or _known_tags(render, asked, on, str(tokenizer.chat_template))
    if tags is None:
        return ThinkingTemplate("hybrid", None, None, switch) if switch else ThinkingTemplate()
    opening, closing = tags
    if on.rstrip().endswith(opening):
        return ThinkingTemplate("prefilled", opening, closing, switch)
    if heading := _channel_heading(render, asked, opening):
        return ThinkingTemplate("channels", opening, closing, switch, heading)
    return ThinkingTemplate("hybrid", opening, closing, switch)


_Render = Callable[..., str]


def _differs(render: _Render, asked: list[dict[str, str]], switch: str) -> bool:
    on, off = (render(asked, to_answer=True, **{switch: value}) for value in (True, False))
    return on != off


def _shown_tags(
    render: _Render, asked: list[dict[str, str]], on: str, thinking: dict[str, bool]
) -> tuple[str, str] | None:
    """The text around a thought that is passed to the template in the fields that templates read."""
    thought = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _THOUGHT)
    shown = render([*asked, {"role": "assistant", "content": _ANSWER, **thought}], **thinking)
    before, found, after = shown.partition(_THOUGHT)
    between = after.partition(_ANSWER)[0].strip()
    if not found or not between:
        return None
    # A prompt ends with the header of the answer; if it opens a thought, too, nothing follows.
    opening = before[_shared(before, on) :].strip() or _last_tag(before)
    closing = _first_tag(between)
    return (opening, closing) if opening and closing else None


def _known_tags(render: _Render, asked: list[dict[str, str]], on: str, template: str) -> tuple[str, str] | None:
    """Known tags that end a prompt, that the template removes from an answer, or that it writes otherwise."""
    for opening, closing in TAGS:
        if closing not in template:
            continue
        answer = f"{opening}{_THOUGHT}{closing}{_ANSWER}"
        shown = render([*asked, {"role": "assistant", "content": answer}])
        if on.rstrip().endswith(opening) or (shown and answer not in shown) or _differs(render, asked, SWITCHES[0]):
            return opening, closing
    return None


def _channel_heading(render: _Render, asked: list[dict[str, str]], opening: str) -> str | None:
    """The heading of an answer without a thought, if answers have headings of the same form as thoughts."""
    prompt, shown = render(asked, to_answer=True), render([*asked, {"role": "assistant", "content": _ANSWER}])
    heading = shown.partition(_ANSWER)[0][_shared(shown, prompt) :].strip()
    return heading if heading and opening not in heading else None


def _last_tag(text: str) -> str | None:
    found = re.findall(r"<[^<>\s]+>|\[[^\[\]\s]+\]", text)
    return found[-1] if found and text.rstrip().endswith(found[-1]) else None


def _first_tag(text: str) -> str | None:
    found = re.match(r"<[^<>\s]+>|\[[^\[\]\s]+\]", text)
    return found.group() if found else None


def _shared(first: str, second: str) -> int:
    """Length of the common prefix of two texts."""
    return next(
        (i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )
