"""A run lets no one in and nothing out: it is watched from outside, then the files that it left are searched.

`/proc` shows the sockets of all its processes, every 50 ms. An audit hook in every Python process records the addresses
and names that it asks for, however briefly. Secrets in its environment must not be in any file that it leaves. None of
these sees a UDP packet that a C++ library sends between two looks, such as a DNS query.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.conftest import ROOT
from tests.end_to_end.watch import Watch
from tests.end_to_end.watched_run import CANARIES, Run, without_settings

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

DRIVER = """
import os, sys, time
import ray  # before its settings are made, as another library may
from tpo.config.resources import ClusterConfig
from tpo.engines.cluster.processes import start_ray
start_ray(ClusterConfig())
ray.get(ray.remote(lambda: os.getpid()).remote())
print("up", flush=True)
time.sleep(300)
"""


@pytest.fixture(scope="module")
def folder(runs_folder: Path, run: Run) -> Path:
    """The folder of the run, the audit hook and the run's temporary folder."""
    return runs_folder


@pytest.fixture(scope="module")
def run(watched_run: Run) -> Run:
    return watched_run


def test_every_socket_of_a_run_listens_on_loopback(run: Run):
    seen = "\n".join(run.watch.listening)
    for process in ("gcs_server", "raylet", "Agent", "uvicorn", "flows iterate", "Engine", "TrainWorker"):
        assert process in seen, f"the watch missed the sockets of {process}:\n{seen}"
    assert run.watch.open_to_others == set()


def test_no_process_of_a_run_contacts_or_resolves_another_machine(run: Run):
    watched = [line for line in run.contacts if line.split("\t")[1] == "started"]
    for process in ("flows iterate", "uvicorn", "default_worker.py", "dashboard/agent.py", "monitor.py"):
        assert any(process in line for line in watched), f"{process} started without the hook"
    assert [line for line in run.contacts if line not in watched] == []


def test_ray_accepts_only_processes_with_the_token(run: Run):
    entered = {name: any(line.startswith("in ") for line in log.splitlines()) for name, log in run.visitors.items()}
    assert entered == {"no token": False, "authentication off": False, "wrong token": False, "the token": True}
    for name in ("no token", "authentication off", "wrong token"):
        assert "InvalidAuthToken" in run.visitors[name]
        assert "StageError the Ray cluster at 127.0.0.1" in run.visitors[name]
    assert run.agent == {"no token": 401, "wrong token": 403}


def test_no_secret_of_the_environment_reaches_a_file_or_a_command_line(run: Run):
    assert run.watch.token is not None and len(run.watch.token) == 64
    secrets = [secret.encode() for secret in (*CANARIES.values(), run.watch.token)]
    files = [path for path in run.folder.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in files}
    assert {"prefect.db", "report.html", "summary.json", "raylet.out", "gcs_server.out", "output"} <= names
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += repr(pq.read_table(path).to_pylist()).encode()
        assert not [secret for secret in secrets if secret in content], path
    for process, commands in run.watch.commands.items():
        assert not [secret for secret in secrets if secret.decode() in commands], process


def test_no_other_user_can_enter_the_folder_of_rays_sockets_and_logs(run: Run):
    private = run.folder / "tmp" / f"tpo-{os.getuid()}"
    assert private.stat().st_mode & 0o777 == 0o700
    assert list(private.glob("ray/session_*/logs/raylet.out"))
    assert not list(run.folder.glob("tmp/ray*")) and not (run.folder / "home/.ray").exists()


def test_prefects_pages_are_served_on_loopback_only(folder: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    contacts = folder / "contacts-ui"
    environment = without_settings() | {
        "PREFECT_HOME": str(folder / "prefect-ui"),
        "PREFECT_SERVER_API_PORT": str(port),
        "PYTHONPATH": str(folder / "hook"),
        "CONTACTS": str(contacts),
    }
    command = [sys.executable, "-m", "flows", "ui"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as server:
        watch = Watch(server.pid)
        try:
            deadline = time.monotonic() + 120
            while not watch.listening and server.poll() is None and time.monotonic() < deadline:
                watch.look()
                time.sleep(0.1)
            page = httpx.get(f"http://127.0.0.1:{port}/api/health")
            watch.look()
        finally:
            server.terminate()
    assert page.status_code == 200
    assert watch.listening and watch.open_to_others == set()
    assert [line for line in contacts.read_text().splitlines() if line.split("\t")[1] != "started"] == []


def is_agent(command: str) -> bool:
    """Whether it is one of a Ray node's two agents, before or after it renames itself."""
    return command.endswith("Agent") or "/agent.py " in command


def test_ray_ends_with_a_killed_driver_and_uses_the_users_token(folder: Path):
    environment = without_settings() | {"TMPDIR": str(folder / "tmp"), "RAY_AUTH_TOKEN": "1" * 64}
    command = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE) as driver:
        watch = Watch(driver.pid)
        try:
            assert driver.stdout is not None and driver.stdout.readline() == "up\n"
            watch.look()
        finally:
            driver.kill()
    assert watch.token == "1" * 64
    assert len(watch.commands) >= 8
    assert watch.open_to_others == set()
    deadline = time.monotonic() + 10
    while alive := [process for process in watch.alive() if not is_agent(watch.commands[process])]:
        assert time.monotonic() < deadline, [watch.commands[process] for process in alive]
        time.sleep(0.1)
    for agent in watch.alive():  # the node's two agents keep asking the dead Ray for a minute
        os.kill(agent, signal.SIGKILL)
