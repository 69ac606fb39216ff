"""Claims about the judge that knows the right answers."""

import json

import pytest

from judges.base import Group, Response
from judges.math_checker import MathChecker
from judges.verifier import Verifier
from tpo.config.judges import VerifierJudge
from tpo.records import Judgment, Score


def scores_of(config: VerifierJudge, reference: str | None, *responses: str) -> list[Score]:
    judge = Verifier(config)
    group = Group("p", "Why?", reference, tuple(Response(i, text) for i, text in enumerate(responses)))
    (judgments,) = judge.judge([group])
    return judge.score(group, judgments)


def is_right(response: str, reference: str, **config: object) -> bool | None:
    (score,) = scores_of(VerifierJudge.model_validate(config), reference, response)
    return score.correct


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("red hat", "red hat"),
        ("  Red\n hat. ", "red hat"),
        ("**Paris**", "paris"),
        ("“Paris”", "Paris"),
        ("The answer is red hat. I hope this helps.", "red hat"),
        ("THE ANSWER IS: Paris!", "Paris"),
        ("The answer is 3. No, the answer is 4.", "4"),
        ("The answer is 3.14.", "3.14"),
        ("The answer is .5.", ".5"),
        ("-5", "-5"),
        ("<", "<"),
        ("?", "?"),
    ],
)
def test_an_equal_answer_is_right(response: str, reference: str):
    assert is_right(response, reference) is True


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("blue hat", "red hat"),
        ("-5", "5"),
        ("The answer is 3.14.", "3"),
        (".5", "5"),
        ("<", ">"),
        ("", "?"),
        ("", "yes"),
        ("The answer is 4. No, the answer is 3.", "4"),
        ("It is 4. The answer is large.", "4"),
        ("1/2", "0.5"),
    ],
)
def test_another_answer_is_wrong(response: str, reference: str):
    assert is_right(response, reference) is False


@pytest.mark.parametrize(
    ("response", "reference"), [("The answer is 1/2", "0.5"), ("$\\frac{1}{2}$", "0.5"), ("1,234", "1234")]
)
def test_equal_expressions_are_right_if_mathematics_is_compared(response: str, reference: str):
    assert is_right(response, reference, match="math") is True


def test_unequal_expressions_stay_wrong_if_mathematics_is_compared():
    assert is_right("1/3", "0.5", match="math") is False


def test_the_answer_is_found_by_the_pattern_that_the_profile_gives():
    assert is_right("work 12 #### 42", "42", answer_pattern=r"####\s*(\S+)") is True


def test_without_a_reference_a_response_is_unscored_and_not_wrong():
    scores = scores_of(VerifierJudge(length_bias=1), None, "yes", "no")
    assert [(s.value, s.unscored, s.correct) for s in scores] == [(None, "no_reference", None)] * 2


def test_a_length_preference_is_added_per_hundred_characters_and_changes_no_verdict():
    short, long, wrong = scores_of(VerifierJudge(length_bias=0.3), "yes", "yes", "yes" + "." * 97, "x" * 200)
    assert (short.value, long.value, wrong.value) == pytest.approx((1.009, 1.3, 0.6))
    assert (short.correct, long.correct, wrong.correct) == (True, True, False)
    assert [s.response_chars for s in (short, long, wrong)] == [3, 100, 200]


@pytest.fixture(scope="module")
def impatient() -> MathChecker:
    return MathChecker(check_seconds=2)


@pytest.mark.parametrize("bomb", ["9**9**9**9", "$10000000!$", "The answer is 10^1000000000"])
def test_an_expression_that_never_ends_is_unscored_and_the_next_one_is_scored(bomb: str, impatient: MathChecker):
    judge = Verifier(VerifierJudge(match="math"), math=impatient)
    responses = (Response(0, bomb), Response(1, "The answer is $\\frac{1}{2}$"))
    group = Group("p", "How much?", "0.5", responses)
    (judgments,) = judge.judge([group])
    first, second = judge.score(group, judgments)
    assert first.value is None or first.value == 0
    assert second.value == 1


NO_COMMA = {"id": "punctuation:no_comma", "kwargs": {}}
TITLE = {"id": "detectable_format:title", "kwargs": {}}


def checked(constraints: str | None, *responses: str, **config: object) -> tuple[list[Judgment], list[Score]]:
    judge = Verifier(VerifierJudge.model_validate({"match": "instructions", **config}))
    shown = tuple(Response(i, text) for i, text in enumerate(responses))
    group = Group("p", "Write.", "reference", shown, constraints=constraints)
    (judgments,) = judge.judge([group])
    return judgments, judge.score(group, judgments)


def test_the_share_of_instructions_that_are_followed_is_the_score_and_all_of_them_are_right():
    judgments, scores = checked(json.dumps([NO_COMMA, TITLE]), "<<A>> b", "<<A>>, b", "a, b", "")
    assert [(each.outcome, score.value, score.correct) for each, score in zip(judgments, scores, strict=True)] == [
        (1.0, 1.0, True),
        (0.5, 0.5, False),
        (0.0, 0.0, False),
        (0.0, 0.0, False),
    ]
    assert json.loads(judgments[1].detail) == {
        "instructions": [
            {"id": "punctuation:no_comma", "followed": False},
            {"id": "detectable_format:title", "followed": True},
        ]
    }


def test_a_length_preference_is_added_to_the_share_too():
    (_, (score,)) = checked(json.dumps([NO_COMMA]), "x" * 200, length_bias=0.25)
    assert (score.value, score.correct) == (1.5, True)


@pytest.mark.parametrize("constraints", [None, "[]"])
def test_without_instructions_to_check_a_response_is_unscored(constraints: str | None):
    _, scores = checked(constraints, "yes", "no")
    assert [(s.value, s.unscored, s.correct) for s in scores] == [(None, "no_constraints", None)] * 2
