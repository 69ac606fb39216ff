"""The page of a table of models, and the table in a terminal.

The page is one HTML file under the same rules as a run's report (`tpo.report.run_page`): it loads nothing, runs nothing
and escapes all text.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from rich.text import Text

from tpo.records import Message
from tpo.report.model_table import TOKENS, ModelTable, compared_with_first, sentences
from tpo.report.page import render
from tpo.report.plots import BLUE, ORANGE, data_url, draw, points
from tpo.report.summary import Interval
from tpo.report.table import NOTHING, PERCENT, ScoreScale, counts, fixed, plain_table, table_console
from tpo.storage.ledger import Spending

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_GROUPS = 30
"""Number of categories shown, in alphabetical order; the page says how many are left out."""
MAX_NAMES = 9
"""Number of models named below a plot; with more models, only every second one is named, and so on."""


@dataclass(frozen=True)
class ShownAnswer:
    """One model's output for a test prompt."""

    model: str
    """The model's name in the table."""
    thought: str | None
    """The text before the response; None if the prompt asks for no thought."""
    response: str
    """The response."""
    tokens: int
    """Tokens of the whole output."""
    score: float | None
    """The evaluation judge's score; None if it gave none."""
    correct: bool | None
    """Whether the answer is right, if that is known."""
    error: str | None
    """Why the output breaks the format, or None."""


@dataclass(frozen=True)
class Asked:
    """One test prompt with the answers of all models."""

    instruction: str
    """The instruction, without the thought prompt."""
    reference: str | None
    """The right answer, if there is one."""
    category: str | None
    """Its category, if there is one."""
    difficulty: int | None
    """Its difficulty, if there is one."""
    answers: Sequence[ShownAnswer]
    """In the order of the rows."""
    earlier: Sequence[Message] = ()
    """The turns before the instruction, if it ends a conversation."""


def render_model_table(
    table: ModelTable, *, config: Mapping[str, Any], examples: Sequence[Asked], spent: Sequence[Spending]
) -> str:
    """The page, as one HTML document; `config` is the resolved config, `spent` the ledger's totals."""
    categories = sorted({name for row in table.rows for name in row.by_category})
    difficulties = sorted({name for row in table.rows for name in row.by_difficulty}, key=lambda n: (len(n), n))
    groups = {"Category": categories[:MAX_GROUPS], "Difficulty": difficulties}
    return render(
        "model_table.html.jinja",
        table=table,
        found=sentences(table),
        scale=table.scale,
        tokens=TOKENS,
        amount=amount,
        scores=_plot(table, "test score by model", [row.score for row in table.rows], table.scale),
        lengths=_plot(table, "tokens of an output by model", [row.tokens for row in table.rows], TOKENS),
        against=bool(compared_with_first(table)),
        groups={title: names for title, names in groups.items() if names},
        left_out=max(0, len(categories) - MAX_GROUPS),
        examples=examples,
        spent=spent,
        config=json.dumps(config, indent=2, ensure_ascii=False, default=str),
    )


def model_table_picture(table: ModelTable) -> str | None:
    """The scores as an image in a data URL, for other pages; None if there are none."""
    svg = _plot(table, "test score by model", [row.score for row in table.rows], table.scale)
    return data_url(svg) if svg else None


def print_model_table(table: ModelTable) -> None:
    """Prints the models, with the effect of each step below."""
    console = table_console()
    level = f"[{100 * table.confidence:g} %]"
    shown = plain_table(f"{table.recipe}, run {table.run}, seed {table.seed}")
    for header in ("model", f"test score\n{level}", "over", f"gain\n{level}", f"tokens\n{level}", "broken\nor cut"):
        shown.add_column(Text(header), justify="left" if header == "model" else "right", no_wrap=header == "model")
    shown.add_column("trained on")
    for row in table.rows:
        shown.add_row(
            Text(row.model),
            Text(table.scale.interval(row.score)),
            Text(row.below or NOTHING),
            Text(table.scale.interval(row.gain, signed=True)),
            Text(TOKENS.interval(row.tokens)),
            f"{PERCENT.number(row.error_rate)} %",
            Text(", ".join(f"{amount(n)} {what.replace('_', ' ')}" for what, n in row.made_from.items()) or NOTHING),
        )
    console.print(shown)
    console.print()
    for row in table.rows:
        if row.dropped:
            console.print(Text(f"Not trained on for {row.model}: {counts(row.dropped)}."))
    for sentence in sentences(table):
        console.print(Text(sentence))
    console.print()


def amount(number: float) -> str:
    """A count, or a mean with one decimal."""
    return f"{number:,}" if float(number).is_integer() else fixed(number, 1)


def _plot(table: ModelTable, label: str, found: Sequence[Interval | None], scale: ScoreScale) -> Markup | None:
    """A value by model; models of another run form a separate line, each at the model that is compared with it."""
    others = {row.model for row in compared_with_first(table)}
    own_rows = [row for row in table.rows if row.model not in others]
    place_of = {row.model: place for place, row in enumerate(own_rows)}
    place_of |= {row.below: place for place, row in enumerate(own_rows) if row.below in others}
    known = [(row.model, each) for row, each in zip(table.rows, found, strict=True) if each]
    if not known:
        return None

    def paint(axes: "Axes") -> None:
        for colour, apart in ((ORANGE, True), (BLUE, False)):
            line = [(place_of[model], each) for model, each in known if (model in others) == apart]
            if line:
                places, values = [place for place, _ in line], [each for _, each in line]
                points(axes, places, values, scale, colour, valued=not others)
        step = math.ceil(len(own_rows) / MAX_NAMES)
        axes.set_xticks(range(0, len(own_rows), step), [row.model for row in own_rows[::step]])
        axes.set_xlim(-0.35, len(own_rows) - 0.5)

    return draw(label, paint)
