"""The comparison of two runs: how each model of one scores over the other's, prompt by prompt.

Writes `comparison.json` and `comparison.html` to the folder of the run that thinks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tasks.artifacts import show_markdown
from tasks.estimates import Estimator, grouped, outcome, slug, values_of
from tasks.handles import JudgedSamples
from tasks.kinds import by_kind, wins_of
from tasks.stage import stage_task
from tpo.config.run import RunConfig
from tpo.method.stats import mean, win_rate
from tpo.records import Artifact, Prompt
from tpo.report.comparison import COMPARISON, Comparison, Lead, verdict, write_comparison
from tpo.report.comparison_page import curve_picture, render_comparison
from tpo.report.fine_grained import as_markdown
from tpo.report.summary import FineGrained, Interval, Summary
from tpo.storage.disk import write_atomically
from tpo.storage.ledger import read_ledger
from tpo.storage.store import read_rows

PAGE = "comparison.html"
"""The page's name in the folder of the run that thinks."""
COMPARED_KINDS = "comparison_fine_grained.md"
"""Win rates by kind of prompt, as Markdown, in the same folder."""


@dataclass(frozen=True)
class Arm:
    """One of the two runs being compared."""

    config: RunConfig
    """Its config."""
    summary: Summary
    """Its summary."""
    tests: Sequence[JudgedSamples]
    """Answers of M_0 … M_T to the test prompts."""


@stage_task("compare", run_name="compare")
def compare(
    thinking: Arm, direct: Arm, prompts: Artifact, against: Sequence[JudgedSamples], ratings: Artifact | None = None
) -> Comparison:
    """Compares the run that thinks with the one that answers directly.

    Args:
        thinking: The run with the thought prompt; its folder gets the page.
        direct: The run without it.
        prompts: The test prompts of both.
        against: The thinking models' answers with a comparing judge's judgments of them against the direct ones';
            empty if the judge reads one response at a time.
        ratings: The kinds of the test prompts, by which wins are counted; None for none.
    """
    rows = read_rows(prompts, Prompt)
    confidence = thinking.config.evaluation.confidence
    if against:
        leads = [_head_to_head(t, found, rows, confidence) for t, found in enumerate(against)]
    else:
        ends = zip(thinking.tests, direct.tests, strict=True)
        leads = [_paired(t, one, other, rows, confidence) for t, (one, other) in enumerate(ends)]
    comparison = Comparison(
        thinking=thinking.summary,
        direct=direct.summary,
        measure="win_rate" if against else "difference",
        leads=leads,
        spent={"thinking": _spent(thinking.config), "direct": _spent(direct.config)},
        fine_grained=None if ratings is None else _kinds(thinking, direct, prompts, against, ratings),
    )
    config = thinking.config
    write_atomically(config.root / PAGE, render_comparison(comparison).encode())
    write_atomically(config.root / COMPARISON, write_comparison(comparison))
    picture = curve_picture(comparison)
    show_markdown(
        key=f"tpo-{slug(config.name)}-comparison",
        markdown="\n\n".join(
            [
                *verdict(comparison),
                *([f"![Thinking and direct by iteration]({picture})"] if picture else []),
                *([as_markdown(comparison.fine_grained)] if comparison.fine_grained else []),
                f"The whole page: `{config.place}/{PAGE}`",
            ]
        ),
        description=f"Run {config.name} against {direct.config.name}",
    )
    return comparison


def _kinds(
    thinking: Arm, direct: Arm, prompts: Artifact, against: Sequence[JudgedSamples], ratings: Artifact
) -> FineGrained:
    """Win rates of each thinking model over the direct run's of the same iteration, by kind of prompt."""
    config = thinking.config
    ends = zip(against or thinking.tests, direct.tests, strict=True)
    wins = {f"M_{t}": wins_of(config, one, other) for t, (one, other) in enumerate(ends)}
    found = by_kind(config, prompts, ratings, wins, against=f"the same model of {direct.config.name}")
    write_atomically(config.root / COMPARED_KINDS, as_markdown(found).encode())
    return found


def _paired(
    t: int, thinking: JudgedSamples, direct: JudgedSamples, prompts: Sequence[Prompt], confidence: float
) -> Lead:
    """Differences of scores over the prompts that were scored for both."""
    ours, theirs = values_of(thinking), values_of(direct)
    shared = [prompt.prompt_id for prompt in prompts if prompt.prompt_id in ours and prompt.prompt_id in theirs]
    return _lead(
        t,
        {prompt_id: ours[prompt_id] - theirs[prompt_id] for prompt_id in shared},
        {prompt_id: outcome(ours[prompt_id], theirs[prompt_id]) for prompt_id in shared},
        prompts,
        confidence,
    )


def _head_to_head(t: int, thinking: JudgedSamples, prompts: Sequence[Prompt], confidence: float) -> Lead:
    """Win rates, as judged from both responses together."""
    won = values_of(thinking)
    return _lead(t, won, {prompt_id: outcome(value, 0.5) for prompt_id, value in won.items()}, prompts, confidence)


def _lead(
    t: int,
    leads: Mapping[str, float],
    outcomes: Mapping[str, float],
    prompts: Sequence[Prompt],
    confidence: float,
) -> Lead:
    estimate = Estimator(confidence)

    def groups(key: Callable[[Prompt], object]) -> dict[str, Interval]:
        return grouped(estimate, leads, prompts, key)

    return Lead(
        iteration=t,
        overall=estimate(mean, list(leads.values())),
        by_category=groups(lambda prompt: prompt.category),
        by_difficulty=groups(lambda prompt: prompt.difficulty),
        win_rate=estimate(win_rate, list(outcomes.values())),
    )


def _spent(config: RunConfig) -> dict[str, float]:
    entries = read_ledger(config.root)
    return {
        "tokens": sum(entry.tokens for entry in entries),
        "seconds": sum(entry.seconds for entry in entries),
        "cost": sum(entry.cost for entry in entries),
    }
