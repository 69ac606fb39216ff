"""TRL's DPO trainer on token ids as they were sampled, the same for any number of workers.

In: a model, pairs on disk, and a file for the reference's log-probabilities. Out: TRL's trainer, ready to train.

What is ours and not TRL's, and why:

- The ids. TRL tokenises text: decoding and encoding again can give other tokens than those that were sampled.
- The batches (`tpo.engines.batches`) and the loss over them. TRL takes the mean over what one worker holds at once,
  and the mean of those means is not the mean over a step's pairs where the last step of an epoch is smaller; its
  likelihood term for IRPO is a mean over tokens, and has the same fault. Here both are means over the global batch.
- The reference's log-probabilities. TRL takes a second model for them where weights are spread over workers. Here it is
  the model itself, before the first step, spread already, without its adapter.
- The loss before the first step, which is asserted to be ln 2: policy and reference are the same model then, and a
  reference that is not M_t, a doubled BOS or dropout left on all show there and nowhere else so early.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from peft.helpers import rescale_adapter_scale
from torch import Tensor, nn
from trl import DPOTrainer

from tpo.config import TrainConfig, TrainerConfig
from tpo.disk import write_atomically
from tpo.engines import checkpoints, weights
from tpo.engines.batches import Layout, Share, ShareLoader, ShareSampler
from tpo.engines.packing import PACKED, register_packed_attention
from tpo.engines.pair_inputs import PairDataset, PairLogProbs, ShareInputs, packed_row, padded_row, pair_log_probs
from tpo.engines.ranks import as_first_worker, rank, summed, wait_for_all, world_size
from tpo.errors import StageError

_MEASURED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


class PairTrainer(DPOTrainer):
    """Trains one model on pairs of token ids; every worker makes one."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        config: TrainConfig,
        trainer: TrainerConfig,
        references: Path,
        on_reference: Callable[[], None],
        **options: Any,
    ) -> None:
        """`references` is where the reference's log-probabilities are kept; the rest is TRL's.

        `on_reference` is called with every batch of them that is computed. Raises `StageError` where the model cannot
        be packed and the config asks for it.
        """
        self._config = config
        self._spread = trainer.strategy == "fsdp"
        self._measured: Tensor | None = None
        # Says that the model looks after its own placement: not to be wrapped, nor moved to a device in one piece.
        options["model"]._is_distributed_loading_by_transformers = self._spread
        super().__init__(**options, peft_config=weights.adapter(config))
        if self._spread:
            weights.spread(self.model, device=self.args.device.type, precision=config.precision)
        if config.packing:
            self._pack()
        self._layout = Layout(len(self.train_dataset), config.batch_size, config.micro_batch_size, world_size())
        self._references = self._kept_references(references, on_reference)
        if self._spread:
            self.model.reshard()  # without a backward pass it stays whole, and the optimiser would take what is whole

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: it would be written with each checkpoint, and nobody publishes those."""

    def floating_point_ops(self, inputs: Any) -> int:
        """None are counted."""
        return 0

    def get_train_dataloader(self) -> ShareLoader:
        """This worker's shares of every step."""
        chosen_tokens = [len(ids) for ids in self.train_dataset["chosen_ids"]]
        sampler = ShareSampler(self._layout, chosen_tokens, seed=self.args.data_seed, worker=rank())
        return ShareLoader(self._pairs(self._references), sampler)

    def compute_loss(self, model: nn.Module, inputs: ShareInputs, *_: Any, **__: Any) -> Tensor:
        """This worker's part of the loss, times the workers, since their gradients are averaged."""
        share, (reference_chosen, reference_rejected) = inputs["share"], inputs["references"]
        found = pair_log_probs(model, inputs["row"])
        chosen, rejected = found.chosen - reference_chosen, found.rejected - reference_rejected
        losses = -F.logsigmoid(self._config.beta * (chosen - rejected))
        if self.state.global_step == 0:
            check_first_loss(losses.mean().item(), self._config)
        self._measure(chosen.detach(), rejected.detach(), share)
        loss = losses.sum() / share.batch_pairs
        if self._config.loss == "irpo":
            loss = loss - self._config.alpha * (found.chosen.sum() / share.batch_tokens)
        return loss * (share.counts * world_size())

    def _measure(self, chosen: Tensor, rejected: Tensor, share: Share) -> None:
        """Adds a share's rewards to what the next log line tells the means of; needs no exchange between workers."""
        rewards = self._config.beta * chosen, self._config.beta * rejected
        each = (*rewards, rewards[0] - rewards[1], (rewards[0] > rewards[1]).float(), torch.ones_like(chosen))
        sums = torch.stack([values.float().sum() for values in each]) * share.counts
        self._measured = sums if self._measured is None else self._measured + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a step, with the means over its pairs; all workers call it."""
        if self._measured is not None:
            sums = summed(self._measured)
            logs |= dict(zip(_MEASURED, (sums[:-1] / sums[-1]).tolist(), strict=True))
            self._measured = None
        super().log(logs, start_time)

    def _pairs(self, references: Tensor) -> PairDataset:
        return PairDataset(
            self.train_dataset,
            references,
            pad_token_id=self.processing_class.pad_token_id,
            packing=self._config.packing,
        )

    def _kept_references(self, path: Path, on_batch: Callable[[], None]) -> Tensor:
        """The reference's log-probabilities of all chosen and all rejected outputs, [2, pairs]; computed once."""
        if not as_first_worker(lambda: checkpoints.sealed(path) is not None):
            found = self._reference_log_probs(on_batch)
            if rank() == 0:
                write_atomically(path, safetensors.torch.save({"references": found}))
                checkpoints.seal(path)
            wait_for_all()
        kept: Tensor = safetensors.torch.load_file(path)["references"]
        return kept

    def _reference_log_probs(self, on_batch: Callable[[], None]) -> Tensor:
        found = torch.zeros(2, len(self.train_dataset))
        pairs = self._pairs(found)
        alone = Layout(
            len(pairs), self._layout.micro_batch_size * world_size(), self._layout.micro_batch_size, world_size()
        )
        # Scaled to nothing and not switched off: that freezes it too, and FSDP2 takes the first pass for all of them.
        without_adapter = rescale_adapter_scale(self.model, 0.0) if self._config.lora else nullcontext()
        with torch.no_grad(), without_adapter, self.accelerator.autocast():
            for share in alone.shares(range(len(pairs)), [0] * len(pairs), rank()):
                on_batch()
                log_probs = pair_log_probs(self.model, self._prepare_inputs(pairs[share])["row"])
                if share.counts:
                    found[:, list(share.indices)] = _stacked(log_probs).float().cpu()
        # Each is zero on all workers but one, so that their sum is exact.
        return summed(found.to(self.args.device)).cpu()

    def _pack(self) -> None:
        """Sets the model to packed rows, after trying that they give what padded ones do."""
        register_packed_attention()
        tolerance = 1e-4 if self._config.precision == "float32" else 0.05
        tried = [self.train_dataset[i] for i in range(min(3, len(self.train_dataset)))]
        with torch.no_grad(), self.accelerator.autocast():
            apart = self._tried(padded_row(tried, self.processing_class.pad_token_id))
            self._unwrapped().set_attn_implementation(PACKED)
            packed = self._tried(packed_row(tried))
        if not torch.allclose(apart, packed, rtol=tolerance, atol=tolerance):
            raise StageError(
                f"packed rows give other log-probabilities than padded ones with this model ({packed.tolist()} and "
                f"{apart.tolist()}): set train.packing to false"
            )

    def _tried(self, row: Any) -> Tensor:
        return _stacked(pair_log_probs(self.model, self._prepare_input(row))).float()

    def _unwrapped(self) -> Any:
        return self.model.get_base_model() if self._config.lora else self.model

    # What is spread is kept in shards, one a worker.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the weights into a checkpoint; those of a spread model stand beside its optimiser's state."""
        if not self._spread:
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
            group["lr"] = learning_rate  # the schedule sets it only after a step


def check_first_loss(loss: float, config: TrainConfig) -> None:
    """Raises `StageError` unless the DPO loss before the first optimiser step is ln 2."""
    tolerance = 1e-4 if config.precision == "float32" else 2e-2
    if not math.isclose(loss, math.log(2), abs_tol=tolerance):
        raise StageError(
            f"the DPO loss before the first step is {loss:.6f}, expected ln 2 = {math.log(2):.6f}: the reference "
            "log-probs are not those of the model that is trained"
        )


def _stacked(found: PairLogProbs) -> Tensor:
    return torch.stack((found.chosen, found.rejected))
