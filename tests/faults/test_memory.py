"""Claims about a machine short of memory: if Ray's memory monitor kills an engine, the run replaces it or says what to
do.

The monitor's limit is set slightly above the memory in use on this machine.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.sampling import sampled

pytestmark = [pytest.mark.story("memory runs out", 40), pytest.mark.faults]

ROOT = Path(__file__).parents[2]
GIB = 2**30
WORK = """
import sys
from pathlib import Path
from tpo.config.resources import ClusterConfig
from tpo.engines.cluster.actor_pool import ActorPool, JobSpec, Remedies
from tpo.engines.cluster.placement import Role
from tpo.engines.cluster.processes import start_ray
from tpo.engines.cluster.room import Room
from tpo.errors import StageError

class Eater:
    def load(self):
        return None
    def work(self, piece, mark, times):
        if piece == 1 and len(mark.read_text()) < times:
            with mark.open("a") as file:
                file.write("x")
            held = [bytearray(b"x") * 2**28 for _ in range(60)]
        return piece

mark, times = Path(sys.argv[1]), int(sys.argv[2])
start_ray(ClusterConfig())
pool = ActorPool(Role("engine", Eater, (), cpus=1, gpus=0, environment={}), 1, Room())
orders = JobSpec(
    prepare=lambda actor: actor.load.remote(),
    submit=lambda actor, piece: actor.work.remote(piece, mark, times),
    fault=lambda piece, result: None,
    seconds=100,
    start_seconds=100,
    model="a model",
    remedies=Remedies(memory="Lower what it holds", late="Give it longer"),
)
try:
    print(sorted(result for _, result in pool.work([0, 1, 2], orders)))
except StageError as error:
    print(error)
"""


CASES = [
    (1, "[0, 1, 2]", "replaced; its shard is redone"),
    (9, "Lower what it holds", "stops, names the cause and what to do"),
]


@pytest.mark.parametrize(("times", "message", "came"), sampled("memory", CASES, 1))
def test_an_engine_that_ray_kills_for_its_memory_is_replaced_once_then_stops_the_run(
    tmp_path: Path, outcome: Callable[[str, str, str], None], times: int, message: str, came: str
):
    mark, memory = tmp_path / "mark", psutil.virtual_memory()
    mark.touch()
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(mark), str(times)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_memory_usage_threshold": str((memory.total - memory.available + 6 * GIB) / memory.total),
            "RAY_memory_monitor_refresh_ms": "50",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert message in done.stdout, done.stdout + done.stderr
    assert times == 1 or "memory" in done.stdout
    assert mark.read_text() == "x" * min(times, 4)
    outcome(f"Ray kills an engine for its memory, {'once' if times == 1 else 'repeatedly'}", "sample, judge", came)
