"""The summary of a run: one row per model, stored in `summary.json` and shown in the table.

Intervals are bootstrap percentiles over prompts. Gains are paired: differences on the same prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tpo.records import AttackShare, GateDecision, JudgeHealth
from tpo.report.record_files import read_record, to_json

SUMMARY, REPORT = "summary.json", "report.html"
"""File names of the summary and its page in the run folder."""
Grouping = Literal["category", "complexity"]
"""What instructions are grouped by in a fine-grained evaluation."""
Standing = Literal["ahead", "behind", "not clear", "few prompts", ""]
"""How a model does on one kind of instruction; empty if that isn't known."""


@dataclass(frozen=True)
class Interval:
    """A mean over prompts with its interval."""

    value: float
    """The mean."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of prompts averaged over."""


@dataclass(frozen=True)
class Opinion:
    """What one judge says of the validation answers that a model was chosen by."""

    name: str
    """`validation` for the run's judge, `second_judge` for `evaluation.judge`, `verifier` for `evaluation.verifier`."""
    judge: str
    """The judge's kind, and its model or rule."""
    score: Interval | None
    """Mean score over the prompts that all judges scored; for a pairwise judge, the share won against M_{t-1}."""
    change: Interval | None
    """The same minus that of M_{t-1}, paired by prompt; None for M_0."""


@dataclass(frozen=True)
class ModelRow:
    """One model of a run, measured on the test prompts; one row of the table."""

    model: str
    """`M_0`, `M_1`, …, or `M_0 direct` for the seed without a thought prompt."""
    iteration: int
    """t of M_t."""
    score: Interval | None
    """Mean test score by the evaluation judge; None if it scored nothing."""
    win_rate: Interval | None
    """Share of test prompts on which it beats M_0 (ties half); None for M_0 itself and if nothing was scored."""
    gain: Interval | None
    """Test score minus that of M_0, paired by prompt."""
    gain_over_direct: Interval | None
    """Test score minus that of M_0 answering directly, paired by prompt."""
    by_category: Mapping[str, Interval]
    """Test score by category of prompt."""
    by_difficulty: Mapping[str, Interval]
    """Test score by difficulty of prompt."""
    validation_score: float | None
    """Mean validation score by the training judge, over answers that parse; used to choose the checkpoint. For a
    pairwise judge, the win rate against M_{t-1}'s answers, and one half for M_0."""
    parse_error_rate: float
    """Share of test prompts whose first output broke the format."""
    thought_chars: float
    """Mean length of the thoughts on the test prompts, in characters."""
    response_chars: float
    """Mean length of the responses on the test prompts, in characters."""
    rho: float | None
    """Strength of length control in this iteration; None for M_0."""
    regular_pairs: int | None
    """Pairs of two outputs that parse; None for M_0."""
    error_pairs: int | None
    """Pairs whose rejected output breaks the format; None for M_0."""
    dropped: Mapping[str, int]
    """Prompts that yielded no pair, by reason."""
    judge: JudgeHealth | None
    """Health of the training judge on the samples of M_t's pairs; None for M_0."""
    chosen_epoch: int | None
    """Epoch of the checkpoint that became M_t; 0 if M_{t-1} was kept; None for M_0."""
    seconds: Mapping[str, float]
    """Wall-clock seconds by stage, from each stage's latest execution."""
    opinions: Sequence[Opinion] = field(default_factory=list)
    """What each judge says of the same validation answers, the run's judge first; empty if there is no other."""
    gate: GateDecision | None = None
    """The gate's decision about it; None for M_0, and without a gate."""
    attacks: Sequence[AttackShare] = field(default_factory=list)
    """What attacks do to the training judge, if it was attacked before the training of M_t."""

    @property
    def promoted(self) -> bool:
        """Whether the loop may continue from it."""
        return self.gate is None or self.gate.promoted


@dataclass(frozen=True)
class KindRow:
    """One model's win rates."""

    model: str
    """The model."""
    overall: Interval | None
    """Over all prompts that were scored for both; None if there are none."""
    by_category: Mapping[str, Interval]
    """By category."""
    by_complexity: Mapping[str, Interval]
    """By complexity, as text."""
    no_category: Interval | None
    """Over the prompts whose category isn't known; None if there are none."""
    no_complexity: Interval | None
    """Over the prompts whose complexity isn't known; None if there are none."""

    def by(self, grouping: Grouping) -> Mapping[str, Interval]:
        """Its win rates by category or by complexity."""
        return self.by_category if grouping == "category" else self.by_complexity

    def unknown(self, grouping: Grouping) -> Interval | None:
        """Its win rate over the prompts whose category or complexity isn't known."""
        return self.no_category if grouping == "category" else self.no_complexity


@dataclass(frozen=True)
class FineGrained:
    """Win rates of models over another one."""

    against: str
    """What each is compared with: `M_0 direct`, or the model of another run."""
    judge: str
    """Who compared or scored: the judge's kind, and its model or rule."""
    rater: str | None
    """The model that rated the instructions; None if their files bring all that is known."""
    rated: Sequence[Grouping]
    """What the rater was asked for; the other comes from the file."""
    prompts: int
    """Number of prompts."""
    no_category: Mapping[str, int]
    """Prompts without a category, by reason."""
    no_complexity: Mapping[str, int]
    """Prompts without a complexity, by reason."""
    min_prompts: int
    """Number of prompts below which a kind is called neither ahead nor behind."""
    confidence: float
    """The level of all intervals."""
    rows: Sequence[KindRow]
    """The models, in the order of iterations."""

    @property
    def groupings(self) -> list[Grouping]:
        """Those that distinguish the prompts."""
        both: tuple[Grouping, ...] = ("category", "complexity")
        return [grouping for grouping in both if len(self.kinds(grouping)) > 1]

    def kinds(self, grouping: Grouping) -> list[str]:
        """The kinds that some model has: categories by the last model's win rate, the highest first; complexities in
        ascending order."""
        last = self.rows[-1].by(grouping) if self.rows else {}
        names = {name for row in self.rows for name in row.by(grouping)}
        if grouping == "complexity":
            return sorted(names, key=lambda name: (len(name), name))
        return sorted(names, key=lambda name: (-last[name].value if name in last else 1.0, name))

    def standing(self, found: Interval | None) -> Standing:
        """Whether a model is clearly ahead or behind in a kind."""
        if found is None:
            return ""
        if found.n < self.min_prompts:
            return "few prompts"
        return "ahead" if found.low > 0.5 else "behind" if found.high < 0.5 else "not clear"

    def unknown(self, grouping: Grouping) -> Mapping[str, int]:
        """Prompts whose category or complexity isn't known, by reason."""
        return self.no_category if grouping == "category" else self.no_complexity


@dataclass(frozen=True)
class Summary:
    """The summary of a run."""

    run: str
    """Name of the run."""
    seed: int
    """The run's seed."""
    confidence: float
    """The level of all intervals."""
    models: Sequence[ModelRow]
    """`M_0 direct`, `M_0`, `M_1`, …"""
    fine_grained: FineGrained | None = None
    """Win rates over M_0 answering directly by kind of instruction; None if they weren't measured."""


def write_summary(summary: Summary) -> bytes:
    """The summary as JSON."""
    return to_json(summary)


def read_summary(path: Path) -> Summary:
    """Reads a summary; raises `StoreError` if the file isn't one."""
    return read_record(path, Summary, "summary")
