"""Run folders of samples, scores, judgments and pairs, written as the stages write them and without an engine."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.handles import JudgedSamples
from tasks.pair import StoredCandidates, choose_pairs, describe
from tpo.config.run import RunConfig
from tpo.records import Artifact, Judgment, Pair, Prompt, Sample, Score
from tpo.storage.current import keep_config
from tpo.storage.store import Stage

SHARD_PROMPTS = 25


def begin_run(config: RunConfig) -> None:
    """The folder with its config."""
    config.root.mkdir(parents=True)
    keep_config(config)


def write_prompts(root: Path, name: str, prompts: Sequence[Prompt]) -> Artifact:
    """A set of prompts."""
    stage = Stage(root, name, Prompt, inputs={}, config={})
    stage.begin()
    stage.write_shard(0, prompts)
    return stage.commit(1)


def samples_stage(root: Path, name: str, prompts: Artifact) -> Stage:
    """The stage of a round's samples, begun."""
    stage = Stage(root, f"{name}/samples", Sample, inputs={"prompts": prompts}, config={})
    stage.begin(shard_size=SHARD_PROMPTS)
    return stage


def write_round(
    root: Path,
    name: str,
    prompts: Artifact,
    groups: Sequence[Sequence[Sample]],
    score: Callable[[Sample], Score],
    judgments: Sequence[Judgment] = (),
) -> JudgedSamples:
    """Samples by prompt, with the score of each that parses."""
    stage = samples_stage(root, name, prompts)
    starts = range(0, len(groups), SHARD_PROMPTS)
    for shard, start in enumerate(starts):
        stage.write_shard(shard, [sample for group in groups[start : start + SHARD_PROMPTS] for sample in group])
    samples = stage.commit(len(starts))
    judgments_stage = Stage(root, f"{name}/judgments", Judgment, inputs={"samples": samples}, config={})
    judgments_stage.begin()
    judgments_stage.write_shard(0, judgments)
    inputs = {"samples": samples, "judgments": judgments_stage.commit(1)}
    scores = Stage(root, f"{name}/scores", Score, inputs=inputs, config={})
    scores.begin()
    scores.write_shard(0, [score(sample) for group in groups for sample in group])
    return JudgedSamples(samples, scores.commit(1))


def write_pairs(config: RunConfig, name: str, answers: JudgedSamples) -> list[Pair]:
    """The pairs that the stage makes of a round."""
    made = choose_pairs(config, answers)
    pairs = [*made.with_tokens(StoredCandidates(answers))]
    inputs = {"samples": answers.samples, "scores": answers.scores}
    stage = Stage(config.root, f"{name}/pairs", Pair, inputs=inputs, config={})
    stage.begin()
    stage.write_shard(0, pairs)
    stage.commit(1, account=made.account, facts=describe(made) if made.pairs else {"rho": made.rho})
    return pairs
