"""A run folder as the flow leaves it, made without an engine: every stage is committed, with dummy content unless a
test passes rows and a model."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.handles import (
    Candidate,
    JudgedSamples,
    JudgeInput,
    SamplingSpec,
    baseline_of,
    direct_spec,
    measuring_spec,
    round_folder,
    seed_model,
    training_spec,
    validation_spec,
)
from tasks.judge_stages import judgments_stage, scores_stage
from tasks.pair import pairs_stage
from tasks.replay import replay_stage
from tasks.sample import samples_stage
from tasks.source import is_written, prompts_stage
from tasks.synthesize import generations_stage
from tasks.train import reference_of, train_stage
from tasks.training import epoch_artifacts, state_after
from tasks.validate import model_stage
from tpo.config.run import RunConfig
from tpo.records import Artifact
from tpo.report.summary import REPORT, SUMMARY, ModelRow, Summary, write_summary
from tpo.storage.current import keep_config, mark_finished
from tpo.storage.disk import write_atomically
from tpo.storage.store import Stage

_NONE: Mapping[str, Sequence[Any]] = {}


def finish(
    config: RunConfig, iterations: int, *, model: Path | None = None, rows: Mapping[str, Sequence[Any]] = _NONE
) -> None:
    """Makes every stage and the summary of a run that has reached M_T, T = `iterations`.

    Each M_t is a copy of `model`; `rows` are by stage, as `iter_1/pairs`.
    """
    seed = seed_model(config)
    validation = _rows(prompts_stage(config, "iter_0/prompts/validation", seed, []))
    test = _rows(prompts_stage(config, "iter_0/prompts/test", seed, [validation]))
    chosen = Candidate(seed, _asked(config, validation_spec(config, 0, 0), seed, validation))
    measured = _asked(config, measuring_spec(config, 0), seed, test)
    _asked(config, direct_spec(config), seed, test, measured)
    earlier, pairs = [validation, test], list[Artifact]()
    for t in range(1, iterations + 1):
        sampled, state, before = chosen.model, None, [*pairs]
        for number in range(1, config.train.rounds + 1):
            folder = round_folder(config, t, number)
            earlier.append(prompts := _prompts(config, f"{folder}/prompts", seed, earlier, rows))
            answers = _asked(config, training_spec(config, t, number), sampled, prompts, rows=rows)
            pairs.append(trained_on := _rows(pairs_stage(config, t, answers, number), rows))
            if config.pair.replay_share and before:
                stage = replay_stage(config, t, number, trained_on, before)
                trained_on = _rows(stage, rows, replayed=len(rows.get(stage.name, ())))
            stage = train_stage(
                config, folder, chosen.model, reference_of(config, seed, chosen.model), trained_on, number, state
            )
            checkpoints = epoch_artifacts(_epochs(stage, config.train.epochs))
            sampled, state = checkpoints[-1], state_after(checkpoints[-1])
        candidates = [
            Candidate(model, _asked(config, validation_spec(config, t, epoch), model, validation, chosen.validation))
            for epoch, model in enumerate(checkpoints, 1)
        ]
        stage = model_stage(config, t, chosen, candidates)
        stage.begin()
        if model is None:
            (stage.folder / "model.safetensors").write_bytes(b"last epoch")
        else:
            shutil.copytree(model, stage.folder, dirs_exist_ok=True)
        chosen = Candidate(stage.commit_files(facts={"epoch": len(candidates)}), candidates[-1].validation)
        _asked(config, measuring_spec(config, t), chosen.model, test, measured)
    summary = Summary(config.name, config.seed, 0.95, [_row(t) for t in range(iterations + 1)])
    write_atomically(config.root / SUMMARY, write_summary(summary))
    write_atomically(config.root / REPORT, b"<!doctype html>")
    keep_config(config)
    mark_finished(config, SUMMARY, REPORT)


def _prompts(
    config: RunConfig, folder: str, seed: Artifact, earlier: list[Artifact], rows: Mapping[str, Sequence[Any]]
) -> Artifact:
    generations = None
    if is_written(config, folder):
        generations = _rows(generations_stage(config, folder, seed, earlier))
    return _rows(prompts_stage(config, folder, seed, earlier, generations), rows)


def _rows(stage: Stage, rows: Mapping[str, Sequence[Any]] = _NONE, **facts: int) -> Artifact:
    stage.begin()
    if (given := rows.get(stage.name)) is None:
        return stage.commit(0, facts=facts)
    stage.write_shard(0, given)
    return stage.commit(1, facts=facts)


def _asked(
    config: RunConfig,
    spec: SamplingSpec,
    model: Artifact,
    prompts: Artifact,
    against: JudgedSamples | None = None,
    *,
    rows: Mapping[str, Sequence[Any]] = _NONE,
) -> JudgedSamples:
    samples = _rows(samples_stage(config, spec, model, prompts), rows)
    submitted = JudgeInput(samples, prompts, baseline_of(spec, samples, against))
    judgments = _rows(judgments_stage(config, spec, submitted))
    return JudgedSamples(samples, _rows(scores_stage(config, spec, submitted, judgments)))


def _epochs(stage: Stage, count: int) -> Artifact:
    stage.begin()
    for epoch in range(1, count + 1):
        (stage.folder / f"epoch_{epoch}").mkdir()
        (stage.folder / f"epoch_{epoch}" / "model.safetensors").write_bytes(f"{stage.name} {epoch}".encode())
    return stage.commit_files(facts={"epochs": count})


def _row(t: int) -> ModelRow:
    return ModelRow(
        model=f"M_{t}",
        iteration=t,
        score=None,
        win_rate=None,
        gain=None,
        gain_over_direct=None,
        by_category={},
        by_difficulty={},
        validation_score=None,
        parse_error_rate=0.0,
        thought_chars=0.0,
        response_chars=0.0,
        rho=None,
        regular_pairs=None,
        error_pairs=None,
        dropped={},
        judge=None,
        chosen_epoch=None,
        seconds={},
    )
