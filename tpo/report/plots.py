"""Plots as inline SVG: score by iteration, and so on.

Their only text is numbers and model names; titles and categories are HTML, so that they wrap, scale and use the
reader's font. Colors are placeholders that are replaced by CSS variables, so that one SVG serves light mode, dark mode
and print.
"""

import base64
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from tpo.report.page import printable
from tpo.report.summary import Interval
from tpo.report.table import ScoreScale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Mapping[str, str] = {
    "#100001": "--ink",
    "#100002": "--muted",
    "#100003": "--grid",
    "#100004": "--blue",
    "#100005": "--orange",
    "#100006": "--paper",
}
"""Placeholder colors in the plots, and the CSS variables that replace them (blue and orange from Okabe and Ito)."""
INK, MUTED, GRID, BLUE, ORANGE, PAPER = COLOURS
PRINT_COLOURS: Mapping[str, str] = {
    "--ink": "#1b1b1b",
    "--muted": "#666666",
    "--grid": "#c8c8c8",
    "--blue": "#0072b2",
    "--orange": "#d55e00",
    "--paper": "#ffffff",
}
"""The variables' values if there is no style sheet."""


@dataclass(frozen=True)
class Panel:
    """One of several small plots shown next to each other."""

    title: str
    """Its subject, for example a category."""
    note: str
    """The first and last value, short enough for a caption."""
    svg: Markup
    """The plot."""


@dataclass(frozen=True)
class Line:
    """One line of a plot by iteration."""

    colour: str
    """One of `COLOURS`."""
    found: Sequence[tuple[int, Interval | None]]
    """Iterations with their values, None if there is none."""

    @property
    def known(self) -> list[tuple[int, Interval]]:
        """The iterations that have a value."""
        return [(t, each) for t, each in self.found if each]


def panel(
    title: str,
    note: str,
    lines: Sequence[Line],
    *,
    scale: ScoreScale,
    limits: tuple[float, float],
    dashed: Interval | None = None,
) -> Panel:
    """A small plot of lines with their intervals as bands; all panels of a group share their limits."""

    def paint(axes: "Axes") -> None:
        if dashed:
            axes.axhline(scale.factor * dashed.value, color=ORANGE, lw=1.1, ls=(0, (4, 2)))
        for line in lines:
            steps, known = [t for t, _ in line.known], [each for _, each in line.known]
            if len(known) > 1:
                ends = [(scale.factor * each.low, scale.factor * each.high) for each in known]
                axes.fill_between(
                    steps, [e[0] for e in ends], [e[1] for e in ends], color=line.colour, alpha=0.16, lw=0
                )
            values = [scale.factor * each.value for each in known]
            axes.plot(steps, values, color=line.colour, marker="o", ms=3.5, lw=1.4)
        axes.set_ylim(limits)
        axes.locator_params(axis="y", nbins=3)
        iterations(axes, [t for t, _ in lines[0].found], most=4)

    return Panel(title, note, draw(f"by iteration: {title}", paint, width=1.75, height=1.25, size=7.5))


def limits_of(shown: Sequence[Interval], scale: ScoreScale) -> tuple[float, float]:
    """Axis limits that include all of these intervals, with some room."""
    low, high = min(each.low for each in shown), max(each.high for each in shown)
    room = 0.06 * (high - low or 1)
    return scale.factor * (low - room), scale.factor * (high + room)


def points(
    axes: "Axes",
    places: Sequence[float],
    found: Sequence[Interval],
    scale: ScoreScale,
    colour: str,
    *,
    valued: bool = True,
) -> None:
    """Means joined by a line, with their intervals and, if there is room, their values."""
    values = [scale.factor * each.value for each in found]
    below = [scale.factor * (each.value - each.low) for each in found]
    above = [scale.factor * (each.high - each.value) for each in found]
    axes.errorbar(
        places, values, yerr=(below, above), color=colour, marker="o", ms=5, lw=1.6, elinewidth=1.2, capsize=3
    )
    if valued and len(places) <= 8:
        for i, (place, value) in enumerate(zip(places, values, strict=True)):
            # Next to the point, on the side away from the line.
            rising = values[min(i + 1, len(values) - 1)] >= values[max(0, min(i, len(values) - 2))]
            axes.annotate(
                scale.number(found[i].value), (place, value), xytext=(6, -3 if rising else 3), color=INK,
                textcoords="offset points", ha="left", va="top" if rising else "bottom",
            )  # fmt: skip
    axes.margins(x=0.12, y=0.12)


def level(axes: "Axes", value: float, label: str, colour: str, *, right: bool) -> None:
    """A dashed line across the plot, labeled at one end."""
    axes.axhline(value, color=colour, lw=1.3, ls=(0, (5, 3)))
    axes.annotate(
        label, (1 if right else 0, value), xycoords=("axes fraction", "data"), xytext=(-3 if right else 3, 3),
        textcoords="offset points", ha="right" if right else "left", va="bottom", color=colour,
    )  # fmt: skip


def iterations(axes: "Axes", steps: Sequence[int], *, most: int = 10) -> None:
    """Ticks at iterations, thinned out evenly if there are more than `most`."""
    shown = steps[:: math.ceil(len(steps) / most)]
    axes.set_xticks(list(shown), [tick(t) for t in shown])
    axes.set_xlim(min(steps) - 0.35, max(steps) + 0.5)


def tick(iteration: int) -> str:
    """`M₃`."""
    return "M" + str(iteration).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def draw(
    label: str, paint: Callable[["Axes"], None], *, width: float = 4.2, height: float = 2.5, size: float = 8.5
) -> Markup:
    """An SVG that scales with the page. Sizes are in inches and points; 4.2 inches are half a page wide."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    style = matplotlib.rc_context({
        "svg.fonttype": "none", "svg.hashsalt": str(printable(label)), "text.parse_math": False, "font.size": size,
        "font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": GRID, "axes.labelcolor": INK,
        "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True,
        "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.7, "ytick.major.size": 0,
        "xtick.major.size": 3, "axes.unicode_minus": True, "savefig.transparent": True, "path.simplify": False,
    })  # fmt: skip
    with style:
        figure = Canvas(figsize=(width, height), layout="constrained")
        paint(figure.add_subplot())
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(drawn.getvalue(), label)


def _inline(svg: str, label: str) -> Markup:
    """A drawing that can be embedded in HTML: without prologue and ids, with colors from the page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    view = re.search(r'viewBox="[^"]*"', body)
    assert view is not None
    head = f'<svg {view.group()} role="img" aria-label="{escape(printable(label))}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    body = re.sub(r"<svg[^>]*>", lambda _: head, body, count=1)
    for stand_in, variable in COLOURS.items():
        body = body.replace(stand_in, f"var({variable})")
    return Markup(body)


def as_file(svg: Markup) -> str:
    """A drawing as an SVG file, in print colors on white, with any sans-serif font if its own isn't there."""
    picture = str(svg)
    for variable, colour in PRINT_COLOURS.items():
        picture = picture.replace(f"var({variable})", colour)
    picture = picture.replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif")
    picture = picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="720" ', 1)
    return picture.replace(">", '><rect width="100%" height="100%" fill="#ffffff"/>', 1)


def data_url(svg: Markup) -> str:
    """A drawing as an image in a data URL, in print colors, for other pages."""
    return "data:image/svg+xml;base64," + base64.b64encode(as_file(svg).encode()).decode()
