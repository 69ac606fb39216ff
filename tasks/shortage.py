"""The error of a run with too few pairs to train on, with the remedy that fits the cause.

The remedy follows the most common reason among prompts without a pair: a smaller margin doesn't help a model that
doesn't follow the format.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tpo.config.judges import least_margin
from tpo.config.run import RunConfig
from tpo.errors import StageError
from tpo.records import Sample, Score


@dataclass(frozen=True)
class Shortage:
    """How many prompts gave a pair, and why others didn't."""

    stage: str
    """What made the pairs, for the message."""
    paired: int
    """Prompts with a pair."""
    prompts: int
    """All prompts that could have one."""
    dropped: Mapping[str, int]
    """Prompts without a pair, by reason."""
    unit: str = "prompts"
    """The noun for a prompt, as in `questions`."""

    def is_serious(self, min_pairs: float) -> bool:
        """Whether there is no pair at all, or a smaller share than `health.min_pairs`."""
        return not self.paired or self.paired < min_pairs * self.prompts

    def error(self, min_pairs: float, remedy: str) -> StageError:
        """What stops the run."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        if not self.paired:
            return StageError(f"{self.stage}: 0 pairs from {self.prompts} {self.unit} ({reasons}): {remedy}")
        return StageError(
            f"{self.stage}: only {self.paired} of {self.prompts} {self.unit} gave a pair "
            f"({self.paired / self.prompts:.1%}, and health.min_pairs asks for {min_pairs:.1%}; {reasons}): {remedy}. "
            "To train on so few all the same, lower health.min_pairs"
        )


@dataclass(frozen=True)
class PromptScores:
    """One prompt's samples and scores."""

    samples: Sequence[Sample]
    """The samples."""
    scores: Sequence[Score]
    """Their scores."""

    @property
    def spread(self) -> float | None:
        """Distance of the best and the worst raw score; None with fewer than two."""
        values = [score.value for score in self.scores if score.value is not None]
        return max(values) - min(values) if len(values) > 1 else None


def remedy_for_scored(config: RunConfig, dropped: Mapping[str, int], groups: Iterable[PromptScores]) -> str:
    """The remedy for prompts whose scored samples gave no pair."""
    found = list(groups)
    samples = [sample for group in found for sample in group.samples]
    scores = [score for group in found for score in group.scores]
    broken = sum(sample.parse_error is not None for sample in samples)
    unscored = Counter(
        score.unscored
        for sample, score in zip(samples, scores, strict=True)
        if score.unscored and sample.parse_error is None
    )
    causes = Counter[str]()
    same = {"tie": "small_margin", "single_candidate": "all_malformed" if broken >= unscored.total() else "unscored"}
    for reason, count in dropped.items():
        causes[same.get(reason, reason)] += count
    match causes.most_common(1):
        case [("all_malformed", _)]:
            return _against_broken_outputs(config, samples)
        case [("unscored", _)]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in unscored.most_common())
            return (
                f"the judge scored too few responses (unscored: {reasons}): look at its replies, give it room (its "
                "max_tokens or max_new_tokens), or choose another judge"
            )
        case [("members_disagree", count)]:
            return (
                f"of {count} prompts the judge's members disagree on which response is better: look at how each agrees "
                'with references, leave out a bad one, or set judge.agreement to "any"'
            )
        case [("too_long", _)]:
            longest = max(len(sample.prompt_token_ids) + len(sample.output_token_ids) for sample in samples)
            return (
                f"prompt and output have up to {longest} tokens: raise train.max_tokens ({config.train.max_tokens}), "
                f"or lower sample.max_new_tokens ({config.sample.max_new_tokens})"
            )
        case _:
            return _against_small_margins(config, [g.spread for g in found if g.spread is not None])


def _against_broken_outputs(config: RunConfig, samples: Sequence[Sample]) -> str:
    """The remedy for outputs that are cut or don't follow the format."""
    sample, thinks = config.sample, config.prompt.variant != "direct"
    errors = Counter(each.parse_error for each in samples if each.parse_error is not None)
    cut = errors["cut_by_length"]
    shorter_thoughts = [] if sample.max_thought_tokens or not thinks else ["set sample.max_thought_tokens"]
    if cut * 2 >= errors.total():
        ended = sorted(len(s.output_token_ids) for s in samples if s.parse_error != "cut_by_length")
        lengths = f"those that ended have {_median_and_longest(ended)}" if ended else "none ended by itself"
        ways = [f"raise sample.max_new_tokens ({sample.max_new_tokens})"]
        ways += [f"{way}, so that the response begins in time" for way in shorter_thoughts]
        ways += [f"lower sample.max_thought_tokens ({sample.max_thought_tokens})"] if sample.max_thought_tokens else []
        fault = f"{cut} of {len(samples)} outputs were cut after {sample.max_new_tokens} tokens, and {lengths}"
    else:
        counts = ", ".join(f"{count} {error}" for error, count in errors.most_common())
        fault = f"{errors.total()} of {len(samples)} outputs do not follow the format ({counts})"
        ways = [f"{way}, which writes the response marker for the model" for way in shorter_thoughts]
        ways += [f"raise sample.max_attempts ({sample.max_attempts})", "try another prompt.variant or template"]
    return f"{fault}: {', or '.join(ways)}"


def _median_and_longest(lengths: Sequence[int]) -> str:
    return f"{statistics.median(lengths):g} tokens at the median and {max(lengths)} at most"


def _against_small_margins(config: RunConfig, spreads: Sequence[float]) -> str:
    """The remedy for responses with scores too close to each other."""
    margin = least_margin(config.pair, config.judge)
    typical = statistics.median(spreads) if spreads else 0.0
    more = f"raise sample.k ({config.sample.k}) or sample.temperature ({config.sample.temperature:g})"
    if typical < 1e-9 and config.judge.kind == "verifier":
        return (
            f"of most prompts all responses are right, or all are wrong: choose prompts that the model solves now and "
            f"then, or {more}"
        )
    if typical < 1e-9:
        return f"the responses to most prompts get equal scores: look whether they differ, or {more}"
    return f"a prompt's raw scores lie {typical:.3g} apart at the median: lower pair.min_margin ({margin:g}), or {more}"
