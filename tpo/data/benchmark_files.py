"""The files of benchmarks: prompts in their published order, baselines' answers, and AlpacaEval's difficulties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpo.config.benchmarks import AlpacaEval, ArenaHard, Benchmark, Gsm8k
from tpo.config.hub import local_path
from tpo.data.prompt_files import PromptRow, read_columns, read_prompt_rows
from tpo.errors import InputError, shortened
from tpo.method.length_controlled import GamedRows

CREATIVE = "creative_writing"
"""The category of Arena-Hard v2.0 that has its own baseline."""
SECTION = "evaluation.benchmarks"


@dataclass(frozen=True)
class BenchmarkRows:
    """A benchmark's prompts."""

    rows: Sequence[PromptRow]
    """The rows that are asked, in the file's order."""
    of: int
    """Rows in the file."""


@dataclass(frozen=True)
class Difficulties:
    """What the full form of AlpacaEval's regression needs."""

    by_row: Mapping[int, float]
    """Difficulty by row of the benchmark's file."""
    gamed: GamedRows
    """The gamed rows."""


def read_benchmark(benchmark: Benchmark) -> BenchmarkRows:
    """The prompts of a benchmark.

    Raises `InputError` if the file can't be read, lacks a column or has a row that can't be a prompt.
    """
    path = local_path(benchmark.path)
    rows = read_prompt_rows(benchmark.columns, path)
    asked = rows[: benchmark.limit]
    for number, row in enumerate(asked, 1):
        if not row.instruction.strip():
            why = f" ({row.unusable})" if row.unusable else ""
            raise InputError(f"{path}, row {number} has no prompt{why}: a benchmark is asked whole")
        if benchmark.columns.reference_column is not None and row.reference is None:
            raise InputError(f"{path}, row {number} has no reference in {benchmark.columns.reference_column!r}")
    return BenchmarkRows([_as_asked(benchmark, row, number) for number, row in enumerate(asked, 1)], len(rows))


def _as_asked(benchmark: Benchmark, row: PromptRow, number: int) -> PromptRow:
    if not isinstance(benchmark, Gsm8k):
        return row
    _, marker, answer = (row.reference or "").rpartition("####")
    if not marker or not answer.strip():
        raise InputError(
            f"{local_path(benchmark.path)}, row {number}: the answer is {shortened(repr(row.reference))}, expected a "
            "solution that ends in #### and a number, as in GSM8K"
        )
    asked = f"{row.instruction}\n\n{benchmark.instruction}" if benchmark.answer_only else row.instruction
    return PromptRow(asked, answer.strip(), row.category, row.difficulty, None)


def question_ids(benchmark: ArenaHard) -> list[str]:
    """The ids of Arena-Hard's questions, in the file's order."""
    return _column(local_path(benchmark.path), "uid")[: benchmark.limit]


def baseline_outputs(benchmark: Benchmark, prompts: Sequence[PromptRow]) -> list[str] | None:
    """The baseline's output for each prompt; None without a baseline from a file.

    Raises `InputError` if a prompt has none.
    """
    if isinstance(benchmark, AlpacaEval) and benchmark.baseline_path is not None:
        path = local_path(benchmark.baseline_path)
        columns = {"instruction": "instruction", "output": "output"}
        found = dict(read_columns(path, columns, lambda row: (row["instruction"], row["output"]), section=SECTION))
        return [_output(found, row.instruction, path) for row in prompts]
    if isinstance(benchmark, ArenaHard) and benchmark.baseline_path is not None:
        own = _arena_answers(local_path(benchmark.baseline_path))
        creative = benchmark.creative_baseline_path
        other = own if creative is None else _arena_answers(local_path(creative))
        return [
            _output(other if row.category == CREATIVE else own, uid, local_path(benchmark.baseline_path))
            for uid, row in zip(question_ids(benchmark), prompts, strict=True)
        ]
    return None


def baseline_files(benchmark: Benchmark) -> list[Path]:
    """The files that a benchmark's baseline is read from."""
    places = [getattr(benchmark, name, None) for name in ("baseline_path", "creative_baseline_path")]
    return [local_path(place) for place in places if place is not None]


def read_difficulties(path: Path) -> Difficulties:
    """AlpacaEval's `df_gamed.csv`. Raises `InputError` if it isn't one."""
    names = ("index", "preference", "std_delta_len", "instruction_difficulty")
    rows = read_columns(
        path, {name: name for name in names}, lambda row: [float(row[name]) for name in names], section=SECTION
    )
    index, preference, length, difficulty = np.array(rows).T
    if not np.isfinite(np.array(rows)).all() or preference.min() < 0 or preference.max() > 1:
        raise InputError(f"{path} has values that aren't finite, or preferences outside 0 to 1: expected df_gamed.csv")
    return Difficulties(
        {int(i): float(value) for i, value in zip(index, difficulty, strict=True)},
        GamedRows(preference, length, difficulty),
    )


def _arena_answers(path: Path) -> dict[str, str]:
    columns = {"uid": "uid", "messages": "messages"}
    return dict(read_columns(path, columns, lambda row: (str(row["uid"]), _answer(row["messages"])), section=SECTION))


def _answer(messages: Any) -> str:
    """The assistant's text in the messages of an answer file; raises ValueError if there is none."""
    try:
        content = messages[-1]["content"]
        text = content["answer"] if isinstance(content, dict) else content
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"messages are {messages!r:.80}, expected turns that end in the assistant's answer") from error
    if not isinstance(text, str):
        raise ValueError(f"the answer is {text!r:.80}, expected text")
    return text


def _output(found: Mapping[str, Any], key: str, path: Path) -> str:
    if not isinstance(output := found.get(key), str):
        raise InputError(
            f"{path} has no output for {shortened(repr(key))}: expected the baseline's outputs for the prompts of the "
            "same benchmark"
        )
    return output


def _column(path: Path, name: str) -> list[str]:
    return read_columns(path, {name: name}, lambda row: str(row[name]), section=SECTION)
