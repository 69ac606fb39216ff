"""Tournaments, ensembles and escalation on one plot: the share of the true quality gap that the chosen pair captures,
against the calls that it took.

Prints a table and, given a path, writes the plot: `python -m tests.benchmarks.bench_ensembles docs/captured-gap.svg`.
It takes under a minute on one idle core.

Groups, the comparing judge and the share captured are those of `bench_tournament`: 8 responses with qualities
q ~ N(0, 1), and a logit of q_m - q_n plus a position bias of one half and noise N(0, 1). A judge that reads responses
one by one says q + N(0, noise), in one call a response; each has noise of its own. Ensembles and escalation are
computed by `tpo.method.ensembles`, as runs do. A call is a call: what it costs depends on who is asked, so the calls of
the comparing judge are listed by themselves. The standard error is the ratio's; all designs see the same groups.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.bench_tournament import SEED, SIZE, Groups, Judge, _ratings, as_matrices, draw, share
from tpo.method.ensembles import Combine, combined, lead, standardized
from tpo.method.tournament import FOR_HARD_VERDICTS, Adaptive, AllPairs, Pair, Tournament
from tpo.report.page import printable
from tpo.report.plots import BLUE, INK, MUTED, ORANGE, PAPER, as_file
from tpo.report.plots import draw as drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = 4000
HOW: tuple[Combine, ...] = ("mean", "worst")
SPREAD = 1.0
NOISE = 1.0
"""Standard deviation of the error of a judge that reads responses one by one, in units of quality."""
WEIGHT = 4.0
"""Weight of the comparing judge where it is asked besides a reader, and where the reader escalates to it."""
THRESHOLDS = (0.1, 0.25, 0.5, 1.0, 1.5)
"""Values of `escalate_below`."""


@dataclass(frozen=True)
class Outcome:
    """What one design did."""

    name: str
    """The design."""
    kind: str
    """`tournament`, `single`, `ensemble` or `escalation`: what the plot tells apart."""
    gaps: NDArray[np.float64]
    """Shape (G,): true quality of the chosen minus that of the rejected."""
    calls: NDArray[np.float64]
    """Shape (G,), all calls."""
    compared: NDArray[np.float64]
    """Shape (G,), the calls of the comparing judge among them."""


def rated(design: Tournament, groups: Groups, *, soft: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ratings, (G, K), by a tournament of each group, and its calls, (G,)."""
    says = (np.tanh(groups.logits / 2) if soft else np.sign(groups.logits)).tolist()
    results: list[dict[Pair, float | None]] = [{} for _ in says]
    active = list(range(len(says)))
    while active:
        matches = design.next_rounds(SIZE, [results[group] for group in active])
        for group, pairs in zip(active, matches, strict=True):
            results[group].update({(m, n): says[group][m][n] for m, n in pairs})
        active = [group for group, pairs in zip(active, matches, strict=True) if pairs]
    return _ratings(as_matrices(results)), np.array([float(len(result)) for result in results])


def readings(groups: Groups, judges: int, noise: float) -> NDArray[np.float64]:
    """Scores, (judges, G, K), by judges that read responses one by one."""
    random = np.random.default_rng([SEED, 7])
    return groups.quality + random.normal(0, noise, (judges, *groups.quality.shape))


def gaps_of(groups: Groups, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """True quality of the best less that of the worst by these scores, (G, K), for each group."""
    at = np.arange(len(scores))
    return np.asarray(groups.quality[at, scores.argmax(axis=1)] - groups.quality[at, scores.argmin(axis=1)])


def ensemble(
    scores: Sequence[NDArray[np.float64]], how: Combine, weights: Sequence[float] | None = None
) -> NDArray[np.float64]:
    """The combined scores, (G, K), of judges whose scores have that shape; equal weights by default."""
    each = np.stack(scores, axis=1)
    return np.array([combined(standardized(table), weights or np.ones(len(table)), how) for table in each])


def play(groups: Groups) -> list[Outcome]:
    """Every design on the same groups."""
    none, each = np.zeros(len(groups.quality)), np.full(len(groups.quality), float(SIZE))
    found = list[Outcome]()
    tournaments: list[tuple[str, Tournament, bool]] = [
        ("all pairs, hard", AllPairs(), False),
        ("all pairs, soft", AllPairs(), True),
        ("adaptive, hard", FOR_HARD_VERDICTS, False),
        ("adaptive, soft", Adaptive(), True),
    ]
    for name, design, soft in tournaments:
        ratings, calls = rated(design, groups, soft=soft)
        found.append(Outcome(name, "tournament", gaps_of(groups, ratings), calls, calls))
    readers = list(readings(groups, 4, NOISE))
    first = readers[0]
    found.append(Outcome("one reader", "single", gaps_of(groups, first), each, none))
    for count in (2, 4):
        for how in HOW:
            scores = ensemble(readers[:count], how)
            found.append(Outcome(f"{count} readers, {how}", "ensemble", gaps_of(groups, scores), count * each, none))
    for weight in (1.0, WEIGHT):
        both = ensemble([first, ratings], "mean", [1.0, weight])
        name = f"reader and tournament 1:{weight:g}"
        found.append(Outcome(name, "ensemble", gaps_of(groups, both), each + calls, calls))
    texts = [str(i) for i in range(SIZE)]
    leads = np.array([lead(row, texts) for row in first], dtype=np.float64)
    alone = ensemble([first], "mean")
    for below in THRESHOLDS:
        close = leads < below
        scores = np.where(close[:, None], both, alone)
        asked = np.where(close, calls, 0.0)
        found.append(Outcome(f"escalate_below = {below:g}", "escalation", gaps_of(groups, scores), each + asked, asked))
    return found


MARKS = {
    "tournament": (INK, "o", "a judge that compares, alone"),
    "single": (MUTED, "s", "a judge that reads, alone"),
    "ensemble": (ORANGE, "^", "ensembles, weights of reader and tournament"),
    "escalation": (BLUE, "D", "reader, then tournament for leads below this many standard deviations (1:4)"),
}
"""Colour, marker and legend of each kind."""
LEFT = {"one reader", "adaptive, soft", "escalate_below = 0.1", "escalate_below = 0.25", "escalate_below = 0.5",
        "escalate_below = 1", "escalate_below = 1.5"}  # fmt: skip
"""Designs whose labels are to the left of their points, where nothing else is."""


def plot(found: Sequence[Outcome], ranges: NDArray[np.float64]) -> str:
    """The plot as SVG: one mean over groups a design; its 95 % interval is smaller than the mark."""

    def place(each: Outcome) -> tuple[float, float]:
        return float(each.calls.mean()), float(each.gaps.mean() / ranges.mean())

    def paint(axes: "Axes") -> None:
        # Escalation lies between never and always asking the comparing judge.
        ends = [each for each in found if each.name == "one reader" or each.name.endswith(f"1:{WEIGHT:g}")]
        way = sorted(map(place, [*ends, *(each for each in found if each.kind == "escalation")]))
        axes.plot(*zip(*way, strict=True), color=BLUE, lw=1.2, zorder=1)
        for kind, (colour, marker, legend) in MARKS.items():
            shown = [each for each in found if each.kind == kind]
            axes.plot(*zip(*map(place, shown), strict=True), color=colour, marker=marker, ms=5.5, ls="", label=legend)
            for each in shown:
                axes.annotate(
                    str(printable(each.name.removeprefix("escalate_below = ").replace("reader and tournament ", ""))),
                    place(each), xytext=(-7 if each.name in LEFT else 7, -3), textcoords="offset points", color=colour,
                    ha="right" if each.name in LEFT else "left",
                )  # fmt: skip
        axes.set_xlabel("calls per prompt of 8 responses: comparisons, and responses read")
        axes.set_ylabel("share of the true gap captured")
        axes.set_xlim(0, 66)
        axes.set_ylim(0.68, 1.0)
        axes.set_xticks([0, SIZE, 16, 24, 32, 40, 48, 56])
        axes.legend(loc="lower right", facecolor=PAPER, framealpha=1, edgecolor="none", handletextpad=0.3)

    return as_file(drawn("gap captured against calls", paint, width=7.5, height=4.4))


def main() -> None:
    """Prints the table, and writes the plot if a path is given."""
    groups = draw(Judge("the judge"), SPREAD, GROUPS)
    ranges, found = np.ptp(groups.quality, axis=1), play(groups)
    print(f"{GROUPS} groups of {SIZE}, spread {SPREAD:g}, a reader's noise {NOISE:g}")
    print(f"{'':26s} {'calls':>6s} {'compared':>9s}  {'captured':>15s}  {'minus all pairs':>15s}")
    for each in found:
        print(
            f"{each.name:26s} {each.calls.mean():6.2f} {each.compared.mean():9.2f}  {share(each.gaps, ranges)}  "
            f"{share(each.gaps - found[0].gaps, ranges)}"
        )
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(plot(found, ranges), encoding="utf-8")
        print(f"the plot is in {sys.argv[1]}")


if __name__ == "__main__":
    main()
