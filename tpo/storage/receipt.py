"""What a finished run was made from and what stands in it, so that it is recognised without walking through its recipe.

In: a run's folder and what its recipe starts from. Out: `receipt.json`, or whether it still holds.

Only the recipe knows which stage follows from which; to ask it, its libraries must be loaded. A run whose config and
origins are as they were, and in which every stage stands as it stood, has nothing to do.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from tpo.errors import DamagedError, StoreError
from tpo.storage.disk import write_atomically
from tpo.storage.store import Manifest, check_stage, is_set_aside, read_manifest

RECEIPT = "receipt.json"


def write_receipt(root: Path, origins: Mapping[str, str]) -> None:
    """Notes the fingerprint of every complete stage of a run, and what it started from."""
    stages = {manifest.stage: manifest.fingerprint for manifest in _stages(root)}
    values = {"origins": dict(origins), "stages": stages}
    write_atomically(root / RECEIPT, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def receipt_holds(root: Path, origins: Mapping[str, str]) -> bool:
    """Whether a run was finished from these origins, and all that it made then stands undamaged."""
    try:
        values = json.loads((root / RECEIPT).read_text(encoding="utf-8"))
        if values["origins"] != dict(origins):
            return False
        for name, fingerprint in values["stages"].items():
            manifest = read_manifest(root / name)
            if manifest is None or manifest.fingerprint != fingerprint:
                return False
            check_stage(root / name, manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DamagedError, StoreError):
        return False
    return True


def _stages(root: Path) -> Iterator[Manifest]:
    for path in sorted(root.rglob("manifest.json")):
        if not is_set_aside(path.relative_to(root)) and (manifest := read_manifest(path.parent)) is not None:
            yield manifest
