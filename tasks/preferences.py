"""Preferences as prompts and samples, so that a judge scores them as it scores a run's.

The responses of a prompt are in an order drawn by its texts, so that a judge gains nothing from places.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tasks.handles import JudgeInput
from tasks.stage import complete_or_begun
from tpo.data.preference_files import Preference
from tpo.records import Artifact, External, Prompt, RowCounts, Sample
from tpo.storage.store import Stage

SHARD_PROMPTS = 4096
"""Prompts per file."""


def store_preferences(root: Path, folder: str, rows: Sequence[Preference]) -> JudgeInput:
    """Writes the prompts and responses of some preferences below `root/folder`; each prompt's id is its key."""
    prompts = [_prompt(row) for row in rows]
    samples = [
        Sample(row.key, index, [], [], text, "", text, None, 1)
        for row in rows
        for index, text in enumerate(responses_of(row))
    ]
    samples_stage, prompts_stage = _stages(root, folder, rows)
    return JudgeInput(samples=_stored(samples_stage, samples), prompts=_stored(prompts_stage, prompts))


def stored_preferences(root: Path, folder: str, rows: Sequence[Preference]) -> JudgeInput | None:
    """What `store_preferences` has written, or None."""
    samples, prompts = (stage.complete() for stage in _stages(root, folder, rows))
    return None if samples is None or prompts is None else JudgeInput(samples=samples, prompts=prompts)


def _stages(root: Path, folder: str, rows: Sequence[Preference]) -> tuple[Stage, Stage]:
    content = External(hashlib.sha256(json.dumps([_values(row) for row in rows]).encode()).hexdigest())
    kinds = (("samples", Sample), ("prompts", Prompt))
    samples, prompts = (
        Stage(root, f"{folder}/{name}", kind, inputs={"preferences": content}, config={}) for name, kind in kinds
    )
    return samples, prompts


def responses_of(row: Preference) -> list[str]:
    """All responses in the order that judges get them in."""
    return [(*row.better, *row.worse)[place] for place in _order(row)]


def scores_of(row: Preference, values: Mapping[int, float]) -> tuple[list[float], list[float]] | None:
    """The scores of the better and of the worse responses, from those by index; None if one has no score."""
    by_place = {place: values.get(index) for index, place in enumerate(_order(row))}
    found = [by_place[place] for place in sorted(by_place)]
    known = [value for value in found if value is not None]
    return (known[: len(row.better)], known[len(row.better) :]) if len(known) == len(found) else None


def scores_within(
    asked: Preference, pair: Preference, values: Mapping[int, float]
) -> tuple[list[float], list[float]] | None:
    """`scores_of` a pair whose responses were judged within another preference, from that one's scores by index."""
    texts = responses_of(asked)
    better, worse = ([values.get(texts.index(text)) for text in side] for side in (pair.better, pair.worse))
    known = [[value for value in side if value is not None] for side in (better, worse)]
    return (known[0], known[1]) if [*map(len, known)] == [len(better), len(worse)] else None


def _order(row: Preference) -> list[int]:
    rng = np.random.default_rng(int(row.key, 16))
    return [int(place) for place in rng.permutation(len(row.better) + len(row.worse))]


def _values(row: Preference) -> dict[str, object]:
    """A row's values; without a rubric as before there were any, so that what was judged then stays current."""
    return {name: value for name, value in asdict(row).items() if name != "rubric" or value is not None}


def _prompt(row: Preference) -> Prompt:
    return Prompt(
        row.key, row.instruction, row.reference, row.subset, constraints=row.constraints, history=row.history,
        rubric=row.rubric,
    )  # fmt: skip


def _stored(stage: Stage, rows: Sequence[Prompt] | Sequence[Sample]) -> Artifact:
    if (done := complete_or_begun(stage)) is not None:
        return done
    starts = range(0, len(rows), SHARD_PROMPTS)
    for i, start in enumerate(starts):
        stage.write_shard(i, rows[start : start + SHARD_PROMPTS])
    return stage.commit(len(starts), account=RowCounts(len(rows), len(rows), {}))
