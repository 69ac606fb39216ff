"""Whether a finished run is current: its inputs and outputs are unchanged, so nothing has to be run.

A recipe ends with `mark_finished`, which lists the run's stages with their fingerprints, and its results (the summary
and its page) with their hashes. The run is current as long as the resolved config and the code that identifies stages
are the same, every listed stage is whole, every external file in a manifest is unchanged, and the results are those
made from these stages: a run that was killed between a stage and its report isn't current.

This needs no recipe, so none of their libraries is loaded. A run that isn't current needn't be redone: its stages are
checked one by one when the recipe runs, and complete ones are kept. The cost is one start without work after an
upgrade, a changed setting that no stage depends on, or a killed process.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tpo import __version__
from tpo.config.hub import Pin, parse_address
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.errors import InputError, StoreError, shortened
from tpo.storage.disk import write_atomically
from tpo.storage.store import (
    Manifest,
    check_stage,
    combined_sha256,
    file_sha256,
    is_set_aside,
    is_unchanged,
    read_manifest,
)

FINISHED = "finished.json"
HUB = "hub.json"
"""File in the run folder with the commit of each address on the hub."""
PACKAGE = Path(__file__).parents[2]
"""The folder of this package's code."""
_IDENTIFYING = ("prompts", "tasks", "tpo/config")
"""Folders whose code decides a stage's inputs and values: prompts, the stages themselves, and defaults."""


def keep_config(config: RunConfig) -> None:
    """Writes the config, including defaults, to `config.json` in the run folder, and the resolved addresses on the hub
    to `hub.json`."""
    if config.hub_pins:
        _keep_pins(config)
    write_atomically(config.root / "config.json", _resolved_copy(config))


def _keep_pins(config: RunConfig) -> None:
    before = read_pins(config.root)
    for written, pin in config.hub_pins.items():
        if written in before and before[written].address != pin.address:
            say(
                f"{written} was {before[written].address} in {config.root} and is now {pin.address}: the stages that "
                "depend on it are redone"
            )
    values = {written: {"address": pin.address, "revision": pin.revision} for written, pin in config.hub_pins.items()}
    write_atomically(config.root / HUB, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def read_pins(root: Path) -> dict[str, Pin]:
    """The commits of a run's addresses on the hub, as resolved when it began; empty if it has none."""
    path = root / HUB
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = {written: Pin(pin["address"], pin["revision"], kept=True) for written, pin in values.items()}
        if any(not parse_address(pin.address).pinned for pin in found.values()):
            raise ValueError("an address has no commit")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}, which has the commits that the run began with, cannot be read ({type(error).__name__}: "
            f"{shortened(str(error))}): restore it, or delete it to resolve the profile's addresses again"
        ) from None


def mark_finished(config: RunConfig, *results: str) -> None:
    """Records that a recipe has completed everything in its config; `results` are files in the run folder.

    The recipe has just checked all stages that it needs. A stage that is damaged, or made from files that have changed
    since, is therefore a leftover of another config or comparison: it isn't listed, or the run would never be current
    again.
    """
    values = {
        "config": _config_sha256(config),
        "code": _code(PACKAGE),
        "stages": {manifest.stage: manifest.fingerprint for manifest in _sound_manifests(config.root)},
        "results": {name: file_sha256(config.root / name) for name in results},
    }
    write_atomically(config.root / FINISHED, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def is_current(config: RunConfig, *, package: Path = PACKAGE) -> bool:
    """Whether a recipe has finished with this config and the code in `package`, and nothing was changed or damaged
    since."""
    try:
        if not _is_kept(config):
            return False
        noted = json.loads((config.root / FINISHED).read_text(encoding="utf-8"))
        if (noted["config"], noted["code"]) != (_config_sha256(config), _code(package)):
            return False
        for name, sha256 in noted["results"].items():
            if file_sha256(config.root / name) != sha256:
                return False
        outside = set[tuple[str, str]]()
        for name, fingerprint in noted["stages"].items():
            manifest = read_manifest(config.root / name)
            if manifest is None or manifest.fingerprint != fingerprint or manifest.external is None:
                return False
            check_stage(config.root / name, manifest)
            outside |= manifest.external.items()
        return all(is_unchanged(path, sha256) for path, sha256 in outside)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StoreError):
        return False


def iterations_made(config: RunConfig) -> int:
    """Number of iterations of this config that were trained and measured; -1 if not even M_0 was measured.

    An estimate for disk space and schedules, from the existence of manifests alone: no work is skipped because of it.
    """
    made = -1
    if _is_kept(config):
        while (config.root / f"iter_{made + 1}" / "test" / "scores" / "manifest.json").exists():
            made += 1
    return made


def _code(package: Path) -> str:
    """This package's version, and a hash of the code and templates that identify stages, which change more often than
    the version."""
    sources = sorted(path for folder in _IDENTIFYING for path in (package / folder).rglob("*"))
    files = [
        {"name": path.relative_to(package).as_posix(), "sha256": file_sha256(path)}
        for path in sources
        if path.suffix in (".py", ".jinja")
    ]
    return f"{__version__} {combined_sha256(files)}"


def _is_kept(config: RunConfig) -> bool:
    """Whether the run folder has this config, possibly with former names of keys."""
    path = config.root / "config.json"
    try:
        return path.is_file() and _resolved_copy(load_config(path)) == _resolved_copy(config)
    except InputError:
        return False


def _sound_manifests(root: Path) -> Iterator[Manifest]:
    """The manifests of stages that are whole and whose external files are unchanged."""
    known = cache(is_unchanged)
    for path in sorted(root.rglob("manifest.json")):
        if is_set_aside(path.relative_to(root)):
            continue
        with contextlib.suppress(StoreError):
            manifest = read_manifest(path.parent)
            if manifest is None or manifest.external is None:
                continue
            check_stage(path.parent, manifest)
            if all(known(*item) for item in manifest.external.items()):
                yield manifest


def _config_sha256(config: RunConfig) -> str:
    return hashlib.sha256(_resolved_copy(config)).hexdigest()


def _resolved_copy(config: RunConfig) -> bytes:
    # Without per-machine settings, so that a run in a bucket has one config on all machines.
    return (config.model_dump_json(indent=1, exclude={"metrics": True, "storage": {"cache"}}) + "\n").encode()
