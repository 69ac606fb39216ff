"""Preference pairs for DPO: the best and the worst output of a prompt, thoughts included, as token ids.

The arithmetic is in `tpo.method`. One choice is made here: for which prompts the rejected output is one that breaks the
format (2410.10630 says only that some are). A hash with the run's seed decides, so neither order nor category does.
Every prompt without a pair is counted, by reason.
"""

import hashlib
import itertools
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

PAIRS_AT_ONCE = 5000
"""Pairs in a shard: as many prompts as the paper's iterations have."""


class StoredCandidates:
    """Every prompt's candidates, read from the run folder a shard at a time on each pass.

    All of them at once, with their tokens, would be the largest object that the driver ever holds, and a pair needs two
    of K.
    """

    def __init__(self, answers: JudgedSamples) -> None:
        self._answers = answers

    def __iter__(self) -> Iterator[ScoredGroup]:
        """In the order of the prompts; a shard holds all samples of its prompts, and scores are in the same order."""
        scores = stream_rows(self._answers.scores, Score)
        for shard in read_shards(self._answers.samples, Sample):
            yield from group_candidates(shard, list(itertools.islice(scores, len(shard))))


@dataclass(frozen=True)
class PairChoice:
    """A pair before its tokens are read: which two of a prompt's samples it consists of."""

    prompt_id: str
    """The prompt."""
    kind: Literal["regular", "error_rejected"]
    """As `Pair.kind`."""
    chosen_index: int
    """The chosen sample."""
    rejected_index: int
    """The rejected sample."""
    chosen_score: float
    """The judge's raw score of the chosen response."""
    rejected_score: float | None
    """That of the rejected response; None for a parse error."""
    margin: float | None
    """Difference of the length-controlled scores; None for a parse error."""
    prompt_tokens: int
    """Tokens of the prompt."""
    chosen_tokens: int
    """Tokens of the chosen output."""
    rejected_tokens: int
    """Tokens of the rejected output."""

    @property
    def tokens(self) -> int:
        """Tokens of the longer output with its prompt."""
        return self.prompt_tokens + max(self.chosen_tokens, self.rejected_tokens)

    def with_tokens(self, group: ScoredGroup) -> Pair:
        """The pair, given its prompt's candidates."""
        samples = {each.sample.index: each.sample for each in (*group.valid, *group.broken)}
        chosen, rejected = samples[self.chosen_index], samples[self.rejected_index]
        return Pair(
            prompt_id=self.prompt_id,
            kind=self.kind,
            prompt_token_ids=chosen.prompt_token_ids,
            chosen_token_ids=chosen.output_token_ids,
            rejected_token_ids=rejected.output_token_ids,
            chosen_index=self.chosen_index,
            rejected_index=self.rejected_index,
            chosen_score=self.chosen_score,
            rejected_score=self.rejected_score,
            margin=self.margin,
        )


@dataclass(frozen=True)
class PairChoices:
    """The pairs of one iteration, with counts."""

    pairs: list[PairChoice]
    """In the order of the prompts."""
    account: RowCounts
    """In prompts."""
    rho: float
    """The strength of length control used."""

    def with_tokens(self, groups: Iterable[ScoredGroup]) -> Iterator[Pair]:
        """The pairs, given the candidates that they were chosen from, in the same order."""
        chosen = {pair.prompt_id: pair for pair in self.pairs}
        return (chosen[group.prompt_id].with_tokens(group) for group in groups if group.prompt_id in chosen)


@stage_task("pair", run_name="pair iteration {iteration}")
def pair(config: RunConfig, iteration: int, answers: JudgedSamples, number: int = 1) -> Artifact:
    """The preference pairs of one iteration, or of its round `number`.

    Raises `StageError` if fewer prompts than `health.min_pairs` give one, with the counts that say why.
    """
    stage = pairs_stage(config, iteration, answers, number)
    if (done := complete_or_begun(stage)) is not None:
        return done
    made = choose_pairs(config, answers)
    account = made.account
    where = f"iteration {iteration}" if config.train.rounds == 1 else f"iteration {iteration}, round {number}"
    shortage = Shortage(where, account.rows_out, account.rows_in, account.dropped)
    if shortage.is_serious(config.health.min_pairs):
        remedy = remedy_for_scored(config, account.dropped, _prompt_scores(answers))
        kept = f"what was sampled and scored is in {answers.samples.path} and {answers.scores.path}"
        raise shortage.error(config.health.min_pairs, f"{remedy} ({kept})")
    shards = stage.write_shards(made.with_tokens(StoredCandidates(answers)), PAIRS_AT_ONCE)
    artifact = stage.commit(shards, account=made.account, facts=describe(made))
    say(f"{stage.name}: {len(made.pairs)} pairs, ρ {made.rho:.2f}; dropped: {made.account.reasons()}")
    return artifact


def _prompt_scores(answers: JudgedSamples) -> Iterator[PromptScores]:
    for group in StoredCandidates(answers):
        candidates = [*group.valid, *group.broken, *group.unscored]
        yield PromptScores([c.sample for c in candidates], [c.score for c in candidates])


def choose_pairs(config: RunConfig, answers: JudgedSamples) -> PairChoices:
    """Chooses the pairs of judged samples in a run folder, by the run's config."""
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
) -> PairChoices:
    """At most one pair per prompt: regular ones, then some whose rejected output breaks the format (SPEC §1).

    With `all_agree`, all members of an ensemble have to prefer the chosen response of a regular pair. Iterates over
    `groups` twice if ρ is to be chosen.
    """
    penalty = config.thought_penalty
    rho = _smallest_rho(groups, min_margin, penalty) if config.rho == "auto" else config.rho
    found: dict[str, PairChoice] = {}
    dropped: dict[str, str] = {}
    fitting: list[PairChoice] = []
    prompts: list[str] = []
    for group in groups:
        prompts.append(group.prompt_id)
        outcome = _regular_pair(group, group.controlled(rho, penalty), min_margin, all_agree)
        if not isinstance(outcome, PairChoice):
            dropped[group.prompt_id] = outcome
        elif outcome.tokens > max_tokens:
            dropped[group.prompt_id] = "too_long"
        else:
            found[group.prompt_id] = outcome
        if group.valid and group.broken:
            with_error = _error_pair(group, group.controlled(rho, penalty))
            if with_error.tokens <= max_tokens:
                fitting.append(with_error)
    for drawn in _drawn(fitting, found.keys(), config.max_error_pair_ratio, seed):
        found[drawn.prompt_id] = drawn
        dropped.pop(drawn.prompt_id, None)
    pairs = [found[prompt] for prompt in prompts if prompt in found]
    return PairChoices(pairs, RowCounts(len(prompts), len(pairs), dict(Counter(dropped.values()))), rho)


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


def describe(made: PairChoices) -> Mapping[str, float]:
    """Facts for the report."""
    regular = [pair for pair in made.pairs if pair.kind == "regular"]
    return {
        "rho": made.rho,
        "regular": len(regular),
        "error_rejected": len(made.pairs) - len(regular),
        "mean_margin": float(np.mean([pair.margin for pair in regular])) if regular else 0.0,
        "mean_chosen_tokens": float(np.mean([pair.chosen_tokens for pair in made.pairs])),
        "mean_rejected_tokens": float(np.mean([pair.rejected_tokens for pair in made.pairs])),
    }


def _regular_pair(
    group: ScoredGroup, controlled: NDArray[np.float64], min_margin: float, all_agree: bool
) -> PairChoice | str:
    """The group's pair of valid candidates, or why it has none."""
    indices = pair_indices(group, controlled, min_margin, all_agree=all_agree)
    if isinstance(indices, str):
        return indices
    chosen, rejected = indices
    return _choice(
        group.valid[chosen],
        group.valid[rejected],
        kind="regular",
        margin=float(controlled[chosen] - controlled[rejected]),
    )


def _error_pair(group: ScoredGroup, controlled: NDArray[np.float64]) -> PairChoice:
    """The group's best valid candidate, and its first output that breaks the format as rejected."""
    best = min(range(len(group.valid)), key=lambda i: (-round(float(controlled[i]), 9), group.lengths[i], i))
    return _choice(group.valid[best], group.broken[0], kind="error_rejected", margin=None)


def _drawn(with_error: Sequence[PairChoice], regular: Set[str], share: float, seed: int) -> list[PairChoice]:
    """The pairs with a format error as rejected that are used: some replace regular pairs, others are added."""
    lots = sorted(with_error, key=lambda pair: _lot(pair.prompt_id, seed))
    within = [pair for pair in lots if pair.prompt_id in regular]
    outside = [pair for pair in lots if pair.prompt_id not in regular]
    replaced, added = error_quota(len(regular), len(within), len(outside), share)
    return within[:replaced] + outside[:added]


def _lot(prompt_id: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {prompt_id}".encode()).hexdigest()


def _choice(
    chosen: ScoredSample, rejected: ScoredSample, *, kind: Literal["regular", "error_rejected"], margin: float | None
) -> PairChoice:
    assert chosen.score.value is not None
    return PairChoice(
        prompt_id=chosen.sample.prompt_id,
        kind=kind,
        chosen_index=chosen.sample.index,
        rejected_index=rejected.sample.index,
        chosen_score=chosen.score.value,
        rejected_score=rejected.score.value,
        margin=margin,
        prompt_tokens=len(chosen.sample.prompt_token_ids),
        chosen_tokens=len(chosen.sample.output_token_ids),
        rejected_tokens=len(rejected.sample.output_token_ids),
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
