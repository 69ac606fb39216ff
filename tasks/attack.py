"""Attacks on a run's own judge before its first training: would it be won over by what training could learn?

M_0's best and worst responses to a prompt, by this very judge, are a pair; each attack (`judges.attacks`) is put on the
worse one. The judge then scores every pair with and without the attack, as it scores a run's samples: replies are
journaled and spending is booked. Pairs that it doesn't order alike a second time count in no share.

Whether a response is better is the judge's own opinion here. So the shares say how easily its order is turned around,
not whether the order was right: `min_reference_agreement` and `make judge-check` say that.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from judges.attacks import attacks_on, drawn
from judges.health import is_beyond
from tasks.handles import JudgedSamples, JudgeInput, SamplingSpec
from tasks.judge_numbers import Attacked, Opinions, attack_rows
from tasks.preferences import store_preferences
from tasks.stage import begin, stage_task
from tpo.config.judges import JudgeConfig, least_margin, scores_alone
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.data.preference_files import Preference
from tpo.errors import StageError
from tpo.records import Artifact, AttackShare, Judgment, Prompt, RowCounts, Sample, Score
from tpo.report.judge_check import AttackRow
from tpo.report.table import PERCENT
from tpo.storage.store import Stage, complete_artifact, read_rows, stream_rows


@stage_task("attack", run_name="attacks for {folder}")
def attack(config: RunConfig, folder: str, prompts: Artifact, answers: JudgedSamples) -> JudgeInput:
    """Pairs of `answers` to `prompts`, as they are and attacked, for the judge to score."""
    return store_preferences(config.root, folder, asked_about(_attacked(config, prompts, answers), plain_too=True))


@stage_task("withstand", run_name="shares of {folder}")
def withstand(
    config: RunConfig,
    folder: str,
    prompts: Artifact,
    answers: JudgedSamples,
    judged: JudgedSamples,
) -> list[AttackShare]:
    """The share of the pairs that each kind of attack turned around, from what the judge said of the pairs.

    Raises `StageError` if one is beyond `health.max_attacked`.
    """
    stage = shares_stage(config, folder, judged)
    if (done := stage.complete()) is None:
        attacked = _attacked(config, prompts, answers)
        judgments = complete_artifact(config.root / folder / "judgments")
        said = Opinions(read_rows(judgments, Judgment), read_rows(judged.scores, Score))
        shares = [_as_share(kind, row) for kind, row in attack_rows(attacked, said, said).items()]
        begin(stage)
        stage.write_shard(0, shares)
        done = stage.commit(1, account=RowCounts(len(shares), len(shares), {}))
    shares = read_rows(done, AttackShare)
    say(f"{stage.name}: {describe_attacks(shares)}")
    check_attacks(shares, config.health.max_attacked, stage.name)
    return shares


def _as_share(kind: str, row: AttackRow) -> AttackShare:
    if (found := row.turned) is None:
        return AttackShare(kind, row.about, None, None, None, 0, row.unscored)
    return AttackShare(kind, row.about, found.value, found.low, found.high, found.n, row.unscored)


def attack_spec(config: RunConfig, folder: str) -> SamplingSpec:
    """The judging of the attacked pairs, by the run's judge."""
    return SamplingSpec(folder, "evaluate", config.prompt, config.judge, config.sample)


def shares_stage(config: RunConfig, folder: str, judged: JudgedSamples) -> Stage:
    """What the attacks did; the limit isn't part of it, so that another limit asks the judge nothing again."""
    inputs = {"samples": judged.samples, "scores": judged.scores}
    return Stage(config.root, f"{folder}/shares", AttackShare, inputs=inputs, config={})


def attacked_pairs(judge: JudgeConfig, rows: Iterable[Preference], *, plain_too: bool) -> list[Attacked]:
    """Each prompt's first better response against its first worse one, attacked in every kind of way.

    A judge that scores each response alone sees a prompt's better response once, with all attacks; others see each
    pair by itself. `plain_too` says whether it is to see the rows without attacks, too, rather than having seen them.
    Prompts of RewardBench 2's ties are left out.
    """
    attacks, alone = attacks_on(judge), scores_alone(judge)
    found = []
    for row in rows:
        if row.counts_ties:
            continue
        texts = [(each, each.rewrite(row.instruction, row.worse[0])) for each in drawn(attacks, row.key)]
        pairs = [
            (each, replace(row, better=row.better[:1], worse=(text,), name=None))
            for each, text in texts
            if text not in row.better
        ]
        shown = [*(row.worse if plain_too else ()), *(pair.worse[0] for _, pair in pairs)]
        together = replace(row, worse=tuple(dict.fromkeys(shown)), name=None)
        found += [
            Attacked(row, each, pair, together if alone and plain_too else row, together if alone else pair)
            for each, pair in pairs
        ]
    return found


def asked_about(attacked: Sequence[Attacked], *, plain_too: bool) -> list[Preference]:
    """What the judge is asked about, each once: what it sees the attacks in and, with `plain_too`, the rows without."""
    asked = [row for each in attacked for row in ((each.plain_in, each.pair_in) if plain_too else (each.pair_in,))]
    return list({row.key: row for row in asked}.values())


def best_and_worst(
    prompts: Iterable[Prompt], samples: Iterable[Sample], scores: Iterable[Score], margin: float
) -> Iterator[Preference]:
    """The best and the worst response of each prompt, if they differ by at least `margin` and by more than nothing.

    `samples` and `scores` are in the same order, prompt by prompt; prompts without such responses have no pair.
    """
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    for prompt_id, both in itertools.groupby(zip(samples, scores, strict=True), lambda pair: pair[0].prompt_id):
        known = [
            (score.value, sample.response)
            for sample, score in both
            if score.value is not None and sample.parse_error is None
        ]
        if not known:
            continue
        (high, better), (low, worse) = max(known, key=lambda one: one[0]), min(known, key=lambda one: one[0])
        if high > low and high - low >= margin and better != worse:
            asked = by_id[prompt_id]
            yield Preference(
                asked.instruction,
                (better,),
                (worse,),
                history=asked.history,
                reference=asked.reference,
                constraints=asked.constraints,
                rubric=asked.rubric,
            )


def _attacked(config: RunConfig, prompts: Artifact, answers: JudgedSamples) -> Sequence[Attacked]:
    pairs = best_and_worst(
        stream_rows(prompts, Prompt),
        stream_rows(answers.samples, Sample),
        stream_rows(answers.scores, Score),
        least_margin(config.pair, config.judge),
    )
    return attacked_pairs(config.judge, itertools.islice(pairs, config.health.attacked_prompts), plain_too=True)


def check_attacks(shares: Sequence[AttackShare], maximum: float | None, stage: str) -> None:
    """Raises `StageError` if a kind of attack turned around more than `maximum` of the pairs: of fewer than 30 pairs,
    more than by chance."""
    if maximum is None:
        return
    won = [each for each in shares if each.turned is not None and is_beyond(each.turned, each.pairs, maximum)]
    if not won:
        return
    won.sort(key=lambda each: -(each.turned or 0.0))
    listed = "; ".join(f"{_name(each)} ({each.about}) turns around {_share(each)}" for each in won)
    raise StageError(
        f"{stage}: the judge can be won over: {listed}, and health.max_attacked allows at most {maximum:g}. Nothing "
        f"was trained on its judgments, which are kept: {_remedy(won)}, or raise the limit; make judge-check ATTACK=1 "
        "compares judges on your preferences"
    )


def describe_attacks(shares: Sequence[AttackShare]) -> str:
    """One line for the terminal."""
    known, unscored = [each for each in shares if each.turned is not None], sum(each.unscored for each in shares)
    if not known and unscored:
        return f"the judge gave none of {unscored} attacked pairs two scores, so nothing is known"
    if not known:
        return "no pair of responses could be attacked: the judge gave no prompt's responses different scores"
    worst = max(known, key=lambda each: each.turned or 0.0)
    more = f"; {unscored} attacked pairs unscored" if unscored else ""
    return f"{len(known)} kinds of attack on the judge; at most, {_name(worst)} turns around {_share(worst)}{more}"


def _name(share: AttackShare) -> str:
    return share.attack.replace("_", " ")


def _share(share: AttackShare) -> str:
    low, high = (PERCENT.number(each) for each in (share.low, share.high))
    return f"{PERCENT.number(share.turned)} % [{low}, {high}] of {share.pairs} pairs"


def _remedy(won: Sequence[AttackShare]) -> str:
    """What helps against the attack that does most."""
    if won[0].attack == "length":
        return "take a judge that doesn't pay for length, or make it a member of an ensemble with one that doesn't"
    if won[0].attack in ("null_model", "master_key"):
        return "take a judge that sees that there is no answer, or an ensemble in which one that does has a veto"
    return "take a judge that withstands it, or make it a member of an ensemble with one that does"
