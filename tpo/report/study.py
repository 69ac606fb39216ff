"""A study: one recipe trained on several seeds, or two profiles on the same seeds, stored in `study.json`.

Each number comes with three intervals, which answer different questions. That of each run is over its test prompts: how
exactly is this one model measured? That over training runs says how much another seed would differ. That over both also
covers what the runs' common prompts hide (`tpo.method.seeds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tpo.report.comparison import Measure
from tpo.report.page import count
from tpo.report.record_files import read_record, to_json
from tpo.report.summary import Interval
from tpo.report.table import DIRECT, NOTHING, PERCENT, ScoreScale, scale_of

STUDY, STUDY_PAGE, STUDY_TEXT = "study.json", "study.html", "study.md"
"""File names of the numbers, their page and their tables in Markdown, in the study's folder."""
TOLERANCE = 0.05
"""Two budgets count as equal if no amount differs by more than this share of the larger one."""
Amount = Literal["prompts", "samples", "judge calls", "tokens", "training steps"]
"""What makes models is paid in these; what only measures them, on test prompts and benchmarks, isn't counted."""
Budget = Mapping[Amount, float]
"""Amounts by name; empty if they aren't known."""
AMOUNTS: Sequence[Amount] = ("prompts", "samples", "judge calls", "tokens", "training steps")


@dataclass(frozen=True)
class Pooled:
    """A number of several training runs."""

    value: float
    """Mean of the runs' values; each run has the same weight."""
    over_runs: Interval
    """With the interval over training runs; `n` is their number."""
    over_both: Interval
    """With the interval over training runs and prompts."""
    by_seed: Mapping[str, Interval]
    """Each run's value with its interval over prompts, by seed."""


@dataclass(frozen=True)
class Level:
    """A number of several training runs that has no interval over prompts: a length, a rate."""

    over_runs: Interval
    """Mean of the runs' values with the interval over training runs."""
    by_seed: Mapping[str, float]
    """Each run's value, by seed."""


@dataclass(frozen=True)
class StudyModel:
    """One model of a recipe, trained once per seed."""

    model: str
    """`M_0 direct`, `M_0`, `M_1`, …, or a name in the recipe's table of models."""
    below: str | None
    """The model that `gain` is over: the one before it; None for the first."""
    score: Pooled
    """Test score."""
    gain: Pooled | None
    """Test score minus that of `below`, paired by seed and prompt."""
    gain_over_first: Pooled | None
    """Test score minus that of the first model (M_0, or the base), paired likewise."""
    gain_over_direct: Pooled | None
    """Test score minus that of M_0 answering directly; None if the recipe doesn't measure it."""
    levels: Mapping[str, Level]
    """Lengths and error rates."""
    benchmarks: Mapping[str, Level] = field(default_factory=dict)
    """Results in benchmarks, as `benchmark: number`."""


@dataclass(frozen=True)
class StudyLead:
    """The lead of the first side's model over the second's of the same name."""

    model: str
    """The model."""
    lead: Pooled
    """The lead, paired by seed and prompt."""


@dataclass(frozen=True)
class StudySide:
    """One profile, trained once per seed."""

    name: str
    """Its name in tables."""
    profile: str
    """The profile, or how the runs were derived from the other side's."""
    runs: Mapping[str, str]
    """Where each run is, by seed."""
    missing: Mapping[str, str]
    """Why a run isn't in the numbers, by seed."""
    planned: Budget
    """The budget of one run according to the plan."""
    spent: Budget
    """What a run took on average; without tokens, what its models are made from."""
    models: Sequence[StudyModel]
    """Its models."""


@dataclass(frozen=True)
class Study:
    """A study's results."""

    name: str
    """Name of the study and of its folder."""
    recipe: str
    """Name of the recipe's command."""
    goal: str
    """How far each run goes: `to M_3`."""
    seeds: Sequence[int]
    """The seeds that were asked for."""
    confidence: float
    """The level of all intervals."""
    common_prompts: float
    """Share of test prompts that two runs of a side have in common, on average."""
    sides: Sequence[StudySide]
    """One profile, or two to compare."""
    measure: Measure
    """The kind of lead: a paired difference of scores, or a share of prompts won."""
    leads: Sequence[StudyLead]
    """By model; empty with one side."""
    unequal: Sequence[str]
    """Amounts in which the budgets differ by more than the tolerance, as sentences."""
    remarks: Sequence[str]
    """What else a reader must know, as sentences."""

    @property
    def scale(self) -> ScoreScale:
        """How scores are written."""
        shown = [each for side in self.sides for model in side.models for each in model.score.by_seed.values()]
        return scale_of([end for found in shown for end in (found.low, found.high)])

    @property
    def lead_scale(self) -> ScoreScale:
        """How leads are written."""
        return self.scale if self.measure == "difference" else PERCENT

    @property
    def even(self) -> float:
        """The lead at which neither side is ahead."""
        return 0.0 if self.measure == "difference" else 0.5


def write_study(study: Study) -> bytes:
    """The study as JSON."""
    return to_json(study)


def read_study(path: Path) -> Study:
    """Reads a study; raises `StoreError` if the file isn't one."""
    return read_record(path, Study, "study")


def unequal_amounts(ours: Budget, theirs: Budget) -> list[str]:
    """The amounts in which two budgets differ by more than `TOLERANCE`, each with both numbers."""
    found = []
    for name in AMOUNTS:
        one, other = ours.get(name, 0.0), theirs.get(name, 0.0)
        if one != other and (share := abs(one - other) / max(one, other)) > TOLERANCE:
            found.append(f"{name} {one:,.0f} and {other:,.0f} ({100 * share:.0f} % apart)")
    return found


def sentences(study: Study) -> list[str]:
    """The findings, the most important first."""
    found = [_lead_sentence(study, study.leads[-1])] if study.leads else []
    for side in study.sides:
        last = side.models[-1]
        of = f"{side.name}: " if len(study.sides) > 1 else ""
        runs = count(last.score.over_runs.n, "training run")
        found.append(f"{of}{last.model} scores {_ends(last.score, study.scale)}, the mean of {runs}.")
        first = _first(side)
        if last.gain_over_first is not None:
            found.append(f"{of}{last.model} − {first}: {_change(last.gain_over_first, study.scale)}.")
        if last.gain is not None and last.below != first:
            found.append(f"{of}{last.model} − {last.below}: {_change(last.gain, study.scale)}.")
    if study.unequal:
        found.append(f"The budgets are not equal: {'; '.join(study.unequal)}.")
    return found


def _lead_sentence(study: Study, lead: StudyLead) -> str:
    one, other = (side.name for side in study.sides)
    found = lead.lead.over_both
    if found.low <= study.even <= found.high:
        finding = f"is not clearly different from {other}'s"
    else:
        finding = f"is {'ahead of' if found.value > study.even else 'behind'} {other}'s"
    return (
        f"{lead.model} of {one} {finding}: {_ends(lead.lead, study.lead_scale, signed=study.measure == 'difference')}."
    )


def _change(found: Pooled, scale: ScoreScale) -> str:
    unclear = ", not clearly different" if found.over_both.low <= 0 <= found.over_both.high else ""
    return _ends(found, scale, signed=True) + unclear


def _ends(found: Pooled, scale: ScoreScale, *, signed: bool = False) -> str:
    return written(found.over_both, scale, signed=signed)


def written(found: Interval | None, scale: ScoreScale, *, signed: bool) -> str:
    """A value with its interval, as in `+28.6 [26.1, 31.0]`: only a difference itself has a plus sign."""
    return NOTHING if found is None else f"{scale.number(found.value, signed=signed)} {ends(found, scale)}"


def ends(found: Interval, scale: ScoreScale) -> str:
    """An interval, as in `[26.1, 31.0]`."""
    return f"[{scale.number(found.low)}, {scale.number(found.high)}]"


def render_markdown(study: Study) -> str:
    """The tables in Markdown: what the page shows, for documents."""
    level = f"{100 * study.confidence:g} %"
    parts = [
        f"# {study.name}",
        f"{study.recipe} {study.goal}, seeds {', '.join(map(str, study.seeds))}. All intervals are {level}: those of a "
        "seed are over its test prompts; those of the mean are Student's t over training runs and, in the last column, "
        "over runs and prompts.",
        "\n".join(f"- {sentence}" for sentence in [*sentences(study), *study.remarks]),
    ]
    for side in study.sides:
        if len(study.sides) > 1:
            parts.append(f"## {side.name}")
        parts += [_table(rows_of(side), side_seeds(side), study.scale), _levels_table(side)]
    if study.leads:
        rows, signed = [(each.model, each.lead) for each in study.leads], study.measure == "difference"
        parts += [f"## {lead_title(study)}", _table(rows, lead_seeds(study), study.lead_scale, signed=signed)]
    parts.append(_budget_table(study))
    return "\n\n".join(parts) + "\n"


def rows_of(side: StudySide) -> list[tuple[str, Pooled]]:
    """The scores and differences of a side, with their labels."""
    rows = [(model.model, model.score) for model in side.models]
    for model in side.models:
        for over, found in gains_of(side, model):
            rows.append((f"{model.model} − {over}", found))
    return rows


def gains_of(side: StudySide, model: StudyModel) -> list[tuple[str, Pooled]]:
    """The differences of one model, each with the name of the model that it is over, none twice."""
    first = _first(side)
    given = [(model.below, model.gain), (first, model.gain_over_first), (DIRECT, model.gain_over_direct)]
    return list({over: (over, found) for over, found in given if over is not None and found is not None}.values())


def _first(side: StudySide) -> str:
    """The model that training starts from: M_0, or the base."""
    return next(each.model for each in side.models if each.model != DIRECT)


def side_seeds(side: StudySide) -> list[str]:
    """The seeds of a side's numbers."""
    return [seed for seed in side.runs if seed not in side.missing]


def lead_seeds(study: Study) -> list[str]:
    """The seeds of the leads."""
    return list(study.leads[0].lead.by_seed)


def lead_title(study: Study) -> str:
    """What the leads are."""
    one, other = (side.name for side in study.sides)
    return f"{one} − {other}" if study.measure == "difference" else f"{one} wins against {other}, %"


def is_difference(label: str) -> bool:
    """Whether a row's label is that of a difference."""
    return " − " in label


def _table(
    rows: Sequence[tuple[str, Pooled]], seeds: Sequence[str], scale: ScoreScale, *, signed: bool | None = None
) -> str:
    heads = ["", *(f"seed {seed}" for seed in seeds), "mean over runs", "over runs and prompts"]
    lines = [_row(heads), "|" + "---|" * len(heads)]
    for label, found in rows:
        sign = is_difference(label) if signed is None else signed
        each = [written(found.by_seed.get(seed), scale, signed=sign) for seed in seeds]
        lines.append(_row([label, *each, written(found.over_runs, scale, signed=sign), ends(found.over_both, scale)]))
    return "\n".join(lines)


def level_scale(name: str) -> ScoreScale:
    """How a level is written: rates in percent, lengths as they are."""
    return PERCENT if name.endswith("%") else ScoreScale(1.0, 1, "")


def _levels_table(side: StudySide) -> str:
    names = list(dict.fromkeys(name for model in side.models for name in (*model.levels, *model.benchmarks)))
    lines = [_row(["mean over runs", *names]), "|" + "---|" * (len(names) + 1)]
    for model in side.models:
        found = {**model.levels, **model.benchmarks}
        cells = [level_scale(name).interval(found[name].over_runs) if name in found else NOTHING for name in names]
        lines.append(_row([model.model, *cells]))
    return "\n".join(lines)


def _budget_table(study: Study) -> str:
    heads = ["a run's budget", *(f"{side.name}, {what}" for side in study.sides for what in ("planned", "spent"))]
    lines = [_row(heads), "|" + "---|" * len(heads)]
    for name in AMOUNTS:
        cells = [f"{each.get(name, 0.0):,.0f}" for side in study.sides for each in (side.planned, side.spent)]
        lines.append(_row([name, *cells]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
