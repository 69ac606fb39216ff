"""A made-up world of instructions with references, so that the whole loop runs on a laptop.

A split and a seed give a long stream of `Problem`s without repeats: an instruction in plain words, its category, its
difficulty from 1 to 5, the reference answer and, if the problem takes several steps, those steps.

Three categories (`dial`, `relay`, `cups`) carry a state through one step per level of difficulty: a tiny model can only
guess the result at once, but finds it if it writes the states down. Three (`opposites`, `recall`, `largest`) need no
steps: thinking can't help there, however many words they contain.

Splits are disjoint by construction, not by bookkeeping: a hash of the instruction's text decides which one it belongs
to, whatever the seed.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import numpy as np

Split: TypeAlias = Literal["seed", "train", "validation", "test"]
T = TypeVar("T")

DIFFICULTIES = (1, 2, 3, 4, 5)
NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon")
COLOURS = ("red", "blue", "green", "white", "black", "pink")
ORDINALS = ("first", "second", "third", "fourth", "fifth")
THINGS = ("hat", "kite", "cup", "book", "coat", "bell", "lamp", "drum")
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("old", "young"), ("fast", "slow"), ("high", "low"), ("wet", "dry"),
    ("hard", "soft"), ("rich", "poor"), ("full", "empty"), ("dark", "light"), ("loud", "quiet"), ("early", "late"),
    ("open", "shut"), ("near", "far"), ("strong", "weak"), ("clean", "dirty"), ("happy", "sad"), ("long", "short"),
    ("thick", "thin"), ("deep", "shallow"),
)  # fmt: skip

WORDS = (*NAMES, *COLOURS, *THINGS, *ORDINALS, *itertools.chain(*OPPOSITES), *map(str, range(10)))
"""The words that occur in problems."""

_SPLIT_SHARES: tuple[tuple[Split, int], ...] = (("test", 10), ("validation", 10), ("train", 40), ("seed", 40))


@dataclass(frozen=True)
class WorkStep:
    """One step of the written work, right and wrong."""

    text: str
    """The step as written out, for example `3 up 4 is 7.`"""
    wrong_text: str
    """The same step with a wrong result."""


@dataclass(frozen=True)
class Problem:
    """One instruction of the world, with what is needed to answer it well or badly."""

    category: str
    """Name of the category, a key of `CATEGORIES`."""
    difficulty: int
    """1 (easiest) to 5: the number of steps, or of words to keep in mind."""
    instruction: str
    """The user's request."""
    reference: str
    """The answer."""
    question: str
    """The last sentence of the instruction, without the facts before it."""
    wrong_answers: tuple[str, ...]
    """Wrong answers of the right kind."""
    steps: tuple[WorkStep, ...] = ()
    """The written work, one step per level of difficulty; empty if the answer takes no steps."""

    @property
    def worked(self) -> str:
        """A response that works out the answer."""
        return " ".join([*(step.text for step in self.steps), f"The answer is {self.reference}."])


def split_of(instruction: str) -> Split:
    """The one split that an instruction belongs to: a function of its text alone."""
    bucket = int.from_bytes(hashlib.sha256(instruction.encode()).digest()[:8], "big") % 100
    for split, share in _SPLIT_SHARES:
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("the shares of the splits add up to 100")


def problems(split: Split, seed: int, categories: tuple[str, ...] | None = None) -> Iterator[Problem]:
    """Problems of one split without repeats, cycling through categories and difficulties; deterministic in the seed.

    `categories` may name some of the world's categories, or one of them several times for a larger share. Small cells
    run out (there are only a few short questions) and are then left out; the stream ends when all have.
    """
    rng = np.random.default_rng([seed, *split.encode()])
    cells = list(itertools.product(categories or tuple(CATEGORIES), DIFFICULTIES))
    seen: set[str] = set()
    while cells:
        for cell in [cells[i] for i in rng.permutation(len(cells))]:
            problem = _fresh(rng, cell, split, seen)
            if problem is None:
                cells.remove(cell)
            else:
                seen.add(problem.instruction)
                yield problem


def _fresh(
    rng: np.random.Generator, cell: tuple[str, int], split: Split, seen: set[str], tries: int = 2000
) -> Problem | None:
    category, difficulty = cell
    for _ in range(tries):
        problem = CATEGORIES[category](rng, difficulty)
        if split_of(problem.instruction) == split and problem.instruction not in seen:
            return problem
    return None


def _dial(rng: np.random.Generator, difficulty: int) -> Problem:
    state = int(rng.integers(10))
    start, turns, steps = state, [], []
    for place in ORDINALS[:difficulty]:
        amount, up = int(rng.integers(1, 10)), bool(rng.integers(2))
        turn = f"{'up' if up else 'down'} {amount}"
        after = (state + amount if up else state - amount) % 10
        wrong = (after + int(rng.integers(1, 10))) % 10
        steps.append(WorkStep(f"{place} {state} {turn} is {after}.", f"{place} {state} {turn} is {wrong}."))
        turns.append(f"{place} {turn}")
        state = after
    question = _choose(rng, ("Where does it stand?", "Where is it now?"))
    return Problem(
        category="dial",
        difficulty=difficulty,
        instruction=f"The dial from 0 to 9 stands at {start}. Turn it {', '.join(turns)}. {question}",
        reference=str(state),
        question=question,
        wrong_answers=tuple(str(d) for d in range(10) if d != state),
        steps=tuple(steps),
    )


def _relay(rng: np.random.Generator, difficulty: int) -> Problem:
    circle = [NAMES[i] for i in rng.permutation(len(NAMES))[: difficulty + 2]]
    passes = [f"{giver} to {taker}" for giver, taker in zip(circle, circle[1:] + circle[:1], strict=True)]
    steps = []
    for i in range(difficulty):
        wrong = _choose(rng, tuple(name for name in circle if name != circle[i + 1]))
        place = f"{ORDINALS[i]} {circle[i]} to"
        steps.append(WorkStep(f"{place} {circle[i + 1]}.", f"{place} {wrong}."))
    listed = ", ".join(passes[i] for i in rng.permutation(len(passes)))
    question = _choose(rng, ("Who has it?", "Who holds it now?"))
    return Problem(
        category="relay",
        difficulty=difficulty,
        instruction=f"The ball goes {listed}. It starts with {circle[0]} and is passed {difficulty} times. {question}",
        reference=circle[difficulty],
        question=question,
        wrong_answers=tuple(name for name in circle if name != circle[difficulty]),
        steps=tuple(steps),
    )


def _cups(rng: np.random.Generator, difficulty: int) -> Problem:
    cups = [COLOURS[i] for i in rng.permutation(len(COLOURS))[:3]]
    start, swaps, steps = list(cups), [], []
    for place in ORDINALS[:difficulty]:
        i, j = _choose(rng, ((0, 1), (0, 2), (1, 2)))
        other = _choose(rng, tuple(pair for pair in ((0, 1), (0, 2), (1, 2)) if pair != (i, j)))
        wrong = _swapped(cups, *other)
        cups = _swapped(cups, i, j)
        swap = f"{place} {i + 1} and {j + 1}"
        steps.append(WorkStep(f"{swap} {' '.join(cups)}.", f"{swap} {' '.join(wrong)}."))
        swaps.append(swap)
    index = int(rng.integers(3))
    question = f"What is under cup {index + 1}?"
    return Problem(
        category="cups",
        difficulty=difficulty,
        instruction=f"Cups 1, 2, 3 hide {', '.join(start)}. Swap {', '.join(swaps)}. {question}",
        reference=cups[index],
        question=question,
        wrong_answers=tuple(colour for colour in start if colour != cups[index]),
        steps=tuple(steps),
    )


def _opposites(rng: np.random.Generator, difficulty: int) -> Problem:
    pairs = [OPPOSITES[i] for i in rng.permutation(len(OPPOSITES))[: difficulty + 1]]
    pairs = [pair if rng.integers(2) else pair[::-1] for pair in pairs]
    terms, answers = [first for first, _ in pairs], [second for _, second in pairs]
    question = f"{_choose(rng, ('Give the opposite of', 'What is the opposite of'))} {', '.join(terms)}?"
    return Problem(
        category="opposites",
        difficulty=difficulty,
        instruction=question,
        reference=", ".join(answers),
        question=question,
        wrong_answers=(", ".join(answers[:-1]),),
    )


def _recall(rng: np.random.Generator, difficulty: int) -> Problem:
    owners = [NAMES[i] for i in rng.permutation(len(NAMES))[: difficulty + 1]]
    owned = [f"{_choose(rng, COLOURS)} {_choose(rng, THINGS)}" for _ in owners]
    index = int(rng.integers(len(owners)))
    other = _choose(rng, tuple(colour for colour in COLOURS if not owned[index].startswith(colour)))
    facts = ", ".join(f"{owner} has a {thing}" for owner, thing in zip(owners, owned, strict=True))
    question = f"What does {owners[index]} have?"
    wrong = {thing for thing in owned if thing != owned[index]} | {f"{other} {owned[index].split()[1]}"}
    return Problem(
        category="recall",
        difficulty=difficulty,
        instruction=f"{facts}. {question}",
        reference=owned[index],
        question=question,
        wrong_answers=tuple(sorted(wrong)),
    )


def _largest(rng: np.random.Generator, difficulty: int) -> Problem:
    digits = [int(digit) for digit in rng.permutation(10)[: difficulty + 2]]
    question = f"{_choose(rng, ('Which is the largest of', 'What is the biggest of'))} {', '.join(map(str, digits))}?"
    return Problem(
        category="largest",
        difficulty=difficulty,
        instruction=question,
        reference=str(max(digits)),
        question=question,
        wrong_answers=tuple(str(digit) for digit in digits if digit != max(digits)),
    )


def _choose(rng: np.random.Generator, options: tuple[T, ...]) -> T:
    return options[int(rng.integers(len(options)))]


def _swapped(items: list[str], i: int, j: int) -> list[str]:
    swapped = list(items)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    return swapped


CATEGORIES: dict[str, Callable[[np.random.Generator, int], Problem]] = {
    "dial": _dial,
    "relay": _relay,
    "cups": _cups,
    "opposites": _opposites,
    "recall": _recall,
    "largest": _largest,
}
"""The categories of the world: each a function from a random generator and a difficulty to a problem."""
