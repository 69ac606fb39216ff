"""The protocol of a judge, and what a judge gets to see.

A judge returns judgments (expensive, stored as they come) and, from them, scores (pure arithmetic, cheap). A `Group`
has no field for a thought: judges can't see thoughts (2410.10630, §2.2), even by mistake. One exception is the paper's
own: for evaluation, an output that still breaks the format after the last attempt is judged as it is, without markers,
since it is unknown where its thought ends.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tpo.engines.inference.reply import TokenCount
from tpo.records import Judgment, Prompt, Sample, SampledResponse, Score
from tpo.storage.journal import Journal

BASELINE = -1
"""Index of the response that others are compared with."""


@dataclass(frozen=True)
class Response:
    """One response as a judge sees it."""

    index: int
    """The sample that it belongs to."""
    text: str
    """The text that the user would see; no thought, no markers."""


@dataclass(frozen=True)
class Group:
    """All responses to one prompt that are scored together."""

    prompt_id: str
    """The prompt."""
    instruction: str
    """The raw instruction, without any thought prompt."""
    reference: str | None
    """The right answer, if there is one."""
    responses: tuple[Response, ...]
    """The responses, by ascending index; never empty."""
    baseline: Response | None = None
    """Another model's response to compare each of them with, for a judge that only compares; index `BASELINE`."""
    constraints: str | None = None
    """The prompt's verifiable instructions, as `Prompt.constraints`."""
    history: str | None = None
    """The turns before the instruction, as `Prompt.history`."""
    rubric: str | None = None
    """The prompt's own rubric, as `Prompt.rubric`."""


def distinct_responses(group: Group, max_chars: int) -> list[Response]:
    """The distinct texts of a group of at most `max_chars` characters, each by the first response that has it."""
    distinct: dict[str, Response] = {}
    for response in group.responses:
        if len(response.text) <= max_chars:
            distinct.setdefault(response.text, response)
    return list(distinct.values())


def scores_by_text(group: Group, values: Mapping[str, float], why: Callable[[str], str]) -> list[Score]:
    """A score for each response of a group by its text, or `why` there is none."""
    return [
        Score(
            prompt_id=group.prompt_id,
            index=response.index,
            value=values.get(response.text),
            unscored=None if response.text in values else why(response.text),
            correct=None,
            response_chars=len(response.text),
        )
        for response in group.responses
    ]


Spend = Callable[[TokenCount], None]
"""Receives the tokens that one reply of a model took."""


def uncounted(_: TokenCount) -> None:
    """Ignores usage."""


class Judge(Protocol):
    """Scores the whole group of one prompt's responses."""

    def judge(
        self, groups: Sequence[Group], journal: Journal | None = None, spend: Spend = uncounted
    ) -> Iterator[list[Judgment]]:
        """The judgments of each group, in order: readings of single responses or comparisons of two.

        A judge that is paid per reply writes replies to `journal`, and requests none that is there. A model judge
        reports each reply's usage through `spend` before doing anything else with it.
        """
        ...

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        """One score, or the reason for none, for each response of the group, in order; a pure function."""
        ...


def groups_of(
    prompts: Iterable[Prompt],
    samples: Iterable[Sample | SampledResponse],
    *,
    with_errors: bool,
    baseline: Iterable[Sample | SampledResponse] = (),
) -> list[Group]:
    """The groups to judge, in the order of `prompts`; prompts without a response to judge have none.

    Args:
        prompts: The prompts, with instruction and reference.
        samples: Their samples, in any order.
        with_errors: Whether samples that break the format are judged, too, by their text without markers; for
            evaluation they are, for training they aren't.
        baseline: Samples of another model, one per prompt, that a comparing judge compares `samples` with.
    """
    against = {sample.prompt_id: Response(BASELINE, sample.response) for sample in baseline}
    responses: dict[str, list[Response]] = {}
    for sample in samples:
        if with_errors or sample.parse_error is None:
            responses.setdefault(sample.prompt_id, []).append(Response(sample.index, sample.response))
    return [
        Group(
            prompt_id=prompt.prompt_id,
            instruction=prompt.instruction,
            reference=prompt.reference,
            responses=tuple(sorted(responses[prompt.prompt_id], key=lambda response: response.index)),
            constraints=prompt.constraints,
            history=prompt.history,
            rubric=prompt.rubric,
            baseline=against.get(prompt.prompt_id),
        )
        for prompt in prompts
        if prompt.prompt_id in responses
    ]
