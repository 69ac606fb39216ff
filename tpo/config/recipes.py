"""The recipes, one per run: TPO (2410.10630), ThinkPO (2502.13173), self-training with DPO (2407.18248)."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from tpo.config.base import Section
from tpo.config.data import PromptConfig, SampleConfig
from tpo.config.hub import DataPlace, ModelPlace
from tpo.config.judges import check_answer_pattern
from tpo.config.training import SftConfig


class Tpo(Section):
    """Thought Preference Optimization (2410.10630): configured entirely by the other sections."""

    kind: Literal["tpo"] = "tpo"
    """Names this recipe."""


class PairFile(Section):
    """Pairs of a long and a short output from a file, such as published ones."""

    kind: Literal["file"] = "file"
    """Names this source."""
    path: DataPlace
    """A file, a folder of files, a dataset, or an address on the hub, as for prompts."""
    instruction_column: str = "instruction"
    """Column of the instructions: text, or a conversation whose last user turn is the instruction."""
    chosen_column: str = "chosen"
    """Column of the long outputs: text, a message, or a chat whose last turn is the output."""
    rejected_column: str = "rejected"
    """Column of the short outputs."""


class PairModels(Section):
    """Pairs written by two models, or by a model and the demonstrations, for the prompts used in fine-tuning."""

    kind: Literal["models"] = "models"
    """Names this source."""
    long: ModelPlace = "demonstrations"
    """Folder, or address on the hub, of a model that writes long outputs, or `demonstrations` for those that were
    fine-tuned on, as the paper has it."""
    short: ModelPlace = "seed"
    """Folder, or address on the hub, of a model that writes short outputs, or `seed` for the one that is fine-tuned."""
    long_prompt: PromptConfig = PromptConfig(variant="direct")
    """How the model for long outputs is prompted."""
    short_prompt: PromptConfig = PromptConfig(variant="direct")
    """How the model for short outputs is prompted (the paper: to reason step by step, in few words)."""
    long_sample: SampleConfig = SampleConfig(temperature=0.7, top_p=0.9)
    """How long outputs are sampled, one per prompt."""
    short_sample: SampleConfig = SampleConfig(temperature=0.7, top_p=0.9)
    """How short outputs are sampled, one per prompt (the paper: temperature 0.7, top-p 0.9, up to 1,024 tokens)."""


class ThinkPo(Section):
    """ThinkPO (2502.13173): a fine-tuned model learns to prefer long reasoning to short."""

    kind: Literal["thinkpo"] = "thinkpo"
    """Names this recipe."""
    sft: SftConfig | None = None
    """Supervised fine-tuning on the demonstrations; None for an already fine-tuned model, with pairs from a file."""
    source: Annotated[PairFile | PairModels, Field(discriminator="kind")] = PairModels()
    """Where long and short outputs come from."""
    answer_pattern: str = r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
    """Regular expression with one group; its last match in an output is the answer. Both outputs of a pair need one."""
    match: Literal["exact", "math"] = "math"
    """How the two answers are compared: as text, or as mathematics."""
    mismatched_answer_ratio: float = Field(0.0, ge=0, lt=1)
    """Maximum share of pairs whose answers differ; the long output is preferred in them too (the paper: 2,000 of
    10,080)."""
    min_chosen_tokens: int = Field(1, ge=1)
    """Minimum length of the long output."""
    max_chosen_tokens: int | None = Field(None, ge=1)
    """Maximum length of the long output; None for whatever fits in `train.max_tokens` (the paper's script: below
    8,192)."""
    gap: Literal["all", "small", "middle", "large"] = "all"
    """Which third of the pairs to use, by how much longer the long output is: the paper's length-gap subsets."""
    max_pairs: int | None = Field(None, ge=1)
    """Maximum number of pairs, drawn with the run's seed (the paper's subsets: 1,000)."""
    swap: bool = False
    """Prefer the short outputs: the control experiment."""

    @model_validator(mode="after")
    def _one_group(self) -> Self:
        check_answer_pattern(self.answer_pattern)
        return self


class SelfTrain(Section):
    """DPO-augmented self-training (DPO-ST, 2407.18248): a model learns from its own right answers."""

    kind: Literal["self_train"] = "self_train"
    """Names this recipe."""
    sft: SftConfig = SftConfig()
    """Supervised fine-tuning, which makes SFT_0 and every SFT_t."""
    dpo: bool = True
    """Whether DPO on right and wrong outputs comes before the model writes the next training set; without it, this is
    classic self-training."""
    demonstrations: int | None = Field(None, ge=1)
    """Use the demonstrations of the first N questions only; None for all, as in the paper."""
    pair_outputs: int = Field(5, ge=1, le=1000)
    """Outputs per question for making pairs, sampled from the fine-tuned model."""
    label_outputs: int = Field(3, ge=1, le=1000)
    """Outputs per question for the next fine-tuning, which uses the right ones (the paper's K: 3, 5, 10)."""
    dedup_threshold: float = Field(0.7, ge=0, le=1)
    """Similarity above which two right outputs to a question are duplicates: distinct tokens in both ÷ in either."""
    pairs_per_question: int = Field(3, ge=1)
    """Maximum number of pairs of a right and a wrong output per question; the least similar are taken."""
    cap_quantile: float = Field(0.9, ge=0, le=1)
    """Caps the right outputs per question used in fine-tuning at this quantile of their counts."""


Recipe: TypeAlias = Tpo | ThinkPo | SelfTrain
"""Every recipe a profile can name."""
