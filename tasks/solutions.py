"""Correct and wrong outputs of a question, over all models so far: the common part of self-training's stages.

Correct is what the judge found correct. Outputs with equal text are one, whichever model wrote them; the first counts,
as in the paper's code (2407.18248).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tasks.handles import JudgedSamples
from tpo.method.diversity import Solution
from tpo.records import Artifact, Demonstration, Sample, Score
from tpo.storage.store import stream_rows


@dataclass(frozen=True)
class Written:
    """One output to a question."""

    token_ids: list[int]
    """Its tokens as sampled, with the end token if the output ended by itself."""
    text: str
    """The same as text."""
    origin: Literal["given", "sampled"]
    """`given` with the question, or `sampled` from a model."""
    index: int = -1
    """Its sample's index within the prompt; -1 if it is given."""
    score: float | None = None
    """The judge's score; None if it is given or unscored."""
    broken: bool = False
    """Whether it breaks the format or was cut."""

    @property
    def solution(self) -> Solution:
        """The output as `tpo.method.diversity` compares it; the end token is an ordinary token."""
        return Solution(self.text, frozenset(self.token_ids))


@dataclass
class Question:
    """One question with its distinct outputs."""

    prompt_id: str
    """The prompt."""
    prompt_token_ids: list[int]
    """Its tokens."""
    right: dict[str, Written] = field(default_factory=dict)
    """Correct outputs by text, in order: the given one first."""
    wrong: dict[str, Written] = field(default_factory=dict)
    """Outputs that are wrong or break the format, by text."""


def questions_of(given: Artifact, answers: Sequence[JudgedSamples]) -> list[Question]:
    """Every question that was demonstrated or sampled, demonstrated ones first.

    Outputs that parse but are unscored are neither correct nor wrong, and are left out.
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


def _scored(answers: JudgedSamples) -> Iterator[tuple[Sample, Score]]:
    """Outputs with their scores, which are in the same order."""
    yield from zip(stream_rows(answers.samples, Sample), stream_rows(answers.scores, Score), strict=True)


def answered_inputs(given: Artifact, answers: Sequence[JudgedSamples]) -> dict[str, Artifact]:
    """The given outputs, and the models' outputs in the order of sampling."""
    inputs = {"given": given}
    for i, each in enumerate(answers, 1):
        inputs |= {f"samples {i}": each.samples, f"scores {i}": each.scores}
    return inputs
