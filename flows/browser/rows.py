"""Rows of stages as the browser needs them: only the columns that are shown, and never the tokens themselves.

A round of 40,000 samples has some 20 million tokens; as Python numbers they would take seconds and a gigabyte.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.browser.rounds import Shard, StoredStage
from tpo.errors import DamagedError
from tpo.records import Judgment, Pair, Prompt, Sample, Score
from tpo.storage.disk import bring_here, explained


@dataclass(frozen=True)
class SampleRow:
    """A sample with the number of its tokens instead of its tokens."""

    sample: Sample
    """The sample, with empty lists of tokens."""
    tokens: int
    """Tokens of the output."""


def sample_rows(shard: Shard) -> list[SampleRow]:
    """A shard's samples."""
    columns = [field.name for field in dataclasses.fields(Sample) if field.name != "prompt_token_ids"]
    table = _read(shard, *columns)
    tokens = pc.list_value_length(table.column("output_token_ids")).to_pylist()
    names = [name for name in columns if name != "output_token_ids"]
    texts = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    without: dict[str, Any] = {"output_token_ids": [], "prompt_token_ids": []}
    return [
        SampleRow(Sample(**dict(zip(names, row, strict=True)), **without), n)
        for row, n in zip(texts, tokens, strict=True)
    ]


def output_keys(shard: Shard) -> dict[bytes, int]:
    """The index of each output by its prompt and tokens; of equal ones, the first."""
    table = _read(shard, "prompt_id", "index", "output_token_ids")
    found: dict[bytes, int] = {}
    keys = _keys(table, "output_token_ids")
    for key, index in zip(keys, table.column("index").to_pylist(), strict=True):
        found.setdefault(key, index)
    return found


@dataclass(frozen=True)
class PairRow:
    """A pair without its tokens."""

    pair: Pair
    """The pair, with empty lists of tokens."""
    keys: tuple[bytes, bytes] | None = None
    """The prompt and tokens of the chosen and of the rejected output, as in `output_keys`, if asked for."""


def pair_rows(stage: StoredStage, *, with_keys: bool = False) -> Iterator[PairRow]:
    """The pairs of a stage."""
    without: dict[str, Any] = {"prompt_token_ids": [], "chosen_token_ids": [], "rejected_token_ids": []}
    known = [field.name for field in dataclasses.fields(Pair) if field.name not in without]
    for shard in stage.shards:
        table = _read(shard) if with_keys else _read(shard, *known)
        rows = table.select([name for name in table.column_names if name in known]).to_pylist()
        if not with_keys:
            yield from (PairRow(Pair(**row, **without)) for row in rows)
            continue
        keys = zip(_keys(table, "chosen_token_ids"), _keys(table, "rejected_token_ids"), strict=True)
        for row, both in zip(rows, keys, strict=True):
            yield PairRow(Pair(**row, **without), both)


def prompt_rows(stage: StoredStage) -> dict[str, Prompt]:
    """The prompts of a stage, by id."""
    return {row["prompt_id"]: Prompt(**row) for shard in stage.shards for row in _read(shard).to_pylist()}


def score_rows(stage: StoredStage) -> dict[tuple[str, int], Score]:
    """The scores of a stage, by prompt and sample."""
    rows = (Score(**row) for shard in stage.shards for row in _read(shard).to_pylist())
    return {(row.prompt_id, row.index): row for row in rows}


def judgment_rows(shard: Shard) -> list[Judgment]:
    """A shard's judgments."""
    return [Judgment(**row) for row in _read(shard).to_pylist()]


def verdicts(shard: Shard) -> list[tuple[str, int, int | None, float | None]]:
    """A shard's judgments without what they are based on: prompt, first and second sample, outcome."""
    table = _read(shard, "prompt_id", "index", "other_index", "outcome")
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _keys(table: pa.Table, column: str) -> list[bytes]:
    ids = table.column("prompt_id").to_pylist()
    lists = table.column(column).combine_chunks()
    values, offsets = lists.values.to_numpy(zero_copy_only=False), lists.offsets.to_pylist()
    return [
        prompt.encode() + values[start:end].astype("int32").tobytes()
        for prompt, start, end in zip(ids, offsets, offsets[1:], strict=False)
    ]


def _read(shard: Shard, *columns: str) -> pa.Table:
    """A shard's table. Raises `DamagedError` if it isn't readable, `StoreError` if it isn't there."""
    bring_here(shard.path)
    with explained(shard.path):
        data = shard.path.read_bytes()
    try:
        return pq.read_table(pa.BufferReader(data), columns=list(columns) or None, use_threads=False)
    except pa.ArrowException as error:
        raise DamagedError(shard.path.parent, f"{shard.path} is damaged: {error}") from error
