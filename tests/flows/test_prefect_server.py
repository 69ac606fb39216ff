"""Claims about Prefect's server: a command has one of its own, even if another process takes the port meanwhile."""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from flows.recipes import prefect_environment
prefect_environment()
from prefect import flow, get_client
from prefect.server.api.server import SubprocessASGIServer
from flows.prefect_server import start_server
SubprocessASGIServer().port = int(sys.argv[1])  # the port that Prefect drew, when it was free
start_server()
server = SubprocessASGIServer()
assert server.port != int(sys.argv[1]) and server.server_process.poll() is None
with get_client(sync_client=True) as client:
    assert client.server_type is not None and str(server.port) in str(client.api_url)
    assert client.read_flows() == []
@flow
def work():
    return 7
print(work())
"""


class _Healthy(BaseHTTPRequestHandler):
    """Says that it is well, as the server of another command does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@pytest.mark.slow
def test_a_port_that_another_command_has_taken_is_left_to_it(tmp_path: Path):
    other = HTTPServer(("127.0.0.1", 0), _Healthy)
    Thread(target=other.serve_forever, daemon=True).start()
    try:
        environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
        environment.pop("PREFECT_API_URL", None)
        command = [sys.executable, "-c", CODE, str(other.server_port)]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    finally:
        other.shutdown()
        other.server_close()
    assert (run.returncode, run.stdout) == (0, "7\n"), run.stderr
