"""The command line: `tpo …`, or `python -m flows …`. Light until it is known that there is work to do."""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The imports below take half a second, in which ^C would print a traceback.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import contextlib
import functools
import logging
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeAlias, get_args

from flows.cli.stopping import (
    STOPPED,
    TO_RESUME,
    end_in_order,
    exit_in_order,
    exit_status,
    last_words,
    say_last_words,
    steady_streams,
    stop_in_order,
    stop_requested,
)
from flows.prefect_server import start_server
from flows.recipes import (
    RECIPES,
    Recipe,
    check_prefect_settings,
    config_of_run,
    fetch_hub_files,
    load,
    prefect_environment,
    profile_path,
    resolve_config,
    working,
)
from tpo.config.base import SHIPPED_MODELS, SHIPPED_SEED_MODEL
from tpo.config.data import ModelConfig, PromptConfig
from tpo.config.hub import addresses_in, local_path
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.engines.cluster.processes import loopback_without_proxy
from tpo.engines.engines import engines_of_run
from tpo.errors import GateError, InputError, ServerError, StageError, TpoError, shortened
from tpo.report.summary import SUMMARY, read_summary
from tpo.storage.disk import explained, make_folder

DEPLOYMENTS = Path("deploy/prefect.yaml")
POOL = "tpo"
"""The work pool of our deployments."""
SERVER_LOST = 3
"""Exit status where Prefect's server is out of reach."""
NOT_PROMOTED = 4
"""Exit status where the gate stops a run."""


def main(arguments: Sequence[str] | None = None, *, recipes: Iterable[Recipe] = RECIPES.values()) -> int:
    """Runs one subcommand; returns the exit status."""
    os.environ.update(loopback_without_proxy(os.environ))
    options = _parser(recipes).parse_args(arguments)
    last_words(TO_RESUME if options.run in (_make, _study, _evaluate) else STOPPED)
    return ended(lambda: int(options.run(options)))


def ended(work: Callable[[], int]) -> int:
    """Runs some work and returns its exit status; prints errors with their remedies."""
    try:
        with explained():
            status = work()
            sys.stdout.flush()
            return status
    except (Exception, KeyboardInterrupt) as error:
        if (number := _stopped_by(error)) is not None:
            if stop_requested() is None:
                say_last_words()
            return exit_status(number)
        if isinstance(error.__cause__, BrokenPipeError) and _is_unread(sys.stdout):
            return exit_status(signal.SIGPIPE)
        if not isinstance(error, TpoError | MemoryError):
            raise
        if isinstance(error, MemoryError):
            error = StageError("out of memory. Completed work is saved; free memory and rerun the same command")
        print(f"error: {error}", file=sys.stderr, flush=True)
        return next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), 2)


_STATUSES: Mapping[type[Exception], int] = {ServerError: SERVER_LOST, GateError: NOT_PROMOTED}
"""Exit statuses of errors; 2 for all others."""


def _stopped_by(error: BaseException) -> int | None:
    """The signal that ended the work; any other failure after one was received is its consequence."""
    if isinstance(error, KeyboardInterrupt) and error.args:
        return int(error.args[0])
    return int(signal.SIGINT) if isinstance(error, KeyboardInterrupt) else stop_requested()


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream has no reader any more, as after `| head`; the rest of its output is then discarded."""
    found = select.poll()
    found.register(stream.fileno(), select.POLLERR)
    if not found.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return True


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all of ours."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _parser(recipes: Iterable[Recipe] = RECIPES.values()) -> argparse.ArgumentParser:
    parser = _Parser(prog="tpo", description="Thought Preference Optimization")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for recipe in recipes:
        add_recipe(commands, recipe)
    _add_study(commands)
    _add_plan(commands)
    _add_fetch(commands)
    _add_judge_check(commands)
    _add_check_model(commands)
    _add_evaluate(commands)
    _add_serve(commands)
    _add_publish(commands)
    _add_view(commands)
    _add_operation(commands)
    _add_miniature(commands)
    return parser


def add_recipe(commands: Commands, recipe: Recipe) -> None:
    """The command of a recipe."""
    command = commands.add_parser(recipe.name, help=recipe.help)
    command.set_defaults(run=_make, recipe=recipe, to=1)
    if recipe.model is not None:
        _add_to(command)
    if recipe.ablation is not None:
        asked = recipe.ablation
        command.add_argument("--ablation", dest="recipe", action="store_const", const=asked, help=asked.help)
    _add_run_arguments(command, recipe.profile)


def _add_study(commands: Commands) -> None:
    study = commands.add_parser("study", help="a recipe on several seeds, with intervals over training runs")
    study.add_argument("--seeds", type=_seeds, default=[0, 1, 2], metavar="N,N,…", help="the seeds (default 0,1,2)")
    study.add_argument(
        "--against", metavar="PROFILE", help="another profile on the same seeds, or direct: the direct baseline"
    )
    study.add_argument("--unequal", action="store_true", help="compare profiles even if their budgets differ")
    _add_to(study)
    _add_run_arguments(study, seeded=False)
    study.set_defaults(run=_study)


def _add_plan(commands: Commands) -> None:
    plan = commands.add_parser("plan", help="what a run will need, take and cost; runs nothing")
    _add_to(plan)
    _add_run_arguments(plan)
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(run=_plan)


def _add_fetch(commands: Commands) -> None:
    fetch = commands.add_parser("fetch", help="get a profile's models and data, for machines without a network")
    _add_run_arguments(fetch)
    fetch.set_defaults(run=_fetch)


def _add_judge_check(commands: Commands) -> None:
    about = "how good is a judge? on preferences, against another, under attack"
    check = commands.add_parser("judge-check", help=about)
    check.add_argument(
        "judge", help="a kind of judge, a name in deploy/profiles, or a .toml file with a section [judge]"
    )
    check.add_argument("--data", type=Path, metavar="FILE", help="preferences as RewardBench or HelpSteer write them")
    check.add_argument("--model", help="the judge's folder or hf://org/name@revision, in place of the profile's")
    check.add_argument("--against", metavar="JUDGE", help="a second judge, compared on the same prompts")
    check.add_argument("--attack", action="store_true", help="also attack the judge, in all the known ways")
    check.add_argument(
        "--attack-limit",
        type=_share,
        metavar="SHARE",
        help="attack, and exit with status 1 if a kind of attack turns around a larger share of the pairs, such as 0.1",
    )
    check.add_argument("--limit", type=_tokens, metavar="N", help="only the first N preferences")
    check.add_argument(
        "--profile", default="laptop", help="whose engines a judge named by its kind uses (default laptop)"
    )
    check.add_argument("--run-name", help="name of the folder of results (default: judge-check-<judge>-<file>)")
    check.add_argument("--folder", type=Path, default=Path("runs"), help="where that folder is (default: runs)")
    check.add_argument("--json", action="store_true", help="print JSON")
    _add_set(check, "judge_engine.dtype=bfloat16")
    check.set_defaults(run=_judge_check)


def _add_check_model(commands: Commands) -> None:
    model = commands.add_parser("check-model", help="does a model work here? what it is, and what a run would refuse")
    model.add_argument("model", help="its folder, hf://org/name@revision, or miniature for the shipped one")
    model.add_argument("--profile", default="laptop", help="what it is to be used for, and on what (default laptop)")
    model.add_argument("--weights", action="store_true", help="also load the weights and read a chat with them")
    model.add_argument("--probe", action="store_true", help="also sample a few instructions with every thought prompt")
    model.add_argument("--json", action="store_true", help="print JSON")
    _add_set(model)
    model.set_defaults(run=_check_model)


def _add_evaluate(commands: Commands) -> None:
    variants = get_args(PromptConfig.model_fields["variant"].annotation)
    command = commands.add_parser("evaluate", help="measure a model on benchmarks: IFEval, GSM8K, AlpacaEval, your own")
    command.add_argument("model", help="its folder, hf://org/name@revision, or miniature for the shipped one")
    command.add_argument(
        "--bench",
        action="append",
        default=[],
        metavar="NAME|KIND=FILE",
        help="a benchmark of the profile, or a kind with its file; repeat for more (default: the profile's)",
    )
    command.add_argument(
        "--profile", help="how it is asked and judged (default: the config of the run it lies in, else laptop)"
    )
    command.add_argument("--run-name", help="name of the folder of results (default: evaluation-<model>)")
    command.add_argument("--variant", choices=variants, help="the thought prompt, in place of the profile's")
    command.add_argument("--limit", type=_tokens, metavar="N", help="ask only the first N prompts of each benchmark")
    command.add_argument("--tokens", type=_tokens, metavar="N", help="longest output, in place of the profile's")
    _add_set(command, "engine.threads=2")
    command.set_defaults(run=_evaluate)


def _add_serve(commands: Commands) -> None:
    variants = get_args(PromptConfig.model_fields["variant"].annotation)
    serve = commands.add_parser("serve", help="serve a model to OpenAI's clients, its thoughts hidden")
    serve.add_argument("model", help="its folder, hf://org/name@revision, or miniature for the shipped one")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    serve.add_argument("--port", type=_port, default=8000, help="port to listen on (default 8000)")
    serve.add_argument("--name", default="tpo", help="the model's name for clients (default tpo)")
    serve.add_argument(
        "--profile", help="how it was trained and runs (default: the config of the run it lies in, else laptop)"
    )
    serve.add_argument("--variant", choices=variants, help="the thought prompt, in place of the profile's")
    serve.add_argument(
        "--context", type=_tokens, metavar="TOKENS", help="longest chat and reply (default: the model's)"
    )
    serve.add_argument("--allow-thoughts", action="store_true", help="show a thought to a request that asks for it")
    serve.add_argument("--api-key", metavar="VARIABLE", help="environment variable with the key that clients must show")
    _add_set(serve, "engine.kv_cache_gib=8")
    serve.set_defaults(run=_serve)


def _add_publish(commands: Commands) -> None:
    publish = commands.add_parser("publish", help="write a model of a run as a folder that others load")
    publish.add_argument("--run-name", metavar="RUN", help="name of the run in runs/, or its folder (default: laptop)")
    publish.add_argument(
        "--profile", help="the run's profile, if its folder isn't in runs/ but in a bucket or elsewhere"
    )
    publish.add_argument("--to", type=_iterations, metavar="T", help="the iteration (default: the latest)")
    publish.add_argument("--folder", type=Path, help="where (default: published/<run>-<model>)")
    publish.add_argument("--pairs", choices=["0", "1"], default="1", help="0 leaves out the pairs that it learned from")
    publish.add_argument(
        "--push", metavar="ORG/NAME", help="also upload it to the model hub, privately if it is new there"
    )
    publish.set_defaults(run=_publish)


def _add_view(commands: Commands) -> None:
    view = commands.add_parser("view", help="look into every sample of a run, in a browser on this machine")
    view.add_argument("--run-name", metavar="RUN", help="name of the run in runs/, or its folder (default: laptop)")
    view.add_argument("--profile", help="the run's profile, if its folder isn't in runs/ but in a bucket or elsewhere")
    view.add_argument("--port", type=_port, default=8090, help="port to listen on (default 8090)")
    view.set_defaults(run=_view)


def _add_operation(commands: Commands) -> None:
    """The commands for Prefect's server, its deployments and their worker."""
    ui = commands.add_parser("ui", help="start Prefect's server and UI on loopback")
    ui.set_defaults(run=_ui)
    deploy = commands.add_parser("deploy", help="put the work pool and the deployments into Prefect, or renew them")
    deploy.set_defaults(run=_deploy)
    worker = commands.add_parser("worker", help="run what the deployments' triggers ask for, on this machine")
    worker.add_argument("options", nargs="*", help="after --: more options of `prefect worker start`")
    worker.set_defaults(run=_worker)


def _add_miniature(commands: Commands) -> None:
    """The commands that rebuild the shipped models."""
    seed = commands.add_parser("seed-model", help="train the miniature's seed model M_0 again (15 to 30 minutes)")
    seed.set_defaults(run=_seed_model, to=SHIPPED_SEED_MODEL)
    native = commands.add_parser("native-model", help="train the shipped native thinker again (5 to 10 minutes)")
    native.set_defaults(run=_native_model, to=SHIPPED_MODELS["miniature-native"])
    small = commands.add_parser("small-judges", help="train the miniature's three judges again (40 to 70 minutes)")
    small.set_defaults(run=_small_judges, to=SHIPPED_SEED_MODEL.parent)
    for command in (seed, native, small):
        command.add_argument("--to", type=Path, metavar="FOLDER", help="where (default: in place)")


def _add_run_arguments(command: argparse.ArgumentParser, profile: str = "laptop", *, seeded: bool = True) -> None:
    """The options that choose a run."""
    command.add_argument("--profile", default=profile, help="a name in deploy/profiles, or a .toml file")
    command.add_argument(
        "--run-name", help="name of the run folder (default: the profile's name, with the judge and seed given here)"
    )
    command.add_argument(
        "--judge",
        metavar="KIND",
        help="another judge than the profile's, with its defaults: verifier, armorm, pairwise",
    )
    if seeded:
        command.add_argument("--seed", type=_seed, help="the run's seed (default: the profile's)")
    _add_set(command)


def _add_to(command: argparse.ArgumentParser) -> None:
    command.add_argument("--to", type=_iterations, default=3, metavar="T", help="the iteration to reach (default 3)")


def _add_set(command: argparse.ArgumentParser, example: str = "sample.k=4") -> None:
    about = f"override, for example {example}"
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=about)


MAX_ITERATIONS = 1_000_000
"""The largest T; the paper stops at 4, and disks limit it far below."""
MAX_PORT = 65_535


def _count(text: str, *, least: int = 0, most: int = 10**9) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{shortened(repr(text))} is not a whole number from {least} to {most}")
    return int(text)


_iterations = functools.partial(_count, most=MAX_ITERATIONS)
_port = functools.partial(_count, least=1, most=MAX_PORT)
_tokens = functools.partial(_count, least=1)


def _seed(text: str) -> int:
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{shortened(repr(text))} is not a whole number from 0 to {2**31 - 1}")
    return int(text)


def _share(text: str) -> float:
    if not re.fullmatch(r"0|1|(0?\.[0-9]{1,9})|1\.0*", text):
        raise argparse.ArgumentTypeError(f"{shortened(repr(text))} is not a share from 0 to 1, such as 0.1")
    return float(text)


def _seeds(text: str) -> list[int]:
    return [_count(each, most=2**31 - 1) for each in text.split(",")]


def _config(options: argparse.Namespace) -> RunConfig:
    return resolve_config(
        options.profile,
        run_name=options.run_name,
        judge=options.judge,
        seed=options.seed,
        overrides=options.set,
    )


def _make(options: argparse.Namespace) -> int:
    """Brings a run of a recipe to T, unless it is current."""
    with _shown_if_not_promoted():
        return _brought(options)


@contextlib.contextmanager
def _shown_if_not_promoted() -> Iterator[None]:
    """Prints the tables of a run that the gate stops, up to the model in question, before its error."""
    try:
        yield
    except GateError as stop:
        load("tpo.report.table:print_table")(read_summary(stop.root / SUMMARY))
        raise


def _brought(options: argparse.Namespace) -> int:
    recipe, config, to = options.recipe, fetch_hub_files(_config(options)), options.to
    show, page = load(recipe.show), f"{recipe.page_label}: {config.place}/{recipe.page}"
    if (found := recipe.ready(config, to)) is not None:
        show(found)
        print(f"{recipe.says(recipe.done, config, to, 'run {name}')}: nothing to do. {page}")
        return 0
    started = time.monotonic()
    with working(config.metrics):
        show(_run(recipe, config, to))
    print(f"{recipe.says(recipe.reached, config, to)} after {time.monotonic() - started:.0f} s. {page}")
    return 0


def _run(recipe: Recipe, config: RunConfig, to: int) -> Any:
    """The result of a recipe's flow."""
    names = " and ".join(run.name for run in recipe.runs(config))
    goal = "" if recipe.model is None else f"to {recipe.model}_{to} "
    print(f"run {names}: {goal}in {config.place}", file=sys.stderr)
    remedy = (
        "rerun, the run folder has all that is complete; if it happens again, look at PREFECT_API_URL or remove "
        f"PREFECT_HOME ({os.environ['PREFECT_HOME']})"
    )
    engines_of_run().start_early(config)  # while Prefect's server starts, too
    with _answered_by_prefect(remedy):
        return _served(recipe.flow)(*recipe.arguments(config, to))


def _served(reference: str) -> Any:
    """The flow `module:function`, imported while Prefect's server starts."""
    wait = start_server()
    flow = load(reference)
    wait()
    return flow


@contextlib.contextmanager
def _answered_by_prefect(remedy: str) -> Iterator[None]:
    """Raises `ServerError` with a remedy if Prefect's server fails."""
    import httpx
    from prefect.exceptions import PrefectException

    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, PrefectException) as error:
        raise ServerError(
            f"Prefect's server does not answer as it should ({type(error).__name__}: {shortened(str(error))}): {remedy}"
        ) from error


def _study(options: argparse.Namespace) -> int:
    """Brings the runs of a study to T, and shows what can be said over all of them."""
    from flows.cli.study import study
    from flows.study.setup import set_up

    setup = set_up(
        options.profile,
        seeds=options.seeds,
        iterations=options.to,
        against=options.against,
        run_name=options.run_name,
        judge=options.judge,
        overrides=options.set,
    )
    found = study(setup, _run, working, allow_unequal=options.unequal)
    return 2 if any(side.missing for side in found.sides) else 0


def _plan(options: argparse.Namespace) -> int:
    from flows.cli.plan import plan_run, print_plan, to_json

    plan = plan_run(_config(options), options.to)
    if options.json:
        print(to_json(plan))
    else:
        print_plan(plan)
    return 0 if plan.fits else 2


def _fetch(options: argparse.Namespace) -> int:
    written = _config(options)
    config = fetch_hub_files(written)
    if not config.model.folder.is_dir():
        raise InputError(
            f"there is no folder {config.model.path}, and the profile doesn't say where to get it: set "
            "model.path to an address on the model hub, hf://org/name"
        )
    print(f"the seed model is there: {config.model.folder}")
    for key, address in addresses_in(config):
        print(f"{key}: {address} is there: {local_path(address)}")
    return 0


def _judge_check(options: argparse.Namespace) -> int:
    if options.data is None:
        return _published_figures(options)
    prefect_environment()
    from flows.cli.judge_check import JudgeCheckOptions, check_judges, folder_of
    from tpo.hub.fetch import local_model
    from tpo.report.judge_check import CHECK_PAGE, print_check, write_check

    asked = JudgeCheckOptions(
        judges=[options.judge, *([options.against] if options.against else [])],
        data=options.data,
        model=local_model(options.model) if options.model else None,
        profile=options.profile,
        folder=options.folder,
        run_name=options.run_name,
        limit=options.limit,
        attack=options.attack or options.attack_limit is not None,
        overrides=options.set,
    )
    found = check_judges(asked)
    if options.json:
        print(write_check(found).decode(), end="")
    else:
        print_check(found)
        print(f"Page: {folder_of(asked) / CHECK_PAGE}")
    if options.attack_limit is None or found.max_attack_share <= options.attack_limit:
        return 0
    say(
        f"an attack turns around {found.max_attack_share:.1%} of the pairs with {found.judges[0].judge}, more than the "
        f"limit of {options.attack_limit:.1%}"
    )
    return 1


def _published_figures(options: argparse.Namespace) -> int:
    """ArmoRM's published scores, compared with those of a folder."""
    from judges.armorm import judge_check
    from tpo.hub.fetch import local_model

    if options.judge != "armorm" or not options.model:
        raise InputError(
            "there are no preferences to judge: name a file, DATA=<file>; without one, JUDGE=armorm MODEL=<folder> "
            "compares ArmoRM's folder with its published figures"
        )
    found = judge_check(local_path(local_model(options.model)))
    for row in found.lines():
        print(row)
    return 0 if found.passed else 1


def _check_model(options: argparse.Namespace) -> int:
    from flows.cli.check_model import check_model
    from tpo.hub.fetch import local_model
    from tpo.report.model_report import as_json, as_lines

    if not options.model:
        raise InputError("there is no model: name its folder, for example MODEL=models/SmolLM2-135M-Instruct")
    profile = profile_path(options.profile)
    config = load_config(profile, options.set)
    model = local_model(options.model)
    found = check_model(model, config, profile=str(profile), weights=options.weights, probe=options.probe)
    print(as_json(found) if options.json else "\n".join(as_lines(found)))
    return 0 if found.passed else 2


def _evaluate(options: argparse.Namespace) -> int:
    from flows.cli.evaluate import evaluation_config, model_name, ready
    from tpo.hub.fetch import local_model
    from tpo.report.benchmarks import BENCHMARKS_PAGE, print_benchmarks

    if not options.model:
        raise InputError("there is no model: name its folder, for example MODEL=runs/laptop/iter_3/model")
    written = evaluation_config(
        local_model(options.model),
        benchmarks=options.bench,
        profile=options.profile,
        run_name=options.run_name,
        variant=options.variant,
        limit=options.limit,
        max_new_tokens=options.tokens,
        overrides=options.set,
    )
    config, found = ready(written)
    started, page = time.monotonic(), f"Page: {config.place}/{BENCHMARKS_PAGE}"
    if found is not None:
        print_benchmarks(found)
        print(f"{config.name} is complete: nothing to do. {page}")
        return 0
    with working(config.metrics), _answered_by_prefect("rerun, all that is complete is in the folder"):
        found = _served("flows.evaluate:evaluate")(config, model_name(options.model))
    print_benchmarks(found)
    print(f"{config.name} after {time.monotonic() - started:.0f} s. {page}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from flows.cli.serve import Place, serve
    from tpo.hub.fetch import local_model

    if not options.model:
        raise InputError("there is no model: name its folder, for example MODEL=runs/laptop/iter_3/model")
    model = ModelConfig(path=local_model(options.model)).folder
    if options.profile:
        profile = profile_path(options.profile)
    else:
        profile = config_of_run(model) or profile_path("laptop")
    config = load_config(profile, options.set)
    if options.variant:
        config = config.model_copy(update={"prompt": PromptConfig(variant=options.variant)})
    say(f"starting, asked as in {profile}: {config.prompt.variant}")
    serve(
        model,
        config,
        Place(options.host, options.port, options.api_key),
        name=options.name,
        context_tokens=options.context,
        allow_thoughts=options.allow_thoughts,
    )


def _publish(options: argparse.Namespace) -> int:
    from flows.cli.publish import publish_run

    pairs = options.pairs == "1"
    lines = publish_run(options.run_name, options.profile, options.to, options.folder, pairs=pairs, to_hub=options.push)
    print("\n".join(lines))
    return 0


def _view(options: argparse.Namespace) -> int:
    from flows.cli.view import view

    view(options.run_name, options.profile, options.port)
    return 0


def _ui(_: argparse.Namespace) -> int:
    prefect_environment()
    check_prefect_settings()
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"])


def _deploy(_: argparse.Namespace) -> int:
    _use_server()
    from flows.prefect_ops import make_pool

    with _answered_by_prefect(_SERVER_FIRST):
        make_pool(POOL)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(DEPLOYMENTS)]
    os.execv(sys.executable, command)


def _worker(options: argparse.Namespace) -> int:
    _use_server()
    from flows.prefect_ops import end_orphans

    name = socket.gethostname()
    with _answered_by_prefect(_SERVER_FIRST):
        end_orphans(POOL, name)
    logging.shutdown()  # Flush what is on its way to the server: a replaced process runs no exit handlers.
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]
    os.execv(sys.executable, [*command, *options.options])


_SERVER_FIRST = "start one by make ui, or set PREFECT_API_URL to the address of one that runs"


def _use_server() -> None:
    """Prefect's settings, with the server of `make ui` if no other is named."""
    prefect_environment()
    port = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
    os.environ.setdefault("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    check_prefect_settings()


def _seed_model(options: argparse.Namespace) -> int:
    make_folder(options.to)
    _start_again_with_threads(2)
    from flows.cli.miniature import build_seed_model

    _print_scores(build_seed_model(options.to))
    return 0


def _native_model(options: argparse.Namespace) -> int:
    make_folder(options.to)
    _start_again_with_threads(2)
    from flows.cli.miniature import build_native_model

    _print_scores(build_native_model(options.to))
    return 0


def _print_scores(by_variant: Mapping[str, Mapping[str, float]]) -> None:
    for variant, scores in by_variant.items():
        print(f"{variant:15s} {scores['right']:6.1%} right, {scores['broken']:6.1%} break the format")


def _small_judges(options: argparse.Namespace) -> int:
    make_folder(options.to)
    _start_again_with_threads(2)
    from flows.cli.miniature import build_small_judges
    from tpo.engines.engines import open_engines

    with open_engines():
        built = build_small_judges(options.to)
    for name, scores in built.items():
        print(name, ", ".join(f"{score} {value:g}" for score, value in scores.items()))
    return 0


def _start_again_with_threads(count: int) -> None:
    """Replaces this process by one with a training's environment, unless it has it."""
    from tpo.engines.cluster.processes import environment

    variables = environment(threads=count)
    if not variables.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "flows", *sys.argv[1:]], {**os.environ, **variables})


if __name__ == "__main__":
    steady_streams()
    stop_in_order()
    status = main()
    if (number := stop_requested()) is not None:
        end_in_order(number)
    if status == SERVER_LOST:
        sys.stdout.flush()
        os._exit(status)  # Prefect would try for minutes to report the end to its server.
    exit_in_order(status)
