"""The report of `check-model` on a model: facts, errors, notes and, on request, a probe."""

import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from tpo.errors import InputError
from tpo.planning.fit import Misfit

COLUMNS = 118
"""Width of the page, in characters."""
_LABEL = 12
_EXAMPLE_CHARS = 400
DEGREES = tuple(range(1, 17))
"""Numbers of GPUs per engine that are checked."""


@dataclass(frozen=True)
class Trial:
    """One output of a probe, parsed."""

    thought: str
    """The thought, as far as one was found."""
    response: str
    """The response; if the output breaks the format, all of it."""
    error: str | None
    """Why it breaks the format; None if it doesn't."""
    thought_tokens: int
    """Tokens of the thought."""
    tokens: int
    """Tokens of the output."""


@dataclass(frozen=True)
class Probe:
    """The outputs with one thought prompt."""

    variant: str
    """The prompt's name."""
    trials: Sequence[Trial]
    """All outputs."""
    seconds: float
    """Duration of sampling."""

    @property
    def followed(self) -> int:
        """Number of outputs that follow the format."""
        return sum(trial.error is None for trial in self.trials)

    @property
    def errors(self) -> Mapping[str, int]:
        """Number of outputs that break the format, by reason."""
        names = sorted({trial.error for trial in self.trials if trial.error is not None})
        return {name: sum(trial.error == name for trial in self.trials) for name in names}

    @property
    def tokens_per_second(self) -> float:
        """Tokens written per second."""
        return sum(trial.tokens for trial in self.trials) / self.seconds if self.seconds else 0.0

    @property
    def example(self) -> Trial:
        """The output to show: one that follows the format, if any does."""
        return next((trial for trial in self.trials if trial.error is None), self.trials[0])


@dataclass(frozen=True)
class ModelReport:
    """A check of a model before its first run."""

    model: str
    """The model's folder."""
    profile: str
    """The profile that it was checked for."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Its properties, by name."""
    refusals: Sequence[str] = ()
    """Reasons why a run would reject it."""
    notes: Sequence[str] = ()
    """Notes that a run would print about it."""
    probes: Sequence[Probe] = ()
    """Samples of its outputs."""

    @property
    def passed(self) -> bool:
        """Whether a run would accept it."""
        return not self.refusals


class Collector:
    """Runs checks one after another and keeps all their findings, whereas a run stops at the first error."""

    def __init__(self) -> None:
        self.refusals: list[str] = []
        self.notes: list[str] = []

    def run(self, check: Callable[[], object]) -> bool:
        """Runs one check, which may return notes and misfits; returns whether it passed."""
        refused = list[str]()
        try:
            found = check()
            for line in found if isinstance(found, Iterable) else ():
                if isinstance(line, Misfit) and line.certain:
                    refused.append(str(line))
                elif isinstance(line, str | Misfit) and str(line) not in self.notes:
                    self.notes.append(str(line))
        except InputError as error:  # Some checks are generators and raise only while their notes are read.
            refused.append(str(error))
        self.refusals += [line for line in dict.fromkeys(refused) if line not in self.refusals]
        return not refused


def as_json(report: ModelReport) -> str:
    """The report as JSON, with the properties derived from it."""
    values = dataclasses.asdict(report)
    values["passed"] = report.passed
    for shown, probe in zip(values["probes"], report.probes, strict=True):
        shown |= {"followed": probe.followed, "errors": probe.errors, "tokens_per_second": probe.tokens_per_second}
    return json.dumps(values, indent=1, ensure_ascii=False)


def as_lines(report: ModelReport) -> list[str]:
    """The report as lines of text."""
    lines = [f"model {report.model}, checked for {report.profile}", ""]
    for name, text in report.facts.items():
        lines += _entry(name, text)
    for title, texts in (("Notes", report.notes), ("A run would refuse it", report.refusals)):
        if texts:
            lines += ["", f"{title}:"]
            for text in texts:
                lines += [f"{'  ' if i else '- '}{line}" for i, line in enumerate(_wrapped(text, COLUMNS - 2))]
    if report.probes:
        lines += ["", *_probe_table(report.probes)]
        for probe in report.probes:
            lines += ["", *_example(probe)]
    verdict = "A run accepts this model." if report.passed else "A run would refuse this model as it is."
    return [*lines, "", verdict]


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of whole words; at least one."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _entry(name: str, text: str) -> list[str]:
    wrapped = _wrapped(text, COLUMNS - _LABEL)
    return [f"{name if i == 0 else '':{_LABEL}}{line}" for i, line in enumerate(wrapped)]


def _probe_table(probes: Sequence[Probe]) -> list[str]:
    head = (
        f"{'prompt':16}{'follow the format':>19}{'thought chars':>15}{'tokens':>8}{'output tokens':>15}{'tokens/s':>10}"
    )
    lines = [head + "   reasons for the rest"]
    for probe in probes:
        fine = [trial for trial in probe.trials if trial.error is None]
        share = f"{probe.followed} of {len(probe.trials)}"
        broken = ", ".join(f"{count} {name}" for name, count in probe.errors.items())
        lines.append(
            f"{probe.variant:16}{share:>19}{_mean(len(trial.thought) for trial in fine):>15}"
            f"{_mean(trial.thought_tokens for trial in fine):>8}{_mean(trial.tokens for trial in probe.trials):>15}"
            f"{probe.tokens_per_second:>10,.0f}   {broken}".rstrip()
        )
    return [*lines, "Lengths are means; those of thoughts are over the outputs that follow the format."]


def _mean(values: Iterable[int]) -> str:
    found = list(values)
    return f"{mean(found):,.0f}" if found else "–"


def _example(probe: Probe) -> list[str]:
    shown = probe.example
    parts = {"thought": shown.thought, "response" if shown.error is None else shown.error: shown.response}
    lines = [f"{probe.variant}:"]
    for name, text in parts.items():
        if text:
            lines += textwrap.wrap(
                f"{name}: {textwrap.shorten(text, _EXAMPLE_CHARS, placeholder=' …')}",
                COLUMNS,
                initial_indent="  ",
                subsequent_indent="    ",
            )
    return lines


def advice(probes: Sequence[Probe], max_new_tokens: int) -> list[str]:
    """Advice if the probe shows that a first run would be wasted."""
    notes = []
    for probe in probes:
        count = len(probe.trials)
        cut = probe.errors.get("cut_by_length", 0)
        if 2 * cut > count:
            notes.append(
                f"prompt {probe.variant}: {cut} of {count} outputs were cut off at sample.max_new_tokens = "
                f"{max_new_tokens}: raise it, or set sample.max_thought_tokens"
            )
        elif 2 * probe.followed < count:
            notes.append(
                f"prompt {probe.variant}: {count - probe.followed} of {count} outputs break the format: try another "
                "prompt.variant, set sample.max_thought_tokens (which writes the response marker for the model), "
                "or raise sample.max_attempts"
            )
    return notes
