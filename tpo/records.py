"""The data between stages: frozen records, one class per Parquet table, documented field by field.

Stages pass `Artifact` handles and read rows from the run folder, so everything that one stage hands to another can be
inspected. An unknown value is None, with the reason in another field; it is never an invented number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict


class Message(TypedDict):
    """One turn of a chat, in the form that chat templates take."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """The text of the turn."""


@dataclass(frozen=True)
class Prompt:
    """One instruction to respond to, or a conversation to continue."""

    prompt_id: str
    """First 16 hex digits of the SHA-256 of the instruction, or of all turns of a conversation: equal ones are one
    prompt."""
    instruction: str
    """The user's request as it is: no template, no control tokens. Of a conversation, the last user turn."""
    reference: str | None = None
    """The right answer, if there is one."""
    category: str | None = None
    """Kind of instruction, for tables by category."""
    difficulty: int | None = None
    """1 (easiest) and up, for tables by difficulty."""
    demonstration: str | None = None
    """A response to imitate, if one is given."""
    constraints: str | None = None
    """Instructions in the prompt that a program can check: a JSON list of `{"id": …, "kwargs": {…}}` of IFEval's types
    (`tpo.method.instructions`), or None."""
    history: str | None = None
    """The turns before the instruction, as `write_turns` writes them: a system turn, if there is one, then user and
    assistant in turn; None if there are none."""
    rubric: str | None = None
    """What a good response to this prompt has to do, for a judge that grades by rubrics; None for the judge's own."""

    @property
    def earlier(self) -> list[Message]:
        """The turns of `history`."""
        return read_turns(self.history)


def write_turns(turns: Sequence[Message]) -> str | None:
    """Some turns as JSON, equal for equal turns; None if there are none."""
    return json.dumps(list(turns), ensure_ascii=False, separators=(",", ":")) if turns else None


def read_turns(turns: str | None) -> list[Message]:
    """The turns that `write_turns` has written."""
    return [] if turns is None else [Message(role=turn["role"], content=turn["content"]) for turn in json.loads(turns)]


@dataclass(frozen=True)
class Generation:
    """A model's output when asked for new instructions, given examples."""

    index: int
    """0, 1, … within the iteration."""
    example_ids: list[str]
    """The prompts given as examples, in order."""
    output: str
    """The text, without special tokens; empty if the request was refused."""
    finished: bool
    """False if the token limit cut it."""
    refused: str | None
    """The server's reason for refusing this request, or None."""


@dataclass(frozen=True)
class Sample:
    """One output of a model for one prompt, as sampled."""

    prompt_id: str
    """The prompt."""
    index: int
    """0 … K-1 within the prompt's group."""
    prompt_token_ids: list[int]
    """The input tokens: chat template, thought prompt and instruction."""
    output_token_ids: list[int]
    """The output tokens, including the end token; DPO trains on these."""
    output: str
    """The same as text, special tokens left out."""
    thought: str
    """The text before the response; empty for a direct prompt."""
    response: str
    """The part that the user and the judge see."""
    parse_error: str | None
    """Why the output breaks the format (a `prompts.thought.ParseError`), or None."""
    tries: int
    """Number of outputs sampled until this one was kept; above 1 only if parse errors are sampled again."""


@dataclass(frozen=True)
class SampledResponse:
    """What is judged of a `Sample`, read without its tokens and its thought."""

    STORED_AS: ClassVar[str] = "Sample"

    prompt_id: str
    """The prompt."""
    index: int
    """0 … K-1 within the prompt's group."""
    response: str
    """The part that the user and the judge see."""
    parse_error: str | None
    """Why the output breaks the format, or None."""


@dataclass(frozen=True)
class Judgment:
    """One judgment: a reading of one response, or a comparison of two."""

    prompt_id: str
    """The prompt."""
    index: int
    """The sample that was read, or that was shown first."""
    other_index: int | None
    """The sample shown second, or None for a reading."""
    outcome: float | None
    """The reading, or 1 (first won), -1 (second won), 0 (tie); None if the judge gave none."""
    detail: str
    """The judge's basis for it, as JSON: attributes, verdict text, the answer it found."""


@dataclass(frozen=True)
class Score:
    """A judge's score of one response, or why there is none."""

    prompt_id: str
    """The prompt."""
    index: int
    """The sample."""
    value: float | None
    """The score, higher is better, in the judge's own unit; None if unscored."""
    unscored: str | None
    """Why there is no score: a parse error of the sample, or the judge's reason."""
    correct: bool | None
    """Whether a judge that knows the reference found it correct; None if it can't tell."""
    response_chars: int
    """Length of the response in characters, used by length control."""
    member_scores: list[float] | None = None
    """For an ensemble: the z-score of each member that was asked, in their order; for a single response, their scores
    in points. None for other judges, and for a response without a score."""
    disagreement: float | None = None
    """Standard deviation of these z-scores, 0 with one of them; None for a single response or without any."""


def members_agree(better: Score, worse: Score) -> bool:
    """Whether every member of an ensemble that was asked scores one response higher than the other."""
    pairs = zip(better.member_scores or (), worse.member_scores or (), strict=False)
    return all(one > other for one, other in pairs)


@dataclass(frozen=True)
class Rating:
    """The kind of one instruction: what its file says of it, or a model."""

    prompt_id: str
    """The prompt."""
    category: str | None
    """Its category; None if it isn't known."""
    no_category: str | None
    """Why the category isn't known (`prompts.rating.Unread`, a refusal, `not_given`), or None."""
    complexity: int | None
    """From 1 (simplest) to 5, or the file's difficulty; None if it isn't known."""
    no_complexity: str | None
    """Why the complexity isn't known, or None."""
    reply: str
    """The rater's reply as JSON; empty if none was asked for."""


@dataclass(frozen=True)
class Pair:
    """One preference: two full outputs, thoughts included, after the same prompt."""

    prompt_id: str
    """The prompt."""
    kind: Literal["regular", "error_rejected"]
    """`error_rejected` if the rejected output breaks the format."""
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
    """The judge's raw score of the chosen response; None without a judge."""
    rejected_score: float | None
    """The judge's raw score of the rejected response; None for a parse error, and without a judge."""
    margin: float | None
    """Difference of the length-controlled scores; None for a parse error, and without a judge."""


@dataclass(frozen=True)
class Demonstration:
    """One output to imitate, after its prompt."""

    prompt_id: str
    """The prompt."""
    prompt_token_ids: list[int]
    """The prompt's tokens."""
    output_token_ids: list[int]
    """The output's tokens, end token included."""
    output: str
    """The same as text, special tokens left out."""
    origin: Literal["given", "sampled"]
    """`given` with the prompt, or `sampled` from a model and judged correct."""


@dataclass(frozen=True)
class Epoch:
    """A trainer's measurements at the end of an epoch."""

    epoch: int
    """1 … N."""
    step: int
    """Optimizer steps so far."""
    loss: float
    """Mean training loss of the epoch; DPO's before the first step is ln 2 (plus the NLL term for IRPO)."""
    margin: float | None
    """Mean of β·[(log π_c − log π_ref,c) − (log π_r − log π_ref,r)] over the epoch; None for demonstrations."""
    accuracy: float | None
    """Share of pairs whose margin is positive, over the epoch; None for demonstrations."""


@dataclass(frozen=True)
class JudgeHealth:
    """Indicators of a judge's reliability. A share is None if its denominator is 0."""

    responses: int
    """Responses that parse, or that were judged anyway."""
    unscored: Mapping[str, int]
    """Responses without a score, by reason."""
    comparisons: int
    """Comparisons requested."""
    unparsable: int
    """Comparisons whose reply has no readable verdict."""
    refused: int
    """Comparisons that weren't made: too long, or refused by the server."""
    ties: int
    """Comparisons that ended in a tie."""
    first_rate: float | None
    """Share of decided comparisons won by the response shown first; one half without a position bias."""
    swap_agreement: float | None
    """Share of pairs, decided in both orders, in which the same response won both times."""
    length_correlation: float | None
    """Mean over prompts of the correlation (Pearson) of score and length in characters."""
    reference_agreement: float | None
    """Share of correct–wrong pairs of responses to one prompt in which the correct one scores higher; ties count one
    half."""
    reference_pairs: int
    """Number of pairs behind `reference_agreement`."""
    score_quantiles: Sequence[float]
    """Scores at 0, 10, …, 100 %; empty without scores."""
    swap_pairs: int = 0
    """Number of pairs behind `swap_agreement`; also 0 in older files."""
    equal_rate: float | None = None
    """Share of `scored_groups` in which all scores are equal."""
    scored_groups: int = 0
    """Prompts with different scored responses."""
    readings: int = 0
    """Readings of single responses, by a judge that doesn't compare; also 0 in older files."""
    unread: int = 0
    """Of these, replies of a model without a readable score, refused ones included."""
    members: Mapping[str, Any] = field(default_factory=dict)
    """For an ensemble: each member's own health by its name, as values of this class."""
    disagreement: float | None = None
    """For an ensemble: the mean of `Score.disagreement` over responses that more than one member scored."""
    agreeing_pairs: float | None = None
    """For an ensemble: the share of pairs of differently scored responses that all members asked order alike."""
    judged_pairs: int = 0
    """Number of pairs behind `agreeing_pairs`."""
    escalated: int = 0
    """Prompts that all members were asked about."""
    escalatable: int = 0
    """Prompts that the first member was asked about, if others are asked about close ones only; otherwise 0."""

    @property
    def unscored_rate(self) -> float | None:
        """Share of responses without a score."""
        return _share(sum(self.unscored.values()), self.responses)

    @property
    def unparsable_rate(self) -> float | None:
        """Share of comparisons without a readable verdict, including refused ones."""
        return _share(self.unparsable + self.refused, self.comparisons)

    @property
    def unread_rate(self) -> float | None:
        """Share of readings that are replies without a readable score."""
        return _share(self.unread, self.readings)

    @property
    def tie_rate(self) -> float | None:
        """Share of comparisons that ended in a tie."""
        return _share(self.ties, self.comparisons)

    @property
    def decided(self) -> int:
        """Comparisons with a winner."""
        return self.comparisons - self.unparsable - self.refused - self.ties

    @property
    def chance_agreement(self) -> float | None:
        """`swap_agreement` of a judge that decides by order alone and prefers the first as often as this one does."""
        return None if self.first_rate is None else 2 * self.first_rate * (1 - self.first_rate)

    @property
    def swap_kappa(self) -> float | None:
        """Agreement of the two orders beyond chance (Cohen's κ): at most 1; 0 if the responses don't matter."""
        if self.swap_agreement is None or self.chance_agreement is None:
            return None
        return (self.swap_agreement - self.chance_agreement) / (1 - self.chance_agreement)


@dataclass(frozen=True)
class AttackShare:
    """What one kind of attack did to a judge."""

    attack: str
    """The kind, a key of `judges.attacks.KINDS`."""
    about: str
    """What it does to the worse response."""
    turned: float | None
    """Share of the pairs that the judge orders alike again without the attack in which the attacked response wins, ties
    counting half; None without such a pair."""
    low: float | None
    """Lower end of its 95 % interval (Wilson)."""
    high: float | None
    """Upper end."""
    pairs: int
    """Number of these pairs."""
    unscored: int
    """Further such pairs in which a response got no score once it was attacked."""


@dataclass(frozen=True)
class GateScore:
    """What the gate found about one score of M_t, compared with M_{t-1}'s on the same prompts."""

    score: str
    """The score's name in `gate.scores`."""
    judge: str
    """Who scored: `verifier (exact)`, or the judge's kind and model."""
    compared: Literal["scores", "wins"]
    """`scores`: the difference is that of mean scores; `wins`: it is the share of prompts on which M_t does better,
    ties counting half, minus one half."""
    prompts: int
    """Prompts that both models have a score for."""
    missing: int
    """Prompts that only M_{t-1} has a score for."""
    before: float | None
    """Mean score of M_{t-1} on them, in the judge's own unit; None if both were judged together."""
    after: float | None
    """Mean score of M_t on them; if both were judged together, the share that it won."""
    difference: float | None
    """The difference; None without prompts."""
    low: float | None
    """Its one-sided lower bound, by which the test decides."""
    high: float | None
    """Its one-sided upper bound."""
    margin: float
    """How much worse M_t may be."""
    outcome: Literal["not_worse", "worse", "unclear", "unscored"]
    """`not_worse` passes. `unclear`: the test can't tell; `unscored`: too few of the prompts have a score for M_t."""
    needed: int | None
    """For `unclear`: about how many prompts would pass if the differences stayed as they are."""

    @property
    def passed(self) -> bool:
        """Whether M_t isn't worse."""
        return self.outcome == "not_worse"


@dataclass(frozen=True)
class GateDecision:
    """What the gate decided about M_t."""

    promoted: bool
    """Whether the loop may continue from it."""
    accepted: bool
    """Whether it was promoted by `gate.accept`, against the test."""
    scores: Sequence[GateScore]
    """What was found, score by score."""


@dataclass(frozen=True)
class Artifact:
    """A handle to a stage's complete result, identified by its content.

    Handles share no objects: Prefect draws an edge between tasks whenever an object passes from one to another.
    """

    path: Path
    """The stage's folder: Parquet shards or a model, and a manifest."""
    rows: int
    """Number of rows; for a model its number of files."""
    fingerprint: str
    """SHA-256 over the content: equal fingerprints mean equal content."""


@dataclass(frozen=True)
class External:
    """An input from outside the run: the user's files or those of this package."""

    fingerprint: str
    """SHA-256 over the content that matters: equal fingerprints mean equal results."""
    files: Mapping[Path, str] = field(default_factory=dict)
    """SHA-256 of its files and folders; those that ship with this package may be omitted."""


@dataclass(frozen=True)
class RowCounts:
    """Counts of a stage's rows: `rows_in` = `rows_out` + everything dropped."""

    rows_in: int
    """Units that went in (prompts, samples or groups: the stage says which)."""
    rows_out: int
    """Units that were kept."""
    dropped: Mapping[str, int]
    """Units that were dropped, by reason."""

    def __post_init__(self) -> None:
        if self.rows_in != self.rows_out + sum(self.dropped.values()):
            raise AssertionError(f"a stage lost count: {self}")

    def reasons(self) -> str:
        """The dropped units by reason, as text; `none` if nothing was dropped."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items())) or "none"


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
