"""Judges samples: what the judge said is kept apart from the scores that follow from it.

In: `Sample`s and their `Prompt`s. Out: `Judgment`s and `Score`s, one score a sample, or the reason for none.
"""

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from judges.base import Group, Judge, groups_of
from judges.registry import build_judge
from tasks.lineage import Answers, Ask, judgments_stage, scores_stage
from tpo.config import RunConfig
from tpo.console import progress_bar, say
from tpo.records import Account, Artifact, Judgment, Prompt, Sample, Score
from tpo.store import read_rows


@task(name="judge", task_run_name="judge {ask.folder}", cache_policy=NO_CACHE)
def judge(config: RunConfig, ask: Ask, samples: Artifact, prompts: Artifact) -> Answers:
    """Scores of `samples` by the judge that `ask` names."""
    judgments = judgments_stage(config, ask, samples, prompts).complete()
    if judgments is not None:
        done = scores_stage(config, ask, samples, prompts, judgments).complete()
        if done is not None:
            return Answers(samples, done)
    sample_rows = read_rows(samples, Sample)
    groups = groups_of(read_rows(prompts, Prompt), sample_rows, with_errors=ask.purpose == "evaluate")
    judge_ = build_judge(ask.judge)
    if judgments is None:
        judgments = _say_judgments(config, ask, samples, prompts, groups, judge_)
    stage = scores_stage(config, ask, samples, prompts, judgments)
    stage.begin()
    scores = make_scores(sample_rows, groups, read_rows(judgments, Judgment), judge_)
    stage.write_shard(0, scores)
    unscored = sum(score.value is None for score in scores)
    artifact = stage.commit(account=Account(len(sample_rows), len(scores), {}), facts={"unscored": unscored})
    say(f"{stage.name}: {len(scores) - unscored} scored, {unscored} unscored")
    return Answers(samples, artifact)


def make_scores(
    samples: Sequence[Sample], groups: Sequence[Group], judgments: Sequence[Judgment], judge_: Judge
) -> list[Score]:
    """One score a sample, in the samples' order; a sample that was not judged is unscored by its parse error."""
    said: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        said.setdefault(judgment.prompt_id, []).append(judgment)
    scored = {
        (score.prompt_id, score.index): score
        for group in groups
        for score in judge_.score(group, said.get(group.prompt_id, []))
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


def _say_judgments(
    config: RunConfig, ask: Ask, samples: Artifact, prompts: Artifact, groups: Sequence[Group], judge_: Judge
) -> Artifact:
    stage = judgments_stage(config, ask, samples, prompts)
    size = config.engine.shard_prompts
    for change in stage.begin(shard_size=size):
        say(f"{stage.name}: made again, {change}")
    shards = [groups[i : i + size] for i in range(0, len(groups), size)]
    with progress_bar(f"judge {ask.folder}", len(groups), "prompts") as advance:
        for i, shard in enumerate(shards):
            if not stage.has_shard(i):
                stage.write_shard(i, [judgment for said in judge_.judge(shard) for judgment in said])
            advance(min(len(groups), (i + 1) * size))
    return stage.commit(account=Account(len(groups), len(groups), {}))
