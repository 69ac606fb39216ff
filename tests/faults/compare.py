"""Differences between two run folders that should hold the same run: rows lost, duplicated, changed."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

_KEYS = ("prompt_id", "index", "first_index", "second_index")
_OF_THE_CLOCK = ("seconds", "finished", "checksum")


@dataclass(frozen=True)
class Difference:
    """Number of rows that differ between two runs; a file without rows counts as one."""

    lost: int = 0
    duplicated: int = 0
    changed: int = 0

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __bool__(self) -> bool:
        return any(astuple(self))


def astuple(difference: Difference) -> tuple[int, ...]:
    """Its three counts."""
    return dataclasses.astuple(difference)


def difference(expected: Path, found: Path) -> Difference:
    """What differs in the run in `found` from the one in `expected`, apart from quarantined stages and times."""
    wanted, there = dict(_stages(expected)), dict(_stages(found))
    total = Difference(changed=len(there.keys() - wanted.keys()))
    for name, manifest in wanted.items():
        total += _of_stage(expected / name, found / name) if name in there else Difference(lost=_rows(manifest))
    summary = next(name for name in ("summary.json", "model_table.json") if (expected / name).exists())
    summaries = [_without_clock(json.loads((root / summary).read_text())) for root in (expected, found)]
    return total + Difference(changed=summaries[0] != summaries[1])


def _of_stage(expected: Path, found: Path) -> Difference:
    manifests = [_without_clock(json.loads((folder / "manifest.json").read_text())) for folder in (expected, found)]
    total = Difference(changed=manifests[0] != manifests[1])
    for file in manifests[0]["files"]:
        first, second = expected / file["name"], found / file["name"]
        if not second.exists():
            total += Difference(lost=file["rows"])
        elif first.read_bytes() != second.read_bytes():
            total += _of_rows(first, second) if first.suffix == ".parquet" else Difference(changed=1)
    stray = {path.name for path in found.glob("*.parquet")} - {file["name"] for file in manifests[0]["files"]}
    return total + Difference(duplicated=len(stray))


def _of_rows(expected: Path, found: Path) -> Difference:
    try:
        wanted, there = _by_key(expected), _by_key(found)
    except OSError:  # no longer valid Parquet
        return Difference(lost=pq.read_metadata(expected).num_rows)
    lost = sum((Counter(wanted.keys()) - Counter(there.keys())).values())
    duplicated = sum(max(0, len(rows) - len(wanted.get(key, []))) for key, rows in there.items())
    return Difference(lost, duplicated, sum(wanted[key] != there[key] for key in wanted.keys() & there.keys()) or 1)


def _by_key(path: Path) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in pq.read_table(path).to_pylist():
        rows.setdefault(tuple(row.get(key) for key in _KEYS), []).append(row)
    return rows


def _stages(root: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in sorted(root.rglob("manifest.json")):
        name = path.parent.relative_to(root).as_posix()
        if ".old-" not in name:
            yield name, json.loads(path.read_text())


def _rows(manifest: Mapping[str, Any]) -> int:
    return max(1, int(manifest["rows"]))


def _without_clock(values: Any) -> Any:
    """The same JSON without times."""
    if isinstance(values, dict):
        return {key: _without_clock(value) for key, value in values.items() if key not in _OF_THE_CLOCK}
    return [_without_clock(value) for value in values] if isinstance(values, list) else values
