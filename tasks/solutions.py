"""What the stages of self-training have in common: a question's right and wrong outputs, over all models asked so far.

In: demonstrations that are given, and `Answers` of one model or of several, in the order in which they were asked. Out:
`Question`s. What is right is what the judge found right: there is no second opinion here.

Two outputs of equal text are one, whichever models wrote them, and the first counts, as in the paper's code
(2407.18248).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tasks.handles import Answers
from tpo.method.diversity import Solution
from tpo.records import Artifact, Demonstration, Sample, Score
from tpo.storage.store import stream_rows


@dataclass(frozen=True)
class Written:
    """One output to a question."""

    token_ids: list[int]
    """Its tokens, as sampled; the end token is there where the output ended by itself."""
    text: str
    """The same as text."""
    origin: Literal["given", "sampled"]
    """`given` with the question, or `sampled` from a model."""
    index: int = -1
    """Its sample's index in the group that it is from; -1 where it is given."""
    score: float | None = None
    """The judge's score; None where it is given, and where the judge gave none."""
    broken: bool = False
    """Whether it breaks the format, or did not end."""

    @property
    def solution(self) -> Solution:
        """The output as the rules of diversity know it; the end token is a token like any other."""
        return Solution(self.text, frozenset(self.token_ids))


@dataclass
class Question:
    """One question with the distinct outputs to it."""

    prompt_id: str
    """The prompt."""
    prompt_token_ids: list[int]
    """Its tokens."""
    right: dict[str, Written] = field(default_factory=dict)
    """Outputs that are right, by text, in the order in which they came: the given one first."""
    wrong: dict[str, Written] = field(default_factory=dict)
    """Outputs that are wrong or break the format, by text."""


def questions_of(given: Artifact, answers: Sequence[Answers]) -> list[Question]:
    """Every question that was demonstrated or asked, those that are demonstrated first.

    Outputs that parse and that the judge knows nothing of are neither right nor wrong, and left out.
    """
    found: dict[str, Question] = {}
    for row in stream_rows(given, Demonstration):
        written = Written(row.output_token_ids, row.output, "given")
        found[row.prompt_id] = Question(row.prompt_id, row.prompt_token_ids, {row.output: written})
    for each in answers:
        for sample, score in _scored(each):
            question = found.setdefault(sample.prompt_id, Question(sample.prompt_id, sample.prompt_token_ids))
            broken = sample.parse_error is not None
            written = Written(
                sample.output_token_ids, sample.output, "sampled", sample.index, score.value, broken=broken
            )
            if broken or score.correct is False:
                question.wrong.setdefault(written.text, written)
            elif score.correct:
                question.right.setdefault(written.text, written)
    return list(found.values())


def _scored(answers: Answers) -> Iterator[tuple[Sample, Score]]:
    """Outputs with their scores, which stand in the same order."""
    yield from zip(stream_rows(answers.samples, Sample), stream_rows(answers.scores, Score), strict=True)


def answered_inputs(given: Artifact, answers: Sequence[Answers]) -> dict[str, Artifact]:
    """What is given, and what models answered, in the order in which they were asked."""
    inputs = {"given": given}
    for i, each in enumerate(answers, 1):
        inputs |= {f"samples {i}": each.samples, f"scores {i}": each.scores}
    return inputs
