"""A dedicated PostgreSQL for Prefect's server, from Debian's packages, if `TPO_POSTGRES` asks for one."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str | None]:
    """The address of a database that is removed at the end; None, for SQLite, if none is asked for.

    PostgreSQL refuses to run as root: then it runs as the user `postgres`, which Debian's package creates.
    """
    if not os.environ.get("TPO_POSTGRES"):
        yield None
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    programs, data = found[-1].parent, folder / "postgres"
    user = "postgres" if os.getuid() == 0 else getpass.getuser()
    data.mkdir()
    if os.getuid() == 0:
        shutil.chown(data, user)
        for parent in data.parents:  # Only the owner may enter pytest's folders.
            if parent.stat().st_uid == os.getuid() and parent.is_relative_to("/tmp") and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if os.getuid() == 0 else []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run(
        [*become, str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "tpo"], check=True, cwd="/"
    )
    options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(data)]
    server = subprocess.Popen([*become, str(programs / "postgres"), "-D", str(data), *options], cwd="/")
    try:
        yield f"postgresql+asyncpg://tpo@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(timeout=60)
