"""The server that Prefect starts for a command if no other is named: one that belongs to this command alone.

Prefect draws a port, starts its server there, and takes whatever answers for it. A server needs seconds to import, and
until then another command on the machine may have drawn the same port: both would use one server, which ends with the
first of them.
"""

import subprocess
import time

import psutil
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
)

from tpo.errors import ServerError

_ATTEMPTS = 5


def start_server() -> None:
    """Starts Prefect's server for this process, unless `PREFECT_API_URL` names one; Prefect ends it with the process.

    Raises `ServerError` if every port it tries turns out to be another process's, and Prefect's `RuntimeError` if the
    server doesn't start.
    """
    if PREFECT_API_URL.value() or not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        return
    for _ in range(_ATTEMPTS):
        server = SubprocessASGIServer()  # The instance that Prefect's clients use, until it is stopped.
        server.start()
        assert server.server_process is not None and server.port is not None
        if _listens(server.server_process, server.port):
            return
        server.stop()
    raise ServerError(f"Prefect's server found its port taken {_ATTEMPTS} times: rerun the same command")


def _listens(process: "subprocess.Popen[bytes]", port: int) -> bool:
    """Whether a process has a port, as soon as it has it; False if it ends without, since another process has it."""
    deadline = time.monotonic() + float(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    while process.poll() is None and time.monotonic() < deadline:
        try:
            sockets = psutil.Process(process.pid).net_connections("tcp")
        except psutil.NoSuchProcess:
            continue  # It has just ended.
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets):
            return True
        time.sleep(0.1)
    return False
