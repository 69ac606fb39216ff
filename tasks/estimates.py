"""Means with intervals from scores by prompt, overall and by kind of prompt, for reports and comparisons."""

from collections.abc import Callable, Mapping, Sequence

from tasks.handles import JudgedSamples
from tpo.method.stats import Estimate, mean
from tpo.records import Prompt, Score
from tpo.report.summary import Interval
from tpo.storage.store import read_rows


class Estimator:
    """Means with intervals; None if there are no values."""

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
    """Means by group, sorted by name. `key` gives a prompt's group; None leaves it out."""
    groups: dict[str, list[float]] = {}
    for prompt in prompts:
        if (name := key(prompt)) is not None and prompt.prompt_id in values:
            groups.setdefault(str(name), []).append(values[prompt.prompt_id])
    found = {name: estimate(mean, groups[name]) for name in sorted(groups)}
    return {name: interval for name, interval in found.items() if interval is not None}


def values_of(answers: JudgedSamples) -> dict[str, float]:
    """Score by prompt, of the prompts that were scored."""
    return {s.prompt_id: s.value for s in read_rows(answers.scores, Score) if s.value is not None}


def outcome(value: float, base: float) -> float:
    """1 if the first score is higher, 0 if it is lower, 0.5 if they are equal."""
    return 0.5 if abs(value - base) < 1e-9 else float(value > base)


def slug(name: str) -> str:
    """A name in the letters that keys of Prefect's artifacts may have."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
