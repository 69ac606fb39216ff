"""TRL's preference losses by name, over log-probabilities that we have computed: the mean loss over some pairs.

TRL has all of them in one method that also runs the model and exchanges logs between workers, assuming that all hold
equally many pairs. That method is called here unchanged, on a substitute for the trainer whose model only returns
values computed before, and which has no other workers: the arithmetic is TRL's, the batches and the model are ours. The
likelihood term of `irpo` isn't here, because it is a mean over the tokens of the whole batch
(`tpo.engines.training.dpo_trainer`).
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer

from tpo.config.training import TrainConfig
from tpo.engines.training.row_inputs import OutputLogProbs

_TRL_NAMES = {"dpo": "sigmoid", "irpo": "sigmoid"}
"""TRL's names of losses that have a different name here."""


def preference_loss(config: TrainConfig, policy: OutputLogProbs, references: Tensor) -> Tensor:
    """The mean loss over B pairs; `references` are the reference's log-probabilities of whole outputs, [2, B].

    They are weighted as `OutputLogProbs.sums` weights the policy's.
    """
    # TRL scores what follows a position, so its masks have one position more, the first.
    mask = torch.nn.functional.pad(policy.mask, (1, 0)).long()
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": references[0],
        "ref_rejected_logps": references[1],
    }
    loss: Tensor = DPOTrainer._compute_loss(_stand_in(config, mask.device), lambda **_: _outputs(policy), inputs, False)
    return loss


def _outputs(policy: OutputLogProbs) -> SimpleNamespace:
    nothing = torch.zeros_like(policy.values)
    return SimpleNamespace(
        log_probs=policy.values, entropy=nothing, mean_logits=nothing, is_top1=torch.zeros_like(policy.mask)
    )


def _stand_in(config: TrainConfig, device: torch.device) -> Any:
    """The attributes that TRL's method reads from its trainer."""
    alone = SimpleNamespace(device=device, gather=_as_it_is, gather_for_metrics=_as_it_is)
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=alone,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        beta=config.beta,
        loss_types=[_TRL_NAMES.get(config.loss, config.loss)],
        loss_weights=[1.0],
        ld_alpha=config.length_desensitization,
        label_smoothing=config.label_smoothing,
        f_divergence_type=config.divergence,
        f_alpha_divergence_coef=config.divergence_alpha,
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=0.05),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )


def _as_it_is(value: Any) -> Any:
    return value
