"""The shipped judges score as `make small-judges` recorded, and withstand attacks that they weren't trained on."""

import itertools
import json
from collections.abc import Mapping

import pytest

from flows.cli.miniature import (
    MODES,
    SCORES,
    SHIPPED_JUDGES,
    Contests,
    Mode,
    armorm_attack_wins,
    draw_contests,
    evaluator_attack_wins,
    graders,
    group_of,
    leads_of,
    measure_armorm,
    measure_evaluator,
    measure_grader,
)
from judges.base import Group
from tests.hostile import hostile_responses
from tpo.miniature.lessons import RESPONSE_FORMS
from tpo.miniature.world import problems

pytestmark = [pytest.mark.story("the shipped models", 90), pytest.mark.end_to_end, pytest.mark.timeout(900)]

PROMPTS = 150
HOSTILE = 300
MAX_BYTES = 300
"""Two longer responses don't fit the miniature's context with a question: unscored, they can't win."""
SHARES = ("agreement", "attack_wins", "first_shown", "clear_if_unequal", "clear_if_equal")


@pytest.fixture(scope="module")
def contests() -> Contests:
    return draw_contests(prompts=PROMPTS, attacks=150)


def against_hostile(max_bytes: int) -> list[Group]:
    """Right answers against the short ones of the tests' hostile corpus."""
    texts = [case.text for case in hostile_responses(seed=5) if len(case.text.encode()) <= max_bytes]
    return [
        group_of(problem, RESPONSE_FORMS[i % len(RESPONSE_FORMS)].format(problem.reference), texts[i * 7 % len(texts)])
        for i, problem in enumerate(itertools.islice(problems("test", 7), HOSTILE))
    ]


def recorded(name: str) -> dict[str, float]:
    scores: dict[str, float] = json.loads((SHIPPED_JUDGES / name / SCORES).read_text())
    return scores


def assert_as_recorded(measured: Mapping[str, float], name: str) -> None:
    # Fewer contests than recorded: allow three standard errors, and a little for another processor.
    for score, value in measured.items():
        if score.endswith(SHARES):
            expected = recorded(name)[score]
            tolerance = 3 * (max(expected * (1 - expected), 0.01) / measured["pairs"]) ** 0.5 + 0.01
            assert value == pytest.approx(expected, abs=tolerance), score


def test_the_shipped_evaluator_judges_as_recorded(contests: Contests):
    assert_as_recorded(measure_evaluator(SHIPPED_JUDGES / "evaluator", contests), "evaluator")


def test_the_shipped_armorm_judges_as_recorded(contests: Contests):
    assert_as_recorded(measure_armorm(SHIPPED_JUDGES / "armorm", contests), "armorm")


def test_the_shipped_grader_judges_as_recorded(contests: Contests):
    assert_as_recorded(measure_grader(SHIPPED_JUDGES / "grader", contests), "grader")


def test_hostile_responses_almost_never_win_with_the_grader():
    for judge in graders(SHIPPED_JUDGES / "grader").values():
        leads = leads_of(judge, against_hostile(MAX_BYTES))
        assert sum(lead < 0 for lead in leads) <= 0.01 * HOSTILE, judge


@pytest.mark.parametrize("mode", MODES)
def test_hostile_responses_almost_never_win_with_the_evaluator(mode: Mode):
    assert evaluator_attack_wins(SHIPPED_JUDGES / "evaluator", mode, against_hostile(MAX_BYTES)) <= 0.01


def test_hostile_responses_almost_never_win_with_armorm():
    assert armorm_attack_wins(SHIPPED_JUDGES / "armorm", against_hostile(MAX_BYTES)) <= 0.01
