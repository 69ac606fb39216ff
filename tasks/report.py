"""The report of a run: numbers (`summary.json`), a page (`report.html`), and both as Prefect artifacts.

Both files are rewritten each time; no stage depends on them.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from judges.health import pooled
from tasks.artifacts import show_markdown, show_table
from tasks.estimates import Estimator, grouped, outcome, slug, values_of
from tasks.handles import Candidate, JudgedSamples, round_folder
from tasks.stage import stage_task
from tpo.config.gate import VALIDATION
from tpo.config.judges import JudgeConfig, compares, judge_name
from tpo.config.run import RunConfig
from tpo.method.stats import mean, paired_difference, win_rate
from tpo.records import Artifact, AttackShare, Epoch, GateDecision, JudgeHealth, Pair, Prompt, Sample, Score
from tpo.report.benchmarks import Benchmarks
from tpo.report.fine_grained import as_markdown
from tpo.report.run_page import Example, RoundRow, render_report, score_picture
from tpo.report.summary import REPORT, SUMMARY, FineGrained, ModelRow, Opinion, Summary, write_summary
from tpo.report.table import DIRECT
from tpo.storage.disk import write_atomically
from tpo.storage.ledger import read_ledger, spending
from tpo.storage.store import Manifest, is_set_aside, read_manifest, read_rows, stream_rows

_STAGES = (
    "generations", "prompts", "ratings", "samples", "judgments", "scores", "attacks", "pairs", "replay", "train",
    "validation", "model", "test", "direct"
)  # fmt: skip
"""The stages in the order in which they run."""
EXAMPLES = 20
"""Pairs that the page shows."""


@dataclass(frozen=True)
class Round:
    """A round of an iteration, which usually has one: what it made, up to its checkpoints."""

    prompts: Artifact
    """The fresh prompts."""
    answers: JudgedSamples
    """K outputs a prompt, with their scores."""
    pairs: Artifact
    """Their pairs."""
    trained_on: Artifact
    """The pairs that the model was trained on: these, with those of earlier iterations if any are replayed."""
    checkpoints: Sequence[Artifact]
    """The checkpoints: in the iteration's last round, one per epoch; in others, one."""
    attacks: Sequence[AttackShare] = ()
    """What attacks do to the judge, if it was attacked before this round's training."""


@dataclass(frozen=True)
class IterationResult:
    """One model of a run with everything that made it and measured it."""

    iteration: int
    """t of M_t."""
    chosen: Candidate
    """M_t and its validation answers."""
    test: JudgedSamples
    """Its answers to the test prompts."""
    rounds: Sequence[Round]
    """What it was made from, round by round; empty for the seed."""
    second: Mapping[str, JudgedSamples] = field(default_factory=dict)
    """Its validation answers by other judges (`RunConfig.second_judges`)."""
    gate: GateDecision | None = None
    """The gate's decision about it; None without a gate."""

    @property
    def promoted(self) -> bool:
        """Whether the loop may continue from it."""
        return self.gate is None or self.gate.promoted


@stage_task("report", run_name="report")
def report(
    config: RunConfig,
    test_prompts: Artifact,
    direct: JudgedSamples,
    measured: Sequence[IterationResult],
    benchmarks: Benchmarks | None = None,
    fine_grained: FineGrained | None = None,
) -> Summary:
    """Summary and page of a run up to the last of `measured`; the page also has its `benchmarks`."""
    summary = summarize(config, read_rows(test_prompts, Prompt), direct, measured)
    summary = dataclasses.replace(summary, fine_grained=fine_grained)
    write_atomically(config.root / SUMMARY, write_summary(summary))
    page = render_report(
        summary,
        config=config.model_dump(mode="json"),
        epochs={m.iteration: _epochs(config, m.iteration, config.train.rounds) for m in measured if m.rounds},
        margins={m.iteration: _margins(m.rounds) for m in measured if m.rounds},
        standings={m.iteration: _facts(m.chosen.model)["standings"] for m in measured if m.rounds},
        rounds=_round_rows(config, measured) if config.train.rounds > 1 or config.pair.replay_share else [],
        examples=_examples(measured),
        spent=spending(read_ledger(config.root)),
        benchmarks=benchmarks,
    )
    write_atomically(config.root / REPORT, page.encode())
    show_table(
        key=f"tpo-{slug(config.name)}",
        table=_artifact_rows(summary),
        description=f"Run {config.name}, one row a model",
    )
    show_table(
        key=f"tpo-{slug(config.name)}-judge",
        table=_judge_rows(summary),
        description=f"Run {config.name}, how sound the {config.judge.kind} judge looked, one row an iteration",
    )
    picture = score_picture(summary)
    show_markdown(
        key=f"tpo-{slug(config.name)}-report",
        markdown=f"Test score by iteration. The whole page: `{config.place}/report.html`\n\n"
        + (f"![Test score by iteration]({picture})" if picture else "")
        + (f"\n\n{as_markdown(fine_grained)}" if fine_grained else ""),
        description=f"Run {config.name}, report",
    )
    return summary


def summarize(
    config: RunConfig, test_prompts: Sequence[Prompt], direct: JudgedSamples, measured: Sequence[IterationResult]
) -> Summary:
    """The run in numbers."""
    base, plain = values_of(measured[0].test), values_of(direct)
    confidence = config.evaluation.confidence
    rows = [(DIRECT, 0, direct, None), *((f"M_{m.iteration}", m.iteration, m.test, m) for m in measured)]
    models = [_row(config, *row, test_prompts, base, plain) for row in rows]
    befores = [None, None, *measured[:-1]]
    models = [
        dataclasses.replace(row, opinions=_opinions(config, m, before), gate=m.gate) if m else row
        for row, m, before in zip(models, [None, *measured], befores, strict=True)
    ]
    return Summary(config.name, config.seed, confidence, models)


def _row(
    config: RunConfig,
    model: str,
    iteration: int,
    test: JudgedSamples,
    measured: IterationResult | None,
    prompts: Sequence[Prompt],
    base: Mapping[str, float],
    plain: Mapping[str, float],
) -> ModelRow:
    values, samples = values_of(test), read_rows(test.samples, Sample)
    pairs = _manifests_of(round_.pairs for round_ in measured.rounds) if measured else []
    chosen = _facts(measured.chosen.model) if pairs and measured else {}
    estimate = Estimator(config.evaluation.confidence)
    shared = sorted(values.keys() & base.keys())
    against_plain = sorted(values.keys() & plain.keys())
    return ModelRow(
        model=model,
        iteration=iteration,
        score=estimate(mean, list(values.values())),
        win_rate=estimate(win_rate, [outcome(values[i], base[i]) for i in shared]) if model != "M_0" else None,
        gain=estimate(paired_difference, [values[i] for i in shared], [base[i] for i in shared]),
        gain_over_direct=estimate(
            paired_difference, [values[i] for i in against_plain], [plain[i] for i in against_plain]
        ),
        by_category=grouped(estimate, values, prompts, lambda prompt: prompt.category),
        by_difficulty=grouped(estimate, values, prompts, lambda prompt: prompt.difficulty),
        validation_score=_validation_score(measured.chosen.validation) if measured else None,
        parse_error_rate=1 - sum(s.parse_error is None and s.tries == 1 for s in samples) / len(samples),
        thought_chars=float(np.mean([len(s.thought) for s in samples])),
        response_chars=float(np.mean([len(s.response) for s in samples])),
        rho=float(np.mean([each.facts["rho"] for each in pairs])) if pairs else None,
        regular_pairs=sum(each.facts["regular"] for each in pairs) if pairs else None,
        error_pairs=sum(each.facts["error_rejected"] for each in pairs) if pairs else None,
        dropped=dict(sum((Counter(each.account["dropped"]) for each in pairs if each.account), Counter[str]())),
        judge=_health(measured) if measured else None,
        chosen_epoch=chosen.get("epoch"),
        seconds=_seconds(config, iteration) if measured else {},
        attacks=[share for round_ in measured.rounds for share in round_.attacks] if measured else [],
    )


def _opinions(config: RunConfig, measured: IterationResult, before: IterationResult | None) -> list[Opinion]:
    """What each judge says of the validation answers, over the prompts that all of them scored; empty if there is one
    judge alone."""
    if not measured.second:
        return []
    judges: dict[str, JudgeConfig] = {VALIDATION: config.judge, **config.second_judges}
    own = {name: values_of(each) for name, each in _judged_by(measured).items()}
    earlier = {name: values_of(each) for name, each in _judged_by(before).items()} if before else {}
    shared = sorted(set.intersection(*(set(values) for values in own.values())))
    estimate = Estimator(config.evaluation.confidence)
    unchanged = before is not None and measured.chosen.validation == before.chosen.validation
    found = []
    for name, judge in judges.items():
        values = {i: own[name][i] for i in shared}
        if compares(judge):
            # Shares won against M_{t-1}: one half for a model that is M_{t-1} itself, whatever it won when it was new.
            values = dict.fromkeys(shared, 0.5) if unchanged else values
            change = None if before is None else estimate(mean, [value - 0.5 for value in values.values()])
        else:
            both = [i for i in shared if i in earlier.get(name, {})]
            change = estimate(paired_difference, [values[i] for i in both], [earlier[name][i] for i in both])
        found.append(Opinion(name, judge_name(judge), estimate(mean, list(values.values())), change))
    return found


def _judged_by(measured: IterationResult) -> dict[str, JudgedSamples]:
    return {VALIDATION: measured.chosen.validation, **measured.second}


def _health(measured: IterationResult) -> JudgeHealth | None:
    scores = [round_.answers.scores for round_ in measured.rounds]
    found = [JudgeHealth(**facts["health"]) for facts in map(_facts, scores) if facts]
    if len(found) < 2:
        return found[0] if found else None
    return pooled(found, [s.value for each in scores for s in stream_rows(each, Score) if s.value is not None])


def _validation_score(answers: JudgedSamples) -> float | None:
    parsed = {s.prompt_id for s in read_rows(answers.samples, Sample) if s.parse_error is None}
    values = [value for prompt_id, value in values_of(answers).items() if prompt_id in parsed]
    return float(np.mean(values)) if values else None


def _seconds(config: RunConfig, iteration: int) -> dict[str, float]:
    """Wall-clock seconds by kind of stage, summed over the iteration's folder."""
    totals: dict[str, float] = {}
    for manifest in _manifests(config, iteration):
        kind = next((part for part in manifest.stage.split("/")[1:] if not part.startswith("round_")), "")
        if kind not in _STAGES:
            continue  # of a comparison
        totals[kind] = round(totals.get(kind, 0.0) + manifest.seconds, 1)
    return {kind: totals[kind] for kind in sorted(totals, key=_STAGES.index)}


def _manifests(config: RunConfig, iteration: int) -> Iterable[Manifest]:
    for path in sorted((config.root / f"iter_{iteration}").rglob("manifest.json")):
        if not is_set_aside(path.relative_to(config.root)) and (manifest := read_manifest(path.parent)) is not None:
            yield manifest


def _manifests_of(artifacts: Iterable[Artifact]) -> list[Manifest]:
    return [manifest for each in artifacts if (manifest := read_manifest(each.path)) is not None]


def _facts(artifact: Artifact) -> Mapping[str, Any]:
    manifest = read_manifest(artifact.path)
    return manifest.facts if manifest else {}


def _epochs(config: RunConfig, iteration: int, number: int) -> list[Epoch]:
    log = config.root / round_folder(config, iteration, number) / "train" / "log.jsonl"
    return [Epoch(**json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]


def _margins(rounds: Sequence[Round]) -> list[float]:
    return [pair.margin for each in rounds for pair in stream_rows(each.pairs, Pair) if pair.margin is not None]


def _round_rows(config: RunConfig, measured: Sequence[IterationResult]) -> list[RoundRow]:
    rows = []
    for result in measured:
        for number, each in enumerate(result.rounds, 1):
            log, facts = _epochs(config, result.iteration, number), _facts(each.pairs)
            rows.append(
                RoundRow(
                    model=f"M_{result.iteration}",
                    number=number,
                    prompts=each.prompts.rows,
                    pairs=each.pairs.rows,
                    replayed=each.trained_on.rows - each.pairs.rows,
                    rho=facts["rho"],
                    steps=log[-1].step,
                    first_loss=log[0].loss,
                    last_loss=log[-1].loss,
                )
            )
    return rows


def _examples(measured: Sequence[IterationResult]) -> list[Example]:
    """Pairs of all iterations in turn, evenly spread over each iteration's list."""
    made = [(m.iteration, each) for m in measured for each in m.rounds]
    share = -(-EXAMPLES // max(1, len(made)))
    return [example for iteration, each in made for example in _examples_of(iteration, each, share)][:EXAMPLES]


def _examples_of(iteration: int, origin: Round, count: int) -> list[Example]:
    made = origin.pairs.rows
    spread = {round(i) for i in np.linspace(0, made - 1, min(count, made))}
    picked = [pair for i, pair in enumerate(stream_rows(origin.pairs, Pair)) if i in spread]
    wanted = {pair.prompt_id for pair in picked}
    prompts = {p.prompt_id: p for p in stream_rows(origin.prompts, Prompt) if p.prompt_id in wanted}
    samples = {(s.prompt_id, s.index): s for s in stream_rows(origin.answers.samples, Sample) if s.prompt_id in wanted}
    return [
        _example(
            iteration,
            pair,
            prompts[pair.prompt_id],
            samples[pair.prompt_id, pair.chosen_index],
            samples[pair.prompt_id, pair.rejected_index],
        )
        for pair in picked
    ]


def _example(iteration: int, pair: Pair, prompt: Prompt, chosen: Sample, rejected: Sample) -> Example:
    return Example(
        iteration=iteration,
        kind=pair.kind,
        instruction=prompt.instruction,
        reference=prompt.reference,
        category=prompt.category,
        difficulty=prompt.difficulty,
        chosen_thought=chosen.thought,
        chosen_response=chosen.response,
        chosen_score=pair.chosen_score,
        chosen_tokens=len(chosen.output_token_ids),
        rejected_thought=rejected.thought,
        rejected_response=rejected.response,
        rejected_score=pair.rejected_score,
        rejected_tokens=len(rejected.output_token_ids),
        rejected_error=rejected.parse_error,
        margin=pair.margin,
        earlier=prompt.earlier,
    )


def _artifact_rows(summary: Summary) -> list[dict[str, object]]:
    rows = []
    for row in summary.models:
        shown = dataclasses.asdict(row)
        for name in ("score", "win_rate", "gain", "gain_over_direct"):
            interval = getattr(row, name)
            shown[name] = f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]" if interval else "–"
        rows.append({name: _cell(value) for name, value in shown.items() if not isinstance(value, dict | list)})
    return rows


def _cell(value: object) -> object:
    return f"{value:.3f}" if isinstance(value, float) else value


def _judge_rows(summary: Summary) -> list[dict[str, object]]:
    return [
        {
            "model": row.model,
            **{name: _cell(value) for name, value in dataclasses.asdict(row.judge).items()},
            "unscored": ", ".join(f"{count} {reason}" for reason, count in row.judge.unscored.items()) or 0,
            "score_quantiles": " ".join(f"{value:.3g}" for value in row.judge.score_quantiles),
        }
        for row in summary.models
        if row.judge is not None
    ]
