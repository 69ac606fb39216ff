"""What lies between a command line or a form and the flow, so that both start the same run in the same way.

In: what a user asks for. Out: a config, the word that there is nothing to do, or a process in which the flow can run.
Nothing heavy is imported before it is known that there is something to do.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.cli.stopping import apart_from_terminal
from flows.preflight import check_before_work, check_self_training, check_thinkpo, check_tpo, preflight
from tasks.lineage import completed, is_kept, leaves
from tpo.config.data import PromptConfig
from tpo.config.load import ignore, load_config
from tpo.config.recipes import SelfTrain
from tpo.config.run import RunConfig
from tpo.console import LOGGER, say
from tpo.engines.cluster.watchdog import watched
from tpo.errors import InputError, StoreError, shortened
from tpo.models.published import fetch_model
from tpo.report.comparison import COMPARISON, Comparison, read_comparison
from tpo.report.ladder import ABLATION, LADDER, Ladder, read_ladder
from tpo.report.summary import Summary, read_summary
from tpo.storage.mirror import reading
from tpo.storage.receipt import receipt_holds

SHIPPED = Path("deploy") / "profiles"
PROFILES = SHIPPED if SHIPPED.is_dir() else Path(__file__).parents[1] / SHIPPED
"""Profiles by name: those of the folder that the command is called from, else ours."""


def resolve_config(
    profile: str, *, run_name: str | None, judge: str | None, seed: int | None, overrides: Sequence[str]
) -> RunConfig:
    """The config that is asked for; a judge and a seed given here name the run, so that no two share a folder."""
    path = profile_path(profile)
    first = [f"judge={{kind={json.dumps(judge)}}}"] if judge is not None else []
    last = [f"seed={seed}"] if seed is not None else []
    config = load_config(path, [*first, *overrides, *last], note=ignore)  # read again below, with its notes
    if run_name is None:
        given = [judge, None if seed is None else f"seed{seed}"]
        run_name = "-".join([config.name, *(part for part in given if part is not None)])
    return load_config(path, [*first, *overrides, *last, f"name={json.dumps(run_name, ensure_ascii=False)}"])


def profile_path(profile: str) -> Path:
    """The file of a profile that is named, or given as a file."""
    if profile.endswith((".toml", ".json")):
        return Path(profile)
    if not re.fullmatch(r"[\w.-]+", profile):
        known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.toml")))
        raise InputError(
            f"{shortened(repr(profile))} is not a profile: expected a file that ends in .toml, or one of {known}"
        )
    return PROFILES / f"{profile}.toml"


def checked(config: RunConfig) -> None:
    """Checks what needs no more than a look at files, after fetching the seed model if the profile says from where."""
    fetch_model(config.model)
    preflight(config)


def ready(config: RunConfig, iterations: int) -> Summary | None:
    """Checks that a run can get to M_T, T = `iterations`; its summary where it is there and nothing is to be done."""
    checked(config)
    check_tpo(config)
    with reading(config):
        if (found := finished(config, iterations)) is None:
            check_before_work(config, iterations)
    return found


def reached(config: RunConfig, iterations: int) -> Summary | None:
    """The summary of a run that has reached M_T, T = `iterations`, or is past it."""
    with reading(config):
        return finished(config, iterations)


def finished(config: RunConfig, iterations: int) -> Summary | None:
    """The summary of a run that has reached M_T and needs nothing, its report included."""
    path = config.root / "summary.json"
    if not (is_kept(config) and path.exists() and (config.root / "report.html").exists()):
        return None
    if completed(config, iterations) < iterations:
        return None
    try:
        summary = read_summary(path)
    except StoreError:
        return None
    return summary if summary.models[-1].iteration >= iterations else None


def made(config: RunConfig) -> Ladder | None:
    """Checks that a run of ThinkPO can be made; its ladder where nothing is to be done."""
    checked(config)
    check_thinkpo(config)
    return _ladder_or_check(config)


def self_trained(config: RunConfig, iterations: int, name: str = LADDER) -> Ladder | None:
    """Checks that a run of self-training can get to SFT_T, T = `iterations`; its ladder where nothing is to be done.

    `name` is which of its ladders: its own, or that of its ablation.
    """
    checked(config)
    check_self_training(config)
    return _ladder_or_check(config, f"SFT_{iterations}", name, iterations)


def ablated(config: RunConfig, iterations: int) -> Ladder | None:
    """The same for a run and the one without DPO; the ladder that holds them against each other."""
    found = self_trained(config, iterations, ABLATION)
    return found if self_trained(without_dpo(config), iterations) is not None else None


def _ladder_or_check(
    config: RunConfig, last: str | None = None, name: str = LADDER, iterations: int = 1
) -> Ladder | None:
    with reading(config):
        if (found := _ladder(config, last, name)) is None:
            check_before_work(config, iterations)
    return found


def _ladder(config: RunConfig, last: str | None, name: str) -> Ladder | None:
    """The ladder of a run that is finished, where it reaches the model called `last`."""
    path = config.root / name
    if is_kept(config) and path.exists() and receipt_holds(config.root, leaves(config)):
        with contextlib.suppress(StoreError):
            ladder = read_ladder(path)
            return ladder if last is None or last in {rung.model for rung in ladder.rungs} else None
    return None


def without_dpo(config: RunConfig) -> RunConfig:
    """The run that DPO-ST is compared with: classic self-training, all else alike.

    Raises `InputError` where the config itself has no DPO step.
    """
    recipe = config.recipe_as(SelfTrain)
    if not recipe.dpo:
        raise InputError(
            "a comparison with classic self-training starts from a run with the DPO step: set recipe.dpo to true"
        )
    changes = {"name": f"{config.name}-plain", "recipe": recipe.model_copy(update={"dpo": False})}
    return config.model_copy(update=changes)


def direct_baseline(config: RunConfig) -> RunConfig:
    """The run that a config is compared with: the same prompts, judge, loss and settings, asked to answer directly.

    Raises `InputError` where the config itself asks for no thoughts, and where a server writes its prompts.
    """
    if config.prompt.variant == "direct":
        raise InputError(
            'prompt.variant is "direct", and a comparison with the direct baseline starts from a run that thinks: '
            "choose another variant"
        )
    if config.data.synthetic is not None and config.data.synthetic.endpoint is not None:
        raise InputError(
            "data.synthetic.endpoint is set, and a server writes other prompts each time, while a comparison needs the "
            "same in both runs: have a model folder write them, or gather those of a run (iter_*/prompts) in a file "
            "and name it as data.source"
        )
    changes = {
        "name": f"{config.name}-direct",
        "prompt": PromptConfig(variant="direct"),
        "sample": config.sample.model_copy(update={"max_thought_tokens": None}),
        "data": config.data.model_copy(update={"also_fits": config.prompt}),
    }
    return config.model_copy(update=changes)


def compared(config: RunConfig, iterations: int) -> Comparison | None:
    """Checks that a run and its direct baseline can get to M_T; their comparison where nothing is to be done."""
    ours, theirs = ready(config, iterations), ready(direct_baseline(config), iterations)
    path = config.root / COMPARISON
    if ours is None or theirs is None or not path.exists():
        return None
    try:
        found = read_comparison(path)
    except StoreError:
        return None
    current = (found.thinking, found.direct) == (ours, theirs) and found.leads[-1].iteration >= iterations
    return found if current else None


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Has all that the flow starts in this process end with it, or at the end of the context."""
    prefect_environment()
    check_prefect_settings()
    with watched(), apart_from_terminal():
        from tpo.engines.inference.reward_reader import close_scorer_pools
        from tpo.engines.inference.sampler import close_pools

        try:
            yield
        finally:
            close_pools()
            close_scorer_pools()


def check_prefect_settings() -> None:
    """Raises `InputError` if Prefect does not take what the environment says to it; after `prefect_environment`."""
    from pydantic import ValidationError

    try:
        from prefect.settings import get_current_settings

        get_current_settings()
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"Prefect refuses its settings, {'.'.join(map(str, first['loc']))} ({shortened(first['msg'])}, found "
            f"{shortened(repr(first['input']))}): see the environment variables whose names begin with PREFECT_"
        ) from None


def prefect_environment() -> None:
    """Everybody silenced, and Prefect's settings where the user has set none: files beside the runs, quiet terminal.

    Comes before anything is imported that reads its settings then.
    """
    from tpo.engines.cluster.processes import QUIET, loopback_without_proxy, proxy_fault

    os.environ.update(QUIET | loopback_without_proxy(os.environ))
    if (fault := proxy_fault(os.environ)) is not None:
        # Whoever asks something elsewhere was refused before (`check_proxies`); the rest is on this machine.
        say(f"{fault}: proxies are left out, all that is asked is on this machine")
        os.environ.update(NO_PROXY="*", no_proxy="*")
    home = Path(os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve())))
    defaults = {
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_MEMO_STORE_PATH": str(home / "memo.toml"),
        "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        # On disk, so that a server that is started again knows who is at work, and lets them go on.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": LOGGER,
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
