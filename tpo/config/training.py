"""How a model is trained: optimizer, batches, losses, adapters."""

from collections.abc import Set
from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from tpo.config.base import Section


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
    lr_scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls after warm-up."""
    min_lr_ratio: float = Field(0.0, ge=0, lt=1)
    """What is left of the peak learning rate at the end, with `cosine` alone."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
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
        if self.min_lr_ratio and self.lr_scheduler != "cosine":
            raise ValueError(
                f'min_lr_ratio is {self.min_lr_ratio} with lr_scheduler {self.lr_scheduler}: it goes with "cosine"'
            )
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
    rounds: int = Field(1, ge=1, le=1000)
    """Rounds per iteration (semi-online DPO, 2506.21495): each samples from the newest model on fresh prompts, an equal
    share of `data.per_iteration`, and trains on their pairs for `epochs` passes. Weights, optimizer state and
    learning-rate schedule continue from round to round, the reference stays, and validation chooses among the epochs of
    the last round. The paper has 1."""

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

    overlong: Literal["drop", "truncate"] = "drop"
    """What becomes of a prompt and output longer than `max_tokens`: it is left out and counted, or the output loses its
    end, as ThinkPO's published code has it."""
