"""What a judge gets to see of samples in a run folder, and its judgments, read as they are needed.

A shard of samples has all samples of its prompts, in the prompts' order; judgments are in the same order.
"""

import itertools
from collections.abc import Iterator, Sequence

from judges.base import Group, groups_of
from tasks.handles import JudgeInput, SamplingSpec
from tpo.config.judges import compares
from tpo.records import Artifact, Judgment, Prompt, SampledResponse
from tpo.storage.store import read_shards, stream_rows


class Asked:
    """The prompts that samples answer, and what a comparing judge compares these with."""

    def __init__(self, spec: SamplingSpec, prompts: Artifact, baseline: Artifact | None) -> None:
        self._with_errors = spec.purpose == "evaluate"
        self._prompts = {prompt.prompt_id: prompt for prompt in stream_rows(prompts, Prompt)}
        against = stream_rows(baseline, SampledResponse) if baseline and compares(spec.judge) else ()
        self._baseline = {sample.prompt_id: sample for sample in against}

    def is_judged(self, sample: SampledResponse) -> bool:
        """Whether a sample is judged: for evaluation also if it breaks the format."""
        return self._with_errors or sample.parse_error is None

    def of(self, shard: Sequence[SampledResponse]) -> list[Group]:
        """The groups of a shard of samples."""
        ids = dict.fromkeys(sample.prompt_id for sample in shard)
        baseline = [self._baseline[prompt_id] for prompt_id in ids if prompt_id in self._baseline]
        prompts = [self._prompts[prompt_id] for prompt_id in ids if prompt_id in self._prompts]
        return groups_of(prompts, shard, with_errors=self._with_errors, baseline=baseline)


class StoredGroups:
    """The groups of some samples: a shard's, or those at some positions."""

    def __init__(self, spec: SamplingSpec, submitted: JudgeInput) -> None:
        self._samples = submitted.samples
        self._asked = Asked(spec, submitted.prompts, submitted.baseline)
        self._starts = [0]
        for shard in read_shards(self._samples, SampledResponse):
            judged = {sample.prompt_id for sample in shard if self._asked.is_judged(sample)}
            self._starts.append(self._starts[-1] + len(judged))

    def __len__(self) -> int:
        return self._starts[-1]

    def of(self, shard: Sequence[SampledResponse]) -> list[Group]:
        """The groups of a shard of samples."""
        return self._asked.of(shard)

    def of_shard(self, number: int) -> list[Group]:
        """The groups of the shard of samples of this number."""
        return [group for shard in read_shards(self._samples, SampledResponse, [number]) for group in self.of(shard)]

    def shards_between(self, start: int, stop: int) -> list[int]:
        """The shards of samples that have the groups from position `start` to before `stop`."""
        return [i for i, (a, b) in enumerate(itertools.pairwise(self._starts)) if a < stop and b > start]

    def between(self, start: int, stop: int) -> list[Group]:
        """The groups from position `start` to before `stop`."""
        shards = self.shards_between(start, stop)
        found = [group for shard in read_shards(self._samples, SampledResponse, shards) for group in self.of(shard)]
        first = self._starts[shards[0]] if shards else 0
        return found[max(0, start - first) : max(0, stop - first)]


class PromptRows:
    """Judgments that come prompt by prompt, taken in the same order; a prompt may have none."""

    def __init__(self, judgments: Iterator[Judgment]) -> None:
        self._left = itertools.groupby(judgments, key=lambda judgment: judgment.prompt_id)
        self._next = next(self._left, None)

    def of(self, prompt_id: str) -> list[Judgment]:
        """Those of a prompt."""
        if self._next is None or self._next[0] != prompt_id:
            return []
        found = list(self._next[1])
        self._next = next(self._left, None)
        return found
