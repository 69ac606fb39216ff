"""Whether a finished run is current: whether all that it is made from, and all that it made, is as it was.

A recipe ends by `mark_finished`, which lists the run's stages with their fingerprints, and its results (the summary and
its page) with their hashes. The run is current as long as the resolved config and the code that identifies stages are
the same, every listed stage is whole, every file from outside that a manifest names is unchanged, and the results are
those that were made from these stages: a run that was killed between a stage and its report isn't current. How far it
got, the results say.

No recipe is asked, so none of its libraries is loaded. A run that isn't current is not stale: its stages are checked
one by one when the recipe runs, and those that are complete aren't made again. The cost is a start without work, once,
after an upgrade, a changed setting that no stage depends on, or a killed process.
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
"""File in the run folder that has the commit of each address on the hub."""
PACKAGE = Path(__file__).parents[2]
"""The folder of this package's code."""
_IDENTIFYING = ("prompts", "tasks", "tpo/config")
"""Folders of what decides a stage's inputs and values: wording, the stages themselves, and defaults."""


def keep_config(config: RunConfig) -> None:
    """Writes the config to the run folder as `config.json`, every default spelled out, and what addresses on the hub
    were resolved to as `hub.json`."""
    if config.hub_pins:
        _keep_pins(config)
    write_atomically(config.root / "config.json", _resolved_copy(config))


def _keep_pins(config: RunConfig) -> None:
    before = read_pins(config.root)
    for written, pin in config.hub_pins.items():
        if written in before and before[written].address != pin.address:
            say(
                f"{written} was {before[written].address} in {config.root} until now, and is {pin.address}: what "
                "depends on it is made again"
            )
    values = {written: {"address": pin.address, "revision": pin.revision} for written, pin in config.hub_pins.items()}
    write_atomically(config.root / HUB, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def read_pins(root: Path) -> dict[str, Pin]:
    """What a run's addresses on the hub were resolved to when it began; empty if it has none."""
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
            f"{path} can't be read ({type(error).__name__}: {shortened(str(error))}), and it says with which commits "
            "the run began: restore it, or delete it to resolve the profile's addresses again"
        ) from None


def mark_finished(config: RunConfig, *results: str) -> None:
    """Notes that a recipe has made all of a run that its config asks for, `results` being files in the run folder.

    The recipe has just seen that all it needs is there. A stage that is damaged, or from files that have changed since,
    is therefore a leftover of another config or an earlier comparison: it isn't listed, or the run would never be
    current again.
    """
    values = {
        "config": _config_sha256(config),
        "code": _code(PACKAGE),
        "stages": {manifest.stage: manifest.fingerprint for manifest in _sound_manifests(config.root)},
        "results": {name: file_sha256(config.root / name) for name in results},
    }
    write_atomically(config.root / FINISHED, (json.dumps(values, indent=1, sort_keys=True) + "\n").encode())


def is_current(config: RunConfig, *, package: Path = PACKAGE) -> bool:
    """Whether a recipe has finished with this config, and nothing of it has changed or was damaged since then.

    The code is that in `package`."""
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
    """How many iterations of this config have been made and measured; -1 if not even M_0 has been measured.

    An estimate for disk space and schedules, made from the manifests' names alone: nothing is skipped because of it.
    """
    made = -1
    if _is_kept(config):
        while (config.root / f"iter_{made + 1}" / "test" / "scores" / "manifest.json").exists():
            made += 1
    return made


def _code(package: Path) -> str:
    """This package's version, with the code and the templates that identify stages: they change more often than the
    version does, and a stage whose identity has changed is to be made again."""
    sources = sorted(path for folder in _IDENTIFYING for path in (package / folder).rglob("*"))
    files = [
        {"name": path.relative_to(package).as_posix(), "sha256": file_sha256(path)}
        for path in sources
        if path.suffix in (".py", ".jinja")
    ]
    return f"{__version__} {combined_sha256(files)}"


def _is_kept(config: RunConfig) -> bool:
    """Whether the run folder keeps this config, perhaps under the names that keys had before."""
    path = config.root / "config.json"
    try:
        return path.is_file() and _resolved_copy(load_config(path)) == _resolved_copy(config)
    except InputError:
        return False


def _sound_manifests(root: Path) -> Iterator[Manifest]:
    """Those of the stages that are whole, and made from files that are as they were."""
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
    return (config.model_dump_json(indent=1, exclude={"storage": {"cache"}}) + "\n").encode()
