"""A training as the driver describes it to the engines."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpo.config.resources import ClusterConfig, TrainerConfig
from tpo.config.training import TrainingConfig
from tpo.engines.training.rounds import ONLY_ROUND, TrainingRound
from tpo.records import Demonstration, Pair

if TYPE_CHECKING:
    from tpo.engines.training.tracking import Tracked


@dataclass(frozen=True)
class TrainingJob:
    """A model, the rows to train it on, and how."""

    model: Path
    """The folder of the model to train."""
    rows: Collection[Pair | Demonstration]
    """Pairs for a `TrainConfig`, demonstrations for an `SftConfig`."""
    folder: Path
    """Where epochs, checkpoints and the log go."""
    config: TrainingConfig
    """The method's settings."""
    trainer: TrainerConfig
    """The workers."""
    cluster: ClusterConfig
    """Where they run."""
    seed: int
    """Draws the order of the rows and the dropout."""
    reference: Path | None = None
    """The folder of DPO's reference, if that isn't the model to train."""
    tracked: "Tracked | None" = None
    """Where an experiment tracker gets the steps."""
    place: TrainingRound = ONLY_ROUND
    """The training's place among an iteration's rounds."""
