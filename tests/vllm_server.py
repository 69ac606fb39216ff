"""vLLM's own OpenAI-compatible server for a model folder, on loopback, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from tpo.config.resources import EngineConfig
from tpo.engines.cluster.processes import engine_environment


class VllmServer:
    """The server; it runs within a `with`, until it is killed.

    Args:
        folder: The model.
        name: Its name at the server.
        log: The file that its output goes to.
        key: The key that it wants; empty for none.
        arguments: More of its command line.
    """

    def __init__(self, folder: Path, name: str, log: Path, *arguments: str, key: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self._log = log
        self._command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"),
            *("--port", str(self._port), "--model", str(folder), "--served-model-name", name),
            *("--dtype", "float32", "--enforce-eager", *arguments),
        ]
        self._environment = {**os.environ, **engine_environment(EngineConfig())} | (
            {"VLLM_API_KEY": key} if key else {}
        )

    def __enter__(self) -> Self:
        with self._log.open("a") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def address(self) -> str:
        """Its address, without a path; the same after a restart."""
        return f"http://127.0.0.1:{self._port}"

    def kill(self) -> None:
        """Ends it and its engine at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        raise RuntimeError(f"no server: {self._log.read_text()[-3000:]}")
