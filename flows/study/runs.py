"""A study's runs, one after another: complete ones cost nothing, and one that fails doesn't stop the others."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from flows.cli.stopping import stop_requested
from flows.recipes import Recipe, working
from flows.study.setup import Job, StudySetup
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.errors import GateError, ServerError, TpoError
from tpo.storage.current import FINISHED, is_current

RunRecipe: TypeAlias = Callable[[Recipe, RunConfig, int], Any]
"""Brings a run to T by its recipe's flow."""
Process: TypeAlias = Callable[[], contextlib.AbstractContextManager[None]]


def to_do(setup: StudySetup) -> list[Job]:
    """The runs that aren't complete; raises `InputError` if one of them can't be done here."""
    left = [job for job in setup.jobs if not _is_complete(job, setup.iterations)]
    for config in (config for job in left for config in job.recipe.runs(job.config)):
        if (config.root / FINISHED).is_file() and not is_current(config):
            say(
                f"{config.place} was finished by other code, or its files have changed since: its stages are checked "
                "one by one, and those that are still right are kept"
            )
    return left


def _is_complete(job: Job, iterations: int) -> bool:
    """Whether a run needs nothing; one that its gate has stopped doesn't either, but is brought again to say why."""
    try:
        return job.recipe.ready(job.config, iterations) is not None
    except GateError:
        return False


def bring_all(jobs: Sequence[Job], iterations: int, run: RunRecipe, *, process: Process = working) -> Mapping[int, str]:
    """Brings all runs to T = `iterations`; returns why some failed, by seed.

    Engines stay open from run to run; after a failure they are closed and restarted, since nothing is known about
    them. If Prefect's server fails or the command is stopped, the study stops too.
    """
    failed, left = dict[int, str](), list(jobs)
    while left:
        with process():
            while left:
                job = left.pop(0)
                try:
                    run(job.recipe, job.config, iterations)
                except TpoError as error:
                    if isinstance(error, ServerError) or stop_requested() is not None:
                        raise
                    reason = f"run {job.config.name}: {error}"
                    failed[job.seed] = f"{failed[job.seed]}; {reason}" if job.seed in failed else reason
                    say(f"{reason}\n{'the other runs continue' if left else 'no run is left'}")
                    break
    return failed
