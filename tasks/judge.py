"""Judging of samples. Judgments are stored apart from the scores computed from them, one score per sample or the reason
for none.

The judge's health is in the manifest of the scores. If it's beyond a limit on training samples, the run stops before
training on them; all judgments are kept.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from judges.base import Group, Judge, Spend, uncounted
from judges.ensemble import Ensemble
from judges.health import HealthMeter, check_health, describe_health, health_meter
from judges.registry import build_judge
from tasks.handles import JudgedSamples, JudgeInput, SamplingSpec
from tasks.judge_ahead import JudgedAhead, judge_shards, remove_judged_ahead
from tasks.judge_stages import judgments_stage, scores_stage, shards_together
from tasks.spending import api_tokens, booking, judging_meter
from tasks.stage import begin, stage_task
from tasks.stored_groups import PromptRows, StoredGroups
from tpo.config.judges import (
    EnsembleJudge,
    EnsembleMember,
    JudgeConfig,
    PairwiseJudge,
    RubricJudge,
    SingleJudge,
    VerifierJudge,
    members_of,
)
from tpo.config.run import RunConfig
from tpo.console import Advance, progress_bar, say
from tpo.records import Artifact, JudgeHealth, Judgment, RowCounts, Sample, SampledResponse, Score
from tpo.storage.disk import remove
from tpo.storage.journal import JOURNALS, Journal
from tpo.storage.store import read_shards, stream_rows


@stage_task("judge", run_name="judge {spec.folder}")
def judge(
    config: RunConfig, spec: SamplingSpec, samples: Artifact, prompts: Artifact, baseline: Artifact | None = None
) -> JudgedSamples:
    """Scores of `samples` by the judge that `spec` names.

    Raises `StageError` if the judge of training samples is beyond a limit of `config.health`.
    """
    submitted = JudgeInput(samples, prompts, baseline)
    if (done := judged_already(config, spec, submitted)) is not None:
        return done
    judgments = judgments_stage(config, spec, submitted).complete()
    groups = StoredGroups(spec, submitted)
    judge_ = build_judge(
        spec.judge,
        config.judge_engine,
        config.cluster,
        api_tokens(config.root),
        lambda server: api_tokens(config.root, server=server),
    )
    if judgments is None:
        judgments = _make_judgments(config, spec, submitted, groups, judge_)
    stage = scores_stage(config, spec, submitted, judgments)
    stage.begin()
    meter = health_meter(judge_, config.evaluation.judge)
    shards = stage.write_shards(_stored_scores(samples, groups, judgments, judge_, meter))
    health = meter.health()
    if spec.purpose == "train":
        check_health(health, config.health, stage.name, exact=isinstance(spec.judge, VerifierJudge))
        if isinstance(spec.judge, EnsembleJudge):
            _check_members(config, spec.judge, health, stage.name)
    facts = {"health": dataclasses.asdict(health)}
    artifact = stage.commit(shards, account=RowCounts(samples.rows, samples.rows, {}), facts=facts)
    say(f"{stage.name}: {describe_health(health)}")
    remove_judged_ahead(config, spec)
    return JudgedSamples(samples, artifact)


def judged_already(config: RunConfig, spec: SamplingSpec, submitted: JudgeInput) -> JudgedSamples | None:
    """The scores of what is submitted if they are there, otherwise None; the judge isn't needed."""
    judgments = judgments_stage(config, spec, submitted).complete()
    scores = None if judgments is None else scores_stage(config, spec, submitted, judgments).complete()
    return None if scores is None else JudgedSamples(submitted.samples, scores)


def _stored_scores(
    samples: Artifact, groups: StoredGroups, judgments: Artifact, judge_: Judge, meter: HealthMeter
) -> Iterator[Score]:
    """One score per sample, in the samples' order, while `meter` measures the judge's health."""
    stored = PromptRows(stream_rows(judgments, Judgment))
    for shard in read_shards(samples, SampledResponse):
        some = groups.of(shard)
        rows = [judgment for group in some for judgment in stored.of(group.prompt_id)]
        scores = make_scores(shard, some, rows, judge_)
        meter.add(some, rows, scores)
        yield from scores


def _check_members(config: RunConfig, judge: EnsembleJudge, health: JudgeHealth, stage: str) -> None:
    for member in judge.members:
        if member.name in health.members:
            name = f"{stage}, the member {member.name}"
            own = JudgeHealth(**health.members[member.name])
            check_health(own, config.health, name, exact=isinstance(member.judge, VerifierJudge))


def make_scores(
    samples: Iterable[Sample | SampledResponse],
    groups: Sequence[Group],
    judgments: Sequence[Judgment],
    judge_: Judge,
) -> list[Score]:
    """One score per sample, in the samples' order; a sample that wasn't judged is unscored because of its parse
    error."""
    by_prompt: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        by_prompt.setdefault(judgment.prompt_id, []).append(judgment)
    scored = {
        (score.prompt_id, score.index): score
        for group in groups
        for score in judge_.score(group, by_prompt.get(group.prompt_id, []))
    }
    return [
        scored.get((sample.prompt_id, sample.index))
        or Score(
            prompt_id=sample.prompt_id,
            index=sample.index,
            value=None,
            unscored=f"parse_error: {sample.parse_error}",
            correct=None,
            response_chars=len(sample.response),
        )
        for sample in samples
    ]


def _make_judgments(
    config: RunConfig, spec: SamplingSpec, submitted: JudgeInput, groups: StoredGroups, judge_: Judge
) -> Artifact:
    stage = judgments_stage(config, spec, submitted)
    begin(stage, shard_size=config.judge_engine.shard_prompts)
    size = stage.shard_size or config.judge_engine.shard_prompts
    starts = range(0, len(groups), size)
    with progress_bar(f"judge {spec.folder}", len(groups), "prompts") as advance, ExitStack() as stack:
        meter = None
        if isinstance(judge_, Ensemble):
            # Members differ in devices and prices, so each has its own meter, open while it works.
            judge_.book_with(lambda member, asked: _member_meter(config, stage.name, spec.judge, member, asked))
        else:
            meter = stack.enter_context(judging_meter(config, stage.name, spec.judge))
        missing = [i for i in range(len(starts)) if not stage.has_shard(i)]
        ahead = JudgedAhead(config, spec, submitted, groups)
        if meter is not None and (begun := ahead.begun()):
            judge_shards(judge_, begun, meter)
        done = len(groups) - sum(min(size, len(groups) - starts[i]) for i in missing)
        together = shards_together(config, spec.judge, groups.between(0, size))
        for path, block in _blocks(stage.folder, missing, together):
            if meter is not None:
                meter.check()
            shards = {i: groups.between(starts[i], starts[i] + size) for i in block}
            known = ahead.judgments(starts[block[0]], starts[block[-1]] + size)
            asked = [group for shard in shards.values() for group in shard if group.prompt_id not in known]
            # Judges note replies in a journal, so that a resumed run repeats no call.
            with Journal(path, _within(advance, done, asked, spec.judge)) as journal:
                judged = judge_.judge(asked, journal, uncounted if meter is None else booking(meter))
                for i in block:
                    rows = [row for group in shards[i] for row in known.get(group.prompt_id) or next(judged)]
                    if meter is not None:
                        # Model judges report usage as they go; the verifier does not, so its answers are booked here.
                        booked = len(rows) if isinstance(spec.judge, VerifierJudge) else 0
                        meter.book(prompts=sum(group.prompt_id not in known for group in shards[i]), answers=booked)
                    stage.write_shard(i, rows)
            remove(path)
            done += sum(map(len, shards.values()))
            advance(done)
    return stage.commit(len(starts))


def _blocks(folder: Path, missing: Sequence[int], together: int) -> Iterator[tuple[Path, Sequence[int]]]:
    """The shards to judge, some together, each time with the journal of their replies, which has their first and last
    number in its name. What an earlier call left unfinished comes first, with the same shards together."""
    rest = list(missing)
    for path in sorted(folder.glob(JOURNALS)):
        numbers = [int(number) for number in path.stem.split("-")[1:]]
        block = [i for i in rest if numbers[0] <= i <= numbers[-1]]
        rest = [i for i in rest if i not in block]
        if block:
            yield path, block
        else:
            remove(path)
    for start in range(0, len(rest), together):
        block = rest[start : start + together]
        yield folder / f"journal-{block[0]:05d}-{block[-1]:05d}.jsonl", block


@contextmanager
def _member_meter(
    config: RunConfig, stage: str, judge: JudgeConfig, member: EnsembleMember, asked: Sequence[Group]
) -> Iterator[Spend]:
    """Books what a member of an ensemble does with a shard's groups; prompts are the first member's, lest they count
    more than once."""
    assert isinstance(judge, EnsembleJudge)
    with judging_meter(config, stage, member.judge) as meter:
        meter.check()
        yield booking(meter)
        exact = isinstance(member.judge, VerifierJudge)
        meter.book(
            prompts=len(asked) if member is judge.members[0] else 0,
            answers=sum(len(group.responses) for group in asked) if exact else 0,
        )


def _within(advance: Advance, start: int, shard: Sequence[Group], judge: JudgeConfig) -> Callable[[int], None]:
    """Reports a shard's progress as the share of all possible replies received so far."""

    def most(k: int) -> int:
        return max(1, sum(_most_replies(member, k) for member in members_of(judge)))

    replies = sum(most(len(group.responses)) for group in shard)
    return lambda answers: advance(start + min(len(shard), len(shard) * answers // replies))


def _most_replies(judge: SingleJudge, k: int) -> int:
    if isinstance(judge, PairwiseJudge):
        return k * (k - 1)
    return k * judge.samples if isinstance(judge, RubricJudge) else 0
