"""Win rates by kind of prompt, from ratings of the prompts and from who won each of them."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tasks.estimates import Estimator, grouped, outcome, values_of
from tasks.handles import JudgedSamples
from tpo.config.judges import compares, judge_name
from tpo.config.run import RunConfig
from tpo.method.stats import mean
from tpo.records import Artifact, Prompt, Rating
from tpo.report.summary import FineGrained, Interval, KindRow
from tpo.storage.store import read_manifest, read_rows


def with_kinds(prompts: Sequence[Prompt], ratings: Artifact | None) -> list[Prompt]:
    """The prompts with the category and the complexity, as difficulty, of their ratings; unchanged without any."""
    if ratings is None:
        return list(prompts)
    rated = {rating.prompt_id: rating for rating in read_rows(ratings, Rating)}
    return [
        dataclasses.replace(
            prompt, category=rated[prompt.prompt_id].category, difficulty=rated[prompt.prompt_id].complexity
        )
        for prompt in prompts
    ]


def wins_of(config: RunConfig, test: JudgedSamples, other: JudgedSamples) -> dict[str, float]:
    """By prompt, 1 if the answer in `test` won, 0 if it lost, one half for a tie; what isn't scored for both is left
    out. A judge that compares has compared them with `other` already."""
    ours = values_of(test)
    if compares(config.evaluation.judge):
        return ours
    theirs = values_of(other)
    return {key: outcome(value, theirs[key]) for key, value in ours.items() if key in theirs}


def by_kind(
    config: RunConfig, prompts: Artifact, ratings: Artifact, wins: Mapping[str, Mapping[str, float]], *, against: str
) -> FineGrained:
    """Win rates by kind of prompt, from who won each prompt, by model."""
    settings, manifest = config.evaluation.fine_grained, read_manifest(ratings.path)
    assert settings is not None and manifest is not None
    rated = read_rows(ratings, Rating)
    rows, estimate = with_kinds(read_rows(prompts, Prompt), ratings), Estimator(config.evaluation.confidence)
    return FineGrained(
        against=against,
        judge=judge_name(config.evaluation.judge),
        rater=manifest.facts["rater"],
        rated=manifest.facts["rated"],
        prompts=len(rows),
        no_category=dict(Counter(rating.no_category for rating in rated if rating.no_category is not None)),
        no_complexity=dict(Counter(rating.no_complexity for rating in rated if rating.no_complexity is not None)),
        min_prompts=settings.min_prompts,
        confidence=config.evaluation.confidence,
        rows=[kind_row(model, won, rows, estimate) for model, won in wins.items()],
    )


def kind_row(model: str, won: Mapping[str, float], prompts: Sequence[Prompt], estimate: Estimator) -> KindRow:
    """One model's win rates, by the category and the difficulty of `prompts`."""

    def over(is_in: Callable[[Prompt], bool]) -> Interval | None:
        return estimate(mean, [won[each.prompt_id] for each in prompts if each.prompt_id in won and is_in(each)])

    return KindRow(
        model=model,
        overall=over(lambda _: True),
        by_category=grouped(estimate, won, prompts, lambda prompt: prompt.category),
        by_complexity=grouped(estimate, won, prompts, lambda prompt: prompt.difficulty),
        no_category=over(lambda prompt: prompt.category is None),
        no_complexity=over(lambda prompt: prompt.difficulty is None),
    )
