"""Claims about conversations in prompt files: every published format is read up to the user's last turn; what can't be
a prompt is counted, and damaged rows are rejected by number."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conversations import ADVISED, LAST, SHAPES, write_rows
from tpo.config.data import FileSource
from tpo.data.conversations import Conversation, Unusable, read_conversation
from tpo.data.prompt_files import PromptRow, check_prompt_file, read_prompt_rows
from tpo.errors import InputError
from tpo.records import Message, read_turns, write_turns


def read(path: Path, column: str = "messages") -> list[PromptRow]:
    return read_prompt_rows(FileSource(path=path, instruction_column=column), path)


def turns(*contents: str) -> list[dict[str, Any]]:
    """Turns in short: `u:Why?`."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    parts = (each.partition(":") for each in contents)
    return [{"role": roles.get(role, role), "content": content} for role, _, content in parts]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_published_format_ends_in_the_users_last_turn(tmp_path: Path, name: str, kind: str):
    shape = SHAPES[name]
    if name == "parts" and kind == "parquet":
        pytest.skip("a column of Parquet can't hold both texts and lists of parts")
    (row,) = read(write_rows(tmp_path / f"rows.{kind}", [shape.row]), shape.column)
    assert row.instruction == LAST and row.unusable is None
    assert read_turns(row.history) == shape.earlier


def test_a_dataset_saved_to_disk_holds_conversations(tmp_path: Path):
    from datasets import Dataset

    Dataset.from_list([SHAPES["Tulu 3"].row]).save_to_disk(tmp_path / "saved")
    (row,) = read(tmp_path / "saved")
    assert read_turns(row.history) == ADVISED


def test_texts_and_conversations_may_be_in_one_column(tmp_path: Path):
    rows: list[dict[str, Any]] = [
        {"prompt": "Why?"},
        {"prompt": turns("u:Why?")},
        {"prompt": turns("u:Why?", "a:So.", "u:Oh?")},
    ]
    found = read(write_rows(tmp_path / "rows.jsonl", rows), "prompt")
    assert [row.instruction for row in found] == ["Why?", "Why?", "Oh?"]
    assert [row.history is None for row in found] == [True, True, False]


UNUSABLE: dict[str, tuple[list[dict[str, Any]], Unusable]] = {
    "nothing": ([], Unusable.NO_USER_TURN),
    "a system turn alone": (turns("s:Be kind."), Unusable.NO_USER_TURN),
    "an answer alone": (turns("a:Hello."), Unusable.NO_USER_TURN),
    "an empty question": (turns("u: \n"), Unusable.EMPTY_TURN),
    "no content": ([{"role": "user", "content": None}], Unusable.EMPTY_TURN),
    "an empty answer": (turns("u:Hi", "a:", "u:Well?"), Unusable.EMPTY_TURN),
    "an empty system turn": (turns("s:", "u:Hi"), Unusable.EMPTY_TURN),
    "a tool's reply": (turns("u:Hi", "t:{}", "a:No.", "u:Well?"), Unusable.TOOL_TURN),
    "a tool's reply after the last question": (turns("u:Hi", "a:Wait.", "t:{}", "a:No."), Unusable.TOOL_TURN),
    "ShareGPT's tool": ([{"from": "observation", "value": "{}"}, {"from": "human", "value": "Hi"}], Unusable.TOOL_TURN),
    "a call": ([*turns("u:Hi"), {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], Unusable.TOOL_TURN),
    "a narrator": (turns("narrator:Once", "u:Hi"), Unusable.UNKNOWN_ROLE),
    "two questions": (turns("u:Hi", "u:Well?"), Unusable.NOT_ALTERNATING),
    "an answer first": (turns("a:Hello.", "u:Hi"), Unusable.NOT_ALTERNATING),
    "two answers": (turns("u:Hi", "a:Yes.", "a:No.", "u:Well?"), Unusable.NOT_ALTERNATING),
    "a late system turn": (turns("u:Hi", "s:Be kind.", "u:Well?"), Unusable.NOT_ALTERNATING),
    "a system turn at the end": (turns("u:Hi", "s:Be kind."), Unusable.NOT_ALTERNATING),
    "two system turns": (turns("s:Be kind.", "s:Be brief.", "u:Hi"), Unusable.NOT_ALTERNATING),
    "a picture": (
        [{"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": "x"}]}],
        Unusable.NOT_TEXT,
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_conversation_that_cannot_be_a_prompt_is_unusable_for_a_reason(tmp_path: Path, name: str):
    messages, reason = UNUSABLE[name]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": messages}, {"messages": turns("u:Hi")}])
    first, second = read(path)
    assert (first.instruction, first.history, first.unusable) == ("", None, reason)
    assert second == PromptRow("Hi", None, None, None, None)


DAMAGED: dict[str, tuple[Any, str]] = {
    "a text": (["Hi"], "turn 1 is 'Hi', expected role and content, or from and value"),
    "no role": ([{"content": "Hi"}], "turn 1 is .*expected role and content"),
    "no content": ([{"role": "user"}], "turn 1 is .*expected role and content"),
    "an empty role": ([*turns("u:Hi"), {"role": None, "content": "Hi"}], "turn 2 is"),
    "a number": ([{"role": "user", "content": 7}], "turn 1 has 7, expected text, or parts of type text"),
    "parts without text": ([{"role": "user", "content": [{"type": "text"}]}], "turn 1 has"),
    "texts": ([{"role": "user", "content": ["Hi"]}], "turn 1 has"),
    "half a surrogate pair": (
        [{"role": "user", "content": "\ud83d"}],
        "turn 1 character 0 of .* an unpaired surrogate",
    ),
    "one turn": ({"role": "user", "content": "Hi"}, "expected text, or a list of turns"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_turns_are_rejected_by_row_and_turn(tmp_path: Path, name: str):
    value, pattern = DAMAGED[name]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": turns("u:Hi")}, {"messages": value}])
    with pytest.raises(InputError, match=rf"rows.jsonl, row 2: the instruction is .*{pattern}"):
        read(path)


def test_a_file_without_any_usable_conversation_is_rejected_with_the_reasons(tmp_path: Path):
    rows: list[dict[str, Any]] = [{"messages": turns("u:Hi", "t:{}")}, {"messages": []}, {"messages": []}]
    source = FileSource(path=write_rows(tmp_path / "rows.jsonl", rows), instruction_column="messages")
    with pytest.raises(InputError, match=r"no conversation in column 'messages'.* \(2 no_user_turn, 1 tool_turn\)"):
        check_prompt_file(source, Path(source.path))


@pytest.mark.parametrize(
    "text", [json.dumps(turns("u:Hi")), str(turns("u:Hi")), ' [\n {"from": "human", "value": ""}]']
)
def test_a_table_of_conversations_as_text_is_rejected_and_a_text_that_looks_like_one_stays_text(
    tmp_path: Path, text: str
):
    path = tmp_path / "rows.csv"
    cell = '"' + text.replace('"', '""') + '"'
    path.write_text(f"messages\n{cell}\n")
    with pytest.raises(InputError, match=r"has conversations as text in column 'messages'.*\(\.jsonl or \.parquet\)"):
        read(path)
    path.write_text(f"messages\n{cell}\nWhy?\n")
    assert [(row.instruction, row.history) for row in read(path)] == [(text, None), ("Why?", None)]


@pytest.mark.parametrize("column", ["prompt", "messages", "conversation", "conversations"])
def test_for_a_file_in_another_format_the_error_names_the_column_to_set(tmp_path: Path, column: str):
    path = write_rows(tmp_path / "rows.jsonl", [{"id": 1, column: turns("u:Hi")}])
    with pytest.raises(InputError, match=f'set data.source.instruction_column = "{column}"'):
        read(path, "instruction")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: bool(text.strip()))


@given(st.none() | texts, st.lists(texts, min_size=1, max_size=31))
def test_any_texts_in_turn_are_read_as_they_are(system: str | None, contents: list[str]):
    before = [] if system is None else [Message(role="system", content=system)]
    chat = [*before, *(Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(contents))]
    end = len(chat) - (len(contents) % 2 == 0)
    found = read_conversation(chat)
    assert found == Conversation(chat[end - 1]["content"], write_turns(chat[: end - 1]))
    assert read_turns(found.history) == chat[: end - 1]
