"""The kind of each instruction of a set: what its file says of it, or a rater. The same for all models of a run.

Categories and difficulties that the file brings are used as they are, and the rater is asked only for what is missing.
A file brings categories if they distinguish its rows: Arena-Hard v0.1 has a column with one name in all of them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from judges.rater import Rater, build_rater
from prompts.rating import load_rating_prompt
from tasks.handles import with_files
from tasks.spending import api_tokens, rating_meter
from tasks.stage import begin, stage_task
from tpo.config.fine_grained import FineGrainedConfig
from tpo.config.run import RunConfig
from tpo.console import Advance, progress_bar, say
from tpo.engines.inference.reply import TokenCount
from tpo.records import Artifact, External, Prompt, Rating, RowCounts
from tpo.report.page import count
from tpo.storage.disk import remove
from tpo.storage.journal import Journal
from tpo.storage.ledger import Meter
from tpo.storage.store import Stage, folder_artifact, read_rows

RATINGS = "iter_0/ratings"
"""The stage with the kinds of the test prompts."""
NOT_GIVEN = "not_given"
"""Why something isn't known that neither the file nor a rater says."""


@dataclasses.dataclass(frozen=True)
class Brought:
    """What a set of prompts says of its instructions itself."""

    categories: bool
    """Whether it has categories that distinguish its prompts, or any at all if there is no rater."""
    complexities: bool
    """Whether it has difficulties."""

    @classmethod
    def of(cls, prompts: Sequence[Prompt], config: FineGrainedConfig) -> "Brought":
        """What these prompts bring."""
        named = {prompt.category for prompt in prompts} - {None}
        return cls(len(named) > (config.model is not None), any(prompt.difficulty is not None for prompt in prompts))

    @property
    def everything(self) -> bool:
        """Whether there is nothing to ask a rater for."""
        return self.categories and self.complexities


@stage_task("rate", run_name="rate {folder}")
def rate(config: RunConfig, folder: str, prompts: Artifact) -> Artifact:
    """The ratings of `prompts` in their order, in the stage `folder`.

    Raises `StageError` if hardly any reply of the rater can be read.
    """
    settings = config.evaluation.fine_grained
    assert settings is not None
    rows = read_rows(prompts, Prompt)
    brought = Brought.of(rows, settings)
    stage = ratings_stage(config, folder, prompts, brought)
    if (done := stage.complete()) is not None:
        return done
    begin(stage, shard_size=config.judge_engine.shard_prompts)
    asks = settings.model is not None and not brought.everything
    shards = 1
    if asks:
        shards = _ask(config, settings, stage, rows, brought)
    else:
        stage.write_shard(0, [_merged(row, None, brought) for row in rows])
    missing = {"category": not brought.categories, "complexity": not brought.complexities}
    facts = {
        "rater": settings.rater if asks else None,
        "rated": [what for what, is_missing in missing.items() if asks and is_missing],
    }
    artifact = stage.commit(shards, account=RowCounts(len(rows), len(rows), {}), facts=facts)
    say(f"{stage.name}: {_summary(read_rows(artifact, Rating))}")
    return artifact


def _ask(config: RunConfig, settings: FineGrainedConfig, stage: Stage, rows: Sequence[Prompt], brought: Brought) -> int:
    """Has the missing shards rated; returns how many shards there are."""
    rater = build_rater(settings, config.judge_engine, config.cluster, api_tokens(config.root, "rate"))
    size = stage.shard_size or config.judge_engine.shard_prompts
    starts = range(0, len(rows), size)
    with (
        progress_bar(f"rate {stage.name}", len(rows), "prompts") as advance,
        rating_meter(config, stage.name, settings) as meter,
    ):
        for i, start in enumerate(starts):
            some = rows[start : start + size]
            if not stage.has_shard(i):
                meter.check()
                with Journal(_journal(stage.folder, i), _within(advance, start)) as journal:
                    asked = _rate(rater, some, journal, meter)
                stage.write_shard(i, [_merged(*each, brought) for each in zip(some, asked, strict=True)])
            remove(_journal(stage.folder, i))
            advance(start + len(some))
    return len(starts)


def _rate(rater: Rater, rows: Sequence[Prompt], journal: Journal, meter: Meter) -> list[Rating]:
    def spend(tokens: TokenCount) -> None:
        meter.book(answers=1, tokens_in=tokens.input_tokens, tokens_out=tokens.output_tokens)

    found = rater.rate(rows, journal, spend)
    meter.book(prompts=len(rows))
    return found


def _merged(prompt: Prompt, asked: Rating | None, brought: Brought) -> Rating:
    """What the prompt brings, otherwise what the rater says."""
    found = asked or Rating(prompt.prompt_id, None, NOT_GIVEN, None, NOT_GIVEN, "")
    if brought.categories:
        why = NOT_GIVEN if prompt.category is None else None
        found = dataclasses.replace(found, category=prompt.category, no_category=why)
    if brought.complexities:
        why = NOT_GIVEN if prompt.difficulty is None else None
        found = dataclasses.replace(found, complexity=prompt.difficulty, no_complexity=why)
    return found


def ratings_stage(config: RunConfig, folder: str, prompts: Artifact, brought: Brought) -> Stage:
    """The kinds of some prompts; how a rater is reached isn't part of the identity, nor is a rater that isn't asked."""
    settings = config.evaluation.fine_grained
    assert settings is not None
    inputs: dict[str, Artifact | External] = {"prompts": prompts}
    values: dict[str, Any] = {"categories": brought.categories, "complexities": brought.complexities}
    if settings.model is not None and not brought.everything:
        fingerprint = load_rating_prompt(settings).fingerprint
        inputs["rating templates"] = with_files(fingerprint, settings.user_template, settings.system_template)
        values["rater"] = {"max_new_tokens": settings.max_new_tokens}
        if settings.folder is not None:
            inputs["rater"] = folder_artifact(settings.folder)
            values["rater"] |= {"max_tokens": settings.max_tokens, **config.judge_engine.precision}
        else:
            values["rater"] |= {"model": settings.model}
    return Stage(config.root, folder, Rating, inputs=inputs, config=values)


def _summary(ratings: Sequence[Rating]) -> str:
    categories = {rating.category for rating in ratings} - {None}
    unknown = sum(rating.category is None for rating in ratings)
    unrated = sum(rating.complexity is None for rating in ratings)
    return (
        f"{count(len(ratings), 'prompt')} in {count(len(categories), 'category', 'categories')}; the category of "
        f"{unknown} and the complexity of {unrated} are unknown"
    )


def _journal(folder: Path, shard: int) -> Path:
    return folder / f"journal-{shard:05d}.jsonl"


def _within(advance: Advance, start: int) -> Callable[[int], None]:
    return lambda replies: advance(start + replies)
