"""The gate after an iteration: M_t is promoted only if it is shown not to be worse than M_{t-1} on the named scores.

The test is `tpo.method.non_inferiority`, over the prompts that both models have a score for. Scores that are shares
(verifiers, accuracy, shares of comparisons won) are compared by their means. A reward model's are in a unit of its own,
so there the share of prompts is counted on which M_t scores higher, minus one half. A judge that compares has seen both
models' answers together.

The decision is a stage: it is remade if a score or a setting of the gate changes, and nothing else depends on these
settings, so that another margin needs no model to be remade. If M_t is M_{t-1} itself, there is nothing to test.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from tasks.estimates import outcome, values_of
from tasks.handles import BenchmarkAnswers, Candidate, ComparedScores, JudgedSamples
from tasks.stage import complete_or_begun, stage_task
from tpo.config.gate import OF_VALIDATION, VALIDATION, GateConfig, counts_wins, loss_of_a_prompt
from tpo.config.judges import compares, judge_name
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.method.non_inferiority import Outcome, paired_test
from tpo.records import Artifact, GateDecision, GateScore
from tpo.storage.store import Stage, read_rows

EVEN = 0.5
"""A model's share against itself."""


@stage_task("gate", run_name="gate iteration {iteration}")
def gate(
    config: RunConfig, iteration: int, compared: Sequence[ComparedScores], *, unchanged: bool = False
) -> GateDecision:
    """Whether M_t is promoted; `unchanged` if it is M_{t-1} itself."""
    accepted = iteration in config.gate.accept
    stage = gate_stage(config, iteration, compared, unchanged=unchanged)
    if (done := complete_or_begun(stage)) is None:
        stage.write_shard(0, [judge_score(each, config.gate, unchanged=unchanged) for each in compared])
        done = stage.commit(1)
    decision = decide(read_rows(done, GateScore), accepted=accepted)
    say(f"{stage.name}: M_{iteration} is {'' if decision.promoted else 'not '}promoted{_how(decision, unchanged)}")
    return decision


def gate_stage(config: RunConfig, iteration: int, compared: Sequence[ComparedScores], *, unchanged: bool) -> Stage:
    """The gate's findings about M_t."""
    inputs = dict[str, Artifact]()
    for each in compared:
        sides = {"before": each.before, "after": each.after, "baseline": each.baseline}
        inputs |= {f"{each.name} {side}": answers.scores for side, answers in sides.items() if answers is not None}
    return Stage(
        config.root,
        f"iter_{iteration}/gate",
        GateScore,
        inputs=inputs,
        config={"gate": config.gate.model_dump(mode="json", exclude={"accept"}), "unchanged": unchanged},
    )


def decide(scores: Sequence[GateScore], *, accepted: bool) -> GateDecision:
    """The decision that follows from what was found."""
    passed = all(each.passed for each in scores)
    return GateDecision(passed or accepted, accepted and not passed, scores)


def _how(decision: GateDecision, unchanged: bool) -> str:
    if unchanged:
        return ": it is the model before it"
    if decision.accepted:
        return " since gate.accept has it"
    failed = [each.score for each in decision.scores if not each.passed]
    return f" ({', '.join(failed)})" if failed else f": not worse on {', '.join(s.score for s in decision.scores)}"


def compared_scores(
    config: RunConfig,
    before: tuple[Candidate, Mapping[str, JudgedSamples]],
    after: tuple[Candidate, Mapping[str, JudgedSamples]],
    benchmarks: tuple[Sequence[BenchmarkAnswers], Sequence[BenchmarkAnswers]],
) -> list[ComparedScores]:
    """The scores of `config.gate` for M_{t-1} and M_t: each with its other judges' scores, and with its answers to the
    benchmarks."""
    judges = {VALIDATION: config.judge, **config.second_judges}
    answers = [{VALIDATION: candidate.validation, **others} for candidate, others in (before, after)]
    old, new = ({each.of.benchmark.title: each for each in found} for found in benchmarks)
    return [
        ComparedScores(
            name,
            judges[name],
            answers[0][name],
            answers[1][name],
            wins=counts_wins(judges[name]),
            together=compares(judges[name]),
        )
        if name in OF_VALIDATION
        else _of_benchmark(config, name, old[name], new[name])
        for name in config.gate.scores
    ]


def _of_benchmark(config: RunConfig, name: str, before: BenchmarkAnswers, after: BenchmarkAnswers) -> ComparedScores:
    benchmark = after.of.benchmark
    judge = benchmark.verifier or config.evaluation.judge
    # A reward model's scores of AlpacaEval or Arena-Hard count by whether they are above the baseline's.
    baseline = after.baseline if benchmark.compares and not compares(judge) else None
    wins = counts_wins(judge, benchmark)
    return ComparedScores(name, judge, before.answers, after.answers, wins=wins, baseline=baseline)


def judge_score(compared: ComparedScores, config: GateConfig, *, unchanged: bool = False) -> GateScore:
    """What the test says about one score."""
    before, after = _values(compared)
    shared = sorted(before.keys() & after.keys())
    differences = _differences(compared, [(before[i], after[i]) for i in shared])
    margin, found = config.margin_of(compared.name), None
    if shared and not unchanged:
        loss = loss_of_a_prompt(wins=compared.wins)
        found = paired_test(differences, margin=margin, confidence=config.confidence, loss=loss)
    result: Outcome | Literal["unscored"] = "not_worse"
    if not unchanged:
        scored = len(shared) >= config.min_scored_share * len(before)
        result = found.outcome if found is not None and scored else "unscored"
    same = 0.0 if unchanged else None
    return GateScore(
        score=compared.name,
        judge=judge_name(compared.judge),
        compared="wins" if compared.wins else "scores",
        prompts=len(shared),
        missing=len(before) - len(shared),
        before=None if compared.together else _mean([before[i] for i in shared]),
        after=_mean([after[i] for i in shared]),
        difference=found.difference.value if found else same,
        low=found.difference.low if found else same,
        high=found.difference.high if found else same,
        margin=margin,
        outcome=result,
        needed=found.needed if found is not None and result == "unclear" else None,
    )


def _values(compared: ComparedScores) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Both models' scores by prompt; against a baseline, 1 for a prompt won, 0 for one lost."""
    before, after = values_of(compared.before), values_of(compared.after)
    if compared.baseline is None:
        return before, after
    base = values_of(compared.baseline)
    old, new = ({i: outcome(value, base[i]) for i, value in own.items() if i in base} for own in (before, after))
    return old, new


def _differences(compared: ComparedScores, scores: Sequence[tuple[float, float]]) -> list[float]:
    """By prompt, what the new model is better by."""
    if compared.together:
        return [after - EVEN for _, after in scores]
    if compared.wins:
        return [outcome(after, before) - EVEN for before, after in scores]
    return [after - before for before, after in scores]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
