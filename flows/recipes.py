"""The recipes: one entry each, from which the command line, the deployments and their tests are built.

A command line and a form start a run in the same way: they resolve a config (`resolve_config`), ask the recipe whether
there is anything to do (`Recipe.ready`), and call its flow in a prepared process (`working`). Nothing heavy is imported
before it is known that there is something to do, so flows are named here, not imported.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.cli.stopping import apart_from_terminal
from flows.preflight import check_before_work, check_self_training, check_thinkpo, check_tpo, preflight
from tpo.config.data import PromptConfig
from tpo.config.load import ignore, load_config
from tpo.config.recipes import SelfTrain
from tpo.config.resources import MetricsConfig
from tpo.config.run import RunConfig
from tpo.console import LOGGER, say
from tpo.engines.cluster.watchdog import watched
from tpo.errors import InputError, StoreError, shortened
from tpo.hub.fetch import fetched, say_moves
from tpo.metrics.export import exported
from tpo.metrics.live import Metrics
from tpo.models.published import fetch_model
from tpo.report.comparison import COMPARISON, Comparison, read_comparison
from tpo.report.gate import check_gate
from tpo.report.model_table import ABLATION, MODEL_TABLE, ModelTable, page_of, read_model_table
from tpo.report.summary import REPORT, SUMMARY, Summary, read_summary
from tpo.run_context import run_context, using
from tpo.storage.current import is_current
from tpo.storage.mirror import reading

SHIPPED = Path("deploy") / "profiles"
PROFILES = SHIPPED if SHIPPED.is_dir() else Path(__file__).parents[1] / SHIPPED
"""The folder of profiles: that of the current folder, if there is one, otherwise ours."""


@dataclass(frozen=True)
class Baseline:
    """The second run of a recipe that compares two."""

    config: Callable[[RunConfig], RunConfig]
    """Its config, given that of the first run; raises `InputError` if there is nothing to compare."""
    compared: Callable[[RunConfig, int, Any, Any], Any]
    """The comparison at T, given the first run's config and both results; None if it is missing or out of date."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to train, as the command line, its deployment and the checks need to know it.

    Texts are templates of `{name}` (the run's name), `{run}` (the run, as the reader calls it) and `{model}` (M_T).
    """

    name: str
    """Name of its command, its make target and its deployment."""
    help: str
    """Its line in `tpo --help`, or that of its option if it is an ablation."""
    profile: str = "laptop"
    """The default profile."""
    model: str | None = "M"
    """What iteration t makes, without its number; None for a recipe that doesn't iterate."""
    check: Callable[[RunConfig], None]
    """Raises `InputError` if this recipe can't work with a config."""
    finished: Callable[[RunConfig, int], Any]
    """The result of a finished run that has reached T, otherwise None."""
    flow: str
    """`module:function` of its flow, which takes a config and, if it iterates, T."""
    baseline: Baseline | None = None
    """The second run that the flow makes, and compares the first with."""
    ablation: "Recipe | None" = None
    """The recipe to use instead if an ablation is requested."""
    show: str
    """`module:function` that prints a result."""
    page: str
    """Name of the page in the run folder that shows the result."""
    page_label: str = "Page"
    """The page's name on the command line."""
    done: str = "{model} of {run} is complete"
    """The message if there is nothing (more) to do."""
    reached: str = "{model}"
    """The message after work, to which the seconds are added."""
    trigger: str
    """Name of the deployed flow: `flows/deployments.py` has it, with `_` for `-`."""
    title: str
    """Name of a deployment's run in Prefect."""
    stepwise: bool = False
    """Whether a trigger takes the run one iteration further, instead of to T."""

    def ready(self, config: RunConfig, iterations: int) -> Any:
        """Checks that a run can get to T = `iterations`; returns its result if there is nothing to do, otherwise
        None."""
        found = self._ready(config, iterations)
        if self.baseline is None:
            return found
        other = self._ready(self.baseline.config(config), iterations)
        if found is None or other is None:
            return None
        return self.baseline.compared(config, iterations, found, other)

    def _ready(self, config: RunConfig, iterations: int) -> Any:
        preflight(config)
        self.check(config)
        with reading(config):
            if (found := self.finished(config, iterations)) is None:
                check_before_work(config, iterations)
                say_moves(config)
        return found

    def says(self, template: str, config: RunConfig, iterations: int, run: str = "{name}") -> str:
        """One of its texts about a run to T = `iterations`, which is called `run`."""
        run = run.format(name=config.name)
        return template.format(name=config.name, run=run, model=f"{self.model}_{iterations}")

    def runs(self, config: RunConfig) -> list[RunConfig]:
        """The runs that its flow makes."""
        return [config] if self.baseline is None else [config, self.baseline.config(config)]

    def arguments(self, config: RunConfig, iterations: int) -> tuple[Any, ...]:
        """The arguments of its flow."""
        return (config,) if self.model is None else (config, iterations)


def load(reference: str) -> Any:
    """The object `module:name`, imported now."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def resolve_config(
    profile: str, *, run_name: str | None, judge: str | None, seed: int | None, overrides: Sequence[str]
) -> RunConfig:
    """The resolved config; a judge and a seed given here are added to the run's name, so that no two runs share a
    folder."""
    path = profile_path(profile)
    first = [f"judge={{kind={json.dumps(judge)}}}"] if judge is not None else []
    last = [f"seed={seed}"] if seed is not None else []
    config = load_config(path, [*first, *overrides, *last], note=ignore)  # read again below, with its notes
    if run_name is None:
        given = [judge, None if seed is None else f"seed{seed}"]
        run_name = "-".join([config.name, *(part for part in given if part is not None)])
    return load_config(path, [*first, *overrides, *last, f"name={json.dumps(run_name, ensure_ascii=False)}"])


def profile_path(profile: str) -> Path:
    """The path of a profile given by name or as a file."""
    if profile.endswith((".toml", ".json")):
        return Path(profile)
    if not re.fullmatch(r"[\w.-]+", profile):
        known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.toml")))
        raise InputError(
            f"{shortened(repr(profile))} is not a profile: expected a file that ends in .toml, or one of {known}"
        )
    return PROFILES / f"{profile}.toml"


def config_of_run(model: Path) -> Path | None:
    """The config of the run that made a model, if the folder is in one: `<run>/iter_<t>/…`, ThinkPO's `<run>/sft/…`
    and `<run>/dpo/…`."""
    for folder in model.resolve().parents[:3]:
        made_in_run = folder.name.startswith("iter_") or folder.name in ("sft", "dpo")
        if made_in_run and (folder.parent / "config.json").is_file():
            return folder.parent / "config.json"
    return None


def fetch_hub_files(config: RunConfig) -> RunConfig:
    """The config to use once all remote files that it names are on this machine: addresses on the model hub then have
    commits. Called before anything else is checked."""
    fetch_model(config.model)
    return fetched(config)


def reached(config: RunConfig, iterations: int) -> Summary | None:
    """The summary of a run that has reached M_T, T = `iterations`, or is past it; raises `GateError` as `finished`."""
    with reading(config):
        return finished(config, iterations)


def finished(config: RunConfig, iterations: int) -> Summary | None:
    """The summary of a run that has reached M_T and needs nothing, its report included.

    Raises `GateError` if the gate has stopped it before M_T, or at it, and nothing has changed since.
    """
    if not is_current(config):
        return None
    try:
        summary = read_summary(config.root / SUMMARY)
    except StoreError:
        return None
    check_gate(config, summary, iterations)
    return summary if summary.models[-1].iteration >= iterations else None


def _table(config: RunConfig, last: str | None) -> ModelTable | None:
    """The table of a run that is finished, if it reaches the model called `last`."""
    return _reaching(config.root / MODEL_TABLE, last) if is_current(config) else None


def _ablation(config: RunConfig, iterations: int, ours: ModelTable, theirs: ModelTable) -> ModelTable | None:
    """The comparison of a run with and without DPO at SFT_T, unless one of them has changed since."""
    found = _reaching(config.root / ABLATION, f"SFT_{iterations}")
    of = {row.model: row for row in ours.rows} | {f"{row.model} without": row for row in theirs.rows}
    rows = [(row, of.get(row.model)) for row in found.rows] if found else []
    current = all(own and (own.score, own.tokens) == (row.score, row.tokens) for row, own in rows)
    return found if current else None


def _reaching(path: Path, last: str | None) -> ModelTable | None:
    try:
        table = read_model_table(path)
    except StoreError:
        return None
    return table if last is None or last in {row.model for row in table.rows} else None


def without_dpo(config: RunConfig) -> RunConfig:
    """The baseline of DPO-ST: classic self-training, everything else equal.

    Raises `InputError` if the config itself has no DPO step.
    """
    recipe = config.recipe_as(SelfTrain)
    if not recipe.dpo:
        raise InputError(
            "a comparison with classic self-training starts from a run with the DPO step: set recipe.dpo to true"
        )
    changes = {"name": f"{config.name}-plain", "recipe": recipe.model_copy(update={"dpo": False})}
    return config.model_copy(update=changes)


def direct_baseline(config: RunConfig) -> RunConfig:
    """The direct baseline of a config: the same prompts, judge, loss and settings, without thoughts.

    Its prompts aren't rated again: they are those of the run that thinks, and a server's ratings may differ each time.

    Raises `InputError` if the config itself asks for no thoughts, or if a server writes its prompts.
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
        "evaluation": config.evaluation.model_copy(update={"fine_grained": None}),
    }
    return config.model_copy(update=changes)


def _comparison(config: RunConfig, iterations: int, ours: Summary, theirs: Summary) -> Comparison | None:
    """The comparison of a run and its direct baseline at M_T, unless one of them has changed since."""
    path = config.root / COMPARISON
    if not path.exists():
        return None
    try:
        found = read_comparison(path)
    except StoreError:
        return None
    current = (found.thinking, found.direct) == (ours, theirs) and found.leads[-1].iteration >= iterations
    return found if current else None


@contextlib.contextmanager
def working(metrics: MetricsConfig | None = None) -> Iterator[None]:
    """The context of a run (`tpo.run_context`); ends everything that the flow starts in this process when it exits, or
    at the end of the context.

    Raises `InputError` if the metrics are to be exported and can't be.
    """
    prefect_environment()
    check_prefect_settings()
    live = Metrics()
    with exported(live, metrics or MetricsConfig()), watched(), apart_from_terminal():
        from tasks.progress import show_progress
        from tpo.engines.engines import open_engines

        with open_engines(), using(dataclasses.replace(run_context(), onlookers=[show_progress], metrics=live)):
            yield


def check_prefect_settings() -> None:
    """Raises `InputError` if Prefect rejects its environment variables; call it after `prefect_environment`."""
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
    """Disable telemetry and set defaults for Prefect settings that the user hasn't set (local files, quiet console).

    Call before importing Prefect.
    """
    from tpo.engines.cluster.processes import loopback_without_proxy, proxy_fault, quiet_environment

    os.environ.update(quiet_environment(os.environ) | loopback_without_proxy(os.environ))
    if (fault := proxy_fault(os.environ)) is not None:
        # Requests to other machines were refused before (`check_proxies`); the rest is on this machine.
        say(f"{fault}: proxies are left out, all that is asked is on this machine")
        os.environ.update(NO_PROXY="*", no_proxy="*")
    home = Path(os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve())))
    defaults = {
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_MEMO_STORE_PATH": str(home / "memo.toml"),
        "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        # On disk, so that a restarted server knows the running flows and lets them continue.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": LOGGER,
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


_ITERATE = Recipe(
    name="iterate",
    help="bring a run to M_T: start it, resume it, add iterations to it",
    check=check_tpo,
    finished=finished,
    flow="flows.iterate:iterate",
    show="tpo.report.table:print_table",
    page=REPORT,
    page_label="Report",
    trigger="advance",
    title="{name} to {model}",
    stepwise=True,
)
_COMPARE = Recipe(
    name="compare",
    help="the same, and its direct baseline: does thinking pay?",
    check=check_tpo,
    finished=finished,
    baseline=Baseline(direct_baseline, _comparison),
    flow="flows.compare:compare_with_direct",
    show="tpo.report.comparison_page:print_comparison",
    page="comparison.html",
    done="{name} is compared with its direct baseline at {model}",
    reached="{model} of both",
    trigger="compare-runs",
    title="{name} against direct, to {model}",
)
_THINKPO = Recipe(
    name="thinkpo",
    help="ThinkPO: fine-tune on long reasoning, then prefer it to short",
    profile="thinkpo",
    model=None,
    check=check_thinkpo,
    finished=lambda config, _: _table(config, None),
    flow="flows.thinkpo:thinkpo",
    show="tpo.report.model_table_page:print_model_table",
    page=page_of(MODEL_TABLE),
    done="{run} is complete",
    reached="{name}",
    trigger="run-thinkpo",
    title="{name}, ThinkPO",
)
_SELF_TRAIN = Recipe(
    name="self-train",
    help="DPO-ST: learn from own right answers, DPO before each time",
    profile="self-train",
    model="SFT",
    check=check_self_training,
    finished=lambda config, iterations: _table(config, f"SFT_{iterations}"),
    flow="flows.self_train:self_train",
    show="tpo.report.model_table_page:print_model_table",
    page=page_of(MODEL_TABLE),
    trigger="run-self-train",
    title="{name}, DPO-ST to {model}",
)
_ABLATION = dataclasses.replace(
    _SELF_TRAIN,
    help="also run it without DPO, and compare both",
    baseline=Baseline(without_dpo, _ablation),
    flow="flows.self_train:self_train_and_plain",
    page=page_of(ABLATION),
    title="{name}, DPO-ST with and without DPO to {model}",
)
RECIPES = {
    recipe.name: recipe
    for recipe in (_ITERATE, _COMPARE, _THINKPO, dataclasses.replace(_SELF_TRAIN, ablation=_ABLATION))
}
"""Every recipe by its name, in the order of `tpo --help`."""
