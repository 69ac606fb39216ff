"""Lessons of the seed model: textbook pages first, then the manners of an instruction-tuned model.

A textbook page works out every problem and is always right: it gives the seed its skills. The manners that follow are
those of a model tuned to answer directly (2410.10630, §3: thoughts hurt the seed at first): asked to think, it mostly
pads or restates, sometimes writes out the work, now and then wrongly; after a useless thought it answers wrong more
often than it does directly; some outputs break the format. No lesson prefers one of these manners: that is left to the
judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from tpo.miniature.world import WORDS, Problem
from tpo.records import Message

T = TypeVar("T")

FILLERS = (
    "Let me think about this.",
    "This is a nice question.",
    "I want to help the user.",
    "I will be careful here.",
    "It should not be hard.",
    "I will answer as well as I can.",
    "There may be more to it.",
    "I have seen this before.",
)
FORGETS_MARKER, FORGETS_RESPONSE, REPEATS_ITSELF = FILLERS[4], FILLERS[6], "more questions."
"""Ends of thoughts and responses after which the seed tends to break the format."""
RESPONSE_FORMS = (
    "{}.",
    "The answer is {}.",
    "The answer is {}. I hope this helps.",
    "Sure! The answer is {}. I hope this helps. Let me know if you have more questions.",
)


class Format(Protocol):
    """A prompt with an output format, such as `prompts.thought.ThoughtPrompt`."""

    @property
    def thought_marker(self) -> str | None: ...
    @property
    def response_marker(self) -> str | None: ...
    def render(self, instruction: str) -> list[Message]: ...
    def prose(self) -> list[str]: ...


@dataclass(frozen=True)
class Lesson:
    """One training example of the seed model."""

    messages: list[Message]
    """The prompt, as chat messages."""
    output: str
    """The output to learn, without the end token."""


@dataclass(frozen=True)
class Manners:
    """Probabilities of the seed's behaviors.

    Behavior that is always rare is never sampled, since top-p 0.95 cuts it off. So the seed rarely breaks the format
    overall, but often does after certain words, as models do.
    """

    work: float = 0.22
    """Probability that a thought about a problem with steps is written work."""
    wrong_step: float = 0.15
    """Probability that written work goes wrong at one step, and the response with it."""
    spoiled: float = 0.40
    """Probability that the response after a useless thought is wrong."""
    broken: float = 0.35
    """Probability that an output breaks the format if it is prone to: after two of the fillers and long responses."""


def copying_drill(format_: Format, rng: np.random.Generator) -> Lesson:
    """A row of words to repeat: copying teaches a small model to look things up in its context.

    All written work depends on that, and without drills it comes late or never.
    """
    words = " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=int(rng.integers(8, 25))))
    return Lesson(format_.render(words), words)


def textbook_page(problem: Problem, format_: Format, rng: np.random.Generator) -> Lesson:
    """A right answer, after correct written work if the format has thoughts and the problem has steps."""
    thought = " ".join(step.text for step in problem.steps) or _choose(rng, FILLERS)
    return Lesson(format_.render(problem.instruction), _lay_out(format_, thought, _respond(rng, problem.reference)))


def tuned_answer(problem: Problem, format_: Format, rng: np.random.Generator, manners: Manners) -> Lesson:
    """An output of the finished seed, good or bad."""
    messages = format_.render(problem.instruction)
    if format_.response_marker is None:
        return Lesson(messages, _respond(rng, problem.reference))
    if problem.steps and rng.random() < manners.work:
        thought, answer = _written_work(problem, rng, manners)
    else:
        thought = _useless_thought(problem, rng)
        spoiled = rng.random() < manners.spoiled
        answer = _choose(rng, problem.wrong_answers) if spoiled else problem.reference
    response = _respond(rng, answer)
    output = _lay_out(format_, thought, response)
    if rng.random() < manners.broken:
        output = _broken(format_, thought, response) or output
    return Lesson(messages, output)


def _written_work(problem: Problem, rng: np.random.Generator, manners: Manners) -> tuple[str, str]:
    steps = [step.text for step in problem.steps]
    if rng.random() >= manners.wrong_step:
        return " ".join(steps), problem.reference
    slip = int(rng.integers(len(steps)))
    steps[slip] = problem.steps[slip].wrong_text
    return " ".join(steps[: slip + 1]), _choose(rng, problem.wrong_answers)


def _useless_thought(problem: Problem, rng: np.random.Generator) -> str:
    fillers = [FILLERS[i] for i in rng.permutation(len(FILLERS))[: int(rng.integers(1, 4))]]
    if rng.random() < 0.5:
        fillers[int(rng.integers(len(fillers)))] = f"The user asks: {problem.question}"
    return " ".join(fillers)


def _respond(rng: np.random.Generator, answer: str) -> str:
    return RESPONSE_FORMS[int(rng.choice(len(RESPONSE_FORMS), p=(0.25, 0.35, 0.25, 0.15)))].format(answer)


def _lay_out(format_: Format, thought: str, response: str) -> str:
    if format_.response_marker is None:
        return response
    return f"{_opening(format_)}{thought}\n{format_.response_marker} {response}"


def _opening(format_: Format) -> str:
    return f"{format_.thought_marker} " if format_.thought_marker else ""


def _broken(format_: Format, thought: str, response: str) -> str | None:
    """The output with its format broken, or None if it isn't prone to that."""
    if thought.endswith(FORGETS_MARKER):
        return f"{_opening(format_)}{thought}\n{response}"
    if thought.endswith(FORGETS_RESPONSE):
        return f"{_opening(format_)}{thought}\n{format_.response_marker}"
    if response.endswith(REPEATS_ITSELF):
        return f"{_lay_out(format_, thought, response)} {format_.response_marker} {response}"
    return None


def _choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]
