"""Candidates for pairs: a prompt's samples with their scores, and which two of them make a pair, or why none do.

Pure, so that pages that explain a run's pairs apply the rules of the stage that made them (`tasks.pair`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tpo.method.pairing import TIE_TOLERANCE, PairIndices, has_margin, select_pair
from tpo.method.scoring import length_controlled
from tpo.records import Sample, Score, members_agree


@dataclass(frozen=True)
class ScoredSample:
    """One sample with its score."""

    sample: Sample
    """The output."""
    score: Score
    """Its score."""


@dataclass(frozen=True)
class ScoredGroup:
    """One prompt's candidates, those that can be compared apart from those that break the format."""

    prompt_id: str
    """The prompt."""
    valid: list[ScoredSample]
    """Candidates that parse and are scored, by index."""
    broken: list[ScoredSample]
    """Candidates that break the format, by index."""
    unscored: list[ScoredSample]
    """Candidates that parse but that the judge didn't score, by index."""

    @property
    def scores(self) -> list[float]:
        """Raw scores of the valid candidates."""
        return [candidate.score.value for candidate in self.valid if candidate.score.value is not None]

    @property
    def lengths(self) -> list[int]:
        """Response lengths of the valid candidates, in characters."""
        return [candidate.score.response_chars for candidate in self.valid]

    @property
    def thoughts(self) -> list[int]:
        """Thought lengths of the valid candidates, in characters."""
        return [len(candidate.sample.thought) for candidate in self.valid]

    @property
    def is_tied(self) -> bool:
        """Whether all raw scores are equal, so that only length would separate the responses."""
        return not self.scores or max(self.scores) - min(self.scores) < TIE_TOLERANCE

    def controlled(self, rho: float, thought_penalty: float) -> NDArray[np.float64]:
        """Length-controlled scores of the valid candidates."""
        return length_controlled(
            self.scores, self.lengths, rho, thoughts=self.thoughts, thought_penalty=thought_penalty
        )


def group_candidates(samples: Sequence[Sample], scores: Sequence[Score]) -> list[ScoredGroup]:
    """Samples and scores by prompt, in the order in which prompts first appear."""
    by_key = {(score.prompt_id, score.index): score for score in scores}
    groups: dict[str, ScoredGroup] = {}
    for sample in sorted(samples, key=lambda sample: sample.index):
        groups.setdefault(sample.prompt_id, ScoredGroup(sample.prompt_id, [], [], []))
        candidate = ScoredSample(sample, by_key[sample.prompt_id, sample.index])
        if sample.parse_error is not None:
            groups[sample.prompt_id].broken.append(candidate)
        elif candidate.score.value is not None:
            groups[sample.prompt_id].valid.append(candidate)
        else:
            groups[sample.prompt_id].unscored.append(candidate)
    return [groups[prompt_id] for prompt_id in dict.fromkeys(sample.prompt_id for sample in samples)]


def pair_indices(
    group: ScoredGroup, controlled: NDArray[np.float64], min_margin: float, *, all_agree: bool = False
) -> PairIndices | str:
    """The positions of chosen and rejected among the group's valid candidates, or why they make no pair; with
    `all_agree`, all members of the ensemble that scored them have to prefer the chosen one."""
    if not group.valid:
        return "unscored" if group.unscored else "all_malformed"
    if len(group.valid) < 2:
        return "single_candidate"
    if not has_margin(group.scores, min_margin):
        return "small_margin"
    texts = [candidate.sample.output for candidate in group.valid]
    if group.is_tied or (indices := select_pair(controlled, group.lengths, texts=texts)) is None:
        return "tie"
    chosen, rejected = (group.valid[i].score for i in indices)
    return "members_disagree" if all_agree and not members_agree(chosen, rejected) else indices
