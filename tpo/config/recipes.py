"""The recipes, of which a run has one: TPO (2410.10630), ThinkPO (2502.13173), self-training with DPO (2407.18248)."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from tpo.config.base import Section
from tpo.config.data import PromptConfig, SampleConfig
from tpo.config.hub import DataPlace, ModelPlace
from tpo.config.judges import check_answer_pattern
from tpo.config.training import SftConfig


class Tpo(Section):
    """Thought Preference Optimization (2410.10630): the other sections say all of it."""

    kind: Literal["tpo"] = "tpo"
    """Names this recipe."""


class PairFile(Section):
    """Pairs of a long and a short output from a file, as published ones are."""

    kind: Literal["file"] = "file"
    """Names this source."""
    path: DataPlace
    """A file, a folder of files, a dataset, or an address on the hub, as prompts may come from."""
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
    long: ModelPlace = "demonstrations"
    """Folder, or address on the hub, of a model that writes long outputs, or `demonstrations` for those that were
    fine-tuned on, as the paper has it."""
    short: ModelPlace = "seed"
    """Folder, or address on the hub, of a model that writes short outputs, or `seed` for the one that is fine-tuned."""
    long_prompt: PromptConfig = PromptConfig(variant="direct")
    """How the model of long outputs is asked."""
    short_prompt: PromptConfig = PromptConfig(variant="direct")
    """How the model of short outputs is asked (the paper: to reason step by step, in few words)."""
    long_sample: SampleConfig = SampleConfig(temperature=0.7, top_p=0.9)
    """How long outputs are sampled; one a prompt."""
    short_sample: SampleConfig = SampleConfig(temperature=0.7, top_p=0.9)
    """How short outputs are sampled; one a prompt (the paper: temperature 0.7, top-p 0.9, 1,024 tokens at most)."""


class ThinkPo(Section):
    """ThinkPO (2502.13173): a fine-tuned model learns to prefer long reasoning to short."""

    kind: Literal["thinkpo"] = "thinkpo"
    """Names this recipe."""
    sft: SftConfig | None = None
    """Supervised fine-tuning on the demonstrations; None for a model that has been fine-tuned already, whose pairs are
    from a file."""
    source: Annotated[PairFile | PairModels, Field(discriminator="kind")] = PairModels()
    """Where long and short outputs are from."""
    answer_pattern: str = r"\\boxed\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
    """Regular expression with one group; its last match in an output is its answer, and a pair needs two."""
    match: Literal["exact", "math"] = "math"
    """How both answers are compared: as text, or as mathematics."""
    mismatched_answer_ratio: float = Field(0.0, ge=0, lt=1)
    """Largest share of pairs whose answers differ; their long outputs are preferred all the same (the paper: 2,000 of
    10,080)."""
    min_chosen_tokens: int = Field(1, ge=1)
    """Shortest long output."""
    max_chosen_tokens: int | None = Field(None, ge=1)
    """Longest long output; None for what `train.max_tokens` leaves (the paper's script: below 8,192)."""
    gap: Literal["all", "small", "middle", "large"] = "all"
    """Which third of the pairs, by how much longer their long outputs are: the paper's length-gap subsets."""
    max_pairs: int | None = Field(None, ge=1)
    """Pairs to keep at most, drawn by the run's seed (the paper's subsets: 1,000)."""
    swap: bool = False
    """Prefer the short outputs: the control experiment."""

    @model_validator(mode="after")
    def _one_group(self) -> Self:
        check_answer_pattern(self.answer_pattern)
        return self


class SelfTrain(Section):
    """DPO-augmented self-training (DPO-ST, 2407.18248): a model learns from those of its own answers that are right."""

    kind: Literal["self_train"] = "self_train"
    """Names this recipe."""
    sft: SftConfig = SftConfig()
    """Supervised fine-tuning, in which SFT_0 and every SFT_t are made."""
    dpo: bool = True
    """Whether the model is taught by DPO to tell right from wrong before it writes what the next one imitates; without,
    this is classic self-training."""
    demonstrations: int | None = Field(None, ge=1)
    """Questions whose demonstration is used, the first ones; None for all that have one, as the paper has it."""
    pair_outputs: int = Field(5, ge=1, le=1000)
    """Outputs a question that pairs are made of, sampled from the fine-tuned model."""
    label_outputs: int = Field(3, ge=1, le=1000)
    """Outputs a question, the right ones of which are imitated next (the paper's K: 3, 5, 10)."""
    dedup_threshold: float = Field(0.7, ge=0, le=1)
    """Right outputs to one question that are more alike than this are one: the share of tokens, of those that either
    has, that both have."""
    pairs_per_question: int = Field(3, ge=1)
    """Pairs of a right and a wrong output to one question, at most; those that are least alike."""
    cap_quantile: float = Field(0.9, ge=0, le=1)
    """Right outputs to one question that are imitated: at most as many as this share of the questions has."""


Recipe: TypeAlias = Tpo | ThinkPo | SelfTrain
"""Every recipe a profile can name."""
