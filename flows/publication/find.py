"""Finds a model of a finished run of any recipe, with what is published of it."""

from pathlib import Path

from flows.publication.finished_model import FinishedModel, find_tpo_model, runs_next_to
from flows.publication.finished_table import find_table_model
from tpo.config.load import ignore, load_config
from tpo.config.recipes import Tpo
from tpo.errors import InputError


def find_model(root: Path, iteration: int | None) -> FinishedModel:
    """The model of an iteration of the run in `root`; the run's last one if that is None.

    Raises `InputError` if there is no such run or iteration, if it isn't complete, or if the thought prompt has
    changed since; `DamagedError` if a file isn't what its manifest says.
    """
    if not (root / "config.json").is_file():
        raise InputError(f"there is no run in {root}: {runs_next_to(root)}")
    config = load_config(root / "config.json", note=ignore)
    if isinstance(config.recipe, Tpo):
        return find_tpo_model(root, config, iteration)
    return find_table_model(root, config, iteration)
