"""How a model is trained: optimizer, batches, losses, adapters."""

from collections.abc import Set
from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from tpo.config.base import Section


class LoraConfig(Section):
    """Training of low-rank adapters (LoRA, 2106.09685) instead of all weights; each epoch's checkpoint is merged.

    There is no dropout: with it, policy and reference would differ before the first step, and the loss would not start
    at ln 2, which the trainer checks.
    """

    rank: int = Field(16, ge=1)
    """Rank of each matrix's update."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Name suffixes of the modules that get an adapter; `all-linear` is every linear layer except the head."""


class TrainingConfig(Section):
    """Settings common to all trainings; the defaults are the miniature's."""

    epochs: int = Field(3, ge=1)
    """Passes over the rows; each ends with a checkpoint."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps after which training ends, even in the middle of a pass, which still leaves its checkpoint. None
    for whole passes only."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    lr_scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    """How the learning rate falls after warm-up."""
    min_lr_ratio: float = Field(0.0, ge=0, lt=1)
    """Final learning rate as a share of the peak; with `cosine` only."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    batch_size: int = Field(32, ge=1)
    """Rows per optimizer step, over all workers."""
    micro_batch_size: int = Field(32, ge=1)
    """Rows per worker at once; the rest of `batch_size` comes from gradient accumulation."""
    max_tokens: int = Field(512, ge=8)
    """Maximum length of prompt plus output."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the model computes and is saved. With `bfloat16`, trained weights and optimizer state stay in
    float32, 16 bytes per parameter; only frozen weights under an adapter are bfloat16."""
    gradient_checkpointing: bool = False
    """Recompute activations to save memory."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights; a section `[train.lora]` in a profile, which may be empty."""
    packing: bool = False
    """Compute a worker's rows as one sequence without padding, and a pair's prompt once: exact, and rejected for models
    with which it wouldn't be (recurrent layers; on CPUs also attention windows shorter than a row, capped logits and
    sinks)."""

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
        """Number of passes over `rows`, each of which leaves a checkpoint: `epochs`, or fewer with `max_steps`."""
        if self.max_steps is None or rows == 0:
            return self.epochs
        return min(self.epochs, -(-self.max_steps // -(-rows // self.batch_size)))

    def steps(self, rows: int) -> int:
        """Number of optimizer steps for `rows`."""
        whole = self.epochs * -(-rows // self.batch_size)
        return whole if self.max_steps is None else min(whole, self.max_steps)


Loss: TypeAlias = Literal[
    "dpo", "irpo", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
]  # fmt: skip
"""Preference losses, by TRL's names except `dpo`, which TRL calls `sigmoid`, and `irpo`, which adds a likelihood term
to it."""


WHOLE_BATCH_LOSSES: Set[Loss] = {"aot", "aot_unpaired"}
"""Losses that sort a step's pairs, so they aren't defined for part of a step."""


class TrainConfig(TrainingConfig):
    """The preference step (TRL). The paper gives no optimizer settings; the defaults are the miniature's.

    Validation chooses among the epochs' checkpoints (the paper: 10 epochs). A pair that is longer than `max_tokens` is
    dropped and counted, never truncated.
    """

    loss: Loss = "dpo"
    """The paper uses `dpo`, and saw no noticeable difference with `irpo` (2404.19733), which adds α times the chosen
    output's negative log-likelihood per token. The others are TRL's, by its names. `aot` and `aot_unpaired` sort a
    step's pairs, so they need `micro_batch_size` = `batch_size` and one worker."""
    beta: float = Field(0.1, gt=0)
    """Strength of the regularization towards the reference; τ of `ipo`."""
    alpha: float = Field(1.0, gt=0)
    """Weight of the likelihood term; used by `irpo` only."""
    length_desensitization: float | None = Field(None, ge=0, le=1)
    """Weight of the longer output's tokens past the shorter one's length (α of LD-DPO, 2409.06411): 0 ignores them, 1
    leaves the loss unchanged, as does None."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of flipped preferences, for `robust` (2403.00409), `exo_pair` (2402.00856, which needs a value over
    0, such as 0.001), `aot` and `aot_unpaired`."""
    divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """The divergence from the reference that is penalized (f-DPO, 2309.16240); all but `reverse_kl` need a loss that
    depends on the difference of the two rewards."""
    divergence_alpha: float = Field(0.5, gt=0)
    """α of `alpha_divergence`."""
    reference: Literal["previous", "seed"] = "previous"
    """The reference model, frozen within a step: `previous` is M_{t-1}, so that each iteration can move as far as the
    one before it; `seed` is M_0 in all iterations, which limits how far the whole run moves."""
    rounds: int = Field(1, ge=1, le=1000)
    """Rounds per iteration (semi-online DPO, 2506.21495): each samples from the newest model on fresh prompts, an equal
    share of `data.per_iteration`, and trains on their pairs for `epochs` passes. Weights, optimizer state and
    learning-rate schedule continue from round to round, the reference stays, and validation chooses among the epochs of
    the last round. The paper has 1."""

    @model_validator(mode="after")
    def _loss_takes_its_options(self) -> Self:
        smoothed = ("robust", "exo_pair", "aot", "aot_unpaired")
        if self.label_smoothing and self.loss not in smoothed:
            raise ValueError(f"label_smoothing is set, but loss is {self.loss}: it goes with {', '.join(smoothed)}")
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss is exo_pair, which is undefined without label_smoothing: set it, such as to 0.001")
        diverging = ("dpo", "irpo", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
        if self.divergence != "reverse_kl" and self.loss not in diverging:
            raise ValueError(
                f"divergence is {self.divergence}, but loss is {self.loss}: it goes with {', '.join(diverging)}"
            )
        return self

    @model_validator(mode="after")
    def _a_sorted_batch_is_whole(self) -> Self:
        if self.loss in WHOLE_BATCH_LOSSES and self.micro_batch_size != self.batch_size:
            raise ValueError(
                f"loss is {self.loss}, which sorts the pairs of a step, but a worker computes micro_batch_size = "
                f"{self.micro_batch_size} of batch_size = {self.batch_size} at once: set both to the same number and "
                f"trainer.workers to 1, or loss to one that is a mean over pairs, such as dpo or apo_zero"
            )
        return self


class SftConfig(TrainingConfig):
    """Supervised fine-tuning: the model learns to write given outputs. The defaults are the miniature's."""

    overlong: Literal["drop", "truncate"] = "drop"
    """What to do with a prompt and output longer than `max_tokens`: drop and count it, or truncate the output, as
    ThinkPO's published code does."""
