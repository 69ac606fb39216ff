"""The benchmarks that a run's models are measured on: files by path or from the hub, and how each is asked and scored.

None is part of this package. A benchmark's prompts are asked like the test prompts, with the run's thought prompt; what
the benchmark's rules ask for (greedy decoding, a form of the answer) is its own default.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tpo.config.base import Section
from tpo.config.data import FileSource
from tpo.config.fine_grained import FineGrainedConfig
from tpo.config.hub import DataPlace
from tpo.config.judges import JudgeConfig, VerifierJudge, check_answer_pattern, compares

LAST_ANSWER = r"(?:\\boxed\s*\{|####\s*)((?:[^{}\n]|\{(?:[^{}]|\{[^{}]*\})*\})*)"
"""The last `\\boxed{…}` or `#### …` of a response."""


class Benchmark(Section):
    """What all benchmarks have."""

    size: ClassVar[int | None] = None
    """Number of prompts of the published set; None if it isn't known."""
    compares: ClassVar[bool] = False
    """Whether responses are compared with a baseline's by the evaluation judge."""
    has_kinds: ClassVar[bool] = False
    """Whether it has instructions of many kinds, which a fine-grained evaluation tells apart."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name in folders and tables, unique in a run; None for the kind."""
    path: DataPlace
    """The file, as for a `file` source, or its address: `hf://datasets/org/name@revision/file-or-split`."""
    limit: int | None = Field(None, ge=1)
    """Ask only the first N prompts, which tables call a part; None for all."""
    max_prompt_tokens: int | None = Field(None, ge=8)
    """Maximum prompt length, including thought prompt and chat template; None for `data.max_prompt_tokens`. A longer
    one is refused before work starts, since a benchmark without some of its prompts is another benchmark."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Maximum output length; None for `sample.max_new_tokens`."""
    temperature: float | None = Field(0.0, ge=0, le=2)
    """Sampling temperature, 0 for greedy decoding; None to sample as for the test prompts."""

    def needs_baseline(self, judge: JudgeConfig) -> bool:
        """Whether responses are compared with a baseline's if `judge` is the evaluation judge."""
        return self.compares or (self.verifier is None and compares(judge))

    @property
    def title(self) -> str:
        """Its name."""
        return self.name or str(getattr(self, "kind", ""))

    @property
    def columns(self) -> FileSource:
        """Which columns hold what."""
        raise NotImplementedError

    @property
    def verifier(self) -> VerifierJudge | None:
        """The verifier that scores it; None for the evaluation judge."""
        return None

    @property
    def known_size(self) -> int:
        """Number of prompts that are asked as far as the config tells; 0 if it doesn't."""
        return min(self.limit, self.size) if self.limit and self.size else self.limit or self.size or 0


class IfEval(Benchmark):
    """IFEval (2311.07911): 541 prompts with verifiable instructions; prompt- and instruction-level accuracy, strict and
    loose."""

    size = 541
    kind: Literal["ifeval"] = "ifeval"
    """Names this benchmark."""

    @property
    def columns(self) -> FileSource:
        return FileSource(
            path=self.path,
            instruction_column="prompt",
            instruction_ids_column="instruction_id_list",
            kwargs_column="kwargs",
        )

    @property
    def verifier(self) -> VerifierJudge:
        return VerifierJudge(match="instructions")


class Gsm8k(Benchmark):
    """GSM8K (2110.14168): grade-school problems; the last `\\boxed{}` or `####` answer, otherwise the last number,
    compared as mathematics."""

    size = 1319
    kind: Literal["gsm8k"] = "gsm8k"
    """Names this benchmark."""
    answer_only: bool = False
    """Ask for the number alone, as in TPO's second column (2410.10630): an instruction is appended to each question."""
    instruction: str = Field("Answer with the final number only, without any explanation.", min_length=1)
    """What is appended then; the paper doesn't print its own."""

    @property
    def columns(self) -> FileSource:
        return FileSource(path=self.path, instruction_column="question", reference_column="answer")

    @property
    def verifier(self) -> VerifierJudge:
        return VerifierJudge(match="math", answer_pattern=LAST_ANSWER)


class Math500(Benchmark):
    """MATH-500 (2305.20050): competition problems; the last `\\boxed{}` or `####` answer, compared by math-verify."""

    size = 500
    kind: Literal["math500"] = "math500"
    """Names this benchmark."""

    @property
    def columns(self) -> FileSource:
        return FileSource(
            path=self.path,
            instruction_column="problem",
            reference_column="answer",
            category_column="subject",
            difficulty_column="level",
        )

    @property
    def verifier(self) -> VerifierJudge:
        return VerifierJudge(match="math", answer_pattern=LAST_ANSWER)


class AlpacaEval(Benchmark):
    """AlpacaEval 2 (2404.04475): win rate over a baseline's outputs, raw and length-controlled, by the evaluation
    judge."""

    size, compares, has_kinds = 805, True, True
    kind: Literal["alpaca_eval"] = "alpaca_eval"
    """Names this benchmark."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature, 0 for greedy decoding; None to sample as for the test prompts."""
    baseline_path: DataPlace | None = None
    """The baseline's outputs, rows with `instruction` and `output`; None compares with M_0 answering directly."""
    baseline_name: str = Field("gpt4_1106_preview", min_length=1)
    """The baseline's name in exports and tables, if it comes from a file."""
    gamed_path: DataPlace | None = None
    """AlpacaEval's `df_gamed.csv`, which has the instructions' difficulties too; with it the length-controlled win rate
    is the official one, otherwise AlpacaEval's minimal form (`LC-minimal`)."""

    @property
    def columns(self) -> FileSource:
        return FileSource(path=self.path)


class ArenaHard(Benchmark):
    """Arena-Hard (2406.11939): score over a baseline's answers, by the evaluation judge in both orders."""

    compares, has_kinds = True, True
    kind: Literal["arena_hard"] = "arena_hard"
    """Names this benchmark."""
    version: Literal["v0.1", "v2.0"] = "v0.1"
    """`v0.1`: 500 prompts, scored by the old rule, as in TPO's table; `v2.0`: 750, by the current rule and with style
    control, by category."""
    baseline_path: DataPlace | None = None
    """The baseline's answers in the current format (`uid`, `messages`); None compares with M_0 answering directly."""
    baseline_name: str | None = Field(None, min_length=1)
    """Its name; None for the version's own (`gpt-4-0314`, `o3-mini-2025-01-31`)."""
    creative_baseline_path: DataPlace | None = None
    """The same for prompts of the category `creative_writing`, whose baseline in v2.0 is another model."""
    creative_baseline_name: str = Field("gemini-2.0-flash-001", min_length=1)
    """Its name."""

    @property
    def known_size(self) -> int:
        published = 500 if self.version == "v0.1" else 750
        return min(self.limit or published, published)

    @property
    def columns(self) -> FileSource:
        return FileSource(path=self.path, instruction_column="prompt", category_column="category")

    @property
    def baseline(self) -> str:
        """The baseline's name."""
        return self.baseline_name or ("gpt-4-0314" if self.version == "v0.1" else "o3-mini-2025-01-31")

    @model_validator(mode="after")
    def _a_second_baseline_needs_a_first(self) -> Self:
        if self.creative_baseline_path is not None and self.baseline_path is None:
            raise ValueError("creative_baseline_path is set but baseline_path isn't: name the files of both baselines")
        return self


class CustomBenchmark(Benchmark):
    """Any prompts: with references or verifiable instructions they are verified, otherwise the evaluation judge scores
    them; with categories there is a table by category."""

    has_kinds = True
    kind: Literal["custom"] = "custom"
    """Names this benchmark."""
    instruction_column: str = "instruction"
    """Column that holds the instruction: text, or a conversation whose last user turn it is."""
    reference_column: str | None = None
    """Column that holds the reference answer, if there is one."""
    instruction_ids_column: str | None = None
    """Column that holds the ids of verifiable instructions, as IFEval's `instruction_id_list`."""
    kwargs_column: str | None = None
    """Column that holds their arguments, as IFEval's `kwargs`."""
    category_column: str | None = None
    """Column that holds a category, for tables."""
    difficulty_column: str | None = None
    """Column that holds a whole number from 1, for tables."""
    match: Literal["exact", "math"] = "exact"
    """How answers are compared with references: as text, or as mathematics."""
    answer_pattern: str = LAST_ANSWER
    """Regular expression with one group; its last match is the answer. Without a match, the whole response is."""

    @property
    def columns(self) -> FileSource:
        named = {name: value for name, value in self if name.endswith("_column")}
        return FileSource(path=self.path, **named)

    @property
    def verifier(self) -> VerifierJudge | None:
        if self.instruction_ids_column is not None:
            return VerifierJudge(match="instructions")
        if self.reference_column is None:
            return None
        return VerifierJudge(match=self.match, answer_pattern=self.answer_pattern)

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        check_answer_pattern(self.answer_pattern)
        if (self.instruction_ids_column is None) != (self.kwargs_column is None):
            raise ValueError("instruction_ids_column and kwargs_column go together: set both, or neither")
        if self.instruction_ids_column is not None and self.reference_column is not None:
            raise ValueError(
                "reference_column and instruction_ids_column are both set, but a prompt has one score: make two "
                "benchmarks of the file"
            )
        return self


BenchmarkConfig = Annotated[
    IfEval | Gsm8k | Math500 | AlpacaEval | ArenaHard | CustomBenchmark, Field(discriminator="kind")
]
"""Every benchmark a profile can name. A new one is a class here, and its numbers in `tasks/benchmark_numbers.py`."""


class EvaluationConfig(Section):
    """How the test set is judged, and what else the models are measured on."""

    judge: JudgeConfig = VerifierJudge()
    """A separate judge, so that the training signal doesn't also grade; by default a verifier without length bias. It
    also judges benchmarks that need a judge."""
    second_opinion: Literal["auto", "always", "never"] = "auto"
    """Whether this judge also scores the validation answers of every M_t, to be shown next to the run's judge, which
    chose M_t by them: `auto` if that costs nothing, since it is a verifier, or if the gate asks for it."""
    verifier: VerifierJudge | None = None
    """A verifier that scores the validation answers too, if the judges are models but some prompts have references or
    verifiable instructions."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Confidence level of all intervals."""
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """Benchmarks for M_0 answering directly, M_0 and every M_t (docs/benchmarks.md)."""
    fine_grained: FineGrainedConfig | None = None
    """Win rates by category and complexity of instructions; a section `[evaluation.fine_grained]`
    (docs/categories.md). None for none."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [each.title for each in self.benchmarks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"benchmarks has {twice[0]} twice: give each its own name")
        return self

    @model_validator(mode="after")
    def _judged_by_a_judge(self) -> Self:
        for each in self.benchmarks:
            if each.verifier is None and isinstance(self.judge, VerifierJudge):
                raise ValueError(
                    f"benchmarks has {each.title}, which needs a judge, but judge.kind is verifier: set "
                    "evaluation.judge to pairwise, armorm or reward_model"
                )
        return self
