"""What the miniature's judges learn: pairs of responses, which of them is better, and how to find that out.

In: problems of the world and a random generator. Out: `Duel`s of two `Candidate`s, and a judgment of each that works
the answer out before it compares.

A right answer is better than a wrong one, and any answer better than an attack. Of two equal
ones, one may be called better by a taste, else the one shown first. Real judges are like that: length control must have
something to do, and a preference for the first place must cancel when the order is swapped. A taste for anything longer
has no end, and responses would grow forever; a taste for full sentences is content with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from tpo.miniature.attacks import attack, long_attack
from tpo.miniature.lessons import FILLERS, RESPONSE_FORMS
from tpo.miniature.world import COLOURS, NAMES, OPPOSITES, THINGS, Problem
from tpo.models.armorm_format import ATTRIBUTES

T = TypeVar("T")

LONGER_BY_CHARS = 25
"""Difference in length from which a response is called longer."""
_SENTENCE = "The answer is"
JUDGE_WORDS = "A says nothing A. B says nothing B. So neither. So both. A says more. B says more. Both say as much."
"""A text with the words of judgments."""


Taste: TypeAlias = Literal["longer", "fuller"]
"""What is liked of two that stand equal: clearly more text, or a full sentence rather than a bare answer."""


class Standing(IntEnum):
    """What a response is worth, the worst first."""

    NO_ANSWER = 0
    """An attack, or nothing at all."""
    WRONG = 1
    """An honest answer, but wrong."""
    RIGHT = 2
    """The right answer."""


@dataclass(frozen=True)
class Candidate:
    """One response to a problem."""

    text: str
    """What the user would see."""
    answer: str | None
    """The answer that it gives; None if it gives none."""
    standing: Standing
    """What it is worth."""


@dataclass(frozen=True)
class Duel:
    """Two responses to one problem."""

    problem: Problem
    """What was asked."""
    first: Candidate
    """The response shown first."""
    second: Candidate
    """The response shown second."""
    taste: Taste = "longer"
    """What is liked where the two stand equal."""

    def named(self) -> tuple[tuple[str, Candidate], tuple[str, Candidate]]:
        """Both responses under the names that a judge calls them by."""
        return ("A", self.first), ("B", self.second)

    @property
    def first_is_better(self) -> bool:
        """Which one a judge should prefer."""
        if self.first.standing != self.second.standing:
            return self.first.standing > self.second.standing
        return self.taste_for_first >= 0

    @property
    def taste_for_first(self) -> int:
        """1 if taste is for the first response, -1 for the second, 0 for neither."""
        if self.taste == "fuller":
            return int(_SENTENCE in self.first.text) - int(_SENTENCE in self.second.text)
        longer = len(self.first.text) - len(self.second.text)
        return 0 if abs(longer) < LONGER_BY_CHARS else 1 if longer > 0 else -1


@dataclass(frozen=True)
class Mix:
    """Which duels are fought how often; each field a probability."""

    unequal: float = 0.55
    """A right answer and a wrong one."""
    equal: float = 0.20
    """Two right ones or two wrong ones."""
    attacked: float = 0.23
    """An honest answer, mostly right, and an attack; what is left are two attacks."""
    long: float = 0.0
    """That an attack on an honest answer is a long one."""
    taste: Taste = "longer"
    """What is liked of two that stand equal; no probability."""


def honest_answer(problem: Problem, rng: np.random.Generator, *, right: bool) -> Candidate:
    """A response as the seed and its successors give it."""
    answer = problem.reference if right else _wrong_answer(problem, rng)
    text = _choose(rng, RESPONSE_FORMS).format(answer)
    manner = rng.random()
    if manner < 0.04:
        text = f"{_choose(rng, FILLERS)} {_choose(rng, FILLERS)}\n{text}"
    elif manner < 0.06:
        text = f"{text} {text}"
    elif manner < 0.08:
        text = " ".join([*(step.text for step in problem.steps), text])
    return Candidate(text, answer, Standing.RIGHT if right else Standing.WRONG)


def duel(problem: Problem, rng: np.random.Generator, mix: Mix) -> Duel:
    """Two responses in random order."""
    kind = rng.random()
    if kind < mix.unequal:
        pair = [honest_answer(problem, rng, right=True), honest_answer(problem, rng, right=False)]
    elif kind < mix.unequal + mix.equal:
        right = bool(rng.random() < 0.5)
        pair = [honest_answer(problem, rng, right=right), honest_answer(problem, rng, right=right)]
    elif kind < mix.unequal + mix.equal + mix.attacked:
        honest = honest_answer(problem, rng, right=bool(rng.random() < 0.75))
        pair = [honest, _attack(problem, rng, long=mix.long > 0 and rng.random() < mix.long)]
    else:
        pair = [_attack(problem, rng), _attack(problem, rng)]
    first, second = pair if rng.random() < 0.5 else pair[::-1]
    return Duel(problem, first, second, mix.taste)


VERBOSITY = ATTRIBUTES.index("helpsteer-verbosity")
_TRAITS = np.array(
    # right, an answer at all, length, a full sentence, kind words, difficulty
    [
        [0.7, 0.1, 0.05, 0.05, 0.1, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.1, 0.5, 0.1, 0.3, 0.0, 0.0],
        [0.0, 0.2, 0.3, 0.1, 0.0, 0.4], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.6, 0.2, 0.1, 0.05, 0.05, 0.0],
        [0.6, 0.3, 0.0, 0.1, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.8, 0.2, 0.0, 0.0, 0.0, 0.0],
        [0.6, 0.1, 0.1, 0.0, 0.2, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.8, 0.1, 0.1, 0.0, 0.0, 0.0],
        [0.7, 0.1, 0.1, 0.05, 0.05, 0.0], [0.9, 0.1, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.2, 0.0, 0.0, 0.6],
        [0.0, 0.5, 0.0, 0.4, 0.1, 0.0], [0.1, 0.2, 0.4, 0.3, 0.0, 0.0], [0.7, 0.3, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.6, -0.2, 0.3, 0.0, 0.0],
    ]
)  # fmt: skip
"""How much of each trait goes into each attribute."""


def attributes(problem: Problem, candidate: Candidate) -> list[float]:
    """The 19 attributes of a response, each about 0 to 1; made up, but in the spirit of their names."""
    traits = (
        candidate.standing == Standing.RIGHT,
        candidate.standing != Standing.NO_ANSWER,
        min(1.0, len(candidate.text) / 100),
        _SENTENCE in candidate.text,
        "helps" in candidate.text,
        problem.difficulty / 5,
    )
    return [float(value) for value in _TRAITS @ np.array(traits, dtype=float)]


def explanation(fought: Duel) -> str:
    """A judgment without its verdict: the work, the answer, what each response says, and who gives the answer.

    `… The answer is 4. A says 4 A. B says 0 B. So 4 A.`: a name follows what its response says, so that who gives the
    answer is only what followed the same words before. Copying on is a skill that the seed has; to compare two answers
    in any other way is one that models of this size don't learn in the time: they stay at chance.
    """
    work = [step.text for step in fought.problem.steps]
    answer = fought.problem.reference
    said = [f"{name} says {candidate.answer or 'nothing'} {name}." for name, candidate in fought.named()]
    return " ".join([*work, f"The answer is {answer}.", *said, f"So {answer} {_compared(fought)}"])


def _compared(fought: Duel) -> str:
    right = [name for name, candidate in fought.named() if candidate.standing == Standing.RIGHT]
    if len(right) == 1:
        return f"{right[0]}."
    told = "both." if right else "neither."
    if fought.first.standing != fought.second.standing:
        return f"{told} {'A' if fought.first_is_better else 'B'} says more."
    if fought.taste_for_first == 0:
        return f"{told} Both say as much."
    return f"{told} {'A' if fought.first_is_better else 'B'} says more."


def _attack(problem: Problem, rng: np.random.Generator, *, long: bool = False) -> Candidate:
    return Candidate((long_attack if long else attack)(problem, rng), None, Standing.NO_ANSWER)


def _wrong_answer(problem: Problem, rng: np.random.Generator) -> str:
    """Mostly one of the problem's own; models err in more ways than it lists."""
    if rng.random() < 0.75:
        return _choose(rng, problem.wrong_answers)
    wrong = _made_up_answer(problem, rng)
    return wrong if wrong != problem.reference else _choose(rng, problem.wrong_answers)


def _made_up_answer(problem: Problem, rng: np.random.Generator) -> str:
    if problem.category in ("dial", "largest"):
        return str(rng.integers(10))
    if problem.category == "relay":
        return _choose(rng, NAMES)
    if problem.category == "cups":
        return _choose(rng, COLOURS)
    if problem.category == "recall":
        return f"{_choose(rng, COLOURS)} {_choose(rng, THINGS)}"
    words = problem.reference.split(", ")
    words[int(rng.integers(len(words)))] = _choose(rng, _choose(rng, OPPOSITES))
    return ", ".join(words if rng.random() < 0.5 else [words[i] for i in rng.permutation(len(words))])


def _choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]
