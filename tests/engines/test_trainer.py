"""Claims about the trainer's one check that needs no trainer; the rest is tested end to end."""

import math

import pytest

from tpo.config import TrainConfig
from tpo.engines.trainer import check_first_loss
from tpo.errors import StageError


@pytest.mark.parametrize(("precision", "loss"), [("float32", math.log(2) + 5e-5), ("bfloat16", math.log(2) - 0.015)])
def test_a_first_loss_of_ln_2_up_to_rounding_passes(precision: str, loss: float):
    check_first_loss(loss, TrainConfig.model_validate({"precision": precision}))


@pytest.mark.parametrize("loss", [0.533382, 2.533382, 0.6934, 0.0, math.inf, math.nan])
def test_any_other_first_loss_says_that_the_reference_is_not_the_model(loss: float):
    """0.533382 is the DPO loss of golden vector G12 (SPEC §7), whose policy has already left its reference."""
    with pytest.raises(StageError, match=r"expected ln 2 = 0\.693147: the reference log-probs are not those"):
        check_first_loss(loss, TrainConfig())
