"""What a training of several rounds hands from one to the next: trained weights and optimizer state.

A round trains on its own rows and leaves a `state` folder of safetensors with every trained weight in float32 and its
moments. The next round starts from the same base model and replaces the trained weights by these, so that it continues
as one training would: weights aren't rounded to the precision of a checkpoint in between, an adapter stays one adapter,
and the reference log-probs are those of the base model. Model and optimizer that are spread over workers leave one file
per worker, so the number of workers must stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpo.engines.training.distributed import as_first_worker, rank, wait_for_all
from tpo.storage.disk import make_folder, remove, settle

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

STATE = "state"
"""Folder of a training that isn't the last round, with what the next one continues from."""
_FILE = "worker_{}.safetensors"
_WEIGHT = "weight"
"""Prefix of weights in the files; moments have the optimizer's names for them."""


@dataclass(frozen=True)
class TrainingRound:
    """The place of a training among the rounds of an iteration."""

    number: int = 1
    """1 … `of`."""
    of: int = 1
    """Rounds in the iteration."""
    carried: Path | None = None
    """The state that the round before left; None in the first."""

    @property
    def is_last(self) -> bool:
        """Whether no round follows, so that every epoch's model is a candidate and no state is needed."""
        return self.number == self.of


ONLY_ROUND = TrainingRound()
"""The place of a training that isn't one of several."""


def save_state(model: "nn.Module", optimizer: "Optimizer", folder: Path, *, spread: bool) -> None:
    """Writes the trained weights and the optimizer's state; a collective call of all workers."""
    import safetensors.torch

    as_first_worker(lambda: _make_empty(folder))
    if spread or rank() == 0:
        path = folder / _FILE.format(rank())
        safetensors.torch.save_file(dict(_tensors(model, optimizer)), path)
        settle(path)
    wait_for_all()


def load_weights(model: "nn.Module", folder: Path, *, spread: bool) -> None:
    """Replaces the trained weights by those of a state."""
    import torch

    from tpo.engines.training.weights import local, trained

    with _opened(folder, spread=spread) as file, torch.no_grad():
        for name, weight in trained(model):
            local(weight.detach()).copy_(file.get_tensor(f"{_WEIGHT} {name}"))


def load_moments(model: "nn.Module", optimizer: "Optimizer", folder: Path, *, spread: bool) -> None:
    """Gives an optimizer that has made no step the state of the round before."""
    from tpo.engines.training.weights import as_spread, trained

    with _opened(folder, spread=spread) as file:
        moments = sorted({key.partition(" ")[0] for key in file.keys()} - {_WEIGHT})  # noqa: SIM118  not a mapping
        for name, weight in trained(model):
            optimizer.state[weight] = {
                moment: as_spread(file.get_tensor(f"{moment} {name}"), weight) for moment in moments
            }


def _make_empty(folder: Path) -> None:
    remove(folder)
    make_folder(folder)


def _tensors(model: "nn.Module", optimizer: "Optimizer") -> "Iterator[tuple[str, Tensor]]":
    from tpo.engines.training.weights import local, trained

    for name, weight in trained(model):
        yield f"{_WEIGHT} {name}", local(weight.detach()).contiguous()
        for moment, value in optimizer.state[weight].items():
            yield f"{moment} {name}", local(value).contiguous()


def _opened(folder: Path, *, spread: bool) -> Any:
    from safetensors import safe_open

    return safe_open(folder / _FILE.format(rank() if spread else 0), framework="pt")
