"""Sampling of an epoch's validation answers while the next epoch trains, if engines and trainer have GPUs of their own.

A thread samples each epoch's model as soon as the trainer has written it, into the stage of samples that it has anyway:
the model is identified by its files, before the training as a whole has a manifest. After the training that stage is
complete, or goes on from its shards.
"""

import contextlib
from collections.abc import Iterator, Sequence

from tasks.follower import Follower
from tasks.handles import SamplingSpec
from tasks.sample import sample
from tpo.config.run import RunConfig
from tpo.engines.engines import engines_of_run
from tpo.engines.training.checkpoints import epoch_folder
from tpo.records import Artifact
from tpo.storage.store import Stage, folder_artifact

POLL_SECONDS = 1.0
"""How often the thread looks for the next epoch."""


@contextlib.contextmanager
def sampling_ahead(
    config: RunConfig, training: Stage, epochs: Sequence[SamplingSpec], prompts: Artifact
) -> Iterator[None]:
    """Samples `prompts` with all epochs but the last while the stage `training` makes them in this context.

    On exit, waits until the epoch that is being sampled is done. After an error, waits for one shard.
    """
    # Two meters at once don't see each other's spending, so a budget is kept by working in turn.
    in_turn = config.budget.is_set or len(epochs) < 2 or training.complete() is not None
    if in_turn or not engines_of_run().fit_beside_training(config):
        yield
        return
    with _EpochFollower(config, training, epochs[:-1], prompts).beside():
        yield


class _EpochFollower(Follower):
    """Samples the epochs of a training as they are written."""

    def __init__(self, config: RunConfig, training: Stage, epochs: Sequence[SamplingSpec], prompts: Artifact) -> None:
        super().__init__(f"sampling ahead {training.name}", f"{training.name}: validation waits until all is trained")
        self._config, self._training, self._epochs, self._prompts = config, training, epochs, prompts

    def follow(self) -> None:
        """Waits for each epoch and samples it."""
        for number, spec in enumerate(self._epochs, 1):
            folder = epoch_folder(self._training.folder, number)
            while not (self._training.has_begun() and folder.is_dir()):
                if self.ended.wait(POLL_SECONDS):
                    return
            sample.fn(self._config, spec, folder_artifact(folder), self._prompts, self.check)
