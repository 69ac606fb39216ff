"""From scores by prompt to means with intervals, for what reports and comparisons show.

In: `Answers`. Out: `Interval`s, over all prompts or by kind of prompt.
"""

from collections.abc import Callable, Mapping, Sequence

from tasks.handles import Answers
from tpo.method.stats import Estimate, mean
from tpo.records import Prompt, Score
from tpo.report.summary import Interval
from tpo.storage.store import read_rows


class Estimator:
    """Means with intervals; None where there is nothing to take a mean of."""

    def __init__(self, confidence: float) -> None:
        self._confidence = confidence

    def __call__(self, statistic: Callable[..., Estimate], *values: Sequence[float]) -> Interval | None:
        if not values[0]:
            return None
        found = statistic(*values, confidence=self._confidence)
        return Interval(found.value, found.low, found.high, found.n)


def grouped(
    estimate: Estimator, values: Mapping[str, float], prompts: Sequence[Prompt], key: Callable[[Prompt], object]
) -> dict[str, Interval]:
    """Means by what `key` says of a prompt, sorted by name; prompts of which it says None are in no group."""
    groups: dict[str, list[float]] = {}
    for prompt in prompts:
        if (name := key(prompt)) is not None and prompt.prompt_id in values:
            groups.setdefault(str(name), []).append(values[prompt.prompt_id])
    found = {name: estimate(mean, groups[name]) for name in sorted(groups)}
    return {name: interval for name, interval in found.items() if interval is not None}


def values_of(answers: Answers) -> dict[str, float]:
    """Score by prompt, of the prompts that were scored."""
    return {s.prompt_id: s.value for s in read_rows(answers.scores, Score) if s.value is not None}


def outcome(value: float, base: float) -> float:
    """1 where a score is higher than another, 0 where it is lower, 0.5 where they are equal."""
    return 0.5 if abs(value - base) < 1e-9 else float(value > base)


def slug(name: str) -> str:
    """A name in the letters that keys of Prefect's artifacts may have."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
