"""Preference pairs from files: an instruction, a long and a short output, in the formats of published datasets.

A chat is a list of turns, each an object with `role` and `content` or `from` and `value`. The instruction is the last
user turn of its chat, after the earlier turns; a system turn is dropped, since the run's own prompt says how to think.
An output is the last turn.
"""

from dataclasses import dataclass
from typing import Any

from tpo.config.hub import local_path
from tpo.config.recipes import PairFile
from tpo.data.conversations import Conversation, Unusable, encodable, read_conversation
from tpo.data.prompt_files import read_columns
from tpo.records import read_turns, write_turns

_USERS = ("user", "human")


@dataclass(frozen=True)
class PairRow:
    """One row of a pair file."""

    instruction: str
    """The instruction."""
    chosen: str
    """The long output; empty if the row has none."""
    rejected: str
    """The short output; empty if the row has none."""
    history: str | None = None
    """The turns before the instruction, in the form of `Prompt.history`, if it ends a conversation."""


def read_pair_rows(source: PairFile) -> list[PairRow]:
    """All rows of a pair file.

    Raises `InputError` if the file is missing, empty, damaged or too large, lacks a column that the source names, or
    has a row without an instruction, with a chat that can't be a prompt, or with a value that is neither text nor chat.
    """
    named = {
        "instruction": source.instruction_column,
        "chosen": source.chosen_column,
        "rejected": source.rejected_column,
    }
    return read_columns(local_path(source.path), named, _pair_row, section="recipe.source")


def _pair_row(values: dict[str, Any]) -> PairRow:
    asked = _asked(values["instruction"])
    if not asked.instruction.strip():
        raise ValueError("the instruction is empty")
    return PairRow(
        asked.instruction,
        _last(values["chosen"], "the long output"),
        _last(values["rejected"], "the short output"),
        asked.history,
    )


def _asked(value: Any) -> Conversation:
    """The prompt of both outputs; empty if there is no user turn."""
    if not isinstance(value, list):
        return Conversation(_last(value, "the instruction", _USERS), None)
    found = read_conversation(value)
    if found is Unusable.NO_USER_TURN:
        return Conversation("", None)
    if isinstance(found, Unusable):
        raise ValueError(
            f"the instruction is a conversation that can't be a prompt ({found}), expected alternating user and "
            "assistant turns, in text: leave the row out"
        )
    earlier = [turn for turn in read_turns(found.history) if turn["role"] != "system"]
    return Conversation(found.instruction, write_turns(earlier))


def _last(value: Any, what: str, roles: tuple[str, ...] = ()) -> str:
    """The text of a value that is text, a turn or a chat; for a chat, its last turn, or the last with one of
    `roles`."""
    if value is None:
        return ""
    if isinstance(value, str):
        return encodable(value)
    turns = value if isinstance(value, list) else [value]
    parsed = [_turn(turn, what) for turn in turns]
    texts = [text for role, text in parsed if not roles or role in roles]
    return texts[-1] if texts else ""


def _turn(turn: Any, what: str) -> tuple[str, str]:
    for role, content in (("role", "content"), ("from", "value")):
        if isinstance(turn, dict) and isinstance(turn.get(role), str) and isinstance(turn.get(content), str):
            return turn[role], encodable(turn[content])
    raise ValueError(f"{what} is {turn!r:.80}, expected text, or turns with role and content (or from and value)")
