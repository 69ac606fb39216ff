"""Whether a finished run is current: whether all that it is made from, and all that it made, is as it was.

A recipe ends by `mark_finished`, which lists the run's stages with their fingerprints. The run is current as long as
the resolved config and this package's version and templates are the same, every listed stage is whole, and every file
from outside that a manifest names is unchanged. No recipe is asked, so none of its libraries is loaded. A run that
isn't current isn't stale: its stages are checked one by one when the recipe runs, and those that are complete aren't
made again.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from tpo import __version__
from tpo.config.run import RunConfig
from tpo.errors import StoreError
from tpo.storage.disk import write_atomically
from tpo.storage.store import Manifest, check_stage, folder_artifact, is_set_aside, is_unchanged, read_manifest

FINISHED = "finished.json"


def keep_config(config: RunConfig) -> None:
    """Writes the config to the run folder as `config.json`, every default spelled out."""
    write_atomically(config.root / "config.json", _resolved_copy(config))


def mark_finished(config: RunConfig) -> None:
    """Notes that a recipe has made all of a run that its config asks for."""
    stages = {manifest.stage: manifest.fingerprint for manifest in _manifests(config.root)}
    values = {"config": _config_sha256(config), "code": _code(), "stages": stages}
    write_atomically(config.root / FINISHED, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def is_current(config: RunConfig) -> bool:
    """Whether a recipe has finished with this config, and nothing of it has changed or was damaged since then."""
    try:
        if not _is_kept(config):
            return False
        noted = json.loads((config.root / FINISHED).read_text(encoding="utf-8"))
        if (noted["config"], noted["code"]) != (_config_sha256(config), _code()):
            return False
        unchanged = set[tuple[str, str]]()
        for name, fingerprint in noted["stages"].items():
            manifest = read_manifest(config.root / name)
            if manifest is None or manifest.fingerprint != fingerprint or manifest.external is None:
                return False
            check_stage(config.root / name, manifest)
            unchanged |= manifest.external.items()
        return all(is_unchanged(path, sha256) for path, sha256 in unchanged)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StoreError):
        return False


def iterations_made(config: RunConfig) -> int:
    """How many iterations of this config have been made and measured; -1 if not even M_0 has been measured.

    An estimate for disk space and schedules, made from the manifests' names alone: nothing is skipped because of it.
    """
    made = -1
    if _is_kept(config):
        while (config.root / f"iter_{made + 1}" / "test" / "scores" / "manifest.json").exists():
            made += 1
    return made


def _code() -> str:
    """This package's version, with its templates, which are edited more often than the version is."""
    return f"{__version__} {_shipped_templates()}"


def _shipped_templates() -> str:
    return folder_artifact(Path(__file__).parents[2] / "prompts" / "templates").fingerprint


def _is_kept(config: RunConfig) -> bool:
    path = config.root / "config.json"
    return path.is_file() and path.read_bytes() == _resolved_copy(config)


def _manifests(root: Path) -> Iterator[Manifest]:
    for path in sorted(root.rglob("manifest.json")):
        if not is_set_aside(path.relative_to(root)) and (manifest := read_manifest(path.parent)) is not None:
            yield manifest


def _config_sha256(config: RunConfig) -> str:
    return hashlib.sha256(_resolved_copy(config)).hexdigest()


def _resolved_copy(config: RunConfig) -> bytes:
    # Without per-machine settings, so that a run in a bucket has one config on all machines.
    return (config.model_dump_json(indent=1, exclude={"storage": {"cache"}}) + "\n").encode()
