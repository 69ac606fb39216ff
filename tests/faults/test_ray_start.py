"""Claims about starting Ray on a busy machine, where its agents need more than the 15 seconds after which a node gives
up by default, and about leaving the driver's SIGTERM handler alone."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
SLOW_AGENTS = """
import sys, time

if any(word.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for word in sys.orig_argv):
    print("slow", file=open({mark!r}, "a"))
    time.sleep(20)
"""
START = """
import os, signal
import ray
from tpo.config.resources import ClusterConfig
from tpo.engines.cluster.processes import start_ray

signal.signal(signal.SIGTERM, lambda *_: print("asked to end"))
start_ray(ClusterConfig())
os.kill(os.getpid(), signal.SIGTERM)

@ray.remote(runtime_env={"env_vars": {"KNOWN": "yes"}})
def known():
    import os
    return os.environ["KNOWN"]

print(ray.get(known.remote()))
"""


def test_ray_starts_with_slow_agents_and_keeps_the_drivers_sigterm_handler(
    tmp_path: Path, outcome: Callable[[str, str, str], None]
):
    mark = tmp_path / "mark"
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENTS.format(mark=str(mark)))
    done = subprocess.run(
        [sys.executable, "-c", START],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert mark.read_text().count("slow") == 2
    assert done.stdout == "asked to end\nyes\n", done.stderr
    outcome("Ray's agents take 20 seconds to start", "sample", "continues; the node waits for them")
