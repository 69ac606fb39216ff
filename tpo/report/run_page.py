"""The page of a run: one HTML file that can be read anywhere, without network or JavaScript, and on paper.

The same input gives the same bytes. Model outputs are shown and must never run; three things ensure that: the template,
`report.html.jinja`, escapes all text; model outputs appear only in element bodies; and the page's content security
policy forbids scripts and all requests.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from tpo.records import Epoch, Message
from tpo.report.benchmarks import LABELS, Benchmarks
from tpo.report.fine_grained import KindSection
from tpo.report.gate import OUTCOMES, change, overfitting, scale_of_gate
from tpo.report.page import against, count, render, signed_span, span
from tpo.report.plots import (
    BLUE,
    MUTED,
    ORANGE,
    PAPER,
    Line,
    Panel,
    data_url,
    draw,
    iterations,
    level,
    limits_of,
    panel,
    points,
    tick,
)
from tpo.report.summary import ModelRow, Summary
from tpo.report.table import (
    DIRECT,
    NOTHING,
    PERCENT,
    ScoreScale,
    fixed,
    gate_word,
    scale_of_opinions,
    score_scale,
    validation_scale,
)
from tpo.storage.ledger import Spending

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = "report.html.jinja"
MAX_GROUPS = 30
"""Number of categories plotted, those with the most prompts first; the page says how many are left out."""

TERMS: Mapping[str, str] = {
    "M_t": "the model after t iterations; M_0 is the seed, “M_0 direct” is the seed answering without thoughts.",
    "Score": "mean score of the responses to the test prompts by the evaluation judge, which never sees a thought.",
    "Win rate": "share of test prompts on which a model scores higher than M_0 (not M_0 direct); ties count half.",
    "Interval": "where the mean would probably fall with other test prompts (bootstrap over prompts); it says "
    "nothing about another training run.",
    "Gain": "mean difference of scores over the same prompts; not a clear difference if its interval includes 0.",
    "Parse error": "an output without exactly one response after the thought; as a share of first outputs.",
    "Thought, response": "mean length in characters on the test prompts; the thought is all text before the response.",
    "Regular pair": "the best and the worst of the outputs that parse, by length-controlled score.",
    "Error pair": "the best output and one that breaks the format.",
    "Dropped": "prompts that yielded no pair, by reason.",
    "ρ": "strength of length control, from 0 (none) to 0.5: how much better a longer response must be to win.",
    "Margin": "length-controlled score of chosen minus rejected, in standard deviations of the group.",
    "Epoch chosen": "the training epoch whose checkpoint did best on validation prompts; 0 if M_t−1 was kept.",
    "Swap agreement": "of the pairs that were decided in both orders, the share in which the same response won twice.",
    "First wins": "share of decided comparisons won by the response shown first; one half if the order has no effect.",
    "Agrees with references": "of the pairs of a right and a wrong response to one prompt, the share in which the "
    "right one scores higher; ties count half.",
    "Second judge, verifier": "other judges of the same validation answers. The run's judge trained the model and "
    "chose its checkpoint, so a gain that it alone sees is overfitting to it.",
    "Gate": "M_t is promoted if a paired test shows that it isn't worse than M_t−1 by more than the margin: if the "
    "lower bound of the difference isn't below minus the margin.",
    "Validation": "mean score by the training judge on validation prompts, over answers that parse; for a judge "
    "that compares, the share won against M_t−1's answers.",
}
"""The page's terms, each explained in one line."""


@dataclass(frozen=True)
class Example:
    """One preference pair in readable form: the instruction and the two outputs, split into thought and response."""

    iteration: int
    """t of the M_t that was trained on it; M_{t-1} wrote both outputs."""
    kind: Literal["regular", "error_rejected"]
    """`error_rejected` if the rejected output breaks the format."""
    instruction: str
    """The instruction, without the thought prompt."""
    reference: str | None
    """The right answer, if there is one."""
    category: str | None
    """Category of the prompt, if there is one."""
    difficulty: int | None
    """Difficulty of the prompt, if there is one."""
    chosen_thought: str
    """The text before the chosen response; empty without a thought."""
    chosen_response: str
    """The chosen response, which is all that the judge saw."""
    chosen_score: float | None
    """The judge's raw score of the chosen response, in the judge's own unit."""
    chosen_tokens: int
    """Tokens of the chosen output, including thought and end token."""
    rejected_thought: str
    """The text before the rejected response; empty without a thought."""
    rejected_response: str
    """The rejected response; for a parse error, as much of it as could be parsed."""
    rejected_score: float | None
    """The judge's raw score of the rejected response; None for a parse error."""
    rejected_tokens: int
    """Tokens of the rejected output, including thought and end token."""
    rejected_error: str | None
    """Why the rejected output breaks the format, or None if it doesn't."""
    margin: float | None
    """Difference of the length-controlled scores; None for a parse error."""
    earlier: Sequence[Message] = ()
    """The turns before the instruction, if it ends a conversation."""


@dataclass(frozen=True)
class Figure:
    """A key number at the top of the page."""

    value: str
    """The number."""
    label: str
    """Its meaning."""
    detail: str
    """Its interval, or a value to compare it with."""


@dataclass(frozen=True)
class RoundRow:
    """One round of an iteration: a row of the table that runs with several rounds, or with replayed pairs, have."""

    model: str
    """The model that the iteration made."""
    number: int
    """1, 2, …"""
    prompts: int
    """Fresh prompts."""
    pairs: int
    """Pairs of their outputs."""
    replayed: int
    """Pairs of earlier iterations that were added."""
    rho: float
    """Strength of length control."""
    steps: int
    """Optimizer steps."""
    first_loss: float
    """Mean loss in the first epoch."""
    last_loss: float
    """Mean loss in the last epoch."""


def render_report(
    summary: Summary,
    *,
    config: Mapping[str, Any],
    epochs: Mapping[int, Sequence[Epoch]],
    margins: Mapping[int, Sequence[float]],
    standings: Mapping[int, Sequence[Mapping[str, Any]]],
    examples: Sequence[Example],
    spent: Sequence[Spending] = (),
    rounds: Sequence[RoundRow] = (),
    benchmarks: Benchmarks | None = None,
) -> str:
    """The page, as one HTML document.

    `config` is the resolved config and `spent` the ledger's totals. `epochs`, `margins` and `standings` are by
    iteration t of the M_t that resulted from them; a standing has `epoch`, `score` and `parse_rate`. A section whose
    input is missing or empty is left out.
    """
    thinks = config.get("prompt", {}).get("variant") != "direct"
    groups = [row for row in summary.models if row.by_category]
    return render(
        TEMPLATE,
        summary=summary,
        headline=headline(summary, thinks=thinks),
        findings=findings(summary, thinks=thinks),
        figures=key_figures(summary, thinks=thinks),
        scores=score_scale(summary),
        validation=validation_scale(summary),
        judged=[row for row in summary.models if row.judge],
        judge=config.get("judge", {}).get("kind"),
        opinions=_opinions(summary),
        attacked=[row for row in summary.models if row.attacks],
        gated=[row for row in summary.models if row.gate],
        gate_word=gate_word,
        gate_scale=scale_of_gate,
        gate_change=change,
        outcomes=OUTCOMES,
        stages=list(dict.fromkeys(stage for row in reversed(summary.models) for stage in row.seconds)),
        plots=_plots(summary, epochs, margins, config),
        categories=_panels(summary, "by_category"),
        categories_left_out=max(0, len({name for row in groups for name in row.by_category}) - MAX_GROUPS),
        difficulties=_panels(summary, "by_difficulty"),
        standings={t: rows for t, rows in sorted(standings.items()) if rows},
        chosen={row.iteration: row.chosen_epoch for row in summary.models if row.model != DIRECT},
        examples=examples,
        browser=config.get("report", {}).get("samples_mib"),
        spent=spent,
        rounds=rounds,
        benchmarks=benchmarks,
        labels=LABELS,
        kinds=KindSection.of(summary.fine_grained),
        config=json.dumps(config, indent=2, ensure_ascii=False, default=str),
        terms=TERMS,
        DIRECT=DIRECT,
    )


def _opinions(summary: Summary) -> list[tuple[str, str, ScoreScale]]:
    """The judges of the validation answers: name, kind and scale; empty if there is one alone."""
    found = dict.fromkeys((each.name, each.judge) for row in summary.models for each in row.opinions)
    return [(name, judge, scale_of_opinions(summary, name)) for name, judge in found]


def score_picture(summary: Summary) -> str | None:
    """Test score by iteration as an image in a data URL, for other pages; None if there are no scores."""
    rows = [row for row in summary.models if row.model != DIRECT]
    if not any(row.score for row in rows):
        return None
    scale, direct = score_scale(summary), _named(summary, DIRECT)
    return data_url(draw("test score by iteration", lambda axes: _paint_score(axes, rows, direct, scale)))


def headline(summary: Summary, *, thinks: bool = True) -> str:
    """The run in one sentence; a gain whose interval includes 0 is called not clearly different."""
    last, base, direct = _last(summary), _named(summary, "M_0"), _named(summary, DIRECT)
    if last is None:
        return "Nothing has been measured yet."
    seed = "M_0 with thoughts" if thinks else "M_0"
    scale, after = score_scale(summary), f"After {count(last.iteration, 'iteration')}"
    if last.score is None:
        return f"{after}, there is no test score: the evaluation judge scored none of {last.model}'s answers."
    scored = (
        f"scores {scale.number(last.score.value)} on {count(last.score.n, 'test prompt')} "
        f"({100 * summary.confidence:g} % interval {span(last.score, scale)})"
    )
    over_direct = last.gain_over_direct if thinks and direct else None
    beside = [against(over_direct, "M_0 answering directly", scale)] if over_direct else []
    if last.iteration == 0:
        return f"Before the first iteration, {seed} {', '.join([scored, *beside])}."
    compared = ([against(last.gain, seed, scale)] if base and last.gain else []) + beside
    return f"{after}, {last.model} {scored}{': ' if compared else ''}{' and '.join(compared)}."


def findings(summary: Summary, *, thinks: bool = True) -> list[str]:
    """Other findings that a reader should know, good or bad, as sentences."""
    last, base = _last(summary), _named(summary, "M_0")
    found = [
        f"{row.model} is M_{row.iteration - 1} unchanged: no epoch of its training did better on validation."
        for row in summary.models
        if row.chosen_epoch == 0 and row.iteration
    ]
    found += [
        f"The gate doesn't promote {row.model}: the run stops there, and its models up to M_{row.iteration - 1} stand."
        for row in summary.models
        if not row.promoted
    ]
    found += overfitting(list(summary.models))
    if last is None or base is None or last.iteration == 0:
        return found
    found += _category_findings(base, last, score_scale(summary))
    if base.response_chars:
        ratio = last.response_chars / base.response_chars
        found.append(
            f"Responses went from {base.response_chars:.0f} to {last.response_chars:.0f} characters "
            f"({fixed(ratio, 2)} times M_0's)"
            + (f", thoughts from {base.thought_chars:.0f} to {last.thought_chars:.0f}." if thinks else ".")
        )
    rates = [f"{PERCENT.number(row.parse_error_rate)} %" for row in (base, last)]
    found.append(f"Parse errors went from {rates[0]} to {rates[1]} of first outputs.")
    return found


def _category_findings(base: ModelRow, last: ModelRow, scale: ScoreScale) -> list[str]:
    shared = [name for name in base.by_category if name in last.by_category]
    if not shared:
        return []
    change = {name: last.by_category[name].value - base.by_category[name].value for name in shared}
    fell = sorted((name for name in shared if change[name] < 0), key=lambda name: (change[name], name))
    if not fell:
        return [f"No category scores below M_0's ({count(len(shared), 'category', 'categories')})."]
    each = [
        f"{name} ({scale.number(base.by_category[name].value)} → {scale.number(last.by_category[name].value)})"
        for name in fell[:6]
    ]
    more = f" and {len(fell) - 6} more" if len(fell) > 6 else ""
    return [f"{len(fell)} of {count(len(shared), 'category', 'categories')} fell below M_0: {', '.join(each)}{more}."]


def key_figures(summary: Summary, *, thinks: bool = True) -> list[Figure]:
    """The numbers at the top of the page; unknown ones are left out."""
    last, base, scale = _last(summary), _named(summary, "M_0"), score_scale(summary)
    if last is None:
        return []
    found = []
    if last.score:
        found.append(Figure(scale.number(last.score.value), f"test score of {last.model}", span(last.score, scale)))
    if last.gain and last.iteration:
        label = "against M_0 with thoughts" if thinks else "against M_0"
        found.append(Figure(scale.number(last.gain.value, signed=True), label, signed_span(last.gain, scale)))
    if last.gain_over_direct and thinks:
        value = scale.number(last.gain_over_direct.value, signed=True)
        found.append(Figure(value, "against M_0 answering directly", signed_span(last.gain_over_direct, scale)))
    if last.win_rate:
        found.append(Figure(f"{PERCENT.number(last.win_rate.value)} %", "wins over M_0", span(last.win_rate, PERCENT)))
    detail = f"M_0: {PERCENT.number(base.parse_error_rate)} %" if base and last.iteration else "of first outputs"
    found.append(Figure(f"{PERCENT.number(last.parse_error_rate)} %", "parse errors", detail))
    return found


def _last(summary: Summary) -> ModelRow | None:
    thinking = [row for row in summary.models if row.model != DIRECT]
    return max(thinking, key=lambda row: row.iteration, default=None)


def _named(summary: Summary, model: str) -> ModelRow | None:
    return next((row for row in summary.models if row.model == model), None)


def _plots(
    summary: Summary,
    epochs: Mapping[int, Sequence[Epoch]],
    margins: Mapping[int, Sequence[float]],
    config: Mapping[str, Any],
) -> dict[str, Markup | None]:
    """The large plots by name; None if there is nothing to draw."""
    rows = [row for row in summary.models if row.model != DIRECT]
    direct = _named(summary, DIRECT)
    scored = [row for row in rows if row.score]
    won = [row for row in (direct, *rows) if row and row.win_rate]
    logged = {t: log for t, log in sorted(epochs.items()) if log}
    judged = {row.iteration: row.judge.score_quantiles for row in rows if row.judge and row.judge.score_quantiles}
    finite = {t: [m for m in found if math.isfinite(m)] for t, found in sorted(margins.items())}
    finite = {t: found for t, found in finite.items() if found}
    chosen = {row.iteration: row.chosen_epoch for row in rows}
    scale = score_scale(summary)
    plain_dpo = config.get("train", {}).get("loss") == "dpo"
    start = math.log(2) if plain_dpo else None
    return {
        "score": draw("test score by iteration", lambda axes: _paint_score(axes, rows, direct, scale))
        if scored
        else None,
        "win_rate": draw("win rate over M_0 by iteration", lambda axes: _paint_win_rate(axes, won)) if won else None,
        "length": draw("length of thought and response by iteration", lambda axes: _paint_length(axes, rows))
        if rows
        else None,
        "margins": draw("margins of the training pairs by iteration", lambda axes: _paint_boxes(axes, finite, "pair"))
        if finite
        else None,
        "judged": draw("scores of the training samples by iteration", lambda axes: _paint_boxes(axes, judged, None))
        if judged
        else None,
        "loss": draw("training loss by epoch", lambda axes: _paint_log(axes, logged, chosen, "loss", 1, start))
        if logged
        else None,
        "accuracy": draw(
            "training accuracy by epoch", lambda axes: _paint_log(axes, logged, chosen, "accuracy", 100, 50)
        )
        if logged
        else None,
    }


def _paint_score(axes: "Axes", rows: Sequence[ModelRow], direct: ModelRow | None, scale: ScoreScale) -> None:
    known = [(row.iteration, row.score) for row in rows if row.score]
    if direct and direct.score:
        height = scale.factor * direct.score.value
        axes.axhspan(scale.factor * direct.score.low, scale.factor * direct.score.high, color=ORANGE, alpha=0.13, lw=0)
        # Put the label at the end where the curve is farther away.
        right = abs(known[-1][1].value - direct.score.value) >= abs(known[0][1].value - direct.score.value)
        level(axes, height, "M₀ direct", ORANGE, right=right)
    points(axes, [t for t, _ in known], [found for _, found in known], scale, BLUE)
    iterations(axes, [row.iteration for row in rows])


def _paint_win_rate(axes: "Axes", rows: Sequence[ModelRow]) -> None:
    level(axes, 50, "as good as M₀", MUTED, right=True)
    places = {row.model: place for place, row in enumerate(rows)}
    for direct, colour in ((True, ORANGE), (False, BLUE)):
        some = [row for row in rows if (row.model == DIRECT) == direct]
        found = [row.win_rate for row in some if row.win_rate]
        points(axes, [places[row.model] for row in some], found, PERCENT, colour)
    axes.set_xticks(list(places.values()), ["M₀ direct" if r.model == DIRECT else tick(r.iteration) for r in rows])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.yaxis.set_major_formatter("{x:g} %")


def _paint_length(axes: "Axes", rows: Sequence[ModelRow]) -> None:
    steps = [row.iteration for row in rows]
    thoughts, responses = [row.thought_chars for row in rows], [row.response_chars for row in rows]
    above = thoughts[-1] >= responses[-1]
    for values, colour, marker, upper in ((thoughts, ORANGE, "s", above), (responses, BLUE, "o", not above)):
        if not any(values):
            continue
        axes.plot(steps, values, color=colour, marker=marker, ms=5, lw=1.6)
        name = "thought" if values is thoughts else "response"
        axes.annotate(
            f"{name} {values[-1]:.0f}", (steps[-1], values[-1]), xytext=(0, 7 if upper else -7),
            textcoords="offset points", ha="right" if len(steps) > 1 else "center", va="bottom" if upper else "top",
            color=colour,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.margins(y=0.18)
    axes.set_ylim(bottom=0, top=max(*thoughts, *responses, 1) * 1.2)
    iterations(axes, steps)


def _paint_boxes(axes: "Axes", values: Mapping[int, Sequence[float]], unit: str | None) -> None:
    """One box per iteration; with a unit, ticks include the number of values."""
    line = {"color": BLUE, "lw": 1.2}
    axes.boxplot(
        [list(found) for found in values.values()],
        positions=list(values), widths=0.5, whis=(5, 95), showfliers=False, patch_artist=True, manage_ticks=False,
        boxprops={"facecolor": PAPER, "edgecolor": BLUE, "lw": 1.2}, whiskerprops=line, capprops=line,
        medianprops={"color": ORANGE, "lw": 2},
    )  # fmt: skip
    axes.set_xticks(
        list(values), [tick(t) + (f"\n{count(len(found), unit)}" if unit else "") for t, found in values.items()]
    )
    axes.set_xlim(min(values) - 0.6, max(values) + 0.6)
    if unit:
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))


def _paint_log(
    axes: "Axes",
    logs: Mapping[int, Sequence[Epoch]],
    chosen: Mapping[int, int | None],
    field: Literal["loss", "accuracy"],
    factor: float,
    start: float | None,
) -> None:
    """One line per iteration, next to each other; a ring marks the chosen epoch."""
    if start is not None:
        level(axes, start, "ln 2, untrained" if field == "loss" else "chance", MUTED, right=field == "loss")
    ticks: list[tuple[float, str]] = []
    left = 0.0
    crowded = sum(map(len, logs.values())) > 15
    for t, log in logs.items():
        places = [left + line.epoch for line in log]
        values = [factor * getattr(line, field) for line in log]
        axes.plot(places, values, color=BLUE, marker="o", ms=4.5, lw=1.6)
        best = [(x, y) for x, y, line in zip(places, values, log, strict=True) if line.epoch == chosen.get(t)]
        if best:
            axes.plot(*best[0], marker="o", ms=11, mfc="none", mec=ORANGE, mew=1.6)
        middle = places[len(places) // 2] if crowded else None
        for x, line in zip(places, log, strict=True):
            if middle is None or x == middle:
                named = tick(t) if x == places[len(places) // 2] else ""
                ticks.append((x, f"{'' if crowded else line.epoch}\n{named}"))
        left = places[-1] + 0.6
    axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
    axes.margins(x=0.06, y=0.15)
    if factor == 100:
        axes.yaxis.set_major_formatter("{x:g} %")


def _panels(summary: Summary, field: Literal["by_category", "by_difficulty"]) -> list[Panel]:
    """One small plot of score by iteration for each group of prompts, all on one scale."""
    rows = [row for row in summary.models if row.model != DIRECT]
    direct = _named(summary, DIRECT)
    scale = score_scale(summary)
    sizes: dict[str, int] = {}
    for row in summary.models:
        for name, found in getattr(row, field).items():
            sizes[name] = max(sizes.get(name, 0), found.n)
    names = sorted(sorted(sizes, key=lambda name: (-sizes[name], name))[:MAX_GROUPS])
    shown = [getattr(row, field)[name] for row in summary.models for name in names if name in getattr(row, field)]
    if not shown:
        return []
    found = []
    for name in names:
        line = Line(BLUE, [(row.iteration, getattr(row, field).get(name)) for row in rows])
        ends = " → ".join(scale.number(each.value) for _, each in (line.known[:1] + line.known[1:][-1:]))
        dashed = getattr(direct, field).get(name) if direct else None
        note = f"{ends or NOTHING} · n {sizes[name]}"
        found.append(panel(name, note, [line], scale=scale, limits=limits_of(shown, scale), dashed=dashed))
    return found
