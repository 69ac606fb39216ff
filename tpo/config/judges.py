"""The judges, the limits on their health, and how pairs, validation and evaluation use their scores."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tpo.config.base import MINIATURE, SHIPPED, Endpoint, Section
from tpo.config.hub import ModelPlace, local_path
from tpo.method.instructions.constraints import MAX_CONSTRAINTS
from tpo.method.output_score import OutputScore


def check_answer_pattern(pattern: str, name: str = "answer_pattern", of: str = "answer") -> None:
    """Raises `ValueError`, which calls it `name`, unless a pattern is a regular expression with one group around what
    it finds, `of`."""
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{name} is not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"{name} has {groups} groups, expected one: ( ) around the {of} alone")


class VerifierJudge(Section):
    """Compares the answer in the response with the reference, or checks that the response follows the prompt's
    verifiable instructions; the only judge that knows the right answer."""

    kind: Literal["verifier"] = "verifier"
    """Names this judge."""
    match: Literal["exact", "math", "instructions"] = "exact"
    """`exact` compares text, ignoring case and outer punctuation; `math` compares expressions, in LaTeX with or without
    dollar signs: units, percent signs, number bases and `x =` count only if both answers write them; `instructions`
    needs no reference: the score is the share of the prompt's verifiable instructions (IFEval, 2311.07911) that the
    unedited response follows."""
    answer_pattern: str = r"(?i)answer is:?\s+((?:[^.!?\n]|\.(?=\d))+)"
    """Regular expression with one group; its last match is the answer. Without a match, the whole response is. Unused
    with `match = "instructions"`."""
    length_bias: float = Field(0.0, ge=0)
    """Added to the score (1 right, 0 wrong, or the share of instructions) for every 100 characters: it imitates the
    length bias of real judges, so that length control has something to correct."""

    @model_validator(mode="after")
    def _one_group(self) -> "VerifierJudge":
        check_answer_pattern(self.answer_pattern)
        return self


class RewardModelJudge(Section):
    """Any Hugging Face sequence-classification model that is a decoder, read at the end of the chat."""

    kind: Literal["reward_model"] = "reward_model"
    """Names this judge."""
    model: ModelPlace
    """A folder with safetensors, config and tokenizer, or `hf://org/name@revision` on the model hub."""
    max_tokens: int = Field(4096, ge=8)
    """Maximum chat length (instruction and response); a longer chat is unscored and counted, never truncated."""

    score: str = "logit"
    """Which number of the model's outputs is the score. `logit` is its only output. For a model of several:
    `logit(1)`, `difference(1, 0)`, the first named minus the second, or `probability(1)`, with an output's index or its
    label in `id2label`."""

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return local_path(self.model)

    @model_validator(mode="after")
    def _score_is_a_rule(self) -> "RewardModelJudge":
        OutputScore.parse(self.score)
        return self


class ArmoRMJudge(Section):
    """ArmoRM (2406.12845): scores 19 attributes of a response, weighted by a gate that reads the prompt."""

    kind: Literal["armorm"] = "armorm"
    """Names this judge."""
    model: ModelPlace = MINIATURE
    """A folder in the published format, `hf://org/name@revision` on the model hub, or `miniature` for the small one
    shipped here."""
    max_tokens: int = Field(4096, ge=8)
    """Maximum chat length (instruction and response); a longer chat is unscored and counted, never truncated."""

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return SHIPPED / "armorm" if self.model == MINIATURE else local_path(self.model)


class PairwiseJudge(Section):
    """A language model that compares two responses (Self-Taught Evaluator, 2408.02666); ratings are fitted to its
    verdicts."""

    kind: Literal["pairwise"] = "pairwise"
    """Names this judge."""
    model: ModelPlace = MINIATURE
    """A folder with safetensors, config and tokenizer; `hf://org/name@revision` on the model hub; `miniature` for the
    small one shipped here; with an endpoint, the model's name on that server."""
    endpoint: Endpoint | None = None
    """A server to use instead of the run's own engines."""
    mode: Literal["cot", "verdict", "probability"] = "cot"
    """`cot` explains and then decides, as published; `verdict` decides at once, restricted to the two labels;
    `probability` takes the probabilities of the two labels as a soft result."""
    tournament: Literal["all_pairs", "adaptive"] = "all_pairs"
    """Which comparisons to make: every ordered pair, as in the paper, or rounds that stop when best and worst are
    clear."""
    ridge: float = Field(0.1, gt=0)
    """Regularization of the Bradley-Terry ratings towards 0; without it, a response that wins every comparison has no
    finite rating."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Maximum judgment length. None for 2,048 (as published) or a quarter of the model's context, whichever is less;
    with `verdict` and `probability`, for 8. A model that reasons before it answers needs more."""
    max_tokens: int = Field(8192, ge=64)
    """Maximum length of chat plus judgment, or the model's context if that is less; a longer comparison is counted as
    not made, never truncated."""
    max_response_chars: int = Field(20_000, ge=1)
    """Longer responses are unscored and counted, never truncated."""
    system_template: Path | None = None
    """A text file that replaces the shipped system turn."""
    user_template: Path | None = None
    """A Jinja file that replaces the shipped user turn; it contains `instruction`, `first` and `second`, in this
    order."""

    @property
    def folder(self) -> Path | None:
        """The model's folder; None if it is on a server."""
        if self.endpoint is not None:
            return None
        return SHIPPED / "evaluator" if self.model == MINIATURE else local_path(self.model)

    @property
    def server(self) -> str:
        """The model and its server, human-readable; empty without an endpoint."""
        return f"{self.model} at {self.endpoint.base_url}" if self.endpoint is not None else ""

    @property
    def explains(self) -> bool:
        """Whether its replies are more than a label."""
        return self.mode == "cot"

    @model_validator(mode="after")
    def _endpoint_has_model(self) -> "PairwiseJudge":
        if self.endpoint is not None and self.model == MINIATURE:
            raise ValueError("endpoint is set but model isn't: give the model's name on that server")
        return self


_OF_OTHER_MODELS = ("min_score", "max_score", "score_pattern", "system_template", "user_template")
"""Settings of a rubric judge that the miniature's grader wasn't trained on."""
MAX_LABELLED_SCORE = 9
"""Highest score with `expected_score`: a digit, so that its first token can't begin another score."""


class RubricJudge(Section):
    """A language model that grades each response by itself, by a rubric: a score or a sum of points at the end of its
    reply (Self-Rewarding Language Models, 2401.10020), or the expectation over the probabilities of all scores."""

    kind: Literal["rubric"] = "rubric"
    """Names this judge."""
    model: ModelPlace = MINIATURE
    """A folder with safetensors, config and tokenizer; `hf://org/name@revision` on the model hub; `miniature` for the
    small one shipped here, which knows the shipped templates alone; with an endpoint, the model's name there."""
    endpoint: Endpoint | None = None
    """A server to use instead of the run's own engines."""
    template: Literal["score", "additive"] = "score"
    """The shipped prompt: `score` asks for one score, `[[Score: 7]]`; `additive` for points that are added up
    criterion by criterion, `Score: 4`, as published."""
    rubric: str | None = Field(None, min_length=1)
    """The rubric for prompts that bring none of their own (`data.source.rubric_column`). None for the template's."""
    min_score: int = 0
    """Lowest score."""
    max_score: int | None = None
    """Highest score; a score outside the range is unreadable. None for 10, for 5 with `additive`, and for 9 with
    `expected_score`."""
    score_pattern: str | None = None
    """Regular expression with one group around the score alone; its last match in a reply counts. None for the
    template's."""
    samples: int = Field(1, ge=1, le=64)
    """Replies per response; the score is the mean of those that can be read."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Sampling temperature of the replies; more than one sample needs one above 0."""
    expected_score: bool = False
    """Whether the judge replies with the score alone, and the score is its expectation over the probabilities of all
    scores from `min_score` to `max_score`, which must be digits."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Maximum reply length. None for 2,048 or a quarter of the model's context, whichever is less; with
    `expected_score`, for 8."""
    max_tokens: int = Field(8192, ge=64)
    """Maximum length of chat plus reply, or the model's context if that is less; a longer one is unscored and counted,
    never truncated."""
    max_response_chars: int = Field(20_000, ge=1)
    """Longer responses are unscored and counted, never truncated."""
    system_template: Path | None = None
    """A text file that replaces the shipped system turn; `{{ lowest }}` and `{{ highest }}` in it become the range."""
    user_template: Path | None = None
    """A Jinja file that replaces the shipped user turn; it contains `rubric`, `instruction` and `response`, in this
    order."""

    @property
    def folder(self) -> Path | None:
        """The model's folder; None if it is on a server."""
        if self.endpoint is not None:
            return None
        return SHIPPED / "grader" if self.model == MINIATURE else local_path(self.model)

    @property
    def server(self) -> str:
        """The model and its server, human-readable; empty without an endpoint."""
        return f"{self.model} at {self.endpoint.base_url}" if self.endpoint is not None else ""

    @property
    def explains(self) -> bool:
        """Whether its replies are more than a score."""
        return not self.expected_score

    @property
    def highest(self) -> int:
        """The highest score."""
        if self.max_score is not None:
            return self.max_score
        if self.template == "additive":
            return 5
        return MAX_LABELLED_SCORE if self.expected_score else 10

    @model_validator(mode="after")
    def _model_can_grade(self) -> "RubricJudge":
        if self.model != MINIATURE:
            return self
        if self.endpoint is not None:
            raise ValueError("endpoint is set but model isn't: give the model's name on that server")
        usual = {name: type(self).model_fields[name].default for name in _OF_OTHER_MODELS}
        if changed := next((name for name, default in usual.items() if getattr(self, name) != default), None):
            raise ValueError(
                f"{changed} is set, and the miniature's grader knows the shipped templates and their scores alone: "
                "leave it out, or name another model"
            )
        return self

    @model_validator(mode="after")
    def _scores_in_range(self) -> "RubricJudge":
        if self.min_score >= self.highest:
            raise ValueError(f"min_score is {self.min_score}, expected less than the highest score, {self.highest}")
        if self.score_pattern is not None:
            check_answer_pattern(self.score_pattern, "score_pattern", "score")
        return self

    @model_validator(mode="after")
    def _samples_differ(self) -> "RubricJudge":
        if self.samples > 1 and self.expected_score:
            raise ValueError(
                "expected_score is set, which takes all scores of one reply with their probabilities: set samples to 1"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples is {self.samples}, which at temperature 0 would all be equal: set temperature")
        if self.temperature > 0 and self.expected_score:
            raise ValueError("temperature is set, but with expected_score nothing is sampled: leave it out")
        return self

    @model_validator(mode="after")
    def _labels_are_digits(self) -> "RubricJudge":
        if not self.expected_score:
            return self
        if self.min_score < 0 or self.highest > MAX_LABELLED_SCORE:
            raise ValueError(
                f"expected_score is set with scores from {self.min_score} to {self.highest}, expected digits, 0 to "
                f"{MAX_LABELLED_SCORE}: 1 and 10 begin alike, so the probability of 1 would be that of both"
            )
        if self.template == "additive" or self.score_pattern is not None:
            raise ValueError(
                "expected_score is set, so the reply is the score alone, without points to add up or a text to search: "
                'leave out template = "additive" and score_pattern'
            )
        return self


RewardProtocol = Literal["vllm_classify", "vllm_pooling", "vllm_score", "json"]
"""How a reward model behind a server is asked."""


class RewardServerJudge(Section):
    """A reward model behind a server, which reads each response as a chat and returns a number."""

    kind: Literal["reward_server"] = "reward_server"
    """Names this judge."""
    model: str = Field(min_length=1)
    """The model's name on that server."""
    endpoint: Endpoint
    """The server: for vLLM `http://host:8000`; for `json` the whole address that is posted to. Of its settings, those
    about chats' replies (token limit, temperature, log-probabilities, system role) aren't used."""
    protocol: RewardProtocol = "vllm_classify"
    """What the server speaks: vLLM's `/classify`, `/pooling` or `/score`, or our own `json` (docs/judges.md)."""
    label: int | None = Field(None, ge=0)
    """Which output is the score if the model has several, from 0; None for a model with one."""
    items_per_request: int = Field(8, ge=1, le=1024)
    """Responses to one prompt that `vllm_score` and `json` send in one request; vLLM's other paths take one."""
    max_response_chars: int = Field(20_000, ge=1)
    """Longer responses are unscored and counted, never truncated."""

    @property
    def folder(self) -> None:
        """None: the model is on a server."""
        return

    @property
    def server(self) -> str:
        """The model and its server, human-readable."""
        return f"{self.model} at {self.endpoint.base_url}"


def _kind_of(judge: Any) -> Any:
    """A judge's kind; a section without one is the verifier's."""
    return judge.get("kind", "verifier") if isinstance(judge, dict) else getattr(judge, "kind", None)


SingleJudge = VerifierJudge | RewardModelJudge | ArmoRMJudge | PairwiseJudge | RubricJudge | RewardServerJudge
"""The judges that aren't made of others."""
GenerativeJudge = PairwiseJudge | RubricJudge
"""The judges whose replies are text."""
ServedJudge = PairwiseJudge | RubricJudge | RewardServerJudge
"""The judges that may be behind a server."""
_AnySingleJudge = Annotated[
    Annotated[VerifierJudge, Tag("verifier")]
    | Annotated[RewardModelJudge, Tag("reward_model")]
    | Annotated[ArmoRMJudge, Tag("armorm")]
    | Annotated[PairwiseJudge, Tag("pairwise")]
    | Annotated[RubricJudge, Tag("rubric")]
    | Annotated[RewardServerJudge, Tag("reward_server")],
    Discriminator(_kind_of),
]


class EnsembleMember(Section):
    """One judge of an ensemble."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Its name in judgments, reports and the reasons for unscored responses."""
    judge: _AnySingleJudge
    """The judge: any kind but an ensemble."""
    weight: float = Field(1.0, gt=0)
    """Its weight in the mean."""
    unit: float = Field(gt=0)
    """What counts as one point of this judge: about the standard deviation of its scores. Single responses, as in
    validation and test, have no spread within their prompt, so their scores are divided by this before the mean is
    taken."""
    veto_below: float | None = None
    """With `combine = "veto"`: a response with a lower score, in the judge's own unit, is put below all others of its
    prompt. None for a judge without a veto."""


class EnsembleJudge(Section):
    """Several judges as one: their scores are standardized within each prompt and combined."""

    kind: Literal["ensemble"] = "ensemble"
    """Names this judge."""
    members: tuple[EnsembleMember, ...] = Field(min_length=2)
    """The judges, each as a section `[[judge.members]]`."""
    combine: Literal["mean", "worst", "veto"] = "mean"
    """`mean`: the weighted mean of the members' z-scores; `worst`: the smallest one; `veto`: the mean, but responses
    that a member puts below its `veto_below` come last."""
    agreement: Literal["any", "all"] = "any"
    """`all` makes a pair only if every member asked scores the chosen response higher than the rejected one."""
    escalate_below: float | None = Field(None, gt=0)
    """Asks only the first member at first, and the others only about prompts whose best response leads the second by
    less than this many of that member's standard deviations. None to ask all members about all prompts."""

    @property
    def folder(self) -> None:
        """None: its members have models."""
        return

    @model_validator(mode="after")
    def _members_are_told_apart(self) -> "EnsembleJudge":
        names = [member.name for member in self.members]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"members has {repeated[0]} more than once: give each member its own name")
        return self

    @model_validator(mode="after")
    def _vetoes_are_used(self) -> "EnsembleJudge":
        vetoes = [member.name for member in self.members if member.veto_below is not None]
        if vetoes and self.combine != "veto":
            raise ValueError(
                f'veto_below is set for {vetoes[0]}, and combine is "{self.combine}": set combine to "veto"'
            )
        if self.combine == "veto" and not vetoes:
            raise ValueError('combine is "veto", but no member has veto_below: set it for at least one')
        return self

    @model_validator(mode="after")
    def _escalation_leaves_a_first_judge(self) -> "EnsembleJudge":
        veto = next((member.name for member in self.members[1:] if member.veto_below is not None), None)
        if self.escalate_below is not None and veto is not None:
            raise ValueError(
                f"escalate_below is set, and {veto}, which has a veto, would be asked about close prompts only: make "
                "it the first member, or leave escalate_below out"
            )
        return self


JudgeConfig = Annotated[
    Annotated[VerifierJudge, Tag("verifier")]
    | Annotated[RewardModelJudge, Tag("reward_model")]
    | Annotated[ArmoRMJudge, Tag("armorm")]
    | Annotated[PairwiseJudge, Tag("pairwise")]
    | Annotated[RubricJudge, Tag("rubric")]
    | Annotated[RewardServerJudge, Tag("reward_server")]
    | Annotated[EnsembleJudge, Tag("ensemble")],
    Discriminator(_kind_of),
]
"""Every judge a profile can name. A new one is a class here, a file in judges/ and a line in its registry."""


def members_of(judge: JudgeConfig) -> tuple[SingleJudge, ...]:
    """The judges that a judge consists of: an ensemble's members, or itself."""
    return tuple(member.judge for member in judge.members) if isinstance(judge, EnsembleJudge) else (judge,)


def compares(judge: JudgeConfig) -> bool:
    """Whether a judge only compares responses with each other, so that a single response has no score."""
    return all(isinstance(member, PairwiseJudge) for member in members_of(judge))


def scores_alone(judge: JudgeConfig) -> bool:
    """Whether a response's score doesn't depend on the prompt's other responses: a judge that compares and an
    ensemble, whose members' scores are standardized within a prompt, need them."""
    return not isinstance(judge, PairwiseJudge | EnsembleJudge)


def judge_name(judge: JudgeConfig) -> str:
    """A judge as tables and exports name it: its kind, and its model or rule."""
    if isinstance(judge, VerifierJudge):
        return f"verifier ({judge.match}{', favors length' if judge.length_bias else ''})"
    if isinstance(judge, EnsembleJudge):
        return f"ensemble ({judge.combine} of {', '.join(member.name for member in judge.members)})"
    model = judge.server if isinstance(judge, ServedJudge) and judge.endpoint is not None else judge.model
    return f"{judge.kind} ({model})"


class HealthConfig(Section):
    """Limits on how a judge behaves on training samples, and on how few pairs may result: if one is exceeded, the run
    stops before training and names it.

    The defaults reject judgments that carry no information. A share of fewer than 30 cases (pairs judged in both
    orders, decided comparisons, prompts, right–wrong pairs) breaks its limit only if it is beyond it by more than
    chance.
    """

    max_unscored: float = Field(0.2, ge=0, le=1)
    """Maximum share of parsed responses that the judge did not score."""
    max_unparsable: float = Field(0.2, ge=0, le=1)
    """Maximum share of comparisons without a parsable verdict, and of a rubric judge's replies without a score."""
    max_ties: float = Field(0.9, ge=0, le=1)
    """Maximum share of comparisons that end in a tie."""
    min_swap_agreement: float = Field(0.0, ge=0, le=1)
    """Minimum share of pairs, judged and decided in both orders, in which the same response wins. The share expected by
    chance depends on how often the first response wins, which `min_swap_kappa` accounts for."""
    min_swap_kappa: float = Field(0.1, ge=-1, le=1)
    """Minimum agreement of the two orders beyond chance (Cohen's κ): 1 if the same response always wins, 0 if a coin
    or the order decides."""
    max_first_rate: float = Field(0.8, ge=0, le=1)
    """Maximum share of decided comparisons that the response shown first wins."""
    max_equal: float = Field(0.9, ge=0, le=1)
    """Maximum share of prompts whose responses differ and all get the same score. Not applied to `verifier`, for which
    it depends on how hard the prompts are."""
    max_length_correlation: float = Field(1.0, ge=0, le=1)
    """Maximum mean correlation between score and length within a prompt's responses."""
    min_reference_agreement: float = Field(0.51, ge=0, le=1)
    """Minimum share of right–wrong pairs of responses in which the right one scores higher, if references exist; equal
    scores count half, so a coin and constant scores both give 0.5."""
    min_pairs: float = Field(0.1, ge=0, le=1)
    """Minimum share of prompts that yield a pair to train on, in all recipes. If fewer do, something is wrong with the
    outputs or their scores, or there is nothing left to learn."""
    max_attacked: float | None = Field(None, ge=0, lt=1)
    """Maximum share of pairs that a kind of attack on the judge may turn around. If set, the run's judge is attacked
    before the first training, on M_0's best and worst responses to `attacked_prompts` prompts (docs/judges.md). None to
    attack nothing."""
    attacked_prompts: int = Field(100, ge=1)
    """With `max_attacked`: prompts whose responses are attacked, at a cost of 10 responses to judge for each, or of
    nine pairs if the judge compares or is an ensemble."""


class PairConfig(Section):
    """How scores become preference pairs."""

    rho: float | Literal["auto"] = "auto"
    """Strength of length control in [0, 0.5], or `auto`: the smallest that keeps chosen responses no longer than
    rejected ones."""
    thought_penalty: float = Field(0.0, ge=0, le=2)
    """Length penalty on thoughts: subtracts `thought_penalty` × z(thought length) from the z-scored judge score, as
    `rho` does for responses. 0, as in the paper, disables it."""
    min_margin: float | None = Field(None, ge=0)
    """Minimum spread of a group's raw scores, in the judge's own unit, since equally good responses teach nothing but
    length. None for a default that suits the judge: half a right answer (`verifier`), one instruction (`verifier` with
    `match = "instructions"`), half a nat (`pairwise`), or, for reward models, whose units differ, any spread, as in the
    paper."""
    max_error_pair_ratio: float = Field(0.1, ge=0, le=0.5)
    """Maximum share of pairs whose rejected output breaks the format."""
    replay_share: float = Field(0.0, ge=0, lt=1)
    """Share of the training pairs that are taken again from earlier iterations, in addition to the iteration's own and
    drawn by the run's seed. The paper has none (0)."""

    @model_validator(mode="after")
    def _rho_in_range(self) -> "PairConfig":
        if self.rho != "auto" and not 0 <= self.rho <= 0.5:
            raise ValueError(f"rho is {self.rho}, expected 'auto' or a number from 0 to 0.5")
        return self


def checks_instructions(judge: JudgeConfig) -> bool:
    """Whether a judge checks verifiable instructions, which prompts must then have."""
    return isinstance(judge, VerifierJudge) and judge.match == "instructions"


def least_margin(pair: PairConfig, judge: JudgeConfig) -> float:
    """The minimum spread of a group's raw scores that makes a pair with this judge."""
    if pair.min_margin is not None:
        return pair.min_margin
    if checks_instructions(judge):
        return 1 / MAX_CONSTRAINTS  # the smallest difference of two shares
    return 0.5 if judge.kind in ("verifier", "pairwise") else 0.0


def pairs_need_agreement(judge: JudgeConfig) -> bool:
    """Whether a pair needs all members of an ensemble to prefer its chosen response."""
    return isinstance(judge, EnsembleJudge) and judge.agreement == "all"


class ValidationConfig(Section):
    """How the best checkpoint is chosen: by mean judge score of parsed responses; M_t itself is a candidate."""

    min_parse_rate: float = Field(0.9, ge=0, le=1)
    """Minimum share of outputs that parse at the first attempt; a checkpoint below it is not chosen."""
    min_scored_share: float = Field(0.8, ge=0, le=1)
    """Minimum number of prompts with a score, as a share of the best-covered candidate's; a checkpoint below it is not
    chosen, since its mean is over fewer and perhaps easier prompts."""
