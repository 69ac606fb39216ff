"""The common part of our trainers: TRL's steps on token ids, the same for any number of workers and any sharding.

A mixin for TRL's trainers; `dpo_trainer` and `sft_trainer` add their loss. Where we depart from TRL, and why:

- Token ids. TRL tokenizes text, and decoding and encoding again can give tokens other than those that were sampled.
- Batches (`tpo.engines.training.batches`) and the loss over them. TRL averages over each worker's rows, and the mean of
  those means isn't the mean over a step's rows if the last step of an epoch is smaller. Here it is a mean over the
  global batch.
- Sharded weights are saved in shards, one per worker.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from tpo.config.resources import TrainerConfig
from tpo.config.training import TrainingConfig
from tpo.engines.training import rounds, weights
from tpo.engines.training.batches import BatchLayout, ShareLoader, ShareSampler
from tpo.engines.training.distributed import rank, summed, world_size
from tpo.engines.training.flex import register_packed_attentions
from tpo.engines.training.head import add_label_head
from tpo.engines.training.packing import NotPlainError
from tpo.engines.training.rounds import ONLY_ROUND, TrainingRound
from tpo.engines.training.row_inputs import Row, ShareDataset, output_log_probs, packed_row, padded_row
from tpo.errors import StageError


class ShareTrainer(Trainer):
    """Precedes a TRL trainer in a class's bases; every worker creates one."""

    loss_is_scaled_for_ga = True
    section: str
    """The section of a profile that describes this training."""
    columns: Sequence[str]
    """The columns of a row's outputs."""
    measures: Sequence[str] = ()
    """The arguments of `_measure`, by their names in log lines."""

    def __init__(
        self, *, config: TrainingConfig, trainer: TrainerConfig, place: TrainingRound = ONLY_ROUND, **options: Any
    ) -> None:
        """`place` is the training's among an iteration's rounds, `options` are TRL's.

        Raises `StageError` if the config asks for packing and the model can't be packed."""
        self._training = config
        self._spread = trainer.strategy == "fsdp"
        self._place = place
        self._measured: Tensor | None = None
        # Tells Trainer that the model is already placed: don't wrap it or move it to a device.
        options["model"]._is_distributed_loading_by_transformers = self._spread
        super().__init__(**options, peft_config=weights.adapter(config))
        add_label_head(self._unwrapped())
        if self._spread:
            weights.spread(self.model, device=self.args.device.type, precision=config.precision)
        if config.packing:
            self._pack()
        self._layout = BatchLayout(len(self.train_dataset), config.batch_size, config.micro_batch_size, world_size())

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: model cards would be written with each checkpoint, which are never published."""

    def floating_point_ops(self, inputs: Any) -> int:
        """FLOPs aren't counted."""
        return 0

    def _loader(self, references: Tensor | None) -> ShareLoader:
        """This worker's micro-batches of every step."""
        tokens = [len(ids) for ids in self.train_dataset[self.columns[0]]]
        sampler = ShareSampler(self._layout, tokens, seed=self.args.data_seed, worker=rank())
        return ShareLoader(self._shares(references), sampler)

    def _shares(self, references: Tensor | None) -> ShareDataset:
        return ShareDataset(
            self.train_dataset,
            self.columns,
            references,
            pad_token_id=self.processing_class.pad_token_id,
            packing=self._training.packing,
        )

    def _measure(self, *each: Tensor, counts: bool) -> None:
        """Adds what a share's rows measure to what the next log line tells the means of, [B] each; needs no exchange
        between workers."""
        sums = torch.stack([values.float().sum() for values in (*each, torch.ones_like(each[0]))]) * counts
        self._measured = sums if self._measured is None else self._measured + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a step with the means over its rows; a collective call of all workers."""
        if self._measured is not None:
            sums = summed(self._measured)
            logs |= dict(zip(self.measures, (sums[:-1] / sums[-1]).tolist(), strict=True))
            self._measured = None
        super().log(logs, start_time)

    @contextmanager
    def _outside_training(self) -> Iterator[None]:
        """Context of every forward pass without a backward pass.

        FSDP2 leaves the root group (embeddings, final norm, head) unsharded after a forward pass, for the backward pass
        to use. Without one it stays unsharded, and an optimizer created then would hold tensors that are never trained.
        """
        with torch.no_grad(), self.accelerator.autocast():
            yield
        if self._spread:
            self.model.reshard()

    def create_optimizer(self, model: Any = None) -> Any:
        """Creates the optimizer; raises `StageError` unless it holds every trainable weight."""
        optimizer = super().create_optimizer(model)
        weights.check_optimizer(self.model, optimizer, spread=self._spread)
        if self._place.carried is not None:
            rounds.load_moments(self.model, optimizer, self._place.carried, spread=self._spread)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate schedule of all rounds of the iteration, from where this one begins.

        The number of steps of later rounds isn't known yet, since it follows from their pairs. So every round is an
        equal part of the schedule, whatever its number of steps, and one begins where the last one ended.
        """
        whole = super().create_scheduler(num_training_steps * self._place.of, optimizer)
        if self._place.of > 1:
            before = (self._place.number - 1) * num_training_steps
            # Plain functions, which a checkpoint doesn't hold: they follow from the config.
            rates = [_later(rate, before) for rate in whole.lr_lambdas]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(whole.optimizer, rates)
        return self.lr_scheduler

    def take_weights(self) -> None:
        """Continues from the weights of the round before; the reference log-probs, which are those of the model that
        this trainer was made on, have been computed by now."""
        if self._place.carried is not None:
            rounds.load_weights(self.model, self._place.carried, spread=self._spread)

    def hand_on(self, folder: Path) -> None:
        """Leaves what the next round continues from; a collective call of all workers."""
        rounds.save_state(self.model, self.optimizer.optimizer, folder, spread=self._spread)

    def _pack(self) -> None:
        """Switches the model to packed rows, after checking that they give what padded ones do."""
        tolerance = 1e-4 if self._training.precision == "float32" else 0.05
        tried = [self.train_dataset[i] for i in range(min(3, len(self.train_dataset)))]
        found = []
        with self._outside_training():
            apart = self._tried(padded_row(tried, self.columns, self.processing_class.pad_token_id))
            for attention in register_packed_attentions(self.args.device.type):
                self._unwrapped().set_attn_implementation(attention)
                try:
                    packed = self._tried(packed_row(tried, self.columns))
                except (NotPlainError, RuntimeError, TypeError) as error:  # torch.compile's errors are RuntimeErrors
                    found.append(f"{attention}: {type(error).__name__} {error}".strip())
                    continue
                if torch.allclose(apart, packed, rtol=tolerance, atol=tolerance):
                    return
                found.append(f"{attention}: {packed.tolist()}")
        raise StageError(
            f"packed rows give other log-probabilities than padded ones with this model ({'; '.join(found)}, expected "
            f"{apart.tolist()}): set {self.section}.packing to false"
        )

    def _tried(self, row: Row) -> Tensor:
        return output_log_probs(self.model, self._prepare_input(row)).sums().float()

    def _unwrapped(self) -> Any:
        return self.model.get_base_model() if self._training.lora else self.model

    # Sharded weights are saved in shards, one per worker.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the weights into a checkpoint; shards of a spread model are saved with its optimizer's state."""
        if not self._spread:
            with weights.without_generation_config(self.model):
                super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._spread:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        Path(output_dir).mkdir(exist_ok=True)
        weights.save_shard(self.model, self.optimizer.optimizer, Path(output_dir))
        if rank() == 0:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._spread:
            weights.load_shard_of_model(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._spread or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        weights.load_shard_of_optimizer(self.model, self.optimizer.optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))
        for group, learning_rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = learning_rate  # The scheduler only sets it after a step.


def _later(rate: Callable[[int], float], steps: int) -> Callable[[int], float]:
    """A schedule from that many steps on."""
    return lambda step: rate(step + steps)
