"""One small run on the real engines, watched from outside, and shared by the tests of what it did and left behind.

tests/conftest.py runs them all in one process.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.end_to_end.watched_run import Run, watch_run

ROOT = Path(__file__).parents[2]
SMALL = ("data.per_iteration=48", "data.validation=24", "data.test=48", "train.epochs=2", "train.batch_size=16",
         "train.micro_batch_size=16", "engine.shard_prompts=16")  # fmt: skip
DEAD_PROXY = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
"""A proxy that doesn't answer: a run needs no other machine."""
Iterate = Callable[..., "subprocess.CompletedProcess[str]"]


def command_for(
    folder: Path, to: int, *overrides: str, name: str = "small", flow: str = "iterate", profile: str = "laptop"
) -> list[str]:
    """A command for a small run in `folder`."""
    command = [sys.executable, "-m", "flows", flow, "--to", str(to), "--run-name", name, "--profile", profile]
    settings: Sequence[str] = (*SMALL, f'folder="{folder}"', *overrides)
    return [*command, *(word for setting in settings for word in ("--set", setting))]


def run_recipe(flow: str, folder: Path, *arguments: str) -> str:
    """The output of `python -m flows <flow>` on its default profile; arguments with "=" in them are settings."""
    command = [sys.executable, "-m", "flows", flow]
    for argument in (*arguments, f'folder="{folder}"'):
        command += ["--set", argument] if "=" in argument else [argument]
    environment = {**os.environ, **DEAD_PROXY, "PREFECT_HOME": str(folder / "prefect")}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def runs_folder() -> Iterator[Path]:
    """A folder with a short path: that of a socket has at most 107 bytes."""
    made = Path(tempfile.mkdtemp(prefix="tpo-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def iterate(runs_folder: Path) -> Iterate:
    """Runs `python -m flows iterate` in a subprocess: a small run in the session's folder."""
    folder = runs_folder / "runs"
    folder.mkdir(exist_ok=True)

    def call(
        to: int, *overrides: str, name: str = "small", flow: str = "iterate", profile: str = "laptop"
    ) -> "subprocess.CompletedProcess[str]":
        command = command_for(folder, to, *overrides, name=name, flow=flow, profile=profile)
        environment = {**os.environ, **DEAD_PROXY, "PREFECT_HOME": str(runs_folder / "prefect")}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=900, check=False
        )
        (folder / f"{flow}-{name}-{to}.log").write_text(done.stdout + done.stderr)
        return done

    call.folder = folder  # type: ignore[attr-defined]
    return call


@pytest.fixture(scope="session")
def watched_run(runs_folder: Path) -> Run:
    """The small run to M_2, and what the watch saw."""
    return watch_run(runs_folder, command_for(runs_folder / "runs", 2))


@pytest.fixture(scope="session")
def small_run(watched_run: Run) -> Path:
    """A run folder at M_2."""
    return watched_run.folder / "runs" / "small"
