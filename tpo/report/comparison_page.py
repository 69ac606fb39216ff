"""The page of a comparison: thinking against direct, as in the paper's Figure 3.

One HTML file under the same rules as a run's report (`tpo.report.run_page`): it loads nothing, runs nothing and escapes
all text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from tpo.report.comparison import SHORT, Comparison, verdict
from tpo.report.fine_grained import KindSection, print_kinds
from tpo.report.page import render
from tpo.report.plots import (
    BLUE,
    MUTED,
    ORANGE,
    Line,
    Panel,
    data_url,
    draw,
    iterations,
    level,
    limits_of,
    panel,
    points,
)
from tpo.report.summary import Interval, ModelRow
from tpo.report.table import NOTHING, PERCENT, plain_table, table_console

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_KINDS = 30
"""Number of categories shown, those with the largest leads first; the page says how many are left out."""

Grouping = Literal["by_category", "by_difficulty"]


@dataclass(frozen=True)
class Kind:
    """One kind of instruction: the scores of both runs before and after training, and the lead after it."""

    name: str
    """The category or difficulty."""
    thinking: tuple[Interval | None, Interval | None]
    """Scores of the thinking run's M_0 and M_T."""
    direct: tuple[Interval | None, Interval | None]
    """Scores of the direct run's M_0 and M_T."""
    lead: Interval
    """The lead at M_T."""
    clear: int
    """1 if thinking is clearly ahead, −1 if it is clearly behind, otherwise 0."""


def render_comparison(comparison: Comparison) -> str:
    """The page, as one HTML document."""
    categories, difficulties = (_kinds(comparison, field) for field in ("by_category", "by_difficulty"))
    return render(
        "comparison.html.jinja",
        comparison=comparison,
        verdict=verdict(comparison),
        short=SHORT[comparison.measure],
        rows=[(lead, *comparison.models(lead.iteration)) for lead in comparison.leads],
        scores=comparison.scores,
        scale=comparison.scale,
        signed=comparison.measure == "difference",
        curves=_curves(comparison),
        leads=_leads(comparison),
        lengths=_lengths(comparison),
        wins=KindSection.of(comparison.fine_grained),
        wins_over_seed=KindSection.of(comparison.thinking.fine_grained),
        kinds={"Category": categories[:MAX_KINDS], "Difficulty": difficulties},
        left_out=max(0, len(categories) - MAX_KINDS),
        panels={
            "By category": _panels(comparison, "by_category", [kind.name for kind in categories[:MAX_KINDS]]),
            "By difficulty": _panels(comparison, "by_difficulty", [kind.name for kind in difficulties]),
        },
    )


def curve_picture(comparison: Comparison) -> str | None:
    """The curves as an image in a data URL, for other pages; None if there are none."""
    svg = _curves(comparison) or _leads(comparison)
    return data_url(svg) if svg else None


def print_comparison(comparison: Comparison) -> None:
    """Prints both runs as a table, with the findings below it."""
    console = table_console()
    console.print(render_comparison_table(comparison))
    console.print()
    for sentence in verdict(comparison):
        console.print(Text(sentence))
    console.print()
    if comparison.fine_grained is not None:
        print_kinds(comparison.fine_grained, console)


def render_comparison_table(comparison: Comparison) -> Table:
    """One row per iteration: both scores, the lead, and lengths."""
    confidence = f"[{100 * comparison.thinking.confidence:g} %]"
    scores, signed = comparison.scores, comparison.measure == "difference"
    table = plain_table(
        f"run {comparison.thinking.run} against {comparison.direct.run}, seed {comparison.thinking.seed}"
    )
    headers = ["model"]
    if signed:
        headers += [f"thinking\n{confidence}", f"direct\n{confidence}"]
    headers += [f"{SHORT[comparison.measure]}\n{confidence}"]
    headers += ["thinking wins, %\nties half"] if signed else []
    for header in (*headers, "chars, thinking\nth.+resp.", "chars,\ndirect"):
        table.add_column(Text(header), justify="left" if header == "model" else "right", no_wrap=header == "model")
    for lead in comparison.leads:
        ours, theirs = comparison.models(lead.iteration)
        cells = [f"M_{lead.iteration}"]
        if signed:
            cells += [scores.interval(ours.score), scores.interval(theirs.score)]
        cells += [comparison.scale.interval(lead.overall, signed=signed)]
        cells += [PERCENT.number(lead.win_rate.value) if lead.win_rate else NOTHING] if signed else []
        cells += [f"{ours.thought_chars:.0f} + {ours.response_chars:.0f}", f"{theirs.response_chars:.0f}"]
        table.add_row(*map(Text, cells))
    return table


def _curves(comparison: Comparison) -> Markup | None:
    """Score by iteration of both runs; None if their scores can't be compared."""
    if comparison.measure != "difference":
        return None
    pairs = [comparison.models(lead.iteration) for lead in comparison.leads]
    known = [(t, thinking.score, direct.score) for t, (thinking, direct) in enumerate(pairs)
             if thinking.score and direct.score]  # fmt: skip
    if not known:
        return None
    steps = [t for t, _, _ in known]

    def paint(axes: "Axes") -> None:
        points(axes, steps, [found for _, found, _ in known], comparison.scores, BLUE)
        points(axes, steps, [found for _, _, found in known], comparison.scores, ORANGE)
        iterations(axes, [lead.iteration for lead in comparison.leads])

    return draw("test score by iteration, thinking and direct", paint)


def _leads(comparison: Comparison) -> Markup | None:
    """The lead by iteration, with a line at even."""
    known = [(lead.iteration, lead.overall) for lead in comparison.leads if lead.overall]
    if not known:
        return None

    def paint(axes: "Axes") -> None:
        level(axes, comparison.scale.factor * comparison.even, "even", MUTED, right=True)
        points(axes, [t for t, _ in known], [found for _, found in known], comparison.scale, BLUE)
        iterations(axes, [lead.iteration for lead in comparison.leads])

    return draw("lead of thinking over direct by iteration", paint)


def _lengths(comparison: Comparison) -> Markup:
    pairs = [comparison.models(lead.iteration) for lead in comparison.leads]
    steps = [lead.iteration for lead in comparison.leads]

    def paint(axes: "Axes") -> None:
        whole = [row.thought_chars + row.response_chars for row, _ in pairs]
        for values, colour, name, style in (
            (whole, BLUE, "thinking, thought and response", "-"),
            ([row.response_chars for row, _ in pairs], BLUE, "thinking, response alone", (0, (4, 2))),
            ([row.response_chars for _, row in pairs], ORANGE, "direct, response", "-"),
        ):
            axes.plot(steps, values, color=colour, marker="o", ms=4.5, lw=1.6, ls=style, label=name)
        axes.set_ylim(bottom=0, top=max(*whole, *(row.response_chars for _, row in pairs), 1) * 1.45)
        axes.legend(frameon=False, loc="upper right", labelcolor="linecolor")
        iterations(axes, steps)

    return draw("characters written by iteration", paint)


def _kinds(comparison: Comparison, field: Grouping) -> list[Kind]:
    """The kinds of instruction: categories by lead, the largest first; difficulties in ascending order."""
    last = comparison.leads[-1]
    ends = [comparison.models(comparison.leads[0].iteration), comparison.models(last.iteration)]

    def scores(run: int, name: str) -> tuple[Interval | None, Interval | None]:
        before, after = (_group(models[run], field).get(name) for models in ends)
        return before, after

    found = [
        Kind(name, scores(0, name), scores(1, name), lead, (lead.low > comparison.even) - (lead.high < comparison.even))
        for name, lead in getattr(last, field).items()
    ]
    if field == "by_difficulty":
        return sorted(found, key=lambda kind: (len(kind.name), kind.name))
    return sorted(found, key=lambda kind: (-kind.lead.value, kind.name))


def _panels(comparison: Comparison, field: Grouping, names: Sequence[str]) -> list[Panel]:
    """One small plot for each kind: both scores or, if they can't be compared, the lead."""
    pairs = [comparison.models(lead.iteration) for lead in comparison.leads]
    steps = [lead.iteration for lead in comparison.leads]
    found = list[tuple[str, list[Line]]]()
    for name in names:
        if comparison.measure == "difference":
            lines = [
                Line(colour, [(t, _group(pair[run], field).get(name)) for t, pair in zip(steps, pairs, strict=True)])
                for run, colour in ((1, ORANGE), (0, BLUE))
            ]
        else:
            lines = [Line(BLUE, [(lead.iteration, getattr(lead, field).get(name)) for lead in comparison.leads])]
        found.append((name, lines))
    shown = [each for _, lines in found for line in lines for _, each in line.known]
    if not shown:
        return []
    scale = comparison.scores if comparison.measure == "difference" else comparison.scale
    limits = limits_of(shown, scale)
    return [
        panel(name, _note(comparison, getattr(comparison.leads[-1], field)[name]), lines, scale=scale, limits=limits)
        for name, lines in found
    ]


def _note(comparison: Comparison, lead: Interval) -> str:
    signed = comparison.measure == "difference"
    return f"{comparison.scale.number(lead.value, signed=signed)} · n {lead.n}"


def _group(row: ModelRow, field: Grouping) -> dict[str, Interval]:
    return dict(getattr(row, field))
