"""Lists every package of a lock with its version and licence, as the installed packages say, and marks what to look at.

In: the lock that a venv was built from, and the packages in the venv that runs this. Out: a table; it never fails. What
packages say of themselves is no legal advice, and the texts are in their `dist-info` folders.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from requirements.install import HERE, lock_of

COPYLEFT = re.compile(
    r"\b(A|L)?GPL|\bMPL\b|Mozilla|General Public|\bEPL\b|Eclipse|\bCDDL\b|\bEUPL\b|\bOSL\b|Affero", re.I
)
PROPRIETARY = re.compile(r"proprietary|intel (simplified|end user)|nvidia|commercial|EULA", re.I)
PERMISSIVE = re.compile(
    r"\bMIT\b|\bBSD\b|\b0BSD\b|Apache|\bISC\b|\bPSF|Python[- ](Software|2)|Unlicense|Public Domain|\bZlib\b|\bCC0\b|"
    r"HPND|\bCNRI\b|Boost|\bBSL-1",
    re.I,
)


@dataclass(frozen=True)
class Licence:
    """What a package says of itself."""

    name: str
    version: str
    text: str
    """Its licence in a line; empty where it names none."""

    @property
    def mark(self) -> str:
        """What to look at: "copyleft", "proprietary" or "unknown"; empty for a permissive licence."""
        if COPYLEFT.search(self.text):
            return "copyleft"
        if PROPRIETARY.search(self.text):
            return "proprietary"
        return "" if PERMISSIVE.search(self.text) else "unknown"


def licence_of(name: str) -> Licence:
    """The licence of an installed package; version "not installed" where it is not."""
    try:
        found: Any = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return Licence(name, "not installed", "")
    texts = [found.get("License-Expression") or ""]
    classes = [line.split(" :: ")[-1] for line in found.get_all("Classifier") or [] if line.startswith("License ::")]
    texts += [", ".join(text for text in classes if not text.endswith("pproved"))]
    texts += (found.get("License") or "").strip().splitlines()[:1]
    text = next((text.strip() for text in texts if text.strip()), "")
    return Licence(name, found["Version"], re.sub(r"\s+", " ", text)[:60])


def table(licences: Sequence[Licence]) -> Iterator[str]:
    """The licences in columns, those to look at marked, and a line that counts."""
    widths = [max(len(getattr(licence, field)) for licence in licences) for field in ("name", "version", "text")]
    for licence in licences:
        cells = zip((licence.name, licence.version, licence.text or "-"), widths)
        yield "  ".join([*(text.ljust(width) for text, width in cells), licence.mark]).rstrip()
    marks = [licence.mark for licence in licences]
    counts = ", ".join(f"{marks.count(mark)} {mark}" for mark in ("copyleft", "proprietary", "unknown"))
    yield f"{len(licences)} packages: {marks.count('')} permissive, {counts}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Lists the licence of every package of the lock.")
    parser.add_argument("--venv", type=Path, default=HERE.parent / ".venv", help="default: .venv in the checkout")
    options = parser.parse_args(arguments)
    names = [entry.split("==")[0] for entry in lock_of(options.venv, gpu=False).entries()]
    print("\n".join(table([licence_of(name) for name in names])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
