"""The product's own server, started as an operator would and ended by SIGTERM."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import openai
import pytest

from flows.cli.serve import SERVER
from tpo.config.load import load_config
from tpo.engines.cluster.processes import engine_environment

ROOT = Path(__file__).parents[2]
KEY = "sk-served"


@dataclass(frozen=True)
class Served:
    """A server that is up."""

    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def count(self, metric: str) -> float:
        """A metric of the engine, from `/metrics`."""
        request = urllib.request.Request(f"{self.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            (value,) = re.findall(rf"^vllm:{metric}{{.*}} (\S+)$", answer.read().decode(), re.MULTILINE)
        return float(value)


@contextlib.contextmanager
def serving(model: str, *options: str, log: Path) -> Iterator[Served]:
    """`python -m flows serve` on a model, up; its output goes to `log`."""
    command = [sys.executable, "-m", "flows", "serve", model, "--api-key", "SERVED_KEY", *options]
    with _started(command, {"SERVED_KEY": KEY}, log) as server:
        yield server


@contextlib.contextmanager
def plain_vllm(folder: Path, *options: str, log: Path) -> Iterator[Served]:
    """vLLM's own server on a folder, up; of our settings it has only those that a CPU needs."""
    engine = load_config(ROOT / "deploy" / "profiles" / "laptop.toml").engine
    flags = ["--dtype", engine.dtype, "--enforce-eager", "--no-enable-chunked-prefill"]
    flags += ["--max-num-seqs", str(engine.max_num_seqs), "--max-num-batched-tokens", "8192"]
    command = [sys.executable, "-m", SERVER, "--model", str(folder), "--served-model-name", "tpo", *flags, *options]
    with _started(command, {**engine_environment(engine), "VLLM_API_KEY": KEY}, log, cwd=folder.parent) as server:
        yield server


@contextlib.contextmanager
def _started(command: list[str], variables: dict[str, str], log: Path, cwd: Path = ROOT) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=cwd, env={**os.environ, **variables}, stdout=output, stderr=output
        )
    server = Served(process, port)
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                if server.status("/health") == 200:
                    break
            time.sleep(0.5)
        else:
            pytest.fail(f"no server: {log.read_text()[-3000:]}")
        yield server
    finally:
        process.terminate()
        try:
            assert process.wait(60) in (0, -signal.SIGTERM)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
