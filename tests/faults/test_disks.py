"""Claims about a real disk that is full or read-only: the stage says so and what to do, and resumes once it is fixed.

In a separate mount namespace, on a small tmpfs; skipped if the kernel doesn't allow one.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOUNT = ["unshare", "--user", "--map-root-user", "--mount"]
RUN = """
import json, subprocess, sys
from pathlib import Path
from tests.rows import a_prompt
from tpo.errors import StoreError
from tpo.records import RowCounts, Prompt
from tpo.storage.store import Stage, read_rows

root, fault = Path(sys.argv[1]), sys.argv[2]
mount = ["mount", "-t", "tmpfs", "-o", f"size={'96k' if fault == 'full' else '4m'}", "tmpfs", str(root)]
subprocess.run(mount, check=True)
rows = [[a_prompt(f"{i} {j}", instruction=f"{i * 7919 + j} " * 200) for j in range(20)] for i in range(30)]
stage = lambda: Stage(root, "prompts", Prompt, inputs={}, config={})

def attempt():
    made = stage()
    made.begin(shard_size=20)
    kept = [made.has_shard(i) for i in range(30)]
    for i in range(30):
        if fault == "read-only" and i == 10 and not any(kept):
            subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        if not kept[i]:
            made.write_shard(i, rows[i])
    artifact = made.commit(30, account=RowCounts(600, 600, {}))
    return sum(kept), read_rows(artifact, Prompt) == [row for shard in rows for row in shard]

try:
    attempt()
    raise SystemExit("nothing was full or read-only")
except StoreError as error:
    message = str(error)
complete = stage().complete()
subprocess.run(["mount", "-o", "remount,rw,size=4m", str(root)], check=True)
kept, right = attempt()
print(json.dumps({"message": message, "complete": complete is not None, "kept": kept, "right": right}))
"""

pytestmark = pytest.mark.faults


def _may_mount() -> bool:
    try:
        return subprocess.run([*MOUNT, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not _may_mount(), reason="no mount namespaces here")
@pytest.mark.parametrize(("fault", "says"), [("full", "the disk is full"), ("read-only", "is not accessible")])
def test_a_full_or_read_only_disk_stops_the_stage_which_resumes_from_there(
    tmp_path: Path, fault: str, says: str, outcome: Callable[[str, str, str], None]
):
    (tmp_path / "run").mkdir()
    command = [*MOUNT, sys.executable, "-c", RUN, str(tmp_path / "run"), fault]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert says in found["message"] and "rerun" in found["message"]
    assert not found["complete"]
    assert found["kept"] > 0
    assert found["right"]
    outcome(f"the disk is {fault} (a small tmpfs)", "a stage", "stops, says so; resumes from its last shard once fixed")
