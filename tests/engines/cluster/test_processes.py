import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tpo.config.resources import EngineConfig
from tpo.engines.cluster import processes
from tpo.engines.cluster.processes import (
    LOOPBACK,
    QUIET,
    engine_environment,
    environment,
    loopback_without_proxy,
    proxy_fault,
)
from tpo.errors import StageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for Ray's files, not made yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"tpo-{os.getuid()}"


def test_rays_files_are_in_a_folder_that_no_other_user_can_enter(folder: Path):
    assert processes._private_folder() == folder == processes._private_folder()
    assert folder.stat().st_mode & 0o777 == 0o700


def a_folder_open_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o750)


def a_link_of_another_user(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


@pytest.mark.parametrize("make", [a_folder_open_to_others, a_link_of_another_user, Path.touch])
def test_anything_else_in_place_of_that_folder_is_not_trusted(folder: Path, make: Callable[[Path], None]):
    make(folder)
    with pytest.raises(StageError, match=r"is not private to this user .* remove it, or set RAY_TMPDIR"):
        processes._private_folder()


def test_rays_logs_get_neither_our_token_nor_our_addresses(monkeypatch: pytest.MonkeyPatch):
    """Ray logs the variables that a worker is started with, but not those that it inherits."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    for variables in (environment(2), engine_environment(EngineConfig())):
        assert "secret" not in variables.values()
        assert not LOOPBACK.keys() & variables.keys()


def test_the_command_is_silenced_before_any_library_is_imported():
    program = (
        "import json, os, sys; from flows.recipes import prefect_environment; prefect_environment();"
        "imported = {'ray', 'prefect', 'torch', 'huggingface_hub'} & sys.modules.keys();"
        "print(json.dumps([dict(os.environ), sorted(imported)]))"
    )
    clean = {name: value for name, value in os.environ.items() if name not in QUIET}
    done = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True)
    variables, imported = json.loads(done.stdout)
    assert variables.items() >= QUIET.items()
    assert imported == []


@pytest.mark.slow
def test_preloaded_openmp_binds_no_process_of_ray_to_one_core(tmp_path: Path):
    """A process with Intel's OpenMP binds its forked processes, and had bound all engines to the same core."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if not library.exists() or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("no libiomp5.so here, or a single core")
    program = (
        "import os, ray, torch; from tpo.config.resources import ClusterConfig;"
        "from tpo.engines.cluster.processes import start_ray;"
        "torch.ones(300, 300) @ torch.ones(300, 300); start_ray(ClusterConfig());"
        "found = ray.remote(lambda: os.sched_getaffinity(0)).options(num_cpus=0);"
        "print(ray.get(found.remote()) == os.sched_getaffinity(0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment(1), "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize(
    ("given", "upper", "lower"),
    [
        ({}, "localhost,127.0.0.1,::1", "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "corp, ::1/128"}, "corp,localhost,127.0.0.1,::1", "corp,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "a", "no_proxy": "b"}, "a,localhost,127.0.0.1,::1", "b,localhost,127.0.0.1,::1"),
        ({"no_proxy": "127.0.0.1,*.corp"}, "127.0.0.1,*.corp,localhost,::1", "127.0.0.1,*.corp,localhost,::1"),
        ({"NO_PROXY": "*"}, "*", "*"),
    ],
)
def test_this_machine_is_asked_without_a_proxy_and_the_users_exceptions_stay(
    given: dict[str, str], upper: str, lower: str
):
    found = loopback_without_proxy(given)
    assert found == {"NO_PROXY": upper, "no_proxy": lower}
    assert loopback_without_proxy(found) == found


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("http://127.0.0.1:9", None),
        ("proxy.corp:3128", None),
        ("", None),
        ("ftp://proxy.corp", "is not the address of a proxy"),
        ("http://[::1", "is not the address of a proxy"),
    ],
)
def test_an_unusable_proxy_is_named_by_its_variable(name: str, value: str, fault: str | None):
    found = proxy_fault({name: value})
    assert found is None if fault is None else found is not None and found.startswith(f"{name} {fault}")
    assert proxy_fault({name: value, "NO_PROXY": "*"}) is None


def test_prefects_client_asks_this_machine_despite_proxy_variables():
    program = (
        "import http.server, threading, httpx; from flows.recipes import prefect_environment; prefect_environment()\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "print(httpx.Client().get(f'http://127.0.0.1:{server.server_port}/').status_code)"
    )
    for proxy in ("http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://x"):
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        variables = {**os.environ, **dict.fromkeys(names, proxy), "NO_PROXY": "fe80::/10,corp"}
        done = subprocess.run(
            [sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True
        )
        assert done.stdout == "200\n"
