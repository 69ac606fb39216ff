"""`python -m flows …`: the command behind `make`. Light until it is known that there is something to do."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flows.preflight import preflight
from tasks.lineage import SHIPPED_SEED_MODEL, completed
from tpo.config import RunConfig, load_config
from tpo.console import LOGGER
from tpo.errors import TpoError
from tpo.store import write_atomically
from tpo.summary import read_summary
from tpo.table import print_table

PROFILES = Path("deploy/profiles")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except TpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is complete is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows", description="Thought Preference Optimization")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    iterate = commands.add_parser("iterate", help="bring a run to M_T: start it, resume it, add iterations to it")
    iterate.add_argument("--to", type=_count, default=3, metavar="T", help="the iteration to reach (default 3)")
    iterate.add_argument("--profile", default="laptop", help="a name in deploy/profiles, or a .toml file")
    iterate.add_argument(
        "--run-name", help="name of the run folder (default: the profile's name, and the seed if given)"
    )
    iterate.add_argument("--seed", type=int, help="the run's seed (default: the profile's)")
    iterate.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, for example sample.k=4"
    )
    iterate.set_defaults(run=_iterate)
    ui = commands.add_parser("ui", help="start Prefect's server and UI on loopback")
    ui.set_defaults(run=_ui)
    seed = commands.add_parser("seed-model", help="train the miniature's seed model M_0 again (15 to 30 minutes)")
    seed.add_argument("--to", type=Path, default=SHIPPED_SEED_MODEL, metavar="FOLDER", help="where (default: in place)")
    seed.set_defaults(run=_seed_model)
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def resolve_config(profile: str, *, run_name: str | None, seed: int | None, overrides: Sequence[str]) -> RunConfig:
    """The config of a command line; a seed given there names the run, so that seeds do not share a folder."""
    path = Path(profile) if profile.endswith(".toml") else PROFILES / f"{profile}.toml"
    config = load_config(path, [*overrides, *([f"seed={seed}"] if seed is not None else [])])
    if run_name is None and seed is not None:
        run_name = f"{config.name}-seed{seed}"
    return config if run_name is None else load_config(path, [*overrides, f"seed={config.seed}", f'name="{run_name}"'])


def _iterate(options: argparse.Namespace) -> int:
    config = resolve_config(options.profile, run_name=options.run_name, seed=options.seed, overrides=options.set)
    preflight(config)
    summary_path = config.root / "summary.json"
    if _recorded(config) and completed(config, options.to) == options.to and summary_path.exists():
        summary = read_summary(summary_path)
        if summary.models[-1].iteration >= options.to:
            print_table(summary)
            print(
                f"M_{options.to} of run {config.name} is complete: nothing to do. Report: {config.root / 'report.html'}"
            )
            return 0
    return _run(config, options.to)


def _recorded(config: RunConfig) -> bool:
    """Whether the run folder's last run had this config, so that its summary and report are this config's too."""
    path = config.root / "config.json"
    return path.is_file() and path.read_bytes() == resolved_copy(config)


def resolved_copy(config: RunConfig) -> bytes:
    """A config as `config.json` keeps it, every default spelled out."""
    return (config.model_dump_json(indent=1) + "\n").encode()


def _run(config: RunConfig, iterations: int) -> int:
    _prefect_environment()
    started = time.monotonic()
    config.root.mkdir(parents=True, exist_ok=True)
    write_atomically(config.root / "config.json", resolved_copy(config))
    print(f"run {config.name}: to M_{iterations} in {config.root}", file=sys.stderr)
    from flows.iterate import iterate
    from tpo.engines.sampler import close_pools

    try:
        summary = iterate(config, iterations)
    finally:
        close_pools()
    print_table(summary)
    print(f"M_{iterations} after {time.monotonic() - started:.0f} s. Report: {config.root / 'report.html'}")
    return 0


def _ui(_: argparse.Namespace) -> int:
    _prefect_environment()
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"])


def _seed_model(options: argparse.Namespace) -> int:
    from tpo.engines.processes import environment

    variables = environment(threads=2)
    if not variables.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "flows", *sys.argv[1:]], {**os.environ, **variables})

    from flows.seed_model import build_seed_model

    for variant, scores in build_seed_model(options.to).items():
        print(f"{variant:15s} {scores['right']:6.1%} right, {scores['broken']:6.1%} break the format")
    return 0


def _prefect_environment() -> None:
    """Prefect's settings, where the user has set none: its files beside the runs, no analytics, quiet on a terminal."""
    home = Path(os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve())))
    defaults = {
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_MEMO_STORE_PATH": str(home / "memo.toml"),
        "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": LOGGER,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
