"""`tpo …`, or `python -m flows …`: the command behind `make`. Light until it is known that there is work to do."""

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, get_args

from flows.cli.stopping import (
    STOPPED,
    TO_RESUME,
    end_in_order,
    exit_status,
    last_words,
    say_last_words,
    steady_streams,
    stop_in_order,
    stop_requested,
)
from flows.recipes import (
    ablated,
    check_prefect_settings,
    compared,
    made,
    prefect_environment,
    profile_path,
    ready,
    resolve_config,
    self_trained,
    working,
)
from tasks.lineage import SHIPPED_SEED_MODEL
from tpo.config.data import ModelConfig, PromptConfig
from tpo.config.load import load_config
from tpo.config.recipes import SelfTrain
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.engines.cluster.processes import loopback_without_proxy
from tpo.errors import InputError, ServerError, StageError, TpoError, shortened
from tpo.report.ladder import ABLATION, LADDER, page_of
from tpo.report.table import print_table
from tpo.storage.disk import explained, make_folder

Found = TypeVar("Found")
DEPLOYMENTS = Path("deploy/prefect.yaml")
POOL = "tpo"
"""The work pool of our deployments."""
SERVER_LOST = 3
"""Exit status where Prefect's server is out of reach."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    os.environ.update(loopback_without_proxy(os.environ))
    options = _parser().parse_args(arguments)
    resumes = options.run in (_iterate, _compare, _thinkpo, _self_train)
    last_words(TO_RESUME if resumes else STOPPED)
    return ended(lambda: int(options.run(options)))


def ended(work: Callable[[], int]) -> int:
    """Does some work; returns its exit status, and says what went wrong and what to do about it."""
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
            error = StageError("memory ran out; what is complete is kept: free some and run the same command again")
        print(f"error: {error}", file=sys.stderr, flush=True)
        return SERVER_LOST if isinstance(error, ServerError) else 2


def _stopped_by(error: BaseException) -> int | None:
    """The signal that ended the work; whatever else fails once one was received is its consequence."""
    if isinstance(error, KeyboardInterrupt) and error.args:
        return int(error.args[0])
    return int(signal.SIGINT) if isinstance(error, KeyboardInterrupt) else stop_requested()


def _is_unread(stream: TextIO) -> bool:
    """Whether nobody reads a stream any more, as after `| head`; what is left of it then goes nowhere."""
    found = select.poll()
    found.register(stream.fileno(), select.POLLERR)
    if not found.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return True


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line, as all of ours are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="tpo", description="Thought Preference Optimization")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    iterate = commands.add_parser("iterate", help="bring a run to M_T: start it, resume it, add iterations to it")
    iterate.add_argument("--to", type=_iterations, default=3, metavar="T", help="the iteration to reach (default 3)")
    _add_run_arguments(iterate)
    iterate.set_defaults(run=_iterate)
    compare = commands.add_parser("compare", help="the same, and its direct baseline beside it: does thinking pay?")
    compare.add_argument("--to", type=_iterations, default=3, metavar="T", help="the iteration to reach (default 3)")
    _add_run_arguments(compare)
    compare.set_defaults(run=_compare)
    thinkpo = commands.add_parser("thinkpo", help="ThinkPO: fine-tune on long reasoning, then prefer it to short")
    _add_run_arguments(thinkpo, profile="thinkpo")
    thinkpo.set_defaults(run=_thinkpo)
    own = commands.add_parser("self-train", help="DPO-ST: learn from own right answers, DPO before each time")
    own.add_argument("--to", type=_iterations, default=3, metavar="T", help="the iteration to reach (default 3)")
    own.add_argument("--ablation", action="store_true", help="also run it without DPO, and compare both")
    _add_run_arguments(own, profile="self-train")
    own.set_defaults(run=_self_train)
    plan = commands.add_parser("plan", help="what a run needs, takes and costs, before anything runs")
    plan.add_argument("--to", type=_iterations, default=3, metavar="T", help="the iteration to reach (default 3)")
    _add_run_arguments(plan)
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(run=_plan)
    fetch = commands.add_parser("fetch", help="get a profile's seed model, for machines that run without a network")
    _add_run_arguments(fetch)
    fetch.set_defaults(run=_fetch)
    check = commands.add_parser("judge-check", help="hold a judge's folder to the figures published for it")
    check.add_argument("kind", choices=["armorm"], help="kind of judge")
    check.add_argument("model", type=Path, help="folder in the published format")
    check.set_defaults(run=_judge_check)
    _add_check_model(commands)
    _add_serve(commands)
    ui = commands.add_parser("ui", help="start Prefect's server and UI on loopback")
    ui.set_defaults(run=_ui)
    deploy = commands.add_parser("deploy", help="put the work pool and the deployments into Prefect, or renew them")
    deploy.set_defaults(run=_deploy)
    worker = commands.add_parser("worker", help="run what the deployments' triggers ask for, on this machine")
    worker.add_argument("options", nargs="*", help="after --: more options of `prefect worker start`")
    worker.set_defaults(run=_worker)
    seed = commands.add_parser("seed-model", help="train the miniature's seed model M_0 again (15 to 30 minutes)")
    seed.add_argument("--to", type=Path, default=SHIPPED_SEED_MODEL, metavar="FOLDER", help="where (default: in place)")
    seed.set_defaults(run=_seed_model)
    small = commands.add_parser("small-judges", help="train the miniature's two judges again (20 to 40 minutes)")
    small.add_argument(
        "--to", type=Path, default=SHIPPED_SEED_MODEL.parent, metavar="FOLDER", help="where (default: in place)"
    )
    small.set_defaults(run=_small_judges)
    return parser


def _add_check_model(commands: "argparse._SubParsersAction[_Parser]") -> None:
    model = commands.add_parser("check-model", help="does a model work here? what it is, and what a run would refuse")
    model.add_argument("model", help="its folder, or miniature for the shipped seed model")
    model.add_argument("--profile", default="laptop", help="what it is to be used for, and on what (default laptop)")
    model.add_argument("--weights", action="store_true", help="also load the weights and read a chat with them")
    model.add_argument("--probe", action="store_true", help="also sample a few instructions with every thought prompt")
    model.add_argument("--json", action="store_true", help="print JSON")
    model.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, for example sample.k=4",
    )
    model.set_defaults(run=_check_model)


def _add_serve(commands: "argparse._SubParsersAction[_Parser]") -> None:
    variants = get_args(PromptConfig.model_fields["variant"].annotation)
    serve = commands.add_parser("serve", help="serve a model to OpenAI's clients, its thoughts hidden")
    serve.add_argument("model", help="its folder, or miniature for the shipped seed model")
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
    serve.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, for example engine.kv_cache_gib=8"
    )
    serve.set_defaults(run=_serve)


def _add_run_arguments(parser: argparse.ArgumentParser, profile: str = "laptop") -> None:
    """What says which run is meant."""
    parser.add_argument("--profile", default=profile, help="a name in deploy/profiles, or a .toml file")
    parser.add_argument(
        "--run-name", help="name of the run folder (default: the profile's name, with the judge and seed given here)"
    )
    parser.add_argument(
        "--judge",
        metavar="KIND",
        help="another judge than the profile's, with its defaults: verifier, armorm, pairwise",
    )
    parser.add_argument("--seed", type=_seed, help="the run's seed (default: the profile's)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, for example sample.k=4"
    )


MAX_ITERATIONS = 1_000_000
"""The largest T; the paper stops at 4, and what a disk holds is far below."""
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


def _config(options: argparse.Namespace) -> RunConfig:
    return resolve_config(
        options.profile,
        run_name=options.run_name,
        judge=options.judge,
        seed=options.seed,
        overrides=options.set,
    )


def _plan(options: argparse.Namespace) -> int:
    from flows.cli.plan import plan_run, print_plan, to_json

    plan = plan_run(_config(options), options.to)
    if options.json:
        print(to_json(plan))
    else:
        print_plan(plan)
    return 0 if plan.fits else 2


def _iterate(options: argparse.Namespace) -> int:
    config = _config(options)
    report = f"{config.place}/report.html"
    if (found := ready(config, options.to)) is not None:
        print_table(found)
        print(f"M_{options.to} of run {config.name} is complete: nothing to do. Report: {report}")
        return 0
    started = time.monotonic()
    with working():
        from flows.iterate import iterate

        print_table(_run(config.name, config, options.to, iterate))
    print(f"M_{options.to} after {time.monotonic() - started:.0f} s. Report: {report}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from tpo.report.comparison_page import print_comparison

    config = _config(options)
    page = f"{config.place}/comparison.html"
    if (found := compared(config, options.to)) is not None:
        print_comparison(found)
        print(f"{config.name} is compared with its direct baseline at M_{options.to}: nothing to do. Page: {page}")
        return 0
    started = time.monotonic()
    with working():
        from flows.compare import compare_with_direct

        print_comparison(_run(f"{config.name} and {config.name}-direct", config, options.to, compare_with_direct))
    print(f"M_{options.to} of both after {time.monotonic() - started:.0f} s. Page: {page}")
    return 0


def _thinkpo(options: argparse.Namespace) -> int:
    from tpo.report.ladder_page import print_ladder

    config = _config(options)
    page = f"{config.place}/ladder.html"
    if (found := made(config)) is not None:
        print_ladder(found)
        print(f"run {config.name} is complete: nothing to do. Page: {page}")
        return 0
    started = time.monotonic()
    with working():
        from flows.thinkpo import thinkpo

        print_ladder(_run(config.name, config, None, lambda config, _: thinkpo(config)))
    print(f"{config.name} after {time.monotonic() - started:.0f} s. Page: {page}")
    return 0


def _self_train(options: argparse.Namespace) -> int:
    from tpo.report.ladder_page import print_ladder

    config, to = _config(options), options.to
    page = f"{config.place}/{page_of(ABLATION if options.ablation else LADDER)}"
    if (found := (ablated if options.ablation else self_trained)(config, to)) is not None:
        print_ladder(found)
        print(f"SFT_{to} of run {config.name} is complete: nothing to do. Page: {page}")
        return 0
    started = time.monotonic()
    with working():
        from flows.self_train import self_train, self_train_and_plain

        flow = self_train_and_plain if options.ablation else self_train
        print_ladder(_run(config.name, config, to, flow))
    print(f"SFT_{to} after {time.monotonic() - started:.0f} s. Page: {page}")
    return 0


def _run(what: str, config: RunConfig, iterations: int | None, flow: Callable[[RunConfig, Any], Found]) -> Found:
    """What a flow makes, started from a command line."""
    last = "SFT" if isinstance(config.recipe, SelfTrain) else "M"
    goal = "" if iterations is None else f"to {last}_{iterations} "
    print(f"run {what}: {goal}in {config.place}", file=sys.stderr)
    remedy = (
        "run again, the run folder has all that is complete; if it happens again, look at PREFECT_API_URL or remove "
        f"PREFECT_HOME ({os.environ['PREFECT_HOME']})"
    )
    with _answered_by_prefect(remedy):
        return flow(config, iterations)


@contextlib.contextmanager
def _answered_by_prefect(remedy: str) -> Iterator[None]:
    """Raises `ServerError` with a remedy if Prefect's server fails."""
    import httpx
    from prefect.exceptions import PrefectException

    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, PrefectException, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "ephemeral Prefect API server" not in str(error):
            raise  # Prefect has no error of its own for a server that did not start
        raise ServerError(
            f"Prefect's server does not answer as it should ({type(error).__name__}: {shortened(str(error))}): {remedy}"
        ) from error


def _fetch(options: argparse.Namespace) -> int:
    from tpo.models.published import fetch_model

    model = _config(options).model
    fetch_model(model)
    if not model.folder.is_dir():
        raise InputError(f"there is no folder {model.path}, and the profile does not say where from: set model.hub_id")
    print(f"the seed model is there: {model.path}")
    return 0


def _judge_check(options: argparse.Namespace) -> int:
    from judges.armorm import judge_check

    found = judge_check(options.model)
    for row in found.lines():
        print(row)
    return 0 if found.passed else 1


def _check_model(options: argparse.Namespace) -> int:
    from flows.cli.check_model import check_model
    from tpo.report.model_report import as_json, as_lines

    if not options.model:
        raise InputError("there is no model: name its folder, for example MODEL=models/SmolLM2-135M-Instruct")
    profile = profile_path(options.profile)
    config = load_config(profile, options.set)
    found = check_model(options.model, config, profile=str(profile), weights=options.weights, probe=options.probe)
    print(as_json(found) if options.json else "\n".join(as_lines(found)))
    return 0 if found.passed else 2


def _serve(options: argparse.Namespace) -> int:
    from flows.cli.serve import Place, config_of_run, serve

    model = ModelConfig(path=options.model).folder
    if not options.model:
        raise InputError("there is no model: name its folder, for example MODEL=runs/laptop/iter_3/model")
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
    logging.shutdown()  # what is on its way to the server: a process that is replaced says no last words
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]
    os.execv(sys.executable, [*command, *options.options])


_SERVER_FIRST = "start one by make ui, or set PREFECT_API_URL to the address of one that runs"


def _use_server() -> None:
    """Prefect's settings, with the server of `make ui` where no other is named."""
    prefect_environment()
    port = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
    os.environ.setdefault("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    check_prefect_settings()


def _seed_model(options: argparse.Namespace) -> int:
    make_folder(options.to)
    _start_again_with_threads(2)
    from flows.cli.seed_model import build_seed_model

    for variant, scores in build_seed_model(options.to).items():
        print(f"{variant:15s} {scores['right']:6.1%} right, {scores['broken']:6.1%} break the format")
    return 0


def _small_judges(options: argparse.Namespace) -> int:
    make_folder(options.to)
    _start_again_with_threads(2)
    from flows.cli.small_judges import build_small_judges

    for name, scores in build_small_judges(options.to).items():
        print(name, ", ".join(f"{score} {value:g}" for score, value in scores.items()))
    return 0


def _start_again_with_threads(count: int) -> None:
    """Replaces this process by one with the environment of a training, unless it has it."""
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
        os._exit(status)  # Prefect would try for minutes to tell its server of the end
    sys.exit(status)
