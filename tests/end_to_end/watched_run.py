"""A run watched from outside: its sockets, whom it contacts, and who can join its Ray."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.end_to_end.watch import HOOK, Watch
from tpo.engines.cluster.processes import LOOPBACK, QUIET

ROOT = Path(__file__).parents[2]
CANARIES = {
    name: f"canary-{name.lower()}-5b1f"
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY", "PREFECT_API_KEY", "AWS_SECRET_ACCESS_KEY")
}

VISITOR = """
import sys
import ray
from ray._private import ray_constants
from tpo.config.resources import ClusterConfig
from tpo.engines.cluster.processes import start_ray
ray_constants.ENABLE_RAY_CLUSTER = False  # else Ray takes the network's address for loopback's
try:
    start_ray(ClusterConfig(address=sys.argv[1]))
    print("in", ray.cluster_resources()["CPU"])
except Exception as error:
    print("refused", type(error).__name__, error)
"""


def without_settings() -> dict[str, str]:
    """This process's environment without variables that our start-up code sets or that silence libraries in CI."""
    allowed = {*QUIET, *LOOPBACK, "CI", "GITHUB_ACTIONS"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PREFECT_"))}
    return {name: value for name, value in kept.items() if name not in allowed}


def visit(gcs: str, **variables: str) -> "subprocess.Popen[str]":
    """Another process of this machine that tries to use the run's Ray."""
    environment = {**without_settings(), "RAY_NUM_REDIS_GET_RETRIES": "1", **variables}
    command = [sys.executable, "-c", VISITOR, gcs]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def ask_the_agent(port: int, token: str | None) -> int:
    """The HTTP status of the agent that installs workers' requirements, and would run any command for it."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.post(f"http://127.0.0.1:{port}/get_or_create_runtime_env", headers=headers).status_code


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run, what was seen of it, and what its visitors got."""

    folder: Path
    watch: Watch
    contacts: Sequence[str]
    visitors: Mapping[str, str]
    agent: Mapping[str, int]


def watch_run(folder: Path, command: Sequence[str]) -> Run:
    """Runs a command with its own home, temporary folder and secrets in `folder`, and lets visitors try its Ray
    meanwhile."""
    for name in ("home", "tmp", "hook"):
        (folder / name).mkdir()
    (folder / "hook/sitecustomize.py").write_text(HOOK)
    caches = Path.home() / ".cache"
    caches.mkdir(exist_ok=True)
    (folder / "home/.cache").symlink_to(caches)
    environment = without_settings() | {
        **CANARIES,
        "CONTACTS": str(folder / "contacts"),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PREFECT_HOME": str(folder / "prefect"),
        "PYTHONPATH": str(folder / "hook"),
    }
    visitors: dict[str, subprocess.Popen[str]] = {}
    agent: dict[str, int] = {}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    watch = Watch(process.pid)
    try:
        while process.poll() is None:
            watch.look()
            if not visitors and watch.gcs and watch.token and (ports := watch.ports("RuntimeEnvAgent")):
                visitors = {
                    "no token": visit(watch.gcs),
                    "authentication off": visit(watch.gcs, RAY_AUTH_MODE="disabled"),
                    "wrong token": visit(watch.gcs, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
                    "the token": visit(watch.gcs, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=watch.token),
                }
                agent = {"no token": ask_the_agent(ports[0], None), "wrong token": ask_the_agent(ports[0], "0" * 64)}
            time.sleep(0.05)
    finally:
        process.kill()
    assert process.returncode == 0, (folder / "output").read_text()
    contacts = (folder / "contacts").read_text().splitlines()
    answers = {name: visitor.communicate(timeout=60)[0] for name, visitor in visitors.items()}
    return Run(folder, watch, contacts, answers, agent)
