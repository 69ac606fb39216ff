"""Claims about what judges get to see; they hold for every judge that a profile can name."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from judges.base import groups_of
from judges.registry import build_judge
from prompts.thought import VARIANTS
from tasks.judge import make_scores
from tasks.sample import make_samples
from tests.rows import a_prompt, a_sample
from tpo.config import JudgeConfig
from tpo.engines.sampler import Output, Request
from tpo.records import Sample

CANARY = "kanarienvogel"


def configs_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from configs_in(part)


JUDGES = list(configs_in(JudgeConfig))


def sampled(*outputs: str) -> list[Sample]:
    made = [[Output([7], text, True, 1) for text in outputs]]
    return make_samples([a_prompt(reference="yes")], [Request([1], 0)], made, VARIANTS["specific"])


@pytest.mark.parametrize("config", JUDGES)
def test_every_judge_a_profile_can_name_can_be_built(config: type[BaseModel]):
    assert build_judge(config()) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("with_errors", [False, True])
@pytest.mark.parametrize("config", JUDGES)
def test_a_thought_reaches_no_judge(config: type[BaseModel], with_errors: bool):
    samples = sampled(f"{CANARY} <R> yes", f"{CANARY}{CANARY}\n<R>no")
    assert all(CANARY in sample.thought for sample in samples)
    judge = build_judge(config())  # type: ignore[arg-type]
    groups = groups_of([a_prompt(reference="yes")], samples, with_errors=with_errors)
    said = [judgment for judgments in judge.judge(groups) for judgment in judgments]
    scores = make_scores(samples, groups, said, judge)
    assert CANARY not in repr((groups, said, scores))
    assert [score.index for score in scores] == [0, 1]


def test_the_thought_of_a_malformed_output_reaches_no_judge_that_trains():
    samples = sampled(f"{CANARY} and no marker", f"{CANARY} <R> a <R> b", "hm <R> yes")
    assert CANARY not in repr(groups_of([a_prompt()], samples, with_errors=False))


def test_malformed_outputs_are_left_out_of_training_groups_and_kept_in_evaluation():
    samples = [a_sample("p", 1), a_sample("p", 0, parse_error="cut_by_length"), a_sample("q", 0, parse_error="x")]
    prompts = [a_prompt("q"), a_prompt("p"), a_prompt("nobody asked")]
    seen = {flag: groups_of(prompts, samples, with_errors=flag) for flag in (False, True)}
    assert [(g.prompt_id, [r.index for r in g.responses]) for g in seen[False]] == [("p", [1])]
    assert [(g.prompt_id, [r.index for r in g.responses]) for g in seen[True]] == [("q", [0]), ("p", [0, 1])]


def test_a_sample_that_was_not_judged_is_unscored_by_its_parse_error():
    samples = [a_sample(index=0), a_sample(index=1, parse_error="empty_response")]
    judge = build_judge(JUDGES[0]())  # type: ignore[arg-type]
    groups = groups_of([a_prompt(reference="yes")], samples, with_errors=False)
    said = [judgment for judgments in judge.judge(groups) for judgment in judgments]
    scored, unscored = make_scores(samples, groups, said, judge)
    assert (scored.value, scored.unscored) == (1.0, None)
    assert (unscored.value, unscored.unscored) == (None, "parse_error: empty_response")
