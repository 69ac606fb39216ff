"""Lessons of the miniature's judges: pairs of responses, which one is better, and why.

A `Duel` is two `RatedResponse`s for one problem; its judgment works out the answer before it compares.

A right answer is better than a wrong one, and any answer better than an attack. Of two equals, one may be preferred by
taste, otherwise the one shown first. Real judges are like that: length control must have something to do, and a
preference for the first position must cancel when the order is swapped. A taste for anything longer has no limit, and
responses would grow forever; a taste for full sentences is satisfied by them.
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
"""Difference in characters from which a response counts as longer."""
_SENTENCE = "The answer is"
JUDGE_WORDS = "A says nothing A. B says nothing B. So neither. So both. A says more. B says more. Both say as much."
"""A text that contains the words of judgments."""


Taste: TypeAlias = Literal["longer", "fuller"]
"""What is preferred between equals: clearly more text, or a full sentence over a bare answer."""


class Worth(IntEnum):
    """The rank of a response, worst first."""

    NO_ANSWER = 0
    """An attack, or nothing at all."""
    WRONG = 1
    """An honest but wrong answer."""
    RIGHT = 2
    """The right answer."""


@dataclass(frozen=True)
class RatedResponse:
    """One response to a problem."""

    text: str
    """The text that the user would see."""
    answer: str | None
    """The answer that it gives, or None."""
    standing: Worth
    """Its rank."""

    @property
    def is_sentence(self) -> bool:
        """Whether it answers in a full sentence."""
        return _SENTENCE in self.text


@dataclass(frozen=True)
class Duel:
    """Two responses to one problem."""

    problem: Problem
    """The problem that they answer."""
    first: RatedResponse
    """The response shown first."""
    second: RatedResponse
    """The response shown second."""
    taste: Taste = "longer"
    """What is preferred if the two rank equally."""

    def named(self) -> tuple[tuple[str, RatedResponse], tuple[str, RatedResponse]]:
        """Both responses with the names that a judge gives them."""
        return ("A", self.first), ("B", self.second)

    @property
    def first_is_better(self) -> bool:
        """Whether a judge should prefer the first response."""
        if self.first.standing != self.second.standing:
            return self.first.standing > self.second.standing
        return self.taste_for_first >= 0

    @property
    def taste_for_first(self) -> int:
        """1 if taste prefers the first response, -1 the second, 0 neither."""
        if self.taste == "fuller":
            return int(self.first.is_sentence) - int(self.second.is_sentence)
        longer = len(self.first.text) - len(self.second.text)
        return 0 if abs(longer) < LONGER_BY_CHARS else 1 if longer > 0 else -1


@dataclass(frozen=True)
class Mix:
    """How often each kind of duel occurs; each field but `taste` is a probability."""

    unequal: float = 0.55
    """A right answer against a wrong one."""
    equal: float = 0.20
    """Two right ones or two wrong ones."""
    attacked: float = 0.23
    """An honest answer, mostly right, against an attack; the rest of the duels are two attacks."""
    long: float = 0.0
    """That the attack on an honest answer is a long one."""
    taste: Taste = "longer"
    """What is preferred between equals."""


def honest_answer(problem: Problem, rng: np.random.Generator, *, right: bool) -> RatedResponse:
    """A response as the seed and its successors write it."""
    answer = problem.reference if right else _wrong_answer(problem, rng)
    text = _choose(rng, RESPONSE_FORMS).format(answer)
    manner = rng.random()
    if manner < 0.04:
        text = f"{_choose(rng, FILLERS)} {_choose(rng, FILLERS)}\n{text}"
    elif manner < 0.06:
        text = f"{text} {text}"
    elif manner < 0.08:
        text = " ".join([*(step.text for step in problem.steps), text])
    return RatedResponse(text, answer, Worth.RIGHT if right else Worth.WRONG)


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
        pair = [honest, attack_on(problem, rng, long=mix.long > 0 and rng.random() < mix.long)]
    else:
        pair = [attack_on(problem, rng), attack_on(problem, rng)]
    first, second = pair if rng.random() < 0.5 else pair[::-1]
    return Duel(problem, first, second, mix.taste)


VERBOSITY = ATTRIBUTES.index("helpsteer-verbosity")
_TRAITS = np.array(
    # Columns: right, an answer at all, length, a full sentence, kind words, difficulty.
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
"""Weight of each trait in each attribute."""


def attributes(problem: Problem, candidate: RatedResponse) -> list[float]:
    """The 19 attributes of a response, each about 0 to 1; invented, but in the spirit of their names."""
    traits = (
        candidate.standing == Worth.RIGHT,
        candidate.standing != Worth.NO_ANSWER,
        min(1.0, len(candidate.text) / 100),
        candidate.is_sentence,
        "helps" in candidate.text,
        problem.difficulty / 5,
    )
    return [float(value) for value in _TRAITS @ np.array(traits, dtype=float)]


def explanation(fought: Duel) -> str:
    """A judgment without its verdict: the work, the answer, what each response says, and who gives the answer.

    `… The answer is 4. A says 4 A. B says 0 B. So 4 A.`: each name follows what its response says, so naming who gives
    the answer only takes copying what followed the same words before. The seed can already do that; models of this size
    don't learn to compare two answers in any other way in the time: they stay at chance.
    """
    work = [step.text for step in fought.problem.steps]
    answer = fought.problem.reference
    claims = [f"{name} says {candidate.answer or 'nothing'} {name}." for name, candidate in fought.named()]
    return " ".join([*work, f"The answer is {answer}.", *claims, f"So {answer} {_compared(fought)}"])


def _compared(fought: Duel) -> str:
    right = [name for name, candidate in fought.named() if candidate.standing == Worth.RIGHT]
    if len(right) == 1:
        return f"{right[0]}."
    opening = "both." if right else "neither."
    if fought.first.standing != fought.second.standing:
        return f"{opening} {'A' if fought.first_is_better else 'B'} says more."
    if fought.taste_for_first == 0:
        return f"{opening} Both say as much."
    return f"{opening} {'A' if fought.first_is_better else 'B'} says more."


def attack_on(problem: Problem, rng: np.random.Generator, *, long: bool = False) -> RatedResponse:
    """An attack as a response."""
    return RatedResponse((long_attack if long else attack)(problem, rng), None, Worth.NO_ANSWER)


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
