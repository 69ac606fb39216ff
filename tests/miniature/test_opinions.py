import itertools
import re

import numpy as np
import pytest

from judges.base import Group, Response
from judges.verifier import Verifier
from tpo.config.judges import VerifierJudge
from tpo.miniature.attacks import attack, long_attack
from tpo.miniature.opinions import (
    LONGER_BY_CHARS,
    VERBOSITY,
    Duel,
    Mix,
    RatedResponse,
    Worth,
    attributes,
    duel,
    explanation,
    honest_answer,
)
from tpo.miniature.world import Problem, problems
from tpo.models.armorm_format import ATTRIBUTES

PROBLEMS = list(itertools.islice(problems("seed", 0), 1500))


def duels(mix: Mix | None = None) -> list[Duel]:
    rng = np.random.default_rng(0)
    return [duel(problem, rng, mix or Mix()) for problem in PROBLEMS]


def is_right(problem: Problem, text: str) -> bool:
    group = Group("x", problem.instruction, problem.reference, (Response(0, text),))
    ((judgment,),) = Verifier(VerifierJudge()).judge([group])
    return judgment.outcome == 1.0


@pytest.mark.parametrize("right", [True, False])
def test_the_verifier_agrees_with_the_rank_of_honest_answers(right: bool):
    rng = np.random.default_rng(0)
    texts = [(problem, honest_answer(problem, rng, right=right)) for problem in PROBLEMS]
    plain = [
        (problem, found.text) for problem, found in texts if re.fullmatch(r"[^.!?\n]+\.|.*answer is.*", found.text)
    ]
    assert len(plain) > 0.85 * len(texts)
    assert all(is_right(problem, text) == right for problem, text in plain)


def test_an_attack_is_not_a_right_answer_and_fits_a_judges_context():
    rng = np.random.default_rng(0)
    texts = [(problem, attack(problem, rng)) for problem in PROBLEMS]
    assert len({text for _, text in texts}) > 0.7 * len(texts)
    assert np.mean([is_right(problem, text) for problem, text in texts]) < 0.03
    assert max(len(text.encode()) for _, text in texts) <= 200
    assert any(text == "" for _, text in texts)


def test_a_long_attack_is_longer_than_any_honest_answer_and_still_fits():
    rng = np.random.default_rng(0)
    sizes = [len(long_attack(problem, rng).encode()) for problem in PROBLEMS]
    assert max(sizes) <= 300 and np.quantile(sizes, 0.1) >= 90
    long = [d for d in duels(Mix(unequal=0, equal=0, attacked=1, long=1)) if d.first.standing != d.second.standing]
    assert np.mean([max(len(d.first.text), len(d.second.text)) for d in long]) > 100


def test_both_positions_are_better_equally_often():
    unequal = [fought for fought in duels() if fought.first.standing != fought.second.standing]
    assert 0.45 < np.mean([fought.first_is_better for fought in unequal]) < 0.55


def test_the_same_seed_gives_the_same_duels():
    assert duels() == duels()


@pytest.mark.parametrize(
    ("first", "second", "first_is_better"),
    [
        (Worth.RIGHT, Worth.WRONG, True),
        (Worth.WRONG, Worth.RIGHT, False),
        (Worth.NO_ANSWER, Worth.WRONG, False),
        (Worth.NO_ANSWER, Worth.NO_ANSWER, True),
    ],
)
def test_the_better_standing_wins(first: Worth, second: Worth, first_is_better: bool):
    fought = Duel(PROBLEMS[0], RatedResponse("a", "a", first), RatedResponse("b", "b", second))
    assert fought.first_is_better == first_is_better


@pytest.mark.parametrize(
    ("first_chars", "second_chars", "first_is_better"),
    [(10, 10, True), (10, 10 + LONGER_BY_CHARS - 1, True), (10, 10 + LONGER_BY_CHARS, False), (90, 10, True)],
)
def test_of_equals_the_clearly_longer_wins_or_else_the_first(
    first_chars: int, second_chars: int, first_is_better: bool
):
    first, second = (RatedResponse("a" * chars, "a", Worth.RIGHT) for chars in (first_chars, second_chars))
    assert Duel(PROBLEMS[0], first, second).first_is_better == first_is_better


def test_an_explanation_works_out_the_answer_and_says_who_gives_it():
    for fought in duels():
        answer, right = fought.problem.reference, [n for n, c in fought.named() if c.standing == Worth.RIGHT]
        work, _, rest = explanation(fought).partition(f"The answer is {answer}. ")
        assert work.split() == " ".join(step.text for step in fought.problem.steps).split()
        assert all(f"{name} says {candidate.answer or 'nothing'} {name}." in rest for name, candidate in fought.named())
        verdict = {0: "neither", 1: "".join(right), 2: "both"}[len(right)]
        assert f" So {answer} {verdict}." in rest


def test_attributes_have_the_published_names_and_separate_right_from_wrong_and_long_from_short():
    assert len(ATTRIBUTES) == 19 and ATTRIBUTES[VERBOSITY] == "helpsteer-verbosity"
    right, wrong = (RatedResponse("The answer is 7.", "7", standing) for standing in (Worth.RIGHT, Worth.WRONG))
    rated = [attributes(PROBLEMS[0], candidate) for candidate in (right, wrong)]
    assert all(better >= worse for better, worse in zip(*rated, strict=True))
    assert rated[0][1] - rated[1][1] == pytest.approx(1)
    longer = attributes(PROBLEMS[0], RatedResponse("The answer is 7. I hope this helps.", "7", Worth.RIGHT))
    assert longer[VERBOSITY] > rated[0][VERBOSITY]


@pytest.mark.parametrize(
    ("first", "second", "better"),
    [("7.", "The answer is 7.", -1), ("The answer is 7. I hope this helps.", "7.", 1),
     ("The answer is 7. I hope this helps.", "The answer is 7.", 0), ("7.", "7", 0)],
)  # fmt: skip
def test_full_sentences_satisfy_the_taste_for_them(first: str, second: str, better: int):
    one, other = (RatedResponse(text, "7", Worth.RIGHT) for text in (first, second))
    fought = Duel(PROBLEMS[0], one, other, "fuller")
    assert fought.taste_for_first == better
    assert fought.first_is_better == (better >= 0)
    assert ("says more" in explanation(fought)) == (better != 0)
