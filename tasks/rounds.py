"""Stages of an iteration that was made with another number of rounds, which `train.rounds` leaves without a use."""

from collections.abc import Iterator
from pathlib import Path

from tpo.config.run import RunConfig
from tpo.console import say
from tpo.storage.store import is_set_aside, set_aside

_OF_A_ROUND = ("generations", "prompts", "samples", "judgments", "scores", "pairs", "replay", "train")
"""The stages that a round has; an only round's are in the iteration's folder."""


def set_other_rounds_aside(config: RunConfig, iteration: int) -> None:
    """Moves aside, with a message, what rounds that the config doesn't have left in an iteration's folder.

    A stage that is remade under its own name does this itself; these are under other names.
    """
    for folder in sorted(_others(config, iteration)):
        aside = set_aside(folder)
        say(
            f"iter_{iteration}/{folder.name}: made with another train.rounds than {config.train.rounds}, moved to "
            f"{aside.name}"
        )


def _others(config: RunConfig, iteration: int) -> Iterator[Path]:
    folder, rounds = config.root / f"iter_{iteration}", config.train.rounds
    own = {f"round_{number}" for number in range(1, rounds + 1)} if rounds > 1 else set[str]()
    for path in folder.glob("round_*"):
        if path.name not in own and not is_set_aside(Path(path.name)):
            yield path
    if rounds > 1:
        yield from (folder / name for name in _OF_A_ROUND if (folder / name).exists())
