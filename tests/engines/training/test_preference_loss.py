"""Claims about which preference losses can be computed in parts of a step."""

from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from tpo.config.run import RunConfig
from tpo.config.training import WHOLE_BATCH_LOSSES, Loss, TrainConfig
from tpo.engines.training.preference_loss import preference_loss
from tpo.engines.training.row_inputs import OutputLogProbs

PAIRS, TOKENS = 6, 5


def loss_of(config: TrainConfig, pairs: list[int]) -> float:
    draw = torch.Generator().manual_seed(0)
    values = -3 * torch.rand(2 * PAIRS, TOKENS, generator=draw)
    references = values.sum(1).view(2, PAIRS) + 5 * torch.randn(2, PAIRS, generator=draw)
    mask = torch.arange(TOKENS) < torch.randint(2, TOKENS + 1, (2 * PAIRS, 1), generator=draw)
    rows = [*pairs, *(PAIRS + i for i in pairs)]
    policy = OutputLogProbs((values * mask)[rows], mask[rows], outputs=2)
    return preference_loss(config, policy, references[:, pairs]).item()


@pytest.mark.parametrize("loss", get_args(Loss))
def test_a_loss_over_a_step_is_the_mean_over_its_parts_or_needs_the_whole_step(loss: Loss):
    needs = {"label_smoothing": 0.001} if loss == "exo_pair" else {}
    config = TrainConfig.model_validate({"loss": loss, **needs})
    whole = loss_of(config, list(range(PAIRS)))
    singles = sum(loss_of(config, [i]) for i in range(PAIRS)) / PAIRS
    parts = (2 * loss_of(config, [0, 1]) + 4 * loss_of(config, [2, 3, 4, 5])) / PAIRS
    same = (singles, parts) == pytest.approx((whole, whole), rel=1e-5)
    assert same is (loss not in WHOLE_BATCH_LOSSES)


@pytest.mark.parametrize("loss", sorted(WHOLE_BATCH_LOSSES))
def test_a_loss_that_needs_the_whole_step_is_refused_if_the_step_is_split(loss: str):
    RunConfig.model_validate({"train": {"loss": loss, "batch_size": 8, "micro_batch_size": 8}})
    with pytest.raises(ValidationError, match=r"sorts the pairs of a step, .* micro_batch_size = 4 of batch_size = 8"):
        TrainConfig.model_validate({"loss": loss, "batch_size": 8, "micro_batch_size": 4})
    shared = {"train": {"loss": loss, "batch_size": 8, "micro_batch_size": 8}, "trainer": {"workers": 2}}
    with pytest.raises(ValidationError, match=r"trainer.workers = 2 split them: set trainer.workers to 1"):
        RunConfig.model_validate(shared)
