"""The tables of a run in the terminal: scores, gains, dropped prompts and seconds by stage, one row per model.

The tables fit 100 columns. Only rich is imported, so that a finished run shows its table at once.

Scores are multiplied by 100 if all test scores are shares (in [0, 1], like a verifier's): "94.2" and "31.5 points" are
easier to read than "0.942". Other judges' scores keep their unit, with decimals depending on their size.
`tpo.report.run_page` follows the same rule through `ScoreScale`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tpo.report.summary import Interval, ModelRow, Summary

DIRECT = "M_0 direct"
"""Name of the row for the seed without a thought prompt."""

NOTHING = "–"
"""Shown for a value that isn't known or doesn't apply."""

WIDTH = 120
"""Columns if standard output isn't a terminal, and so has no width."""


@dataclass(frozen=True)
class ScoreScale:
    """How scores of one judge are written."""

    factor: float
    """The factor for scores: 100 for shares, otherwise 1."""
    decimals: int
    """Digits after the decimal point."""
    unit: str
    """The unit of differences, with a leading space (` points`), or empty for a judge's own unit."""

    def number(self, value: float | None, *, signed: bool = False) -> str:
        """A score or, if signed, a difference of scores."""
        return NOTHING if value is None else fixed(self.factor * value, self.decimals, signed=signed)

    def interval(self, found: Interval | None, *, signed: bool = False) -> str:
        """A score with its interval, as in `94.2 [92.1, 96.0]`."""
        if found is None:
            return NOTHING
        value, low, high = (self.number(each, signed=signed) for each in (found.value, found.low, found.high))
        return f"{value} [{low}, {high}]"


PERCENT = ScoreScale(100.0, 1, " points")
"""How shares are written: win rates and parse-error rates."""


def scale_of(values: Iterable[float]) -> ScoreScale:
    """The scale for these scores: times 100 if all are in [0, 1]."""
    known = list(values)
    if all(0 <= value <= 1 for value in known):
        return PERCENT
    largest = max(abs(value) for value in known)
    return ScoreScale(1.0, 3 if largest < 10 else 2 if largest < 100 else 1, "")


def score_scale(summary: Summary) -> ScoreScale:
    """The scale of the evaluation judge's scores, the same for all models, categories and differences."""
    found = [row.score for row in summary.models if row.score]
    found += [each for row in summary.models for each in (*row.by_category.values(), *row.by_difficulty.values())]
    return scale_of(end for each in found for end in (each.value, each.low, each.high))


def validation_scale(summary: Summary) -> ScoreScale:
    """The scale of the training judge's scores."""
    return scale_of(row.validation_score for row in summary.models if row.validation_score is not None)


def render_table(summary: Summary) -> Table:
    """One row per model: its quality, its lengths, and what it was trained on."""
    level = f"[{100 * summary.confidence:g} %]"
    scores, validation = score_scale(summary), validation_scale(summary)
    table = plain_table(f"run {summary.run}, seed {summary.seed}")
    for header in ("model", f"test score\n{level}", f"win rate, %\nover M_0 {level}", "parse\nerrors"):
        table.add_column(Text(header), justify="left" if header == "model" else "right", no_wrap=header == "model")
    for header in ("chars\nth.+resp.", "pairs\nreg.+err.", "ρ", "best\nepoch", "valid.\nscore"):
        table.add_column(Text(header), justify="right")
    for row in summary.models:
        table.add_row(
            Text(row.model),
            Text(scores.interval(row.score)),
            Text(PERCENT.interval(row.win_rate)),
            f"{PERCENT.number(row.parse_error_rate)} %",
            f"{row.thought_chars:.0f} + {row.response_chars:.0f}",
            pairs_of(row),
            NOTHING if row.rho is None else fixed(row.rho, 2),
            NOTHING if row.chosen_epoch is None else str(row.chosen_epoch),
            validation.number(row.validation_score),
        )
    return table


def render_gains(summary: Summary) -> Table:
    """One row per model: its gain over the seed, and the prompts that yielded no pair, by reason."""
    scores = score_scale(summary)
    table = plain_table(None)
    for header in ("model", "gain over M_0", "over M_0 direct"):
        table.add_column(header, justify="left" if header == "model" else "right", no_wrap=header == "model")
    table.add_column("prompts without a pair")
    for row in summary.models:
        table.add_row(
            Text(row.model),
            Text(scores.interval(None if row.model == "M_0" else row.gain, signed=True)),
            Text(scores.interval(None if row.model == DIRECT else row.gain_over_direct, signed=True)),
            Text(counts(row.dropped)),
        )
    return table


def render_seconds(summary: Summary) -> Table:
    """One row per model: wall-clock seconds by stage, and their total."""
    stages = list(dict.fromkeys(stage for row in reversed(summary.models) for stage in row.seconds))
    table = plain_table(None)
    for header in ("model", *stages, "seconds"):
        table.add_column(Text(header), justify="left" if header == "model" else "right", no_wrap=header == "model")
    for row in filter(lambda row: row.seconds, summary.models):
        found = [short(row.seconds[stage]) if stage in row.seconds else NOTHING for stage in stages]
        table.add_row(Text(row.model), *found, short(sum(row.seconds.values())))
    return table


def render_judges(summary: Summary) -> Table:
    """One row per model: what each judge says of its validation answers, and what the gate decided."""
    rows = [row for row in summary.models if row.opinions or row.gate]
    judges = list(dict.fromkeys((each.name, each.judge) for row in rows for each in row.opinions))
    scales = {name: scale_of_opinions(summary, name) for name, _ in judges}
    table = plain_table("validation answers, by each judge" if judges else None)
    table.add_column("model", no_wrap=True)
    for name, judge in judges:
        table.add_column(Text(f"{name.replace('_', ' ')}\n{judge}"), justify="right")
        table.add_column(Text("change from\nM_t-1"), justify="right")
    gated = any(row.gate for row in rows)
    if gated:
        table.add_column("gate")
    for row in rows:
        said = {each.name: each for each in row.opinions}
        cells = [
            scales[name].interval(getattr(said[name], part) if name in said else None, signed=part == "change")
            for name, _ in judges
            for part in ("score", "change")
        ]
        table.add_row(Text(row.model), *map(Text, cells), *([gate_word(row)] if gated else []))
    return table


def scale_of_opinions(summary: Summary, name: str) -> ScoreScale:
    """The scale of one judge's scores of the validation answers."""
    found = [each.score for row in summary.models for each in row.opinions if each.name == name and each.score]
    return scale_of(end for each in found for end in (each.value, each.low, each.high))


def gate_word(row: ModelRow) -> str:
    """The gate's decision about a model in a word or two."""
    if row.gate is None:
        return NOTHING
    if row.gate.accepted:
        return "accepted"
    return "promoted" if row.gate.promoted else "not promoted"


def table_console() -> Console:
    """A console to print tables to: as wide as the terminal, or `WIDTH` if the output isn't one."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def print_table(summary: Summary) -> None:
    """Prints all tables."""
    console = table_console()
    judged = any(row.opinions or row.gate for row in summary.models)
    for render in (render_table, render_gains, *([render_judges] if judged else []), render_seconds):
        console.print(render(summary))
        console.print()
    if summary.fine_grained is not None:
        from tpo.report.fine_grained import print_kinds  # it builds on this module

        print_kinds(summary.fine_grained, console)


def fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with a true minus sign, never a negative zero, and with a plus sign if `signed`."""
    rounded = round(value, decimals) + 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{decimals}f}".replace("-", "−")


def short(seconds: float) -> str:
    """Seconds, with a decimal if there are few."""
    return f"{seconds:.1f}" if seconds < 9.95 else f"{seconds:.0f}"


def duration(seconds: float) -> str:
    """Hours and minutes, minutes, or seconds if there are few: `2 h 05`, `12 min`, `34 s`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d}" if minutes >= 60 else f"{minutes} min"


def counts(dropped: Mapping[str, int]) -> str:
    """Counts by reason, the most frequent first."""
    ordered = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in ordered) or NOTHING


def pairs_of(row: ModelRow) -> str:
    """Regular pairs and error pairs, as in `281 + 28`."""
    if row.regular_pairs is None and row.error_pairs is None:
        return NOTHING
    return f"{row.regular_pairs or 0} + {row.error_pairs or 0}"


def plain_table(title: str | None) -> Table:
    """An empty table in the common style: a rule below the header, and no frame."""
    return Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="bold",
    )
