"""TRL's DPO trainer on pairs of token ids.

Where we depart from TRL beyond `tpo.engines.training.base_trainer`, and why:

- IRPO's likelihood term, which in TRL is a mean over one worker's tokens, is a mean over the global batch.
- The reference's log-probabilities. TRL uses a second model for them if weights are sharded. Here a trainer on the
  reference, already sharded and without its adapter, computes them before the first step: in most runs that is the
  model which is then trained.
- If model and reference are the same, the DPO loss before the first step must be ln 2: a reference that isn't M_t, a
  doubled BOS or active dropout show there and nowhere else so early. Of an iteration's rounds, the first begins so.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
import torch.nn.functional as F
from peft.helpers import rescale_adapter_scale
from torch import Tensor, nn
from trl import DPOTrainer
from trl.trainer import dpo_trainer

from tpo.config.training import TrainConfig
from tpo.engines.training import checkpoints
from tpo.engines.training.base_trainer import ShareTrainer
from tpo.engines.training.batches import BatchLayout, ShareLoader
from tpo.engines.training.distributed import as_first_worker, rank, summed, wait_for_all, world_size
from tpo.engines.training.preference_loss import preference_loss
from tpo.engines.training.row_inputs import PAIR, ShareInputs, output_log_probs
from tpo.errors import StageError
from tpo.storage.disk import write_atomically


class PairTrainer(ShareTrainer, DPOTrainer):
    """Trains one model on pairs of token ids; every worker creates one."""

    section = "train"
    columns = PAIR
    measures = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")

    def __init__(
        self,
        *,
        config: TrainConfig,
        references: Path,
        on_reference: Callable[[], None],
        is_reference: bool,
        **options: Any,
    ) -> None:
        """`references` is where the reference's log-probabilities are kept; the rest is TRL's.

        `on_reference` is called with every batch of them that is computed; `is_reference` says whether this model is
        the reference too, as it is before the first step. Raises `StageError` as every `ShareTrainer` does.
        """
        with mock.patch.object(dpo_trainer, "hash_module", return_value=None):
            # TRL hashes all weights to name its own cache of the reference's log-probs, which isn't used here; and most
            # workers have no weights yet.
            super().__init__(config=config, **options)
        self._config = config
        self._is_reference = is_reference
        self._references = self._kept_references(references, on_reference)

    def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def get_train_dataloader(self) -> ShareLoader:
        """This worker's micro-batches of every step."""
        return self._loader(self._references)

    def compute_loss(self, model: nn.Module, inputs: ShareInputs, *_: Any, **__: Any) -> Tensor:
        """This worker's part of the loss, times the number of workers, since gradients are averaged."""
        share, references = inputs["share"], inputs["references"]
        policy = output_log_probs(model, inputs["row"])
        chosen, rejected = policy.sums(self._config.length_desensitization).detach() - references
        rewards = self._config.beta * chosen, self._config.beta * rejected
        margins = rewards[0] - rewards[1]
        if self._is_reference and self._place.carried is None and self.state.global_step == 0:
            check_first_loss(-F.logsigmoid(margins).mean().item(), self._config)
        self._measure(*rewards, margins, (margins > 0).float(), counts=share.counts)
        loss = preference_loss(self._config, policy, references) * (len(margins) / share.batch_rows)
        if self._config.loss == "irpo":
            loss = loss - self._config.alpha * (policy.first.sum() / share.batch_tokens)
        return loss * (share.counts * world_size())

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
        pairs = self._shares(found)
        alone = BatchLayout(
            len(pairs), self._layout.micro_batch_size * world_size(), self._layout.micro_batch_size, world_size()
        )
        # Scale the adapter to 0 instead of disabling it: disabling also freezes it, and FSDP2 keeps the `requires_grad`
        # state of its first pass.
        without_adapter = rescale_adapter_scale(self.model, 0.0) if self._config.lora else nullcontext()
        with without_adapter, self._outside_training():
            for share in alone.shares(range(len(pairs)), [0] * len(pairs), rank()):
                on_batch()
                log_probs = output_log_probs(self.model, self._prepare_inputs(pairs[share])["row"])
                if share.counts:
                    found[:, list(share.indices)] = log_probs.sums(self._config.length_desensitization).float().cpu()
        # Each is zero on all workers but one, so their sum is exact.
        return summed(found.to(self.args.device)).cpu()


def check_first_loss(loss: float, config: TrainConfig) -> None:
    """Raises `StageError` unless the DPO loss before the first optimiser step is ln 2."""
    tolerance = 1e-4 if config.precision == "float32" else 2e-2
    if not math.isclose(loss, math.log(2), abs_tol=tolerance):
        raise StageError(
            f"the DPO loss before the first step is {loss:.6f}, expected ln 2 = {math.log(2):.6f}: the reference "
            "log-probs are not those of the model that is trained"
        )
