"""TRL's SFT trainer on token ids.

The loss is the mean negative log-likelihood of the outputs' tokens over the global batch, end tokens included and
prompts excluded. `tpo.engines.training.base_trainer` says where we depart from TRL.
"""

from typing import Any

from torch import Tensor, nn
from trl import SFTTrainer

from tpo.engines.training.base_trainer import ShareTrainer
from tpo.engines.training.batches import ShareLoader
from tpo.engines.training.distributed import world_size
from tpo.engines.training.row_inputs import DEMONSTRATION, ShareInputs, output_log_probs


class DemonstrationTrainer(ShareTrainer, SFTTrainer):
    """Trains one model on outputs to imitate; every worker creates one."""

    section = "recipe.sft"
    columns = DEMONSTRATION

    def get_train_dataloader(self) -> ShareLoader:
        """This worker's micro-batches of every step."""
        return self._loader(None)

    def compute_loss(self, model: nn.Module, inputs: ShareInputs, *_: Any, **__: Any) -> Tensor:
        """This worker's part of the loss, times the number of workers, since gradients are averaged."""
        share = inputs["share"]
        written = output_log_probs(model, inputs["row"]).first
        return -(written.sum() / share.batch_tokens) * (share.counts * world_size())
