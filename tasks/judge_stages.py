"""The stages of judging, what identifies them, and how much of them is judged at once."""

import math
from collections.abc import Sequence, Set
from typing import Any

from judges.base import Group
from prompts.rubric import load_rubric_prompt
from prompts.verdict import load_verdict_prompt
from tasks.handles import JudgeInput, SamplingSpec, with_files
from tpo.config.judges import (
    EnsembleJudge,
    GenerativeJudge,
    JudgeConfig,
    PairwiseJudge,
    VerifierJudge,
    compares,
    members_of,
)
from tpo.config.run import RunConfig
from tpo.records import Artifact, External, Judgment, Score
from tpo.storage.store import Stage, folder_artifact

AHEAD = "judged_ahead"
"""The folder of judgments that were made while samples were still being made."""
FILLED = 4
"""How many times the engines or calls of a judge are filled by the responses that are judged together."""
_OF_SCORES = frozenset({"ridge", "length_bias", "weight", "unit", "veto_below", "combine"})
"""Settings of judges that change scores and not judgments."""


def judgments_stage(config: RunConfig, spec: SamplingSpec, submitted: JudgeInput) -> Stage:
    """A judge's judgments of some samples."""
    inputs, values = _inputs_of(spec, submitted), _judgment_values(config, spec)
    return Stage(config.root, f"{spec.folder}/judgments", Judgment, inputs=inputs, config=values)


def ahead_stage(
    config: RunConfig, spec: SamplingSpec, prompts: Artifact, baseline: Artifact | None, shard: int, sha256: str
) -> Stage:
    """The judgments of shard number `shard` of some samples, which its content stands for."""
    inputs = _judged_inputs(spec, External(sha256), prompts, baseline)
    folder = f"{spec.folder}/{AHEAD}/{shard:05d}"
    return Stage(config.root, folder, Judgment, inputs=inputs, config=_judgment_values(config, spec))


def scores_stage(config: RunConfig, spec: SamplingSpec, submitted: JudgeInput, judgments: Artifact) -> Stage:
    """Scores of some samples, computed from judgments."""
    stage = judgments_stage(config, spec, submitted)
    return Stage(
        config.root,
        f"{spec.folder}/scores",
        Score,
        inputs=_inputs_of(spec, submitted) | {"judgments": judgments},
        config=stage.config | {"judge": _judge_values(config, spec.judge)},
    )


def _judgment_values(config: RunConfig, spec: SamplingSpec) -> dict[str, Any]:
    judge = _judge_values(config, spec.judge, without=_OF_SCORES)
    return {"judge": judge, "with_errors": spec.purpose == "evaluate"}


def _inputs_of(spec: SamplingSpec, submitted: JudgeInput) -> dict[str, Artifact | External]:
    return _judged_inputs(spec, submitted.samples, submitted.prompts, submitted.baseline)


def _judged_inputs(
    spec: SamplingSpec, samples: Artifact | External, prompts: Artifact, baseline: Artifact | None
) -> dict[str, Artifact | External]:
    inputs = _judge_inputs(spec.judge) | {"samples": samples, "prompts": prompts}
    if baseline is not None and compares(spec.judge):
        inputs["baseline"] = baseline
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


def shards_together(config: RunConfig, judge: JudgeConfig, shard: Sequence[Group]) -> int:
    """How many shards to judge together: enough to keep all engines or calls busy, also while the last replies of one
    round of comparisons are still to come. With a budget, one at a time: it is checked in between."""
    models = [member for member in members_of(judge) if not isinstance(member, VerifierJudge)]
    if not models or config.budget.is_set:
        return 1
    engine = config.judge_engine
    servers = [getattr(member, "endpoint", None) for member in models]
    capacity = max(engine.count * engine.max_num_seqs if each is None else each.concurrency for each in servers)
    return max(1, math.ceil(FILLED * capacity / max(1, sum(len(group.responses) for group in shard))))
