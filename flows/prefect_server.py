"""The server that a command starts for Prefect if no other is named.

Prefect would start one by itself, with two faults: it imports the whole server into the command, which takes seconds;
and it draws a port that its server takes only once it has been imported, so that two commands may draw the same one and
share a server, which ends with the first of them. Here the server is given a socket that listens already.
"""

import atexit
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_LOOPBACK = "127.0.0.1"
_END_SECONDS = 5.0
"""Seconds for the server to end before it is killed."""


def start_server() -> Callable[[], None]:
    """Starts Prefect's server, which ends with this process, and names it in `PREFECT_API_URL`; does nothing if that
    names one already.

    Returns before the server is ready. Call what it returns to wait for that; it raises `httpx.HTTPError` if the server
    can't start.
    """
    import prefect
    from prefect.context import refresh_global_settings_context
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    if PREFECT_API_URL.value() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        return lambda: None
    with socket.create_server((_LOOPBACK, 0)) as listener:
        port, descriptor = listener.getsockname()[1], listener.fileno()
        place = ["--app-dir", str(Path(prefect.__file__).parent), "--factory", "prefect.server.api.server:create_app"]
        command = [sys.executable, "-m", "uvicorn", *place, "--fd", str(descriptor), "--log-level", "error"]
        settings = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        server = subprocess.Popen([*command, "--lifespan", "on"], env={**os.environ, **settings}, pass_fds=[descriptor])
    atexit.register(_end, server)
    os.environ["PREFECT_API_URL"] = address = f"http://{_LOOPBACK}:{port}/api"
    refresh_global_settings_context()
    return lambda: _wait(address)


def _wait(address: str) -> None:
    import httpx
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

    seconds = float(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    # The socket takes requests before there is a server to answer them.
    httpx.get(f"{address}/health", timeout=seconds).raise_for_status()


def _end(server: "subprocess.Popen[bytes]") -> None:
    server.terminate()
    try:
        server.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
