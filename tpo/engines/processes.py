"""What the processes of a run get: Ray, threads, environment variables. The one place that decides.

Two OpenMP threads of GNU's library stall for seconds as soon as anything else runs; Intel's, which the CPU build of
vLLM brings along, do not. So it is preloaded where it is found, and every process is told how many threads it has.
"""

import os
import sys
from pathlib import Path

from tpo.config import ClusterConfig, EngineConfig

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2": "1",
    "RAY_worker_niceness": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of every process: no telemetry, no hub, no threads that nobody asked for."""


def environment(threads: int) -> dict[str, str]:
    """Environment variables of a process that computes with `threads` CPU threads."""
    variables = {**QUIET, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "KMP_BLOCKTIME": "1"}
    if (library := Path(sys.prefix) / "lib" / "libiomp5.so").exists():
        variables["LD_PRELOAD"] = str(library)
    return variables


def engine_environment(config: EngineConfig) -> dict[str, str]:
    """Environment variables of a vLLM engine."""
    variables = environment(config.threads) | {"VLLM_LOGGING_LEVEL": "ERROR"}
    if config.device == "cpu":
        variables |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.memory_gib))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return variables


def start_ray(cluster: ClusterConfig) -> None:
    """Connects to the configured Ray cluster or starts one on this machine, on loopback; once a process."""
    import ray

    if ray.is_initialized():
        return
    os.environ.update(QUIET)
    if cluster.address is not None:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        return
    ray.init(
        num_cpus=max(2, os.cpu_count() or 2),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
