"""One small run on the real engines, shared by the tests that look at what it left, also in other processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from tpo.engines.inference.reward_reader import close_scorer_pools
from tpo.engines.inference.sampler import close_pools

ROOT = Path(__file__).parents[2]
SMALL = ("data.per_iteration=48", "data.validation=24", "data.test=48", "train.epochs=2", "train.batch_size=16",
         "train.micro_batch_size=16", "engine.shard_prompts=16")  # fmt: skip

MADE = "small.made"
AFTER_ONE = "after_one.json"
"""The manifests after the first iteration, by their paths in the run folder."""
DEAD_PROXY = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
"""A proxy that nothing answers at: what a run asks is on this machine."""
Iterate = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def iterate(tmp_path_factory: pytest.TempPathFactory) -> Iterate:
    """Runs `python -m flows iterate` in its own process, with small numbers and a run folder of the session's.

    xdist's workers share the folder of runs; each has its own Prefect.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "runs"
    folder.mkdir(exist_ok=True)

    def call(
        to: int, *overrides: str, name: str = "small", flow: str = "iterate", profile: str = "laptop"
    ) -> "subprocess.CompletedProcess[str]":
        settings: Sequence[str] = (*SMALL, f'folder="{folder}"', *overrides)
        command = [sys.executable, "-m", "flows", flow, "--to", str(to), "--run-name", name, "--profile", profile]
        for setting in settings:
            command += ["--set", setting]
        environment = {**os.environ, **DEAD_PROXY, "PREFECT_HOME": str(base / "prefect")}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=900, check=False
        )
        (folder / f"{flow}-{name}-{to}.log").write_text(done.stdout + done.stderr)
        return done

    call.folder = folder  # type: ignore[attr-defined]
    return call


@pytest.fixture(scope="module", autouse=True)
def _no_ray_left_behind() -> Iterator[None]:
    """Each module that starts Ray in this process leaves the cores to the next."""
    yield
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        close_pools()
        close_scorer_pools()
        ray.shutdown()


@pytest.fixture(scope="session")
def small_run(iterate: Iterate) -> Path:
    """A run folder at M_2, brought there in two calls; what manifests said after the first lies next to it.

    The first process that asks makes it, and the others wait.
    """
    run = Path(iterate.folder) / "small"  # type: ignore[attr-defined]
    with FileLock(run.with_suffix(".lock")):
        if not (run.parent / MADE).exists():
            make_small_run(iterate, run)
    return run


def make_small_run(iterate: Iterate, run: Path) -> None:
    for t in (1, 2):
        done = iterate(t)
        assert done.returncode == 0, done.stdout + done.stderr
        if t == 1:
            kept = {path.relative_to(run).as_posix(): path.read_text() for path in run.rglob("manifest.json")}
            (run.parent / AFTER_ONE).write_text(json.dumps(kept))
    (run.parent / MADE).touch()
