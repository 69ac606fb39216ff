"""A table of models, each trained from an earlier one, stored in `model_table.json` by ThinkPO and DPO-ST.

All models answer the same test prompts. Intervals are bootstrap percentiles over prompts, of paired differences; with
one training per model, they say nothing about other seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpo.report.record_files import read_record, to_json
from tpo.report.summary import Interval
from tpo.report.table import ScoreScale, scale_of

MODEL_TABLE = "model_table.json"
"""The file's name in a run's folder."""
ABLATION = "ablation.json"
"""The name of a table that compares its models with those of a run without DPO."""
TOKENS = ScoreScale(1.0, 1, " tokens")
"""How lengths are written."""


@dataclass(frozen=True)
class MeasuredRow:
    """One model, measured on the test prompts."""

    model: str
    """Its name: `M_0`, `SFT`, `DPO_1`, …"""
    below: str | None
    """The model that it is compared with, usually the one it was trained from; None for the first."""
    score: Interval | None
    """Mean test score by the evaluation judge; None if it scored nothing."""
    gain: Interval | None
    """Test score minus that of `below`, paired by prompt."""
    tokens: Interval
    """Mean length of its outputs in tokens."""
    tokens_gain: Interval | None
    """Tokens minus those of `below`, paired by prompt."""
    by_category: Mapping[str, Interval]
    """Test score by category of prompt."""
    by_difficulty: Mapping[str, Interval]
    """Test score by difficulty of prompt."""
    error_rate: float
    """Share of test prompts whose first output broke the format or was cut off."""
    made_from: Mapping[str, int | float]
    """Counts of its training data (`pairs`, `demonstrations`, …)."""
    dropped: Mapping[str, int]
    """Counts of data that was dropped, by reason."""


@dataclass(frozen=True)
class ModelTable:
    """A run's results."""

    run: str
    """Name of the run."""
    recipe: str
    """The recipe's name."""
    seed: int
    """The run's seed."""
    confidence: float
    """The level of all intervals."""
    rows: Sequence[MeasuredRow]
    """In the order in which the models were made."""

    @property
    def scale(self) -> ScoreScale:
        """How scores are written."""
        shown = [row.score for row in self.rows if row.score]
        return scale_of([end for found in shown for end in (found.low, found.high)])


def compared_with_first(table: ModelTable) -> list[MeasuredRow]:
    """Models of another run, included only so that others can be compared with them."""
    return [row for row in table.rows[1:] if row.below is None]


def page_of(name: str) -> str:
    """The page's name for a table's file name."""
    return name.removesuffix(".json") + ".html"


def write_model_table(table: ModelTable) -> bytes:
    """The table as JSON."""
    return to_json(table)


def read_model_table(path: Path) -> ModelTable:
    """Reads a table; raises `StoreError` if the file isn't one."""
    return read_record(path, ModelTable, "table of models")


def sentences(table: ModelTable) -> list[str]:
    """The effect of each training, as sentences."""
    found = []
    for row in table.rows:
        if row.below is None or row.gain is None or row.tokens_gain is None:
            continue
        found.append(
            f"{row.model} against {row.below}: score {_change(row.gain, table.scale)}, "
            f"length {_change(row.tokens_gain, TOKENS)}."
        )
    return found


def _change(gain: Interval, scale: ScoreScale) -> str:
    low, high = (scale.number(end, signed=True) for end in (gain.low, gain.high))
    shown = f"{scale.number(gain.value, signed=True)}{scale.unit} [{low}, {high}]"
    return f"{shown}, not clearly different" if gain.low <= 0 <= gain.high else shown
