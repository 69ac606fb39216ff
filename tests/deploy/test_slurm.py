"""Claims about deploy/slurm: a job starts Ray behind a token, and at SIGTERM it cleans up and requeues itself.

SLURM's commands are replaced; the nodes are real Ray nodes, as processes of this machine on loopback.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest

from tests.faults.cluster import RAY
from tpo.engines.cluster.processes import LOOPBACK

pytestmark = [pytest.mark.story("SLURM", 50), pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
PYTHON = f"""#!/bin/bash
# The environment's Python, with Ray on loopback and another flow.
case "$*" in
  "-m ray.scripts.scripts "*) exec {sys.executable} -c '{RAY}' "${{@:3}}" ;;
  "-m flows "*) exec env {" ".join("=".join(item) for item in LOOPBACK.items())} \\
    {sys.executable} -m tests.deploy.slurm_flow "${{@:3}}" ;;
  *) exec {sys.executable} "$@" ;;
esac
"""
SRUN = """#!/bin/bash
# srun where all nodes are this machine: a task a node, and signals handed on.
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
  SLURM_NODEID=$node SLURMD_NODENAME=127.0.0.1 SLURM_CPUS_ON_NODE=1 "$@" &
  tasks+=($!)
done
trap 'kill -TERM "${tasks[@]}"' TERM
for task in "${tasks[@]}"; do while kill -0 "$task" 2>/dev/null; do wait "$task"; done; done
"""
SCONTROL = """#!/bin/bash
echo "$@" >>"$TPO_SCONTROL"
"""


@dataclass(frozen=True)
class Job:
    """A SLURM job of two nodes."""

    process: "subprocess.Popen[str]"
    """Its batch script."""
    folder: Path
    """The folder that its nodes share."""
    output: Path
    """The output of its flow."""
    scontrol: Path
    """The calls of `scontrol`."""

    def until(self, pattern: str, file: Path, seconds: float = 240) -> str:
        """Waits until a file matches a pattern; returns the file's text."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if file.exists() and re.search(pattern, text := file.read_text(), re.DOTALL):
                return text
            time.sleep(0.2)
        logs = {log.name: log.read_text()[-2000:] for log in self.folder.glob("*.log")}
        raise AssertionError(f"no {pattern!r} in {file}; exit status {self.process.poll()}; the nodes: {logs}")


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with SLURM's commands, next to a checkout."""
    bin_, checkout = tmp_path / "bin", tmp_path / "checkout"
    scripts = {bin_ / "srun": SRUN, bin_ / "scontrol": SCONTROL, checkout / ".venv/bin/python": PYTHON}
    for path, text in scripts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    for name in ("deploy", "flows", "judges", "prompts", "tasks", "tests", "tpo"):
        (checkout / name).symlink_to(ROOT / name)
    return bin_


def submit(commands: Path, *arguments: str) -> Job:
    number = str(random.randrange(10_000))
    tmp_path = commands.parent
    return Job(
        subprocess.Popen(
            ["bash", "deploy/slurm/iterate.sbatch", *arguments],
            cwd=tmp_path / "checkout",
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))},
                "PATH": f"{commands}:{os.environ['PATH']}",
                "SLURM_JOB_ID": number,
                "SLURM_JOB_NUM_NODES": "2",
                "TPO_OUTPUT": str(tmp_path / "output.txt"),
                "TPO_SCONTROL": str(tmp_path / "scontrol.txt"),
            },
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ),
        tmp_path / "checkout/.slurm" / f"{number}-0",
        tmp_path / "output.txt",
        tmp_path / "scontrol.txt",
    )


@pytest.fixture
def job(commands: Path, tmp_path: Path) -> Iterator[Job]:
    """A job whose flow works on both nodes; everything that it leaves ends with the test."""
    job = submit(commands, "--to", "2", "--set", f"folder={tmp_path / 'runs'}")
    try:
        yield job
    finally:
        running = processes_of(job)
        job.process.terminate()  # already gone if the claim holds
        _, running = psutil.wait_procs(running, timeout=30)
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def processes_of(job: Job) -> list[psutil.Process]:
    """The batch script and those of its descendants that are still running."""
    if job.process.poll() is not None:
        return []
    script = psutil.Process(job.process.pid)
    return [script, *script.children(recursive=True)]


def running_commands(processes: Iterable[psutil.Process]) -> Iterator[tuple[str, str]]:
    """The name and the command line of each process that hasn't ended meanwhile."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield process.name(), " ".join(process.cmdline())


def answer(address: str, token: str) -> grpc.StatusCode:
    """The answer of Ray's control server to a call with this token."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        try:
            call(b"", metadata=[("authorization", f"Bearer {token}")], timeout=30)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_a_job_uses_all_nodes_behind_a_token_and_at_sigterm_cleans_up_and_requeues(job: Job):
    printed = job.until(r"(\w{56}) .*\n(?!\1)\w{56} ", job.output)
    assert {line.split()[-1] for line in printed.splitlines()} == {"2"}, "the job's arguments have not reached the flow"

    token, address = job.folder / "token", (job.folder / "head").read_text().strip()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and stat.S_IMODE(job.folder.stat().st_mode) == 0o700
    assert answer(address, token.read_text().strip()) == grpc.StatusCode.OK
    assert answer(address, "0" * 64) == grpc.StatusCode.UNAUTHENTICATED

    started = processes_of(job)
    commands = list(running_commands(started))
    assert sum(name == "raylet" for name, _ in commands) == 2
    folders = {Path(found) for _, line in commands for found in re.findall(r"/tmp/tpo\.\w{6}", line)}
    assert len(folders) == 2 and all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders)

    job.process.send_signal(signal.SIGTERM)
    assert job.process.wait(60) == 128 + signal.SIGTERM
    _, running = psutil.wait_procs(started, timeout=10)
    assert not running
    assert not token.exists() and not any(folder.exists() for folder in folders)
    assert job.scontrol.read_text() == f"requeue {job.folder.name.removesuffix('-0')}\n"


def test_a_job_without_ray_shows_its_nodes_logs_and_is_not_requeued(commands: Path):
    (commands / "srun").write_text('#!/bin/bash\necho "no route to node 0" >"$TPO_JOB/node-0.log"; exit 1\n')
    job = submit(commands)
    _, errors = job.process.communicate(timeout=60)
    assert job.process.returncode == 1 and "no route to node 0" in errors
    assert not job.scontrol.exists() and not (job.folder / "token").exists()


def test_a_job_submitted_outside_a_checkout_is_refused(commands: Path):
    shutil.rmtree(commands.parent / "checkout/.venv")
    job = submit(commands)
    _, errors = job.process.communicate(timeout=60)
    assert job.process.returncode == 2 and "submit from the repository's root" in errors
