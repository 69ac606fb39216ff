"""The page of a study, and its tables in a terminal.

The page is one HTML file under the same rules as a run's report (`tpo.report.run_page`): it loads nothing, runs nothing
and escapes all text.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from tpo.report.page import render
from tpo.report.plots import BLUE, MUTED, ORANGE, draw, level, points, tick
from tpo.report.study import (
    AMOUNTS,
    TOLERANCE,
    Pooled,
    Study,
    StudySide,
    ends,
    is_difference,
    lead_seeds,
    lead_title,
    level_scale,
    rows_of,
    sentences,
    side_seeds,
    written,
)
from tpo.report.table import DIRECT, NOTHING, ScoreScale, plain_table, table_console

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_SEED_COLUMNS = 3
"""Seeds that have a column in the terminal; the page has all."""


def render_study(study: Study) -> str:
    """The page, as one HTML document."""
    found = sentences(study)
    return render(
        "study.html.jinja",
        study=study,
        found=found,
        scale=study.scale,
        lead_scale=study.lead_scale,
        signed=study.measure == "difference",
        lead_rows=[(each.model, each.lead) for each in study.leads],
        lead_title=lead_title(study) if study.leads else "",
        lead_seeds=lead_seeds(study) if study.leads else [],
        rows_of=rows_of,
        is_difference=is_difference,
        side_seeds=side_seeds,
        level_scale=level_scale,
        amounts=AMOUNTS,
        tolerance=TOLERANCE,
        scores=_scores(study),
        leads=_leads(study) if study.leads else _gains(study),
    )


def print_study(study: Study) -> None:
    """Prints the scores, the differences and the budgets, with the findings below."""
    console = table_console()
    for side in study.sides:
        console.print(_table(study, _title(study, side), rows_of(side), side_seeds(side), study.scale))
        console.print()
    if study.leads:
        rows, signed = [(each.model, each.lead) for each in study.leads], study.measure == "difference"
        console.print(_table(study, lead_title(study), rows, lead_seeds(study), study.lead_scale, signed=signed))
        console.print()
        console.print(_budgets(study))
        console.print()
    for sentence in [*sentences(study), *study.remarks]:
        console.print(Text(sentence))
    console.print()


def _title(study: Study, side: StudySide) -> str:
    return f"{side.name}: {study.recipe} {study.goal}".rstrip()


def _table(
    study: Study,
    title: str,
    rows: Sequence[tuple[str, Pooled]],
    seeds: Sequence[str],
    scale: ScoreScale,
    *,
    signed: bool | None = None,
) -> Table:
    confidence = f"[{100 * study.confidence:g} %]"
    shown = seeds if len(seeds) <= MAX_SEED_COLUMNS else []
    table = plain_table(title)
    for header in (
        "",
        *(f"seed {seed}\n[prompts]" for seed in shown),
        f"mean, {confidence}\n[runs]",
        "\n[runs, prompts]",
    ):
        table.add_column(Text(header), justify="right" if header else "left", no_wrap=not header)
    for label, found in rows:
        sign = is_difference(label) if signed is None else signed
        each = [written(found.by_seed.get(seed), scale, signed=sign) for seed in shown]
        mean = written(found.over_runs, scale, signed=sign)
        table.add_row(*map(Text, [label, *each, mean, ends(found.over_both, scale)]))
    return table


def _budgets(study: Study) -> Table:
    table = plain_table("a run's budget")
    heads = [f"{side.name}\n{what}" for what in ("planned", "spent") for side in study.sides]
    for header in ("", *heads):
        table.add_column(Text(header), justify="right" if header else "left")
    for name in AMOUNTS:
        budgets = [*(side.planned for side in study.sides), *(side.spent for side in study.sides)]
        table.add_row(*map(Text, [name, *(f"{each[name]:,.0f}" if name in each else NOTHING for each in budgets)]))
    return table


def _scores(study: Study) -> Markup:
    """Mean score by model of each side, with the interval over runs and prompts, and the runs as dots."""
    models = [model.model for model in study.sides[0].models if model.model != DIRECT]

    def paint(axes: "Axes") -> None:
        # The second side a little to the right, so that intervals don't hide each other.
        for side, colour, shift in zip(study.sides, (BLUE, ORANGE), (0.0, 0.06), strict=False):
            found = [model for model in side.models if model.model in models]
            places = [models.index(model.model) + shift for model in found]
            for place, model in zip(places, found, strict=True):
                values = [study.scale.factor * each.value for each in model.score.by_seed.values()]
                axes.plot([place - 0.12] * len(values), values, color=colour, marker="_", ms=7, lw=0, alpha=0.65)
            valued = len(study.sides) == 1
            points(axes, places, [model.score.over_both for model in found], study.scale, colour, valued=valued)
        direct = next((model.score for model in study.sides[0].models if model.model == DIRECT), None)
        if direct is not None:
            level(axes, study.scale.factor * direct.value, "M₀ direct", MUTED, right=True)
        _ticks(axes, models)

    return draw("mean test score by model, over training runs", paint)


def _leads(study: Study) -> Markup:
    """The lead of the first side by model."""

    def paint(axes: "Axes") -> None:
        level(axes, study.lead_scale.factor * study.even, "even", MUTED, right=True)
        found = [each.lead.over_both for each in study.leads]
        points(axes, list(range(len(found))), found, study.lead_scale, BLUE)
        _ticks(axes, [each.model for each in study.leads])

    return draw("lead by model, over training runs", paint)


def _gains(study: Study) -> Markup | None:
    """The gain of a single side's models over the first one."""
    known = [(model.model, model.gain_over_first) for model in study.sides[0].models]
    gains = [(name, found.over_both) for name, found in known if found is not None]
    if not gains:
        return None

    def paint(axes: "Axes") -> None:
        level(axes, 0.0, "no gain", MUTED, right=True)
        points(axes, list(range(len(gains))), [found for _, found in gains], study.scale, BLUE)
        _ticks(axes, [name for name, _ in gains])

    return draw("gain over the first model, over training runs", paint)


def _ticks(axes: "Axes", models: Sequence[str]) -> None:
    step = -(-len(models) // 9)
    axes.set_xticks(range(0, len(models), step), [_written(model) for model in models[::step]])
    axes.set_xlim(-0.35, len(models) - 0.5)


def _written(model: str) -> str:
    """`M₃` for `M_3`; other names as they are."""
    iteration = model.removeprefix("M_")
    return tick(int(iteration)) if iteration != model and iteration.isdigit() else model
