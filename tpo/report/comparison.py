"""A comparison of two runs, one that thinks and one that answers directly, stored in `comparison.json`.

How the lead is measured depends on the evaluation judge. If it reads one response at a time, its scores are subtracted
prompt by prompt, and 0 is a tie. If it compares responses, its scores are win rates against a model of the same run and
can't be subtracted, so it compares the two runs' responses with each other, and one half is a tie. Intervals are
over prompts; with one training run each, they say nothing about other seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tpo.report.page import count
from tpo.report.record_files import read_record, to_json
from tpo.report.summary import FineGrained, Interval, ModelRow, Summary
from tpo.report.table import DIRECT, PERCENT, ScoreScale, scale_of, score_scale

COMPARISON = "comparison.json"
"""The file's name in the folder of the run that thinks."""
Measure = Literal["difference", "win_rate"]
SHORT: Mapping[Measure, str] = {"difference": "thinking − direct", "win_rate": "thinking wins, %"}
"""The name of a lead in tables."""


@dataclass(frozen=True)
class Lead:
    """The lead of thinking over direct after t iterations of each."""

    iteration: int
    """t."""
    overall: Interval | None
    """Over all test prompts on which both were scored; None if there are none."""
    by_category: Mapping[str, Interval]
    """By category of prompt."""
    by_difficulty: Mapping[str, Interval]
    """By difficulty of prompt."""
    win_rate: Interval | None
    """Share of these prompts on which the thinking model scores higher; ties count half."""


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side."""

    thinking: Summary
    """The run with the thought prompt."""
    direct: Summary
    """The run without it."""
    measure: Measure
    """The kind of lead: a paired difference of scores, or a share of prompts won."""
    leads: Sequence[Lead]
    """For t = 0 … T."""
    spent: Mapping[str, Mapping[str, int | float]]
    """What each run (`thinking` and `direct`) has spent by its ledger: `tokens`, `seconds`, `cost`."""
    fine_grained: FineGrained | None = None
    """Win rates of the thinking models over the direct ones by kind of instruction; None if they weren't measured."""

    @property
    def even(self) -> float:
        """The lead at which neither is ahead."""
        return 0.0 if self.measure == "difference" else 0.5

    @property
    def scale(self) -> ScoreScale:
        """How leads are written."""
        if self.measure == "win_rate":
            return PERCENT
        scales = [score_scale(self.thinking), score_scale(self.direct)]
        return next((scale for scale in scales if scale.factor == 1), scales[0])

    @property
    def scores(self) -> ScoreScale:
        """How the scores of both runs are written."""
        return self.scale if self.measure == "difference" else scale_of([0.0, 1.0])

    def models(self, iteration: int) -> tuple[ModelRow, ModelRow]:
        """M_t of the thinking and of the direct run."""
        return _model(self.thinking, iteration), _model(self.direct, iteration)


def write_comparison(comparison: Comparison) -> bytes:
    """The comparison as JSON."""
    return to_json(comparison)


def read_comparison(path: Path) -> Comparison:
    """Reads a comparison; raises `StoreError` if the file isn't one."""
    return read_record(path, Comparison, "comparison")


def verdict(comparison: Comparison) -> list[str]:
    """The findings of the comparison as sentences, the most important first."""
    first, last = comparison.leads[0], comparison.leads[-1]
    if last.overall is None:
        return ["There is no result: the evaluation judge scored no test prompt for both runs."]
    after = f"after {count(last.iteration, 'iteration')} each," if last.iteration else "before any training,"
    found = [f"{after[0].upper()}{after[1:]} thinking is {_ahead(comparison, last.overall)}."]
    if last.iteration and first.overall is not None:
        found.append(f"Before training, it is {_ahead(comparison, first.overall)}.")
        found.append(_crossing(comparison))
    for name, groups in (("categories", last.by_category), ("difficulties", last.by_difficulty)):
        if len(groups) > 1:
            found.append(_by_kind(comparison, name, groups))
    return found


def _ahead(comparison: Comparison, lead: Interval) -> str:
    scale, even = comparison.scale, comparison.even
    percent = f"{100 * comparison.thinking.confidence:g} %"
    if comparison.measure == "win_rate":
        ends = f"{scale.number(lead.low)} to {scale.number(lead.high)} %"
        shown = f"it wins {scale.number(lead.value)} % of test prompts, {percent} interval {ends}"
    else:
        ends = f"{scale.number(lead.low, signed=True)} to {scale.number(lead.high, signed=True)}"
        shown = f"{scale.number(lead.value, signed=True)}{scale.unit}, {percent} interval {ends}"
    if lead.low <= even <= lead.high:
        return f"not clearly different from direct ({shown})"
    return f"{'ahead of' if lead.value > even else 'behind'} direct ({shown})"


def _crossing(comparison: Comparison) -> str:
    """The models between which the thinking run permanently overtakes the direct one."""
    ahead = [lead.overall is not None and lead.overall.value > comparison.even for lead in comparison.leads]
    clear = [lead.overall is not None and lead.overall.low > comparison.even for lead in comparison.leads]
    if not ahead[-1]:
        return "Thinking does not overtake direct." if not ahead[0] else "Direct overtakes thinking."
    start = len(ahead) - next((i for i, each in enumerate(reversed(ahead)) if not each), len(ahead))
    if start == 0:
        return "Thinking is ahead from the start."
    for_good = len(clear) - next((i for i, each in enumerate(reversed(clear)) if not each), len(clear))
    sentence = f"The lines cross between M_{start - 1} and M_{start}"
    if for_good == len(clear):
        return f"{sentence}, but the lead is not clear at any model."
    return (
        f"{sentence}; from M_{for_good} on the lead is clear."
        if for_good > start
        else f"{sentence}, where the lead is clear."
    )


def _by_kind(comparison: Comparison, what: str, groups: Mapping[str, Interval]) -> str:
    """Which kinds of instruction gain from thinking, and which don't."""
    even, scale = comparison.even, comparison.scale
    ordered = sorted(groups, key=lambda name: (-groups[name].value, name))
    signed = comparison.measure == "difference"

    def named(names: Sequence[str]) -> str:
        shown = ", ".join(f"{name} ({scale.number(groups[name].value, signed=signed)})" for name in names[:6])
        return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown

    ahead = [name for name in ordered if groups[name].low > even]
    behind = [name for name in reversed(ordered) if groups[name].high < even]
    parts = [f"ahead in {named(ahead)}"] if ahead else []
    parts += [f"behind in {named(behind)}"] if behind else []
    rest = len(groups) - len(ahead) - len(behind)
    parts += [f"not clearly different in {rest}"] if rest else []
    return f"Of {len(groups)} {what}, thinking is {'; '.join(parts)}."


def _model(summary: Summary, iteration: int) -> ModelRow:
    return next(row for row in summary.models if row.iteration == iteration and row.model != DIRECT)
