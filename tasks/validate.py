"""The choice of M_t: the best of M_{t-1} and the checkpoints on the validation prompts.

The paper chooses by 1,500 prompts and doesn't say how (2410.10630, §3.1). We take the highest mean judge score of the
responses that parse, among candidates that keep the format often enough and have a score for enough prompts. M_{t-1} is
a candidate: if a DPO step improved nothing, the model stays as it was. A comparing judge compares every checkpoint with
M_{t-1}, which then scores one half.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tasks.handles import Candidate, JudgedSamples
from tasks.stage import begin, stage_task
from tpo.config.judges import ValidationConfig, compares
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.errors import StageError
from tpo.records import Sample, Score
from tpo.storage.disk import link_or_copy, remove
from tpo.storage.store import Stage, check_files, read_rows

LEVEL = 0.5
"""A model's score against itself."""


@dataclass(frozen=True)
class Standing:
    """One candidate's results on the validation prompts."""

    epoch: int
    """0 for M_{t-1}, otherwise the checkpoint's epoch."""
    score: float | None
    """Mean judge score of the responses that parse, or their win rate against M_{t-1}'s; None if none was scored."""
    parse_rate: float
    """Share of prompts whose first output kept the format."""
    scored: int = 0
    """Prompts with a response that parses and was scored."""
    parsed: int = 0
    """Responses that parse, scored or not."""


@stage_task("validate", run_name="validate iteration {iteration}")
def validate(config: RunConfig, iteration: int, incumbent: Candidate, candidates: Sequence[Candidate]) -> Candidate:
    """M_t and the validation results that chose it.

    Raises `StageError` if no candidate has a score.
    """
    stage = model_stage(config, iteration, incumbent, candidates)
    everyone = (incumbent, *candidates)
    manifest = stage.manifest()
    if (done := stage.complete()) is not None and manifest is not None:
        return Candidate(done, everyone[manifest.facts["epoch"]].validation)
    standings = [stand(epoch, candidate.validation) for epoch, candidate in enumerate(everyone)]
    if compares(config.judge):
        # By definition rather than from its own scores, which are against another model.
        standings[0] = replace(standings[0], score=LEVEL, scored=max(standing.scored for standing in standings))
    best = choose(standings, config.validation.min_parse_rate, config.validation.min_scored_share)
    begin(stage)
    check_files(everyone[best.epoch].model)
    _bring_files(everyone[best.epoch].model.path, stage.folder, config.root)
    facts = {"epoch": best.epoch, "standings": [asdict(standing) for standing in standings]}
    artifact = stage.commit_files(facts=facts)
    what = f"epoch {best.epoch}" if best.epoch else f"M_{iteration - 1} itself: no epoch was better"
    say(f"{stage.name}: M_{iteration} is {what} (validation score {best.score or math.nan:.3f})")
    return Candidate(artifact, everyone[best.epoch].validation)


def stand(epoch: int, answers: JudgedSamples) -> Standing:
    """The results of one candidate."""
    samples, scores = read_rows(answers.samples, Sample), read_rows(answers.scores, Score)
    parsed = {(sample.prompt_id, sample.index) for sample in samples if sample.parse_error is None}
    values = {
        (score.prompt_id, score.index): score.value
        for score in scores
        if score.value is not None and (score.prompt_id, score.index) in parsed
    }
    first = sum(sample.parse_error is None and sample.tries == 1 for sample in samples)
    mean = sum(values.values()) / len(values) if values else None
    return Standing(epoch, mean, first / len(samples), len({prompt_id for prompt_id, _ in values}), len(parsed))


def choose(standings: Sequence[Standing], min_parse_rate: float, min_scored_share: float = 0.8) -> Standing:
    """The best candidate that keeps the format and was scored on enough prompts; the earlier of equals, and M_{t-1} if
    none is eligible.

    Raises `StageError` if no candidate has a score.
    """
    if all(standing.score is None for standing in standings):
        if not any(standing.parsed for standing in standings):
            raise StageError(
                "validation: no answer of any candidate follows the format, so none can be chosen: raise "
                "sample.evaluation_max_attempts, sample.max_new_tokens if outputs are cut by length, or "
                "data.validation; set sample.max_thought_tokens, after which the response is forced to begin; or "
                "use another prompt"
            )
        raise StageError(
            "validation: the judge scored no answer of any candidate, so none can be chosen: look at "
            "validation/*/scores, or use a judge that scores prompts without a reference"
        )
    most = max(standing.scored for standing in standings)
    eligible = [
        standing
        for standing in standings
        if standing.score is not None
        and standing.parse_rate >= min_parse_rate
        and standing.scored >= min_scored_share * most
    ]
    return max(eligible, key=lambda standing: (standing.score or 0.0, -standing.epoch), default=standings[0])


def _bring_files(source: Path, target: Path, root: Path) -> None:
    """The same files in another folder: hard links to files of this run, copies of a seed model, which belongs to the
    user."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in ("plan.json", "manifest.json"):
            remove(target / path.name)
            link_or_copy(path, target / path.name, link=source.resolve().is_relative_to(root.resolve()))


def model_stage(config: RunConfig, iteration: int, incumbent: Candidate, candidates: Sequence[Candidate]) -> Stage:
    """M_t: the best of M_{t-1} and the checkpoints, by their answers to the validation prompts."""
    inputs = {
        f"{kind} {i}": artifact
        for i, candidate in enumerate((incumbent, *candidates))
        for kind, artifact in (("model", candidate.model), ("scores", candidate.validation.scores))
    }
    return Stage(
        config.root,
        f"iter_{iteration}/model",
        "Model",
        inputs=inputs,
        config={"validation": _without_new_defaults(config.validation)},
    )


def _without_new_defaults(validation: ValidationConfig) -> dict[str, Any]:
    """A section's values, without defaults added later, which manifests of earlier versions don't have."""
    new = {"min_scored_share"}
    return validation.model_dump(mode="json", exclude=new) | validation.model_dump(
        mode="json", include=new, exclude_defaults=True
    )
