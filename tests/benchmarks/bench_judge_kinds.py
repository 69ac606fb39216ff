"""Judges side by side on the miniature: how far each agrees with the references, and how many calls and tokens it took.

Prints a table: `python -m tests.benchmarks.bench_judge_kinds [prompts]`, by default 100 test prompts with 8 samples of
M_0 each, with real engines. Agreement counts pairs of a right and a wrong response to one prompt (`judges.health`): 0.5
is a coin. A call is a comparison or a response read; tokens are those read and written. The shipped judges are
ArmoRM, the evaluator and the grader.
"""

import itertools
import sys
from collections import Counter
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from flows.cli.miniature import _writer
from judges.base import Group, Response
from judges.health import measure_health
from judges.registry import build_judge
from prompts.thought import VARIANTS
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.judges import JudgeConfig, VerifierJudge
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.engines import open_engines
from tpo.engines.inference.reply import TokenCount
from tpo.miniature.world import problems
from tpo.records import Score

PROMPTS, SAMPLES = 100, 8
ARMORM: dict[str, Any] = {"kind": "armorm"}
DUEL: dict[str, Any] = {"kind": "pairwise", "mode": "cot", "tournament": "adaptive"}
QUICK: dict[str, Any] = {"kind": "pairwise", "mode": "probability", "tournament": "adaptive"}


def together(*judges: tuple[dict[str, Any], float], **settings: Any) -> dict[str, Any]:
    """An ensemble of judges with their weights."""
    members = [{"name": f"m{i}", "judge": judge, "weight": w, "unit": 1.0} for i, (judge, w) in enumerate(judges)]
    return {"kind": "ensemble", "members": members, **settings}


JUDGES: dict[str, dict[str, Any]] = {
    "ArmoRM": ARMORM,
    "evaluator, probability, adaptive": QUICK,
    "evaluator, cot, adaptive": DUEL,
    "evaluator, cot, all pairs": DUEL | {"tournament": "all_pairs"},
    "grader": {"kind": "rubric"},
    "grader, expected score": {"kind": "rubric", "expected_score": True},
    "mean of ArmoRM and cot": together((ARMORM, 1.0), (DUEL, 1.0)),
    "mean of ArmoRM and cot, 1:4": together((ARMORM, 1.0), (DUEL, 4.0)),
    "worst of ArmoRM and cot": together((ARMORM, 1.0), (DUEL, 1.0), combine="worst"),
    "ArmoRM, cot below 0.5, 1:4": together((ARMORM, 1.0), (DUEL, 4.0), escalate_below=0.5),
    "ArmoRM, cot below 1, 1:4": together((ARMORM, 1.0), (DUEL, 4.0), escalate_below=1.0),
}


def sampled(prompts: int) -> list[Group]:
    """Test prompts with the distinct parsed responses of M_0."""
    asked = list(itertools.islice(problems("test", 0), prompts))
    with _writer(SHIPPED_SEED_MODEL) as write:
        answers = write(VARIANTS["generic"], asked, SAMPLES)
    groups = []
    for problem, parsed in zip(asked, answers, strict=True):
        responses = [Response(i, found.response) for i, found in enumerate(parsed) if found.error is None]
        if responses:
            groups.append(Group(problem.instruction, problem.instruction, problem.reference, tuple(responses)))
    return groups


def main() -> None:
    """Samples, has every judge score the samples, and prints the table."""
    groups = sampled(int(sys.argv[1]) if len(sys.argv) > 1 else PROMPTS)
    count = sum(len(group.responses) for group in groups)
    print(f"{len(groups)} prompts, {count} responses")
    print(f"{'judge':34s} {'agreement':>16s} {'calls':>7s} {'tokens':>9s} {'escalated':>9s} {'members agree':>13s}")
    for name, values in JUDGES.items():
        judge = build_judge(
            TypeAdapter(JudgeConfig).validate_python(values), JudgeEngineConfig(), ClusterConfig(), TokenCount()
        )
        spent = Counter[str]()

        def spend(tokens: TokenCount, spent: Counter[str] = spent) -> None:
            spent.update(calls=1, tokens=tokens.input_tokens + tokens.output_tokens)

        rows = list(judge.judge(groups, None, spend))
        scores = [score for group, found in zip(groups, rows, strict=True) for score in judge.score(group, found)]
        judgments = [judgment for found in rows for judgment in found]
        health = measure_health(groups, judgments, scores, VerifierJudge(), judge)
        share, pairs = health.reference_agreement or 0.0, health.reference_pairs
        error = agreement_error(groups, scores, share)
        print(
            f"{name:34s} {share:7.3f} ± {error:.3f} {spent['calls']:7d} {spent['tokens']:9d} "
            f"{_of(health.escalated, health.escalatable):>9s} "
            f"{'' if health.agreeing_pairs is None else format(health.agreeing_pairs, '.3f'):>13s}   ({pairs} pairs)",
            flush=True,
        )


def _of(part: int, whole: int) -> str:
    return f"{part}/{whole}" if whole else ""


def agreement_error(groups: list[Group], scores: list[Score], share: float) -> float:
    """The standard error of the agreement over prompts: pairs of one prompt aren't independent."""
    by_prompt: dict[str, list[Score]] = {}
    for score in scores:
        by_prompt.setdefault(score.prompt_id, []).append(score)
    away, total = [], 0
    for group in groups:
        health = measure_health([group], [], by_prompt[group.prompt_id], VerifierJudge())
        if health.reference_pairs:
            away.append(health.reference_pairs * ((health.reference_agreement or 0.0) - share))
            total += health.reference_pairs
    return float(np.sqrt(np.sum(np.square(away))) / total) if total else 0.0


if __name__ == "__main__":
    with open_engines():
        main()
