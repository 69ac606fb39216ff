"""Conversations in the formats of published datasets, read as prompts: the user's last turn and the turns before it.

A conversation is a list of turns, each an object with `role` and `content` (UltraFeedback, WildChat, Tulu 3,
LMSYS-Chat-1M) or with `from` and `value` (ShareGPT); other fields are ignored. A prompt ends with the last user turn:
assistant turns after it are the dataset's answer and are dropped.

Malformed turns are an error, like any damaged row. A well-formed conversation that can't be a prompt (it uses tools, or
one side has two turns in a row) is unusable, and counted with the reason: large datasets have some of them, and a
template would reject or merge such turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tpo.records import Message, write_turns

_SHAPES = (("role", "content"), ("from", "value"))
"""The fields of a turn with its role and its text."""
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(
        ("tool", "function", "ipython", "observation", "environment", "tool_call", "tool_response", "function_call"),
        "tool",
    ),
}
"""Names of roles in published datasets, and their names in chat templates."""
_CALLS = ("tool_calls", "function_call")
"""Fields of a turn with a tool call."""


class Unusable(StrEnum):
    """Why a conversation can't be a prompt."""

    NO_USER_TURN = "no_user_turn"
    """There is no user turn, or it is blank."""
    EMPTY_TURN = "empty_turn"
    """A turn up to the last user turn is blank."""
    TOOL_TURN = "tool_turn"
    """A tool is called, or replies."""
    UNKNOWN_ROLE = "unknown_role"
    """A turn's role isn't system, user or assistant, under any of their usual names."""
    NOT_ALTERNATING = "not_alternating"
    """User and assistant don't alternate, starting with the user, after at most one system turn."""
    NOT_TEXT = "not_text"
    """A turn contains something other than text, such as an image."""


@dataclass(frozen=True)
class Conversation:
    """A conversation that ends with a user turn."""

    instruction: str
    """The last user turn."""
    history: str | None
    """The turns before it, as `Prompt.history`."""


def read_conversation(turns: Sequence[Any], what: str = "the instruction") -> Conversation | Unusable:
    """The conversation up to its last user turn; `what` names it in errors.

    Raises `ValueError` if a turn isn't an object with a role and text.
    """
    messages = list[Message]()
    for number, turn in enumerate(turns, 1):
        try:
            message = _turn(turn)
        except ValueError as error:
            raise ValueError(f"{what} is {list(turns)!r:.60}, expected text, or turns; turn {number} {error}") from None
        if isinstance(message, Unusable):
            return message
        messages.append(message)
    last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "user"), None)
    if last is None:
        return Unusable.NO_USER_TURN
    *earlier, asked = messages[: last + 1]
    if any(turn["role"] != "assistant" for turn in messages[last + 1 :]) or not _take_turns([*earlier, asked]):
        return Unusable.NOT_ALTERNATING
    if not all(turn["content"].strip() for turn in (*earlier, asked)):
        return Unusable.EMPTY_TURN
    return Conversation(asked["content"], write_turns(earlier))


def is_written_as_text(text: str) -> bool:
    """Whether a text is a conversation as JSON or as a Python literal, as in a table of texts."""
    start = "".join(text[:200].split()).replace("'", '"')
    return any(start.startswith(f'[{{"{field}":') for shape in _SHAPES for field in shape)


def encodable(text: str) -> str:
    """Returns the text; raises `ValueError` for an unpaired surrogate, which neither tokenizers nor Parquet accept."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} of {text[:40]!r} is an unpaired surrogate, not text") from None
    return text


def _turn(turn: Any) -> Message | Unusable:
    """One turn; raises `ValueError` with what was found."""
    shape = next((shape for shape in _SHAPES if isinstance(turn, dict) and turn.keys() >= {*shape}), None)
    if shape is None or not isinstance(turn[shape[0]], str):
        raise ValueError(f"is {turn!r:.80}, expected role and content, or from and value")
    role, content = _ROLES.get(turn[shape[0]].strip().lower()), turn[shape[1]]
    if role == "tool" or any(turn.get(calls) for calls in _CALLS):
        return Unusable.TOOL_TURN
    if role is None:
        return Unusable.UNKNOWN_ROLE
    text = _text(content)
    return text if isinstance(text, Unusable) else Message(role=role, content=text)


def _text(content: Any) -> str | Unusable:
    """The text of a turn, which may be in parts; empty for None."""
    if content is None:
        return ""
    if isinstance(content, str):
        return encodable(content)
    if isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content):
        if any(part["type"] != "text" for part in content):
            return Unusable.NOT_TEXT
        if all(isinstance(part.get("text"), str) for part in content):
            return encodable("\n".join(part["text"] for part in content))
    raise ValueError(f"has {content!r:.80}, expected text, or parts of type text")


def _take_turns(messages: Sequence[Message]) -> bool:
    """Whether user and assistant alternate, both ends being user turns, after at most one system turn."""
    roles = [message["role"] for message in messages]
    if roles[0] == "system":
        del roles[0]
    return all(role == ("user", "assistant")[i % 2] for i, role in enumerate(roles)) and len(roles) % 2 == 1
