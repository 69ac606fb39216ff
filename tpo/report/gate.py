"""What the gate decided, in words: for the error that ends a run, for its page, and for its table."""

import math

from tpo.config.gate import VALIDATION
from tpo.config.run import RunConfig
from tpo.errors import GateError
from tpo.records import GateScore
from tpo.report.summary import REPORT, ModelRow, Summary
from tpo.report.table import PERCENT, ScoreScale, scale_of

OUTCOMES = {
    "not_worse": "not worse",
    "worse": "worse",
    "unclear": "not shown to be as good",
    "unscored": "too few prompts are scored",
}
"""The outcomes of a test, in words."""


def check_gate(config: RunConfig, summary: Summary, iterations: int) -> None:
    """Raises `GateError` if the last model of a summary wasn't promoted and M_T, T = `iterations`, needs it."""
    last = summary.models[-1]
    if not last.promoted and iterations >= last.iteration:
        raise GateError(config.root, why_stopped(config, last))


def why_stopped(config: RunConfig, last: ModelRow) -> str:
    """Why a run stops at a model that wasn't promoted, and how it can continue."""
    assert last.gate is not None
    t, failed = last.iteration, [score for score in last.gate.scores if not score.passed]
    lines = [f"the gate of run {config.name} doesn't promote M_{t}, so the loop stops before M_{t + 1}:"]
    lines += [f"  {sentence(score)}" for score in last.gate.scores]
    lines.append("What is complete is kept, and changing [gate] remakes none of it. To continue:")
    lines.append(f'  SET="gate.accept=[{t}]" continues from M_{t} as it is')
    if (settings := _larger_margin(config, failed)) is not None:
        lines.append(f'  SET="{settings}" allows a model to be that much worse{_more_prompts(failed)}')
    lines.append(f"  another M_{t}: change what it is trained with, such as train.learning_rate or pair.rho")
    lines.append(f"Report: {config.place}/{REPORT}")
    return "\n".join(lines)


def _larger_margin(config: RunConfig, failed: list[GateScore]) -> str | None:
    """The margins at which it would pass, rounded up; None if no margin would do."""
    if any(score.outcome == "unscored" or score.low is None for score in failed):
        return None
    needed = {score.score: math.ceil(-1000 * (score.low or 0.0)) / 1000 for score in failed}
    own = [f"gate.margins.{name}={value:g}" for name, value in needed.items() if name in config.gate.margins]
    shared = [value for name, value in needed.items() if name not in config.gate.margins]
    return " ".join([*([f"gate.margin={max(shared):g}"] if shared else []), *own])


def _more_prompts(failed: list[GateScore]) -> str:
    """How many prompts would settle what is unclear."""
    needed = {score.score: score.needed for score in failed if score.outcome == "unclear" and score.needed}
    if len(needed) < len(failed) or not needed:
        return ""
    most = max(needed, key=lambda name: needed[name] or 0)
    return f"; the current one would be enough if about {needed[most]:,} prompts showed the same difference ({most})"


def sentence(score: GateScore) -> str:
    """What was found about one score."""
    name = f"{score.score}, by {score.judge}"
    outcome = OUTCOMES[score.outcome]
    if score.difference is None or score.low is None or score.high is None:
        return f"{name}: no prompt has a score for both models: {outcome}"
    scale = scale_of_gate(score)
    ends = f"[{scale.number(score.low, signed=True)}, {scale.number(score.high, signed=True)}]"
    lacking = f", {score.missing:,} without a score for the new model" if score.missing else ""
    return (
        f"{name}: {change(score)} on {score.prompts:,} prompts{lacking}; "
        f"{scale.number(score.difference, signed=True)}{scale.unit} {ends}, allowed "
        f"{scale.number(-score.margin, signed=True)}: {outcome}"
    )


def change(score: GateScore) -> str:
    """Both models' scores, or the share that the new one won."""
    if score.compared == "wins" and score.difference is not None:
        return f"{PERCENT.number(0.5 + score.difference)} % won"
    scale = scale_of_gate(score)
    return f"{scale.number(score.before)} → {scale.number(score.after)}"


def scale_of_gate(score: GateScore) -> ScoreScale:
    """How the score's numbers are written."""
    if score.compared == "wins":
        return PERCENT
    return scale_of(value for value in (score.before, score.after) if value is not None)


def overfitting(rows: list[ModelRow]) -> list[str]:
    """Where the run's judge sees a gain and another judge of the same answers a loss, as sentences."""
    found = []
    for row in rows:
        own = next((each.change for each in row.opinions if each.name == VALIDATION), None)
        for other in row.opinions:
            if (
                other.name == VALIDATION
                or own is None
                or other.change is None
                or own.low <= 0
                or other.change.high >= 0
            ):
                continue
            found.append(
                f"{row.model} looks overfitted to its judge: on the same validation answers, the run's judge scores it "
                f"higher than M_{row.iteration - 1}, but the {other.judge} lower."
            )
    return found
