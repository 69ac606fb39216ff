"""Judging of samples. Judgments are stored apart from the scores computed from them, one score per sample or the reason
for none.

The judge's health is in the manifest of the scores. If it's beyond a limit on training samples, the run stops before
training on them; all judgments are kept.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from judges.base import Group, Judge, Spend, groups_of, uncounted
from judges.ensemble import Ensemble
from judges.health import HealthMeter, check_health, describe_health, health_meter
from judges.registry import build_judge
from prompts.rubric import load_rubric_prompt
from prompts.verdict import load_verdict_prompt
from tasks.handles import JudgedSamples, JudgeInput, SamplingSpec, with_files
from tasks.spending import api_tokens, judging_meter
from tasks.stage import begin, stage_task
from tpo.config.judges import (
    EnsembleJudge,
    EnsembleMember,
    GenerativeJudge,
    JudgeConfig,
    PairwiseJudge,
    RubricJudge,
    SingleJudge,
    VerifierJudge,
    compares,
    members_of,
)
from tpo.config.run import RunConfig
from tpo.console import Advance, progress_bar, say
from tpo.records import Artifact, External, JudgeHealth, Judgment, Prompt, RowCounts, Sample, SampledResponse, Score
from tpo.storage.disk import remove
from tpo.storage.journal import JOURNALS, Journal
from tpo.storage.ledger import Meter
from tpo.storage.store import (
    Stage,
    folder_artifact,
    read_shards,
    stream_rows,
)

FILLED = 4
"""How many times the engines or calls of a judge are filled by the responses that are judged together."""
_OF_SCORES = frozenset({"ridge", "length_bias", "weight", "unit", "veto_below", "combine"})
"""Settings of judges that change scores and not judgments."""


@stage_task("judge", run_name="judge {spec.folder}")
def judge(
    config: RunConfig, spec: SamplingSpec, samples: Artifact, prompts: Artifact, baseline: Artifact | None = None
) -> JudgedSamples:
    """Scores of `samples` by the judge that `spec` names.

    Raises `StageError` if the judge of training samples is beyond a limit of `config.health`.
    """
    submitted = JudgeInput(samples, prompts, baseline)
    judgments = judgments_stage(config, spec, submitted).complete()
    if judgments is not None:
        done = scores_stage(config, spec, submitted, judgments).complete()
        if done is not None:
            return JudgedSamples(samples, done)
    groups = StoredGroups(submitted, with_errors=spec.purpose == "evaluate", compares_=compares(spec.judge))
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
    return JudgedSamples(samples, artifact)


class StoredGroups:
    """The groups of some samples, read from the run folder as they are needed: a shard's, or those at some positions.

    A shard of samples has all samples of its prompts, in the prompts' order.
    """

    def __init__(self, submitted: JudgeInput, *, with_errors: bool, compares_: bool) -> None:
        self._samples = submitted.samples
        self._with_errors = with_errors
        self._prompts = {prompt.prompt_id: prompt for prompt in stream_rows(submitted.prompts, Prompt)}
        against = stream_rows(submitted.baseline, SampledResponse) if submitted.baseline and compares_ else ()
        self._baseline = {sample.prompt_id: sample for sample in against}
        self._starts = [0]
        for shard in read_shards(self._samples, SampledResponse):
            judged = {sample.prompt_id for sample in shard if with_errors or sample.parse_error is None}
            self._starts.append(self._starts[-1] + len(judged))

    def __len__(self) -> int:
        return self._starts[-1]

    def of(self, shard: Sequence[SampledResponse]) -> list[Group]:
        """The groups of a shard of samples."""
        prompts = dict.fromkeys(sample.prompt_id for sample in shard)
        baseline = [self._baseline[prompt] for prompt in prompts if prompt in self._baseline]
        rows = [self._prompts[prompt] for prompt in prompts if prompt in self._prompts]
        return groups_of(rows, shard, with_errors=self._with_errors, baseline=baseline)

    def between(self, start: int, stop: int) -> list[Group]:
        """The groups from position `start` to before `stop`."""
        shards = [i for i, (a, b) in enumerate(itertools.pairwise(self._starts)) if a < stop and b > start]
        found = [group for shard in read_shards(self._samples, SampledResponse, shards) for group in self.of(shard)]
        first = self._starts[shards[0]] if shards else 0
        return found[max(0, start - first) : max(0, stop - first)]


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


class PromptRows:
    """Judgments that come prompt by prompt, taken in the same order; a prompt may have none."""

    def __init__(self, judgments: Iterator[Judgment]) -> None:
        self._left = itertools.groupby(judgments, key=lambda judgment: judgment.prompt_id)
        self._next = next(self._left, None)

    def of(self, prompt_id: str) -> list[Judgment]:
        """Those of a prompt."""
        if self._next is None or self._next[0] != prompt_id:
            return []
        found = list(self._next[1])
        self._next = next(self._left, None)
        return found


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
        done = len(groups) - sum(min(size, len(groups) - starts[i]) for i in missing)
        together = _shards_together(config, spec.judge, groups.between(0, size))
        for path, block in _blocks(stage.folder, missing, together):
            if meter is not None:
                meter.check()
            shards = {i: groups.between(starts[i], starts[i] + size) for i in block}
            asked = [group for shard in shards.values() for group in shard]
            # Judges note replies in a journal, so that a resumed run repeats no call.
            with Journal(path, _within(advance, done, asked, spec.judge)) as journal:
                judged = judge_.judge(asked, journal, uncounted if meter is None else _booking(meter))
                for i in block:
                    rows = [row for judgments in itertools.islice(judged, len(shards[i])) for row in judgments]
                    if meter is not None:
                        # Model judges report usage as they go; the verifier does not, so its answers are booked here.
                        booked = len(rows) if isinstance(spec.judge, VerifierJudge) else 0
                        meter.book(prompts=len(shards[i]), answers=booked)
                    stage.write_shard(i, rows)
            remove(path)
            done += len(asked)
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


def _shards_together(config: RunConfig, judge: JudgeConfig, shard: Sequence[Group]) -> int:
    """How many shards to judge together: enough to keep all engines or calls busy, also while the last replies of one
    round of comparisons are still to come. With a budget, one at a time: it is checked in between."""
    models = [member for member in members_of(judge) if not isinstance(member, VerifierJudge)]
    if not models or config.budget.is_set:
        return 1
    engine = config.judge_engine
    servers = [getattr(member, "endpoint", None) for member in models]
    capacity = max(engine.count * engine.max_num_seqs if each is None else each.concurrency for each in servers)
    return max(1, math.ceil(FILLED * capacity / max(1, sum(len(group.responses) for group in shard))))


def _booking(meter: Meter) -> Spend:
    return lambda tokens: meter.book(answers=1, tokens_in=tokens.input_tokens, tokens_out=tokens.output_tokens)


@contextmanager
def _member_meter(
    config: RunConfig, stage: str, judge: JudgeConfig, member: EnsembleMember, asked: Sequence[Group]
) -> Iterator[Spend]:
    """Books what a member of an ensemble does with a shard's groups; prompts are the first member's, lest they count
    more than once."""
    assert isinstance(judge, EnsembleJudge)
    with judging_meter(config, stage, member.judge) as meter:
        meter.check()
        yield _booking(meter)
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


def judgments_stage(config: RunConfig, spec: SamplingSpec, submitted: JudgeInput) -> Stage:
    """A judge's judgments of some samples."""
    return Stage(
        config.root,
        f"{spec.folder}/judgments",
        Judgment,
        inputs=_judged_inputs(spec, submitted),
        config={
            "judge": _judge_values(config, spec.judge, without=_OF_SCORES),
            "with_errors": spec.purpose == "evaluate",
        },
    )


def scores_stage(config: RunConfig, spec: SamplingSpec, submitted: JudgeInput, judgments: Artifact) -> Stage:
    """Scores of some samples, computed from judgments."""
    stage = judgments_stage(config, spec, submitted)
    return Stage(
        config.root,
        f"{spec.folder}/scores",
        Score,
        inputs=_judged_inputs(spec, submitted) | {"judgments": judgments},
        config=stage.config | {"judge": _judge_values(config, spec.judge)},
    )


def _judged_inputs(spec: SamplingSpec, submitted: JudgeInput) -> dict[str, Artifact | External]:
    inputs = _judge_inputs(spec.judge) | {"samples": submitted.samples, "prompts": submitted.prompts}
    if submitted.baseline is not None and compares(spec.judge):
        inputs["baseline"] = submitted.baseline
    return inputs


def _judge_inputs(judge: JudgeConfig) -> dict[str, Artifact | External]:
    """The files that a judge consists of; an ensemble's have their members' names."""
    if isinstance(judge, EnsembleJudge):
        return {
            f"{member.name}: {name}": found
            for member in judge.members
            for name, found in _judge_inputs(member.judge).items()
        }
    inputs = dict[str, Artifact | External]()
    if not isinstance(judge, VerifierJudge) and judge.folder is not None:
        inputs["judge model"] = folder_artifact(judge.folder)
    if isinstance(judge, GenerativeJudge):
        prompt = load_verdict_prompt(judge) if isinstance(judge, PairwiseJudge) else load_rubric_prompt(judge)
        inputs["judge templates"] = with_files(prompt.fingerprint, judge.user_template, judge.system_template)
    return inputs


def _judge_values(config: RunConfig, judge: JudgeConfig, *, without: Set[str] = frozenset()) -> dict[str, Any]:
    """The config values that a judgment depends on: not where the model is stored, nor how a server is reached, which
    is identified by its model's name alone. `without` names those that only its scores depend on."""
    if isinstance(judge, EnsembleJudge):
        members = [
            member.model_dump(mode="json", exclude={*without, "judge"})
            | {"judge": _judge_values(config, member.judge, without=without)}
            for member in judge.members
        ]
        return judge.model_dump(mode="json", exclude={*without, "members", "agreement"}) | {"members": members}
    if isinstance(judge, VerifierJudge):
        return judge.model_dump(mode="json", exclude={*without})
    if judge.folder is not None:
        values = judge.model_dump(mode="json", exclude={*without, "model", "system_template", "user_template"})
        if values.get("score") == "logit":
            del values["score"]  # judgments of runs from before there were other rules stay current
        return values | config.judge_engine.precision
    values = judge.model_dump(
        mode="json", exclude={*without, "endpoint", "system_template", "user_template", "items_per_request"}
    )
    assert judge.endpoint is not None
    return values | {"structured_outputs": judge.endpoint.structured_outputs}
