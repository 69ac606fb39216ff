"""Claims about Prefect's server: a command has one of its own, which starts without a race and ends with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVED = """
import os, sys
from flows.recipes import prefect_environment
prefect_environment()
import prefect  # as a command does before it knows that it needs a server
from flows.prefect_server import start_server
wait = start_server()
url = os.environ["PREFECT_API_URL"]
start_server()()
wait()
assert os.environ["PREFECT_API_URL"] == url, "one server a process"
@prefect.flow
def work():
    return 7
assert work() == 7
with prefect.get_client(sync_client=True) as client:
    assert str(client.api_url).startswith(url) and len(client.read_flow_runs()) == 1
assert "prefect.server.api.server" not in sys.modules, "the command imports no server"
print(url)
"""


def run(code: str, home: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs some code as a command with its own PREFECT_HOME."""
    environment = {**os.environ, "PREFECT_HOME": str(home), **variables}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_command_has_a_server_that_ends_with_it(tmp_path: Path):
    done = run(SERVED, tmp_path)
    assert done.returncode == 0, done.stderr
    port = done.stdout.strip().removesuffix("/api").rpartition(":")[2]
    listening = Path("/proc/net/tcp").read_text()
    assert f"0100007F:{int(port):04X} 00000000:0000 0A" not in listening


@pytest.mark.slow
def test_a_server_that_is_named_is_used(tmp_path: Path):
    code = (
        "import os\n"
        "from flows.prefect_server import start_server\n"
        "start_server()()\n"
        "print(os.environ['PREFECT_API_URL'])\n"
    )
    assert run(code, tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api").stdout == "http://127.0.0.1:9/api\n"


@pytest.mark.slow
def test_a_server_that_cannot_start_is_an_error_right_away(tmp_path: Path):
    code = (
        "from flows.recipes import prefect_environment\n"
        "prefect_environment()\n"
        "from flows.cli.main import _answered_by_prefect\n"
        "from flows.prefect_server import start_server\n"
        "with _answered_by_prefect('do this'):\n"
        "    start_server()()\n"
    )
    done = run(code, tmp_path, PREFECT_API_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////nowhere/at/all.db")
    assert done.returncode == 1 and "does not answer as it should" in done.stderr and "do this" in done.stderr
