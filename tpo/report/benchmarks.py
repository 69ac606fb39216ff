"""The results of a run's benchmarks, as kept in `benchmarks.json`: a table per benchmark, a row per model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from rich.text import Text

from tpo.report.record_files import read_record, to_json
from tpo.report.summary import Interval
from tpo.report.table import ScoreScale, fixed, plain_table, table_console

BENCHMARKS, BENCHMARKS_PAGE = "benchmarks.json", "benchmarks.html"
"""File names of the numbers and, where a run has no other page, of their page."""
EXPORTS = "exports"
"""The folder of what other tools read, below the run folder."""

LABELS: Mapping[str, str] = {
    "average": "average of the four",
    "prompt_strict": "prompt, strict",
    "instruction_strict": "instruction, strict",
    "prompt_loose": "prompt, loose",
    "instruction_loose": "instruction, loose",
    "accuracy": "accuracy",
    "win_rate": "win rate",
    "lc_win_rate": "LC win rate",
    "lc_minimal_win_rate": "LC-minimal win rate",
    "score": "score",
    "style_controlled_score": "score, style-controlled",
    "instructions": "instructions followed",
    "mean_score": "mean score",
}
"""The numbers' names in tables."""

POINTS = ScoreScale(1.0, 1, " points")
"""How numbers are written that are in percent already."""
_SCORES = ScoreScale(1.0, 3, "")


@dataclass(frozen=True)
class BenchmarkRow:
    """One model's result in one benchmark."""

    model: str
    """`M_0 direct`, `M_0`, `M_1`, …, or the name of an evaluated model."""
    numbers: Mapping[str, Interval]
    """The benchmark's numbers by name (`LABELS`), each with its interval: in percent, but for a `mean_score`."""
    by_category: Mapping[str, Interval]
    """The first of them by category of prompt."""
    unscored: int
    """Prompts whose response has no score, which are in no number."""
    parse_error_rate: float
    """Share of prompts whose first output broke the format."""
    thought_chars: float
    """Mean length of the thoughts in characters."""
    response_chars: float
    """Mean length of the responses in characters."""
    exports: Sequence[str] = ()
    """Files for other tools, below the run folder."""
    remarks: Sequence[str] = ()
    """What is missing or different, as sentences."""
    by_complexity: Mapping[str, Interval] = field(default_factory=dict)
    """The first of the numbers by complexity of prompt, if the prompts are rated."""


@dataclass(frozen=True)
class BenchmarkTable:
    """One benchmark."""

    name: str
    """Its name in the run."""
    kind: str
    """Its kind."""
    prompts: int
    """Prompts that were asked."""
    of: int
    """Prompts that its file has."""
    judge: str
    """Who scored: `verifier (…)`, or the judge's kind and model."""
    baseline: str | None
    """What responses were compared with; None if they weren't."""
    decoding: str
    """How outputs were sampled."""
    rows: Sequence[BenchmarkRow]
    """The models."""
    rater: str | None = None
    """The model that rated the prompts' categories and complexities, as far as the file has none; None without one."""

    @property
    def numbers(self) -> list[str]:
        """The names of the numbers that some row has."""
        return list(dict.fromkeys(name for row in self.rows for name in row.numbers))

    @property
    def scale(self) -> ScoreScale:
        """How its numbers are written: a judge's own scores need more digits than percentages."""
        return _SCORES if "mean_score" in self.numbers else POINTS

    @property
    def categories(self) -> list[str]:
        """The categories that some row has, sorted."""
        return sorted({name for row in self.rows for name in row.by_category})

    @property
    def complexities(self) -> list[str]:
        """The complexities that some row has, in ascending order."""
        return sorted({name for row in self.rows for name in row.by_complexity}, key=lambda name: (len(name), name))

    @property
    def about(self) -> str:
        """What the numbers are of, in a sentence."""
        part = "" if self.prompts == self.of else f", a part: the first of {self.of:,}"
        against = "" if self.baseline is None else f", against {self.baseline}"
        rated = "" if self.rater is None else f"; kinds rated by {self.rater}"
        return f"{self.prompts:,} prompts{part}; {self.decoding}; scored by {self.judge}{against}{rated}."


@dataclass(frozen=True)
class Benchmarks:
    """All benchmarks of a run."""

    run: str
    """Name of the run."""
    seed: int
    """The run's seed."""
    confidence: float
    """The level of all intervals but Arena-Hard's, which are those of its rule (95 % old, 90 % current)."""
    tables: Sequence[BenchmarkTable] = field(default_factory=list)
    """One per benchmark, in the order of the profile."""


def write_benchmarks(found: Benchmarks) -> bytes:
    """The results as JSON."""
    return to_json(found)


def read_benchmarks(path: Path) -> Benchmarks:
    """Reads results; raises `StoreError` if the file doesn't hold any."""
    return read_record(path, Benchmarks, "table of benchmarks")


def print_benchmarks(found: Benchmarks) -> None:
    """Prints a table per benchmark."""
    console = table_console()
    for table in found.tables:
        console.print(_as_table(found, table))
        console.print(Text(table.about))
        for remark in dict.fromkeys(remark for row in table.rows for remark in row.remarks):
            console.print(Text(f"- {remark}"))
        console.print()


def _as_table(found: Benchmarks, table: BenchmarkTable) -> Table:
    made = plain_table(f"{table.name}, run {found.run}, seed {found.seed}")
    for header in ("model", *(LABELS[name] for name in table.numbers), "unscored", "parse\nerrors"):
        made.add_column(Text(header), justify="left" if header == "model" else "right", no_wrap=header == "model")
    for row in table.rows:
        numbers = (table.scale.interval(row.numbers.get(name)) for name in table.numbers)
        made.add_row(Text(row.model), *numbers, str(row.unscored), f"{fixed(100 * row.parse_error_rate, 1)} %")
    return made
