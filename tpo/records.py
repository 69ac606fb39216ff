"""What flows between the stages: frozen records, one class a Parquet table, documented field by field.

Stages pass `Artifact` handles and read the rows from the run folder, so that what one stage gave another is always
there to look at. A value that is not known is None and says why beside it; it is never an invented number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict


class Message(TypedDict):
    """One turn of a chat, in the form that chat templates take."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """The text of the turn."""


@dataclass(frozen=True)
class Prompt:
    """One instruction to respond to."""

    prompt_id: str
    """First 16 hex digits of the SHA-256 of the instruction: equal instructions are one prompt."""
    instruction: str
    """What the user asks, as it is: no template, no control tokens."""
    reference: str | None = None
    """The right answer, where there is one."""
    category: str | None = None
    """Kind of instruction, for tables by category."""
    difficulty: int | None = None
    """1 (easiest) and up, for tables by difficulty."""
    demonstration: str | None = None
    """A response to imitate, where one is given."""
    constraints: str | None = None
    """Instructions in the prompt that a program can check: a JSON list of `{"id": …, "kwargs": {…}}` of IFEval's types
    (`tpo.method.instructions`), or None."""


@dataclass(frozen=True)
class Generation:
    """What a model wrote when it was shown examples and asked for new instructions."""

    index: int
    """0, 1, … within the iteration."""
    example_ids: list[str]
    """The prompts that it was shown, in order."""
    output: str
    """What it wrote, special tokens left out; empty where it was refused."""
    finished: bool
    """False where the token limit cut it."""
    refused: str | None
    """Why a server would not take this one chat, in its words, or None."""


@dataclass(frozen=True)
class Sample:
    """One output of a model for one prompt, as sampled."""

    prompt_id: str
    """The prompt."""
    index: int
    """0 … K-1 within the prompt's group."""
    prompt_token_ids: list[int]
    """The tokens that the model was given: chat template, thought prompt and instruction."""
    output_token_ids: list[int]
    """The tokens that the model wrote, end token included; what DPO trains on."""
    output: str
    """The same as text, special tokens left out."""
    thought: str
    """What stands before the response; empty for a direct prompt."""
    response: str
    """What the user and the judge see."""
    parse_error: str | None
    """Why the output breaks the format (a `prompts.thought.ParseError`), or None."""
    tries: int
    """How many outputs were sampled until this one was kept; above 1 only where parse errors are sampled again."""


@dataclass(frozen=True)
class Judgment:
    """One thing that a judge said: a reading of one response, or a comparison of two."""

    prompt_id: str
    """The prompt."""
    index: int
    """The sample that was read, or that was shown first."""
    other_index: int | None
    """The sample shown second, or None for a reading."""
    outcome: float | None
    """The reading, or 1 (first won), -1 (second won), 0 (tie); None where the judge gave none."""
    detail: str
    """What the judge based it on, as JSON: attributes, verdict text, the answer it found."""


@dataclass(frozen=True)
class Score:
    """How good a judge found one response, or why it could not say."""

    prompt_id: str
    """The prompt."""
    index: int
    """The sample."""
    value: float | None
    """The score, higher is better, in the judge's own unit; None where unscored."""
    unscored: str | None
    """Why there is no score: a parse error of the sample, or the judge's reason."""
    correct: bool | None
    """Whether a judge that knows the reference found it right; None where it has no opinion."""
    response_chars: int
    """Length of the response in characters, what length control works on."""


@dataclass(frozen=True)
class Pair:
    """One preference: the full outputs, thoughts included, under the prompt that was asked."""

    prompt_id: str
    """The prompt."""
    kind: Literal["regular", "error_rejected"]
    """`error_rejected` where the rejected output is one that breaks the format."""
    prompt_token_ids: list[int]
    """The prompt's tokens."""
    chosen_token_ids: list[int]
    """The chosen output's tokens, as sampled."""
    rejected_token_ids: list[int]
    """The rejected output's tokens, as sampled."""
    chosen_index: int
    """The chosen sample."""
    rejected_index: int
    """The rejected sample."""
    chosen_score: float | None
    """The judge's raw score of the chosen response; None where no judge chose."""
    rejected_score: float | None
    """The judge's raw score of the rejected response; None for a parse error, and where no judge chose."""
    margin: float | None
    """Difference of the length-controlled scores; None for a parse error, and where no judge chose."""


@dataclass(frozen=True)
class Demonstration:
    """One output to imitate, under the prompt that was asked."""

    prompt_id: str
    """The prompt."""
    prompt_token_ids: list[int]
    """The prompt's tokens."""
    output_token_ids: list[int]
    """The output's tokens, end token included."""
    output: str
    """The same as text, special tokens left out."""
    origin: Literal["given", "sampled"]
    """`given` with the prompt, or `sampled` from a model and found right."""


@dataclass(frozen=True)
class Epoch:
    """One line of a training log: what the trainer measured at the end of an epoch."""

    epoch: int
    """1 … N."""
    step: int
    """Optimiser steps so far."""
    loss: float
    """Mean training loss of the epoch; DPO's before the first step is ln 2 (plus the NLL term for IRPO)."""
    margin: float | None
    """Mean of β·[(log π_c − log π_ref,c) − (log π_r − log π_ref,r)] over the epoch; None for demonstrations."""
    accuracy: float | None
    """Share of pairs whose margin is positive, over the epoch; None for demonstrations."""


@dataclass(frozen=True)
class Health:
    """How sound a judge looks. A share is None where there is nothing that it could be a share of."""

    responses: int
    """Responses that parse, or that were judged all the same."""
    unscored: Mapping[str, int]
    """Responses that got no score, by reason."""
    comparisons: int
    """Comparisons that were asked for."""
    unparsable: int
    """Comparisons whose reply held no verdict that can be read."""
    refused: int
    """Comparisons that were not made: too long, or refused by the server."""
    ties: int
    """Comparisons that ended in a tie."""
    first_rate: float | None
    """Share of decided comparisons that the response shown first won; one half without a position bias."""
    swap_agreement: float | None
    """Share of pairs, decided in both orders, in which the same response won both times."""
    length_correlation: float | None
    """Mean over prompts of the correlation (Pearson) of score and length in characters."""
    reference_agreement: float | None
    """Share of right–wrong pairs of responses to one prompt in which the right one scores higher; ties half."""
    reference_pairs: int
    """Pairs that `reference_agreement` is a share of."""
    score_quantiles: Sequence[float]
    """Scores at 0, 10, …, 100 %; empty without scores."""
    swap_pairs: int = 0
    """Pairs that `swap_agreement` is a share of; 0 too in what was written before this was counted."""
    equal_rate: float | None = None
    """Share of `scored_groups` in which all scores are equal."""
    scored_groups: int = 0
    """Prompts with scored responses that differ."""

    @property
    def unscored_rate(self) -> float | None:
        """Share of responses without a score."""
        return _share(sum(self.unscored.values()), self.responses)

    @property
    def unparsable_rate(self) -> float | None:
        """Share of comparisons without a verdict that can be read, refused ones included."""
        return _share(self.unparsable + self.refused, self.comparisons)

    @property
    def tie_rate(self) -> float | None:
        """Share of comparisons that ended in a tie."""
        return _share(self.ties, self.comparisons)

    @property
    def decided(self) -> int:
        """Comparisons that one of the two responses won."""
        return self.comparisons - self.unparsable - self.refused - self.ties

    @property
    def chance_agreement(self) -> float | None:
        """`swap_agreement` of a judge that heeds nothing but the order, and prefers the first as often as this one."""
        return None if self.first_rate is None else 2 * self.first_rate * (1 - self.first_rate)

    @property
    def swap_kappa(self) -> float | None:
        """Agreement of the two orders beyond chance (Cohen's κ): at most 1; 0 if the responses do not matter."""
        if self.swap_agreement is None or self.chance_agreement is None:
            return None
        return (self.swap_agreement - self.chance_agreement) / (1 - self.chance_agreement)


@dataclass(frozen=True)
class Artifact:
    """A handle to what a stage has written: complete, named by its content.

    It holds no value that handles share: Prefect draws an edge where an object comes from one task and goes to another.
    """

    path: Path
    """The stage's folder: Parquet shards or a model, and a manifest."""
    rows: int
    """Number of rows; for a model its number of files."""
    fingerprint: str
    """SHA-256 over the content: equal fingerprints mean equal content."""


@dataclass(frozen=True)
class External:
    """An input that no stage of the run has made: files of the user's or of this package."""

    fingerprint: str
    """SHA-256 over what matters of it: equal fingerprints mean equal results."""
    files: Mapping[Path, str] = field(default_factory=dict)
    """SHA-256 of the files and folders that it's read from; those that ship with this package may be left out."""


@dataclass(frozen=True)
class Account:
    """What became of a stage's input: `rows_in` = `rows_out` + everything dropped."""

    rows_in: int
    """Units that the stage was given (prompts, samples or groups: the stage says which)."""
    rows_out: int
    """Units that it kept."""
    dropped: Mapping[str, int]
    """Units that it dropped, by reason."""

    def __post_init__(self) -> None:
        if self.rows_in != self.rows_out + sum(self.dropped.values()):
            raise AssertionError(f"a stage lost count: {self}")

    def reasons(self) -> str:
        """What was dropped and why, to be shown; `none` if nothing was."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items())) or "none"


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


RECORDS: Mapping[str, type] = {
    cls.__name__: cls for cls in (Prompt, Generation, Sample, Judgment, Score, Pair, Demonstration, Epoch)
}
"""The record classes that can be stored, by name."""
