"""Mock runs that a test module makes in a process of its own: `python -m <module> <folder>` leaves `found.json` there.

The runs need modules replaced before others are imported, and tests of the same worker must not see that.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_apart(module: str, folder: Path, *arguments: str) -> str:
    """Runs a test module's `main`; returns its standard error."""
    command = [sys.executable, "-m", module, str(folder), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def found_apart(module: str, folder: Path) -> dict[str, Any]:
    """What a test module's `main` has found."""
    run_apart(module, folder)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def stage_times(root: Path) -> dict[str, int]:
    """When each stage in a folder was made."""
    return {path.parent.relative_to(root).as_posix(): path.stat().st_mtime_ns for path in root.rglob("manifest.json")}


def remade_stages(root: Path, before: Mapping[str, int]) -> list[str]:
    """The stages that have been made since then, or remade."""
    return sorted(stage for stage, time in stage_times(root).items() if before.get(stage) != time)
