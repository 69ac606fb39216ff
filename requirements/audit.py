"""Asks PyPI's advisories about every package of a lock: pip-audit, in a venv of its own so that it cannot change ours.

In: the lock that a venv was built from. Out: a line for each known weakness and one that sums up; status 1 where there
are any. Where PyPI cannot be asked, a line says so within seconds, and what to run later: that is status 0, for a check
must not depend on a network. With --report-only the status is always 0.

The decision to question: what could not be looked up is named and never counted as sound. The CPU build of torch is
such, for PyPI does not know its local label.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requirements.install import HERE, Lock, SetupError, lock_of, python_of, set_up

REACH_SECONDS = 5
"""How long it may take to answer."""
LATER = "run `make audit` where PyPI answers"


@dataclass(frozen=True)
class Audit:
    """What the advisories say of a lock."""

    weaknesses: list[str]
    """One line each."""
    unknown: list[str]
    """Packages that could not be looked up."""
    asked: int
    """Packages that could."""


def advisories() -> str:
    """A page of PyPI's that has advisories, to see whether it answers; where PyPI is, pip knows."""
    from pip._internal.models.index import PyPI

    return f"https://{PyPI.netloc}/pypi/pip/24.0/json"


def fault_of(url: str) -> str | None:
    """Why the advisories cannot be asked; None where they can."""
    question = (
        "import json, sys, urllib.request as r; "
        "print('vulnerabilities' in json.load(r.urlopen(sys.argv[1], timeout=float(sys.argv[2]))))"
    )
    command = [sys.executable, "-I", "-c", question, url, str(REACH_SECONDS)]
    try:
        # In a process of its own, for looking up a name has no time limit.
        asked = subprocess.run(command, capture_output=True, text=True, timeout=2 * REACH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "does not answer"
    if asked.returncode:
        return asked.stderr.strip().splitlines()[-1][:200]
    return None if asked.stdout.strip() == "True" else "answers without advisories"


def audit(lock: Lock, tools: Path) -> Audit:
    """Looks every package of a lock up; raises `SetupError` where pip-audit itself fails."""
    set_up(Lock(HERE / "tools.txt", "{}.{}".format(*sys.version_info)), tools, environ=os.environ)
    command = [str(python_of(tools)), "-I", "-m", "pip_audit", "--requirement", str(lock.requirements), "--no-deps"]
    command += ["--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", str(REACH_SECONDS)]
    done = subprocess.run([*command, "--cache-dir", str(tools / "cache")], capture_output=True, text=True, check=False)
    try:
        return read_audit(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError) as error:
        told = "\n".join(done.stderr.splitlines()[-10:])
        raise SetupError(f"pip-audit ended with code {done.returncode}: {error}\n{told}") from error


def read_audit(said: Any) -> Audit:
    """What pip-audit's JSON says."""
    found = Audit([], [], sum("skip_reason" not in package for package in said["dependencies"]))
    for package in said["dependencies"]:
        if "skip_reason" in package:
            found.unknown.append(package["name"])
            continue
        for weakness in package["vulns"]:
            fixed = f"fixed in {', '.join(weakness['fix_versions'])}" if weakness["fix_versions"] else "no fix yet"
            found.weaknesses.append(f"{package['name']} {package['version']}: {weakness['id']}, {fixed}")
    return found


def sentence(found: Audit, lock: Lock) -> str:
    """The audit in one line."""
    if not found.asked:
        return (
            f"audit: none of the {len(found.unknown)} packages of {lock.requirements.name} could be looked up: {LATER}"
        )
    unknown = f"; {len(found.unknown)} could not be looked up ({', '.join(found.unknown[:5])})" if found.unknown else ""
    weak = f"{len(found.weaknesses)} known weaknesses" if found.weaknesses else "no known weakness"
    return f"audit: {weak} in {found.asked} packages of {lock.requirements.name}{unknown}"


def main(arguments: Sequence[str] | None = None, *, url: str | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Asks PyPI's advisories about every package of the lock.")
    parser.add_argument("--venv", type=Path, default=HERE.parent / ".venv", help="default: .venv in the checkout")
    parser.add_argument("--report-only", action="store_true", help="end with status 0 whatever is found")
    options = parser.parse_args(arguments)
    asked = url or advisories()
    if fault := fault_of(asked):
        print(f"audit: could not ask {asked} ({fault}): {LATER}")
        return 0
    lock = lock_of(options.venv, gpu=False)
    try:
        found = audit(lock, options.venv.absolute() / "tools")
    except SetupError as error:
        print(f"audit: {error}", file=sys.stderr)
        return 0 if options.report_only else 1
    print("\n".join([*found.weaknesses, sentence(found, lock)]))
    return 1 if found.weaknesses and not options.report_only else 0


if __name__ == "__main__":
    sys.exit(main())
