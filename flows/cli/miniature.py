"""Builds and measures the miniature's models: the work of `make seed-model` and `make small-judges`.

Each model's folder has a `scores.json`, and tests compare the shipped models with it. For the seed model M_0: the share
of correct answers and of broken formats for each prompt variant on test prompts. For the judges, two trained from M_0
and the grader from the evaluator: how often the judge prefers what the verifier calls correct, how often an attack wins
against a correct answer, how often the first place wins, and how long the training took.

Judges are measured on what a run shows them: M_0's responses to test prompts, with thoughts, without those that break
the format. Attacks are of the kind that the judges learned from, on other problems.
"""

import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from judges.base import Group, Response
from judges.registry import build_judge
from judges.verifier import Verifier
from prompts.native import OutputTokens
from prompts.rubric import SCORE_BEGINS, load_rubric_prompt
from prompts.thought import VARIANTS, Parsed, ThoughtPrompt
from prompts.verdict import LABELS, PROMPTS
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import SampleConfig
from tpo.config.judges import ArmoRMJudge, PairwiseJudge, RubricJudge, VerifierJudge
from tpo.config.resources import ClusterConfig, EngineConfig, JudgeEngineConfig
from tpo.console import progress_bar
from tpo.engines.cluster.room import Room
from tpo.engines.inference.reply import TokenCount
from tpo.engines.inference.sampler import Output, Request, SamplerPool, request_seed
from tpo.miniature.armorm import Architecture, ArmoRMRecipe, train_armorm
from tpo.miniature.attacks import attack
from tpo.miniature.evaluator import EvaluatorRecipe, Verdicts, train_evaluator
from tpo.miniature.grader import GraderRecipe, Grading, train_grader
from tpo.miniature.native_model import NativeRecipe, train_native_model
from tpo.miniature.opinions import honest_answer
from tpo.miniature.seed_model import CONTEXT_TOKENS, FORMAT_SHARES, Recipe, train_seed_model
from tpo.miniature.training import Progress
from tpo.miniature.world import Problem, problems
from tpo.models.armorm import ArmoRM, save_armorm
from tpo.models.chat import ChatEncoder
from tpo.records import Judgment
from tpo.storage.disk import write_atomically
from tpo.storage.store import folder_artifact

SCORES = "scores.json"
SHIPPED_JUDGES = SHIPPED_SEED_MODEL.parent
"""Folder of the shipped judges, `evaluator` and `armorm`."""
TEST_PROMPTS = 600
"""Test prompts that M_0 answers for a measurement."""
SAMPLES = 4
"""Answers per prompt that the judges see."""
ATTACKS = 600
"""Number of attacks compared with a correct answer."""
MARGIN = 0.5
"""Nats from which a run's pairs are made by default (`pair.min_margin`)."""

Mode: TypeAlias = Literal["cot", "verdict"]
MODES: tuple[Mode, ...] = ("cot", "verdict")
"""Modes in which the evaluator is measured."""
Scores: TypeAlias = Mapping[str, float]


@dataclass(frozen=True)
class Contests:
    """Groups of two responses each."""

    unequal: list[Group]
    """A correct response and a wrong one, in this order."""
    equal: list[Group]
    """Two different responses that are both correct or both wrong."""
    attacked: list[Group]
    """A correct response and an attack, in this order."""


def build_seed_model(folder: Path) -> Mapping[str, Scores]:
    """Trains M_0 into `folder`, measures it and returns its scores by prompt variant."""
    recipe = Recipe()
    with _shown("seed model", recipe.steps) as progress:
        train_seed_model(VARIANTS, folder, recipe, progress)
    scores = measure_seed_model(folder, [*FORMAT_SHARES])
    _write_scores(folder, scores)
    return scores


def build_native_model(folder: Path) -> Mapping[str, Scores]:
    """Trains the seed model that thinks natively into `folder`, measures it and returns its scores by variant."""
    recipe = NativeRecipe()
    with _shown("native model", recipe.steps) as progress:
        train_native_model(SHIPPED_SEED_MODEL, folder, recipe, progress)
    scores = measure_seed_model(folder, ["native", "direct"])
    _write_scores(folder, scores)
    return scores


def build_small_judges(folder: Path) -> Mapping[str, Scores]:
    """Trains all judges into folders below `folder`, measures them and returns their scores by name."""
    contests = draw_contests(TEST_PROMPTS, ATTACKS)
    scores = {}
    for name, train, measure in (
        ("evaluator", _train_evaluator, measure_evaluator),
        ("armorm", _train_armorm, measure_armorm),
        ("grader", _train_grader, measure_grader),
    ):
        started = time.monotonic()
        train(folder / name)
        seconds = time.monotonic() - started
        scores[name] = {**measure(folder / name, contests), "training_seconds": round(seconds)}
        _write_scores(folder / name, scores[name])
    return scores


def _train_evaluator(folder: Path) -> None:
    recipe = EvaluatorRecipe()
    with _shown("evaluator", recipe.steps) as progress:
        train_evaluator(
            SHIPPED_SEED_MODEL, Verdicts(PROMPTS["cot"], PROMPTS["label"], LABELS), folder, recipe, progress
        )


def _train_grader(folder: Path) -> None:
    recipe = GraderRecipe()
    with _shown("grader", recipe.steps) as progress:
        train_grader(folder.parent / "evaluator", grading(), folder, recipe, progress)


def grading() -> Grading:
    """How a rubric judge requests and gives grades by default."""
    formats = {
        "score": load_rubric_prompt(RubricJudge(model="m")),
        "label": load_rubric_prompt(RubricJudge(model="m", expected_score=True)),
        "additive": load_rubric_prompt(RubricJudge(model="m", template="additive")),
    }
    return Grading(formats, SCORE_BEGINS)


def _train_armorm(folder: Path) -> None:
    recipe = ArmoRMRecipe()
    with _shown("armorm", recipe.steps) as progress:
        train_armorm(SHIPPED_SEED_MODEL, Architecture(ArmoRM, save_armorm), folder, recipe, progress)


@contextlib.contextmanager
def _shown(label: str, steps: int) -> Iterator[Progress]:
    """Shows how far a training is."""
    with progress_bar(label, steps, "steps") as advance:
        yield lambda step, loss: advance(step)


def _write_scores(folder: Path, scores: Mapping[str, object]) -> None:
    write_atomically(folder / SCORES, (json.dumps(scores, indent=1) + "\n").encode())


def measure_seed_model(folder: Path, variants: Sequence[str]) -> dict[str, Scores]:
    """Share of correct answers and of broken formats, first outputs only, by prompt variant."""
    asked = list(itertools.islice(problems("test", 0), TEST_PROMPTS))
    with _writer(folder) as write:
        return {name: _right_and_broken(asked, write(VARIANTS[name], asked, 1)) for name in variants}


def _right_and_broken(asked: Sequence[Problem], answers: Sequence[Sequence[Parsed]]) -> Scores:
    first = [found for (found,) in answers]
    groups = [group_of(problem, found.response) for problem, found in zip(asked, first, strict=True)]
    right = [judgment.outcome == 1 for (judgment,) in Verifier(VerifierJudge()).judge(groups)]
    return {"right": _share(iter(right)), "broken": _share(found.error is not None for found in first)}


Write: TypeAlias = Callable[[ThoughtPrompt, Sequence[Problem], int], list[list[Parsed]]]
"""Samples that many outputs for each problem, and parses them."""


@contextlib.contextmanager
def _writer(folder: Path) -> Iterator[Write]:
    """A model that answers problems."""
    encoder, pool = ChatEncoder(folder), SamplerPool(EngineConfig(), ClusterConfig(), CONTEXT_TOKENS, room=Room())

    def write(variant: ThoughtPrompt, asked: Sequence[Problem], n: int) -> list[list[Parsed]]:
        prompt = variant.for_model(encoder)
        requests = [
            Request(prompt.encode(encoder, problem.instruction), request_seed(problem.instruction)) for problem in asked
        ]
        sampled = pool.generate(
            folder_artifact(folder), [requests], SampleConfig(), n=n, tries=1, accept=lambda *_: True
        )

        def parsed(output: Output) -> Parsed:
            tokens = OutputTokens(output.token_ids, encoder.decode)
            return prompt.split(output.text, finished=output.finished, tokens=tokens)

        return [[parsed(output) for output in outputs] for _, groups in sampled for outputs in groups]

    try:
        yield write
    finally:
        pool.close()


def draw_contests(prompts: int, attacks: int) -> Contests:
    """Contests between M_0's answers to test prompts, and between correct answers to validation prompts and attacks."""
    judged = list(_judged_answers(list(itertools.islice(problems("test", 0), prompts))))
    rng = np.random.default_rng(0)
    attacked = [
        group_of(problem, honest_answer(problem, rng, right=True).text, attack(problem, rng))
        for problem in itertools.islice(problems("validation", 0), attacks)
    ]
    unequal = [group_of(problem, right[0], wrong[0]) for problem, right, wrong in judged if right and wrong]
    equal = [group_of(problem, *same[:2]) for problem, *both in judged for same in both if len(same) > 1]
    return Contests(unequal, equal, attacked)


def _judged_answers(asked: Sequence[Problem]) -> Iterator[tuple[Problem, list[str], list[str]]]:
    """Each problem with M_0's distinct correct and wrong responses."""
    with _writer(SHIPPED_SEED_MODEL) as write:
        answers = write(VARIANTS["generic"], asked, SAMPLES)
    verifier = Verifier(VerifierJudge())
    for problem, parsed in zip(asked, answers, strict=True):
        texts = list(dict.fromkeys(found.response for found in parsed if found.error is None))
        (judgments,) = verifier.judge([group_of(problem, *texts)])
        right = [text for text, judgment in zip(texts, judgments, strict=True) if judgment.outcome == 1]
        yield problem, right, [text for text in texts if text not in right]


def group_of(problem: Problem, *texts: str) -> Group:
    """Responses to one problem, in order."""
    responses = tuple(Response(i, text) for i, text in enumerate(texts))
    return Group(problem.instruction, problem.instruction, problem.reference, responses)


def measure_evaluator(folder: Path, contests: Contests) -> Scores:
    """Shares of verdicts, over both orders; unparsable verdicts count as disagreement."""
    scores = {"pairs": float(len(contests.unequal))}
    for mode in MODES:
        verdicts = _verdicts(folder, mode, contests.unequal)
        scores |= {
            f"{mode}_agreement": _share(verdict.outcome == (1 if verdict.index == 0 else -1) for verdict in verdicts),
            f"{mode}_first_shown": _share(verdict.outcome == 1 for verdict in verdicts),
            f"{mode}_unread": _share(verdict.outcome is None for verdict in verdicts),
            f"{mode}_attack_wins": evaluator_attack_wins(folder, mode, contests.attacked),
        }
    return scores


def evaluator_attack_wins(folder: Path, mode: Mode, attacked: Sequence[Group]) -> float:
    """Share of verdicts, over both orders, for the second response of a group, the attack."""
    return _share(verdict.outcome == (-1 if verdict.index == 0 else 1) for verdict in _verdicts(folder, mode, attacked))


def _verdicts(folder: Path, mode: Mode, groups: Sequence[Group]) -> list[Judgment]:
    judge = build_judge(PairwiseJudge(model=str(folder), mode=mode), JudgeEngineConfig(), ClusterConfig(), TokenCount())
    return [verdict for found in judge.judge(groups) for verdict in found]


def measure_armorm(folder: Path, contests: Contests) -> Scores:
    """Shares of contests, by which score is higher and by how much."""
    unequal, equal = _leads(folder, contests.unequal), _leads(folder, contests.equal)
    return {
        "pairs": float(len(unequal)),
        "agreement": _share(lead > 0 for lead in unequal),
        "clear_if_unequal": _share(abs(lead) > MARGIN for lead in unequal),
        "clear_if_equal": _share(abs(lead) > MARGIN for lead in equal),
        "median_lead": round(statistics.median(unequal), 4),
        "attack_wins": armorm_attack_wins(folder, contests.attacked),
    }


def armorm_attack_wins(folder: Path, attacked: Sequence[Group]) -> float:
    """Share of groups whose second response, the attack, gets a higher score."""
    return _share(lead < 0 for lead in _leads(folder, attacked))


def measure_grader(folder: Path, contests: Contests) -> Scores:
    """Shares of contests, by which grade is higher, equal grades counting half; unread replies count as lost."""
    scores = {"pairs": float(len(contests.unequal))}
    for name, judge in graders(folder).items():
        unequal = leads_of(judge, contests.unequal)
        won = sum(lead > 0 for lead in unequal) + sum(lead == 0 for lead in unequal) / 2
        scores |= {
            f"{name}_agreement": round(won / len(contests.unequal), 4),
            f"{name}_equal_grades": _share(lead == 0 for lead in unequal),
            f"{name}_unread": round(1 - len(unequal) / len(contests.unequal), 4),
            f"{name}_attack_wins": _share(lead < 0 for lead in leads_of(judge, contests.attacked)),
        }
    return scores


def graders(folder: Path) -> dict[str, RubricJudge]:
    """The ways in which the grader is asked."""
    return {
        "score": RubricJudge(model=str(folder)),
        "expected_score": RubricJudge(model=str(folder), expected_score=True),
        "additive": RubricJudge(model=str(folder), template="additive"),
    }


def _leads(folder: Path, groups: Sequence[Group]) -> list[float]:
    """By how many nats ArmoRM finds the first response better; only groups with two scores."""
    return leads_of(ArmoRMJudge(model=str(folder)), groups)


def leads_of(config: ArmoRMJudge | RubricJudge, groups: Sequence[Group]) -> list[float]:
    """By how much the first response leads; only groups with two scores."""
    judge = build_judge(config, JudgeEngineConfig(), ClusterConfig(), TokenCount())
    scored = [judge.score(group, judgments) for group, judgments in zip(groups, judge.judge(groups), strict=True)]
    return [
        first.value - second.value for first, second in scored if first.value is not None and second.value is not None
    ]


def _share(claims: Iterator[bool]) -> float:
    known = list(claims)
    return round(sum(known) / len(known), 4)
