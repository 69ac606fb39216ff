"""Preference pairs for DPO: the best and the worst output of a prompt, thoughts included, as token ids.

The arithmetic is in `tpo.method`. One choice is made here: for which prompts the rejected output is one that breaks the
format (2410.10630 says only that some are). A hash with the run's seed decides, so neither order nor category does.
Every prompt without a pair is counted, by reason.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.candidates import ScoredGroup, ScoredSample, group_candidates, pair_indices
from tasks.handles import JudgedSamples, round_folder
from tasks.shortage import PromptScores, Shortage, remedy_for_scored
from tasks.stage import complete_or_begun, stage_task
from tpo.config.judges import (
    PairConfig,
    least_margin,
    pairs_need_agreement,
)
from tpo.config.renamed import as_noted
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.method.pairing import error_quota, has_margin
from tpo.method.scoring import choose_rho
from tpo.records import Artifact, Pair, RowCounts, Sample, Score
from tpo.storage.store import Stage, read_shards, stream_rows


class StoredCandidates:
    """Every prompt's candidates, read from the run folder a shard at a time on each pass.

    All of them at once, with their tokens, would be the largest object that the driver ever holds, and a pair needs two
    of K.
    """

    def __init__(self, answers: JudgedSamples) -> None:
        self._samples = answers.samples
        self._scores: dict[str, list[Score]] = {}
        for score in stream_rows(answers.scores, Score):
            self._scores.setdefault(score.prompt_id, []).append(score)

    def __iter__(self) -> Iterator[ScoredGroup]:
        """In the order of the prompts; a shard holds all samples of its prompts."""
        for shard in read_shards(self._samples, Sample):
            prompts = dict.fromkeys(sample.prompt_id for sample in shard)
            yield from group_candidates(shard, [score for prompt in prompts for score in self._scores[prompt]])


@dataclass(frozen=True)
class Pairs:
    """The pairs of one iteration, with counts."""

    pairs: list[Pair]
    """In the order of the prompts."""
    account: RowCounts
    """In prompts."""
    rho: float
    """The strength of length control used."""


@stage_task("pair", run_name="pair iteration {iteration}")
def pair(config: RunConfig, iteration: int, answers: JudgedSamples, number: int = 1) -> Artifact:
    """The preference pairs of one iteration, or of its round `number`.

    Raises `StageError` if fewer prompts than `health.min_pairs` give one, with the counts that say why.
    """
    stage = pairs_stage(config, iteration, answers, number)
    if (done := complete_or_begun(stage)) is not None:
        return done
    made = pairs_of(config, answers)
    account = made.account
    where = f"iteration {iteration}" if config.train.rounds == 1 else f"iteration {iteration}, round {number}"
    shortage = Shortage(where, account.rows_out, account.rows_in, account.dropped)
    if shortage.is_serious(config.health.min_pairs):
        remedy = remedy_for_scored(config, account.dropped, _prompt_scores(answers))
        kept = f"what was sampled and scored is in {answers.samples.path} and {answers.scores.path}"
        raise shortage.error(config.health.min_pairs, f"{remedy} ({kept})")
    stage.write_shard(0, made.pairs)
    artifact = stage.commit(1, account=made.account, facts=describe(made))
    say(f"{stage.name}: {len(made.pairs)} pairs, ρ {made.rho:.2f}; dropped: {made.account.reasons()}")
    return artifact


def _prompt_scores(answers: JudgedSamples) -> Iterator[PromptScores]:
    for group in StoredCandidates(answers):
        candidates = [*group.valid, *group.broken, *group.unscored]
        yield PromptScores([c.sample for c in candidates], [c.score for c in candidates])


def pairs_of(config: RunConfig, answers: JudgedSamples) -> Pairs:
    """The pairs of judged samples in a run folder, by the run's config."""
    return make_pairs(
        StoredCandidates(answers),
        config.pair,
        min_margin=least_margin(config.pair, config.judge),
        max_tokens=config.train.max_tokens,
        seed=config.seed,
        all_agree=pairs_need_agreement(config.judge),
    )


def make_pairs(
    groups: Iterable[ScoredGroup],
    config: PairConfig,
    *,
    min_margin: float,
    max_tokens: int,
    seed: int,
    all_agree: bool = False,
) -> Pairs:
    """At most one pair per prompt: regular ones, then some whose rejected output breaks the format (SPEC §1).

    With `all_agree`, all members of an ensemble have to prefer the chosen response of a regular pair. Iterates over
    `groups` twice if ρ is to be chosen.
    """
    penalty = config.thought_penalty
    rho = _smallest_rho(groups, min_margin, penalty) if config.rho == "auto" else config.rho
    found: dict[str, Pair] = {}
    dropped: dict[str, str] = {}
    fitting: list[Pair] = []
    prompts: list[str] = []
    for group in groups:
        prompts.append(group.prompt_id)
        outcome = _regular_pair(group, group.controlled(rho, penalty), min_margin, all_agree)
        if not isinstance(outcome, Pair):
            dropped[group.prompt_id] = outcome
        elif _tokens(outcome) > max_tokens:
            dropped[group.prompt_id] = "too_long"
        else:
            found[group.prompt_id] = outcome
        if group.valid and group.broken:
            with_error = _error_pair(group, group.controlled(rho, penalty))
            if _tokens(with_error) <= max_tokens:
                fitting.append(with_error)
    for drawn in _drawn(fitting, found.keys(), config.max_error_pair_ratio, seed):
        found[drawn.prompt_id] = drawn
        dropped.pop(drawn.prompt_id, None)
    pairs = [found[prompt] for prompt in prompts if prompt in found]
    return Pairs(pairs, RowCounts(len(prompts), len(pairs), dict(Counter(dropped.values()))), rho)


def _smallest_rho(groups: Iterable[ScoredGroup], min_margin: float, thought_penalty: float) -> float:
    """The strength of length control chosen on the groups that can make a pair."""
    spread = [
        (group.scores, group.lengths, group.thoughts)
        for group in groups
        if has_margin(group.scores, min_margin) and not group.is_tied
    ]
    return choose_rho(
        [scores for scores, _, _ in spread],
        [lengths for _, lengths, _ in spread],
        thoughts=[thoughts for _, _, thoughts in spread],
        thought_penalty=thought_penalty,
    )


def describe(made: Pairs) -> Mapping[str, float]:
    """Facts for the report."""
    regular = [pair for pair in made.pairs if pair.kind == "regular"]
    return {
        "rho": made.rho,
        "regular": len(regular),
        "error_rejected": len(made.pairs) - len(regular),
        "mean_margin": float(np.mean([pair.margin for pair in regular])) if regular else 0.0,
        "mean_chosen_tokens": float(np.mean([len(pair.chosen_token_ids) for pair in made.pairs])),
        "mean_rejected_tokens": float(np.mean([len(pair.rejected_token_ids) for pair in made.pairs])),
    }


def _regular_pair(
    group: ScoredGroup, controlled: NDArray[np.float64], min_margin: float, all_agree: bool
) -> Pair | str:
    """The group's pair of valid candidates, or why it has none."""
    indices = pair_indices(group, controlled, min_margin, all_agree=all_agree)
    if isinstance(indices, str):
        return indices
    chosen, rejected = indices
    return _make_pair(
        group.valid[chosen],
        group.valid[rejected],
        kind="regular",
        margin=float(controlled[chosen] - controlled[rejected]),
    )


def _error_pair(group: ScoredGroup, controlled: NDArray[np.float64]) -> Pair:
    """The group's best valid candidate, and its first output that breaks the format as rejected."""
    best = min(range(len(group.valid)), key=lambda i: (-round(float(controlled[i]), 9), group.lengths[i], i))
    return _make_pair(group.valid[best], group.broken[0], kind="error_rejected", margin=None)


def _drawn(with_error: Sequence[Pair], regular: Set[str], share: float, seed: int) -> list[Pair]:
    """The pairs with a format error as rejected that are used: some replace regular pairs, others are added."""
    lots = sorted(with_error, key=lambda pair: _lot(pair.prompt_id, seed))
    within = [pair for pair in lots if pair.prompt_id in regular]
    outside = [pair for pair in lots if pair.prompt_id not in regular]
    replaced, added = error_quota(len(regular), len(within), len(outside), share)
    return within[:replaced] + outside[:added]


def _tokens(pair: Pair) -> int:
    return len(pair.prompt_token_ids) + max(len(pair.chosen_token_ids), len(pair.rejected_token_ids))


def _lot(prompt_id: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {prompt_id}".encode()).hexdigest()


def _make_pair(
    chosen: ScoredSample, rejected: ScoredSample, *, kind: Literal["regular", "error_rejected"], margin: float | None
) -> Pair:
    assert chosen.score.value is not None
    return Pair(
        prompt_id=chosen.sample.prompt_id,
        kind=kind,
        prompt_token_ids=chosen.sample.prompt_token_ids,
        chosen_token_ids=chosen.sample.output_token_ids,
        rejected_token_ids=rejected.sample.output_token_ids,
        chosen_index=chosen.sample.index,
        rejected_index=rejected.sample.index,
        chosen_score=chosen.score.value,
        rejected_score=rejected.score.value,
        margin=margin,
    )


def pairs_stage(config: RunConfig, iteration: int, answers: JudgedSamples, number: int = 1) -> Stage:
    """Preference pairs of one iteration, or of one of its rounds."""
    return Stage(
        config.root,
        f"{round_folder(config, iteration, number)}/pairs",
        Pair,
        inputs={"samples": answers.samples, "scores": answers.scores},
        config={
            "seed": config.seed,
            "pair": as_noted(config.pair, exclude={"replay_share"})
            | {"min_margin": least_margin(config.pair, config.judge)},
            "max_tokens": config.train.max_tokens,
            **({"agreement": "all"} if pairs_need_agreement(config.judge) else {}),
        },
    )
