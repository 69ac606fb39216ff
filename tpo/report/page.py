"""The common parts of all pages: the template environment, and filters that write numbers and names.

Model outputs are shown and must never run: all text is escaped, and control characters are made visible.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tpo.report.summary import Interval
from tpo.report.table import NOTHING, PERCENT, ScoreScale, counts, duration, fixed, short

MAX_CATEGORY_COLUMNS = 8
"""Number of categories above which a benchmark's table by category has a row for each."""


def render(template: str, **values: Any) -> str:
    """A page, as one HTML document."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=printable,
    )
    environment.filters.update(_FILTERS)
    environment.globals.update(NOTHING=NOTHING, PERCENT=PERCENT, MAX_CATEGORY_COLUMNS=MAX_CATEGORY_COLUMNS)
    return environment.get_template(template).render(**values)


def printable(value: object) -> object:
    """Text with control characters made visible and lone surrogates replaced; other values unchanged."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return value.translate(_VISIBLE).encode("utf-8", "replace").decode()


_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "␡"}


def subscripted(text: str) -> Markup:
    """Escaped text with M_3 set as M and a subscript; it is still read aloud and copied as M_3."""
    safe = str(escape(printable(text)))
    return Markup(re.sub(r"\bM_(t−1|\d+|t)", r'M<span class="under">_</span><sub>\1</sub>', safe))


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 prompt`, `2 prompts`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def span(found: Interval, scale: ScoreScale) -> str:
    """`92.1–96.0`, with "to" instead of the dash if the lower end is negative."""
    return f"{scale.number(found.low)}{'–' if found.low >= 0 else ' to '}{scale.number(found.high)}"


def signed_span(found: Interval, scale: ScoreScale) -> str:
    """`+1.5 to +3.2`."""
    return f"{scale.number(found.low, signed=True)} to {scale.number(found.high, signed=True)}"


def against(gain: Interval, whom: str, scale: ScoreScale) -> str:
    """`31.5 points above M_0`, or that there is no clear difference if the interval includes 0."""
    if gain.low <= 0 <= gain.high:
        value, ends = scale.number(gain.value, signed=True), signed_span(gain, scale)
        return f"not clearly different from {whom} ({value}{scale.unit}; interval {ends} includes 0)"
    amount, side = scale.number(abs(gain.value)), "above" if gain.value > 0 else "below"
    return f"{amount}{scale.unit} {side} {whom}"


_FILTERS: Mapping[str, Callable[..., object]] = {
    "model": subscripted,
    "fixed": fixed,
    "short": short,
    "counts": counts,
    "span": span,
    "signed_span": signed_span,
    "duration": duration,
}
