"""Ray, threads and environment variables of a run's processes; the only place that sets them.

Two threads of GNU's OpenMP library stall for seconds as soon as anything else runs; Intel's, which ships with vLLM's
CPU build, don't. So Intel's is preloaded if found, and every process gets a fixed number of threads.

The local Ray cluster accepts no outside connections: loopback sockets, authentication by a token that this process
creates and only its children inherit, and files in a folder that other users can't enter. Ray's defaults differ: it
turns `127.0.0.1` into the network address, keeps its token in the home folder for all to read, and makes its folders
writable by everyone.
"""

import contextlib
import functools
import importlib
import ipaddress
import os
import secrets
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.errors import InputError, StageError, shortened
from tpo.planning.machine import cpu_count

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_worker_niceness": "0",
    "RAY_agent_register_timeout_ms": "600000",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of every process: no telemetry, no hub, no implicit threads, and enough time to start on a busy
machine."""


HUB_AS_SET = "TPO_HF_HUB_OFFLINE"
"""The variable that keeps the user's `HF_HUB_OFFLINE` after `QUIET` has set it."""

LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Environment of a local Ray cluster and everything it starts: the node's address is loopback.

The first is Ray's switch for systems without clusters; only with it does Ray keep `127.0.0.1` and bind all its sockets
to its node's address. The first two also avoid the search for a network address. The last avoids an actor that waits
for nodes to be preempted.
"""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""Loopback names, under which Prefect's server, Ray and a local judge's server are reached."""


def loopback_without_proxy(variables: Mapping[str, str]) -> dict[str, str]:
    """`NO_PROXY` and `no_proxy` with this machine's names added to the user's values.

    Prefect, gRPC, OpenAI's client and boto3 would send requests for loopback through a proxy, which can't reach it.
    Both spellings are set, since libraries differ in which one they read or prefer.
    """
    upper, lower = variables.get("NO_PROXY", ""), variables.get("no_proxy", "")
    return {"NO_PROXY": _with_loopback(upper or lower), "no_proxy": _with_loopback(lower or upper)}


def _with_loopback(names: str) -> str:
    given = [name for part in names.split(",") if (name := part.strip()) and _is_readable(name)]
    return "*" if "*" in given else ",".join(dict.fromkeys([*given, *LOOPBACK_NAMES]))


def _is_readable(name: str) -> bool:
    """Whether httpx can parse a name in `NO_PROXY`: IPv6 ranges such as `::1/128` keep it from starting at all."""
    if "://" in name or name.count(":") < 2:
        return True
    with contextlib.suppress(ValueError):
        return bool(ipaddress.IPv6Address(name))
    return False


def proxy_fault(variables: Mapping[str, str]) -> str | None:
    """Why HTTP clients can't use the proxies in the environment; None if they can, or there are none."""
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    given = {name: value for name, value in variables.items() if name.lower() in proxies and value}
    if not given or "*" in loopback_without_proxy(variables).values():
        return None
    import httpx

    for name, value in given.items():
        address = value if "://" in value else f"http://{value}"
        try:
            httpx.Client(proxy=address, verify=False, trust_env=False).close()
        except ImportError:
            return f"{name} names a SOCKS proxy, for which the package socksio is missing"
        except (ValueError, httpx.InvalidURL) as error:
            return f"{name} is not the address of a proxy ({shortened(str(error))})"
    return None


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a process with `threads` CPU threads."""
    variables = {**QUIET, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "KMP_BLOCKTIME": "1"}
    if (library := Path(sys.prefix) / "lib" / "libiomp5.so").exists():
        variables["LD_PRELOAD"] = str(library)
    return variables


def quiet_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """`QUIET`, with what `hub_environment` needs to undo it for a process that uses the hub."""
    return {**QUIET, HUB_AS_SET: variables.get(HUB_AS_SET, variables.get("HF_HUB_OFFLINE", ""))}


def hub_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of a process that uses the hub: the user's own, even if this process is offline."""
    found = {name: value for name, value in variables.items() if name != HUB_AS_SET}
    found["HF_HUB_OFFLINE"] = variables.get(HUB_AS_SET, variables.get("HF_HUB_OFFLINE", ""))
    return found | {"HF_HUB_DISABLE_TELEMETRY": "1"}


def engine_environment(config: EngineConfig) -> dict[str, str]:
    """Environment variables of a vLLM engine.

    A CPU engine compiles nothing: vLLM would only compile the computation of a token's rank among log-probs, which
    takes ten seconds and a C++ compiler; and a library left half written by a killed compiler makes every later start
    fail.
    """
    variables = environment(config.threads) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    if config.device == "cpu":
        variables |= {
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.kv_cache_gib))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return variables


def start_ray(cluster: ClusterConfig) -> None:
    """Connects to the configured Ray cluster, or starts a private one on this machine; once per process.

    An external cluster uses the user's own token, as Ray finds it. Its nodes need the same packages, this checkout at
    the same path (Ray workers import from the driver's current folder, so nothing is sent), and the run's and the
    models' folders on a shared file system. Raises `StageError` if the cluster refuses the connection, if the folder
    for Ray's files isn't private, or if Ray doesn't keep to loopback.
    """
    import ray

    with _starting:
        if ray.is_initialized():
            return
        os.environ.update(QUIET)
        with _own_sigterm():
            _connect(cluster)


_starting = threading.Lock()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Preserves this process's handling of SIGTERM: Ray makes drivers exit at once, silently, with status 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _connect(cluster: ClusterConfig) -> None:
    import ray

    if cluster.address is not None:
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise StageError(
                f"the Ray cluster at {cluster.address} refused the connection ({error}): check that it is up and, if "
                "it requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from error
        return
    _close_to_others()
    _start_own_ray()
    if (address := ray.util.get_node_ip_address()) != "127.0.0.1":
        ray.shutdown()
        raise StageError(f"Ray listens on {address}, expected 127.0.0.1: this version of Ray is not supported")


def _start_own_ray() -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=cpu_count(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            _temp_dir=None if "RAY_TMPDIR" in os.environ else str(rays_folder()),
        )
    except Exception as error:  # Ray raises nothing narrower.
        if "timed out during startup" not in str(error):
            raise
        raise StageError(
            f"Ray did not start within 30 seconds: this machine is very busy, or Ray is broken (its logs: "
            f"{rays_folder()}); wait for other work to end, then rerun"
        ) from error
    _unbind_children(os.sched_getaffinity(0))


def _unbind_children(cpus: set[int]) -> None:
    """Gives all children of this process the same CPUs as itself.

    With Intel's OpenMP preloaded, as vLLM's CPU guide recommends, a forked child is pinned to one core. Ray's daemons
    are such children, and all engines that they start would share that core.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, cpus)


def _close_to_others() -> None:
    """Sets the variables from which Ray's processes take their address and token.

    Ray already requires a token for a cluster that it starts, unless the user's `RAY_AUTH_MODE` says otherwise; setting
    that here would come too late if Ray was imported before.
    """
    from ray._private import ray_constants

    os.environ.update(LOOPBACK)
    ray_constants.ENABLE_RAY_CLUSTER = False  # Read from the environment when Ray was imported.
    _start_nodes_our_way()
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@functools.cache
def _start_nodes_our_way() -> None:
    """Makes Ray nodes of this process start without parts that a single machine doesn't need, and without timeouts."""
    from ray._private.node import Node

    Node.start_api_server = _start_no_dashboard
    Node.start_ray_processes = functools.partialmethod(_start_with_ports, Node.start_ray_processes)


def _start_no_dashboard(node: Any, **_: Any) -> None:
    """Replaces the start of the dashboard process, whose only task without its pages is to report usage.

    Even with reporting off it queries the metadata services of three clouds, and no setting prevents that. The node's
    agent waits for the dashboard's address: it gets port 0, where nothing can listen.
    """
    from ray._private import ray_constants

    node.get_gcs_client().internal_kv_put(
        ray_constants.DASHBOARD_ADDRESS.encode(), b"127.0.0.1:0", True, ray_constants.KV_NAMESPACE_DASHBOARD
    )


def _start_with_ports(node: Any, start: Callable[[Any], None]) -> None:
    """Starts a node's processes with ports chosen here for its agents.

    Otherwise, the agents choose ports and write them to files, for which the node waits 15 seconds before it dies. On a
    busy machine their imports take longer, and no setting changes that (ray-project/ray#65983). Not all ports can be
    passed to the node as parameters, so the files are written before it starts.
    """
    names: Any = importlib.import_module("ray._raylet")
    with contextlib.ExitStack() as bound:
        sockets = [bound.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        agent, export, listen, environments = [found.getsockname()[1] for found in sockets]
    parameters = node._ray_params
    parameters.include_log_monitor = False  # It would send logs to the driver, which ignores them.
    parameters.metrics_agent_port, parameters.metrics_export_port = agent, export
    parameters.dashboard_agent_listen_port, parameters.runtime_env_agent_port = listen, environments
    for name, port in (
        (names.METRICS_AGENT_PORT_NAME, agent),
        (names.METRICS_EXPORT_PORT_NAME, export),
        (names.DASHBOARD_AGENT_LISTEN_PORT_NAME, listen),
        (names.RUNTIME_ENV_AGENT_PORT_NAME, environments),
    ):
        names.persist_port(node.get_session_dir_path(), node.node_id, name, port)
    start(node)


def rays_folder() -> Path:
    """The folder of Ray's sockets and logs: `RAY_TMPDIR` if the user has set it, otherwise a private one."""
    given = os.environ.get("RAY_TMPDIR")
    return Path(given) if given else _private_folder() / "ray"


def check_rays_folder() -> None:
    """Raises `InputError` if paths in the folder for Ray's files would be too long for sockets."""
    folder = rays_folder()
    if (spare := _MAX_SOCKET_PATH - _SOCKET_PATH_BELOW - len(os.fsencode(folder))) < 0:
        raise InputError(
            f"the path of {folder}, the folder for Ray's sockets, is {-spare} bytes too long: set RAY_TMPDIR to a "
            "folder with a shorter path, such as /tmp/ray"
        )


_MAX_SOCKET_PATH = 107
_SOCKET_PATH_BELOW = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


def _private_folder() -> Path:
    """A private folder with a short path, since a socket's path has at most 107 bytes."""
    folder = Path(tempfile.gettempdir()) / f"tpo-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StageError(
            f"{folder} is not private to this user (mode {found.st_mode & 0o777:o}, user {found.st_uid}), as the "
            "folder for Ray's sockets and logs must be: remove it, or set RAY_TMPDIR to another"
        )
    return folder
