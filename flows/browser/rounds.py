"""The rounds of samples in a run folder: each set of outputs with its prompts, scores, judgments and pairs.

Nothing is assumed about the recipe: a round is any folder with `samples`, and what belongs to it is found by the
fingerprints that stages note. Stages that are being made count as far as their shards are sealed.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpo.errors import StoreError
from tpo.storage.store import is_set_aside, read_manifest

TRAINING, TEST, VALIDATION, OTHER = "Training samples", "Test", "Validation", "Other"
"""Kinds of rounds, in the order in which they are offered."""


@dataclass(frozen=True)
class Shard:
    """One file of rows."""

    path: Path
    """Where it is."""
    sha256: str
    """Its content, by hash."""
    bytes: int
    """Its size."""


@dataclass(frozen=True)
class StoredStage:
    """A stage as it is on disk now, complete or not."""

    folder: Path
    """Its folder."""
    shards: Sequence[Shard]
    """The shards that are sealed, in order."""
    inputs: Mapping[str, str]
    """Fingerprints of what it is made from."""
    fingerprint: str | None
    """Its own; None while it is being made."""
    facts: Mapping[str, Any]
    """Its manifest's facts."""

    @property
    def key(self) -> str:
        """A hash of the shards."""
        return hashlib.sha256(" ".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


@dataclass(frozen=True)
class Round:
    """One set of outputs, with what belongs to it."""

    name: str
    """Its folder below the run folder, such as `iter_1/test`."""
    label: str
    """Its name for readers."""
    kind: str
    """One of the kinds of rounds."""
    samples: StoredStage
    """The outputs."""
    prompts: StoredStage | None
    """Their prompts."""
    scores: StoredStage | None
    """Their scores."""
    judgments: StoredStage | None
    """What the scores were computed from."""
    pairs: StoredStage | None
    """The pairs made of them."""

    @property
    def number(self) -> int:
        """The iteration; 0 in recipes without."""
        found = re.match(r"iter_(\d+)(/|$)", self.name)
        return int(found[1]) if found else 0

    @property
    def state(self) -> str:
        """How far it is: `sampling`, `judging` or `complete`."""
        if self.samples.fingerprint is None:
            return "sampling"
        if self.scores is None and self.judgments is not None:
            return "judging"
        return "complete"


def stored_stage(folder: Path) -> StoredStage | None:
    """The stage in a folder, or None if it has neither a manifest nor a plan that can be read."""
    try:
        if (manifest := read_manifest(folder)) is not None:
            shards = [Shard(folder / file["name"], file["sha256"], file["bytes"]) for file in manifest.files]
            return StoredStage(folder, shards, manifest.inputs, manifest.fingerprint, manifest.facts)
    except StoreError:
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        return StoredStage(folder, list(_sealed(folder)), plan["inputs"], None, {})
    return None


def _sealed(folder: Path) -> Iterator[Shard]:
    for path in sorted(folder.glob("part-*.seal.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            seal = json.loads(path.read_text(encoding="utf-8"))
            if re.fullmatch(r"part-\d+\.parquet", seal["name"]):
                yield Shard(folder / seal["name"], seal["sha256"], seal["bytes"])


def find_rounds(root: Path) -> list[Round]:
    """The rounds of a run, those of training first and the latest first within a kind."""
    folders = [path for path in root.rglob("samples") if path.is_dir() and not is_set_aside(path.relative_to(root))]
    prompts = {}
    for path in (*root.rglob("prompts/manifest.json"), *root.rglob("prompts/*/manifest.json")):
        if not is_set_aside(path.relative_to(root)) and (stage := stored_stage(path.parent)) is not None:
            prompts[stage.fingerprint] = stage
    stages = [stage for folder in folders if (stage := stored_stage(folder)) is not None and stage.shards]
    return sorted((_round(root, samples, prompts) for samples in stages), key=_place)


def _round(root: Path, samples: StoredStage, prompts: Mapping[str | None, StoredStage]) -> Round:
    folder = samples.folder.parent
    name = folder.relative_to(root).as_posix()
    label, kind = named(name, with_pairs=(folder / "pairs").is_dir())
    return Round(
        name=name,
        label=label,
        kind=kind,
        samples=samples,
        prompts=prompts.get(samples.inputs.get("prompts")),
        scores=_made_from(folder / "scores", samples, complete=True),
        judgments=_made_from(folder / "judgments", samples),
        pairs=_pairs(folder, samples),
    )


def _made_from(folder: Path, samples: StoredStage, *, complete: bool = False) -> StoredStage | None:
    stage = stored_stage(folder)
    if stage is None or samples.fingerprint is None or samples.fingerprint not in stage.inputs.values():
        return None
    return None if complete and stage.fingerprint is None else stage


def _pairs(folder: Path, samples: StoredStage) -> StoredStage | None:
    """The pairs of a round; those of ThinkPO are one folder up, since each side is a round."""
    if folder.name in ("long", "short"):
        stage = stored_stage(folder.parent / "pairs")
        return stage if stage is not None and stage.fingerprint is not None else None
    return _made_from(folder / "pairs", samples, complete=True)


_LABELS: Sequence[tuple[str, str, str]] = (
    (r"iter_(?P<t>\d+)/test", "M_{t}", TEST),
    (r"iter_0/direct", "M_0 without thoughts", TEST),
    (r"iter_0/validation/epoch_0", "M_0", VALIDATION),
    (r"iter_(?P<t>\d+)/validation/epoch_(?P<epoch>\d+)", "M_{t} after epoch {epoch}", VALIDATION),
    (r"iter_(?P<t>\d+)/round_(?P<number>\d+)", "round {number}, for training M_{t}", TRAINING),
    (r"iter_(?P<t>\d+)", "M_{before}, for training M_{t}", TRAINING),
    (r"iter_0/benchmarks/(?P<name>[^/]+)/direct", "M_0 without thoughts, {name}", OTHER),
    (r"iter_(?P<t>\d+)/benchmarks/(?P<name>[^/]+)", "M_{t}, {name}", OTHER),
    (r"base/test", "base", TEST),
    (r"iter_(?P<t>\d+)/sft/test", "SFT_{t}", TEST),
    (r"iter_(?P<t>\d+)/dpo/test", "DPO_{t}", TEST),
    (r"iter_(?P<t>\d+)/dpo", "SFT_{before}, for training DPO_{t}", TRAINING),
    (r"iter_(?P<t>\d+)/sft", "for training SFT_{t}", TRAINING),
    (r"sft/test", "SFT", TEST),
    (r"dpo/test", "ThinkPO", TEST),
    (r"dpo/(?P<side>long|short)", "{side} outputs", TRAINING),
)
"""Folders with the name of the model that wrote the outputs, and why; others go by their folder."""


def named(name: str, *, with_pairs: bool = False) -> tuple[str, str]:
    """Label and kind of the round in a folder."""
    for pattern, label, kind in _LABELS:
        if (found := re.fullmatch(pattern, name)) is not None:
            values = found.groupdict()
            if "t" in values:
                values["before"] = str(int(values["t"]) - 1)
            return label.format(**values), kind
    return name, TRAINING if with_pairs else OTHER


def _place(found: Round) -> tuple[int, list[int], str]:
    numbers = [-int(number) for number in re.findall(r"\d+", found.name)]
    return [TRAINING, TEST, VALIDATION, OTHER].index(found.kind), numbers, found.name
