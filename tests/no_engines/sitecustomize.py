"""A hook that lets no test of the fast tier start Ray or a vLLM engine, in its own process or in one it starts.

Python imports this file at its start, because conftest.py puts its folder on the PYTHONPATH of what fast tests start.
"""

import os
import sys

TIER, FAST = "TPO_TEST_TIER", "fast"
"""The environment variable, which conftest.py sets for each test, and its value for a fast one."""
PROGRAMS = ("raylet", "gcs_server")
ENGINE = "vllm.v1.engine.core"


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: raises before the program is started or the engine is imported."""
    if event == "subprocess.Popen":
        found = os.path.basename(os.fsdecode(arguments[0]))  # type: ignore[arg-type]  # noqa: PTH119
        forbidden = found in PROGRAMS
    elif event == "import":
        found = str(arguments[0])
        forbidden = found == ENGINE
    else:
        return
    if forbidden and os.environ.get(TIER) == FAST:
        raise RuntimeError(f"a fast test starts {found}, expected no Ray and no engine: mark it pytest.mark.slow")


sys.addaudithook(refuse)
