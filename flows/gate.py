"""The judges beside a run's own, and the gate that M_t must pass (docs/gate.md)."""

from collections.abc import Sequence
from dataclasses import replace

from tasks.gate import compared_scores, gate
from tasks.handles import BenchmarkAnswers, Candidate, JudgedSamples, baseline_of, second_spec
from tasks.judge import judge
from tasks.report import IterationResult
from tpo.config.run import RunConfig
from tpo.records import Artifact


def ask_second_judges(
    config: RunConfig, t: int, chosen: Candidate, prompts: Artifact, before: IterationResult | None = None
) -> dict[str, JudgedSamples]:
    """The validation answers that M_t was chosen by, by the run's other judges; those of M_{t-1} if M_t is that."""
    samples = chosen.validation.samples
    if before is not None and chosen.validation == before.chosen.validation:
        return dict(before.second)
    found = dict[str, JudgedSamples]()
    for name, other in config.second_judges.items():
        spec = second_spec(config, t, name, other)
        against = baseline_of(spec, samples, before.chosen.validation if before else None)
        found[name] = judge(config, spec, samples, prompts, against)
    return found


def with_gate(
    config: RunConfig, before: IterationResult, after: IterationResult, answered: Sequence[BenchmarkAnswers]
) -> IterationResult:
    """M_t with the gate's decision about it."""
    old, new = ([each for each in answered if each.model == f"M_{m.iteration}"] for m in (before, after))
    compared = compared_scores(config, (before.chosen, before.second), (after.chosen, after.second), (old, new))
    unchanged = after.chosen.validation == before.chosen.validation
    return replace(after, gate=gate(config, after.iteration, compared, unchanged=unchanged))
