"""A Ray cluster whose nodes are processes of this machine, started with `ray start`, on loopback and with a token.

A head that does no work, and nodes that come and go. Drivers are separate processes, as on any user's cluster.
"""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tpo.engines.cluster.processes import LOOPBACK, QUIET

ROOT = Path(__file__).parents[2]
RAY = (
    "from ray._private import services; services.resolve_ip_for_localhost = str;"  # else the network's address
    "from ray.scripts.scripts import main; main()"
)
_STARTS = 6
"""Maximum attempts to start a node: Ray gives its agents 15 seconds to start, and the machine may be busy."""
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    process: "subprocess.Popen[bytes]"
    """`ray start --block`, in its own session."""

    def kill(self) -> None:
        """Kills its raylet with -9; Ray's other processes on the node end by themselves."""
        (raylet,) = filter(_is_raylet, psutil.Process(self.process.pid).children())
        raylet.kill()

    def end(self) -> None:
        """Ends everything that it started, workers included."""
        members = [process for process in psutil.process_iter() if _is_of_session(process, self.process.pid)]
        with contextlib.suppress(psutil.NoSuchProcess):
            members += psutil.Process(self.process.pid).children(recursive=True)
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


class Cluster:
    """The nodes; `close` ends them all, and anything that drivers left there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: list[Node] = []
        self._token = secrets.token_hex(32)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._start("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that give access."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**ours, **QUIET, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}

    def add(self, *, cpus: int, gpus: int = 0) -> Node:
        """Adds a node, with pretended GPUs."""
        return self._start(f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}")

    def drive(self, *words: str) -> "subprocess.Popen[str]":
        """Starts a driver: `tests.faults.cluster_driver` with some arguments; it prints a line of JSON per event."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.cluster_driver", self.address, *words],
            cwd=ROOT,
            # A driver takes the network's address for loopback's, unless this says that there is no network.
            env={**self.environment, **LOOPBACK},
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """Ends all nodes."""
        for node in reversed(self._nodes):
            node.end()

    def _start(self, *words: str) -> Node:
        for attempt in range(_STARTS):
            name = f"{len(self._nodes)}-{attempt}"
            log = self._folder / f"{name}.log"
            command = [
                sys.executable,
                "-c",
                RAY,
                "start",
                "--block",
                "--disable-usage-stats",
                "--node-ip-address=127.0.0.1",
            ]
            with log.open("wb") as out:
                node = Node(
                    subprocess.Popen(
                        [*command, f"--temp-dir={self._folder / name}", "--object-store-memory=100000000", *words],
                        cwd="/",
                        env=self.environment,
                        stdout=out,
                        stderr=out,
                        start_new_session=True,
                    )
                )
            deadline = time.monotonic() + _START_SECONDS
            while node.process.poll() is None and time.monotonic() < deadline:
                if b"Ray runtime started." in log.read_bytes():
                    self._nodes.append(node)
                    return node
                time.sleep(0.2)
            node.end()
        raise RuntimeError(f"ray start failed {_STARTS} times:\n{log.read_text()[-3000:]}")


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return bool(process.name() == "raylet")
    except psutil.NoSuchProcess:
        return False


def _is_of_session(process: psutil.Process, leader: int) -> bool:
    try:
        return os.getsid(process.pid) == leader
    except ProcessLookupError:
        return False
