"""Conversations in the formats of published data sets, written by us: the rows of a file, and what is asked.

The fields are those of the sets themselves (UltraFeedback, WildChat-1M, Tulu 3's SFT mixture, LMSYS-Chat-1M, ShareGPT),
the texts are not.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo.records import Message

SYSTEM, FIRST, ANSWER, LAST = "Answer in one word.", "Name a river.", "The Elbe.", "Which sea does it flow into?"
EARLIER = [Message(role="user", content=FIRST), Message(role="assistant", content=ANSWER)]
ADVISED = [Message(role="system", content=SYSTEM), *EARLIER]


@dataclass(frozen=True)
class Shape:
    """One row of a published set."""

    column: str
    """The value of `data.source.instruction_column`."""
    row: dict[str, Any]
    """The row."""
    earlier: Sequence[Message]
    """The turns before the last user turn, `LAST`."""


def _said(role: str, content: object, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


def _wild(role: str, content: str, turn: int) -> dict[str, Any]:
    about = {"language": "English", "toxic": False, "redacted": False, "hashed_ip": None, "country": "Germany"}
    return _said(role, content, turn_identifier=turn, timestamp=None, header={"user-agent": "Mozilla"}, **about)


_CHAT = [_said("user", FIRST), _said("assistant", ANSWER), _said("user", LAST), _said("assistant", "The North Sea.")]
SHAPES = {
    "UltraFeedback's prompt": Shape(
        "prompt", {"prompt": LAST, "prompt_id": "a", "messages": [_said("user", LAST), _said("assistant", "No.")]}, []
    ),
    "UltraFeedback's chosen": Shape(
        "chosen",
        {
            "prompt": LAST,
            "chosen": [_said("user", LAST), _said("assistant", "The North Sea.")],
            "rejected": [_said("user", LAST), _said("assistant", "No.")],
            "score_chosen": 8.0,
        },
        [],
    ),
    "WildChat": Shape(
        "conversation",
        {
            "conversation_hash": "f00d",
            "model": "gpt-4",
            "turn": 2,
            "conversation": [_wild(turn["role"], turn["content"], i) for i, turn in enumerate(_CHAT)],
        },
        EARLIER,
    ),
    "Tulu 3": Shape("messages", {"id": "t1", "messages": [_said("system", SYSTEM), *_CHAT], "source": "ai2"}, ADVISED),
    "LMSYS-Chat-1M": Shape(
        "conversation",
        {
            "conversation_id": "c",
            "conversation": [{"content": turn["content"], "role": turn["role"]} for turn in _CHAT],
            "openai_moderation": [{"flagged": False}],
        },
        EARLIER,
    ),
    "ShareGPT": Shape(
        "conversations",
        {
            "id": "s",
            "conversations": [
                {"from": "system", "value": SYSTEM},
                {"from": "human", "value": FIRST},
                {"from": "gpt", "value": ANSWER},
                {"from": "human", "value": LAST},
                {"from": "gpt", "value": "The North Sea."},
            ],
        },
        ADVISED,
    ),
    "parts": Shape(
        "prompt",
        {
            "prompt": [
                _said("developer", [{"type": "text", "text": SYSTEM}]),
                _said("user", [{"type": "text", "text": "Name a"}, {"type": "text", "text": "river."}]),
                _said("assistant", ANSWER),
                _said("user", LAST),
            ]
        },
        [ADVISED[0], Message(role="user", content="Name a\nriver."), ADVISED[2]],
    ),
}
"""Rows in each format, all of which end in the same question."""


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines or Parquet."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
