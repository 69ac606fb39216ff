"""Claims about pair files: every published form is read, and anything else is rejected by its row."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conversations import ADVISED, EARLIER
from tpo.config.recipes import PairFile
from tpo.data.pair_files import PairRow, read_pair_rows
from tpo.errors import InputError
from tpo.records import write_turns

ASKED, LONG, SHORT = "What is 1 + 1?", "One and one more, so 2.", "2"
FORMS: dict[str, tuple[Any, Any, Any]] = {
    "text": (ASKED, LONG, SHORT),
    "a turn": (ASKED, {"role": "assistant", "content": LONG}, {"role": "assistant", "content": SHORT}),
    "from and value": (
        [{"from": "human", "value": ASKED}],
        {"from": "gpt", "value": LONG},
        {"from": "gpt", "value": SHORT},
    ),
    "a chat": (
        [{"role": "system", "content": "Think."}, {"role": "user", "content": ASKED}],
        [{"role": "user", "content": ASKED}, {"role": "assistant", "content": LONG}],
        [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SHORT}],
    ),
}


def write(path: Path, rows: list[dict[str, Any]]) -> PairFile:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PairFile(path=path)


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_row(tmp_path: Path, form: str, kind: str):
    asked, long, short = FORMS[form]
    source = write(tmp_path / f"pairs{kind}", [{"instruction": asked, "chosen": long, "rejected": short}])
    assert read_pair_rows(source) == [PairRow(ASKED, LONG, SHORT)]


def test_earlier_turns_stay_before_the_instruction_and_a_system_turn_is_left_out(tmp_path: Path):
    asked = [*ADVISED, {"role": "user", "content": ASKED}, {"role": "assistant", "content": "2"}]
    source = write(tmp_path / "pairs.jsonl", [{"instruction": asked, "chosen": LONG, "rejected": SHORT}])
    assert read_pair_rows(source) == [PairRow(ASKED, LONG, SHORT, write_turns(EARLIER))]


def test_columns_are_configurable(tmp_path: Path):
    source = write(tmp_path / "pairs.jsonl", [{"q": ASKED, "long": LONG, "short": SHORT}])
    named = source.model_copy(update={"instruction_column": "q", "chosen_column": "long", "rejected_column": "short"})
    assert read_pair_rows(named) == [PairRow(ASKED, LONG, SHORT)]


def test_a_missing_output_is_empty_and_keeps_its_row(tmp_path: Path):
    source = write(tmp_path / "pairs.jsonl", [{"instruction": ASKED, "chosen": None, "rejected": SHORT}])
    assert read_pair_rows(source) == [PairRow(ASKED, "", SHORT)]


@pytest.mark.parametrize(
    ("row", "pattern"),
    [
        ({"instruction": "", "chosen": LONG, "rejected": SHORT}, "row 1: the instruction is empty"),
        (
            {"instruction": ASKED, "chosen": 7, "rejected": SHORT},
            "row 1: the long output is 7, expected text, or turns",
        ),
        ({"instruction": ASKED, "chosen": LONG, "rejected": [["a"]]}, "row 1: the short output is"),
        (
            {"instruction": [{"role": "assistant", "content": "x"}], "chosen": LONG, "rejected": SHORT},
            "the instruction is empty",
        ),
        (
            {"instruction": [{"role": "user", "content": ASKED}] * 2, "chosen": LONG, "rejected": SHORT},
            r"row 1: the instruction is a conversation that can't be a prompt \(not_alternating\)",
        ),
        ({"instruction": ASKED, "chosen": LONG}, "has no column 'rejected'.* set recipe.source"),
        ({"instruction": ASKED, "chosen": "\ud800", "rejected": SHORT}, "an unpaired surrogate"),
    ],
)
def test_an_invalid_pair_is_rejected_by_its_row(tmp_path: Path, row: dict[str, Any], pattern: str):
    with pytest.raises(InputError, match=pattern):
        read_pair_rows(write(tmp_path / "pairs.jsonl", [row]))


def test_a_missing_file_is_rejected_with_its_section(tmp_path: Path):
    with pytest.raises(InputError, match=r"does not exist; recipe\.source\.path must name"):
        read_pair_rows(PairFile(path=tmp_path / "no.jsonl"))
