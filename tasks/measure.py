"""Test results of a sequence of models, each trained from an earlier one: numbers and a page.

Rewrites `model_table.json`, `model_table.html` and Prefect artifacts each time; no stage depends on them. Two runs side
by side make such a table too, under another name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.artifacts import show_markdown
from tasks.estimates import Estimator, grouped, slug, values_of
from tasks.handles import JudgedSamples
from tasks.stage import stage_task
from tpo.config.run import RunConfig
from tpo.method.stats import mean, paired_difference
from tpo.records import Artifact, Prompt, Sample, Score
from tpo.report.model_table import MODEL_TABLE, MeasuredRow, ModelTable, page_of, sentences, write_model_table
from tpo.report.model_table_page import Asked, ShownAnswer, model_table_picture, render_model_table
from tpo.report.summary import Interval
from tpo.storage.disk import write_atomically
from tpo.storage.ledger import read_ledger, spending
from tpo.storage.store import read_manifest, read_rows

EXAMPLES = 12
"""Test prompts whose outputs the page shows."""


@dataclass(frozen=True)
class MeasuredModel:
    """One model with its test results."""

    model: str
    """Its name."""
    test: JudgedSamples
    """Its answers to the test prompts."""
    below: str | None = None
    """The model that it is compared with."""
    rows: Mapping[str, Artifact] = field(default_factory=dict)
    """What it was trained on, by name: `pairs`, `demonstrations`."""


@stage_task("measure", run_name="measure")
def measure(
    config: RunConfig, recipe: str, test_prompts: Artifact, steps: Sequence[MeasuredModel], name: str = MODEL_TABLE
) -> ModelTable:
    """The table and the page of a run that has made all of `steps`; `name` is the table's file in the run folder."""
    prompts = read_rows(test_prompts, Prompt)
    estimate = Estimator(config.evaluation.confidence)
    read = {step.model: _Read(step.test) for step in steps}
    rows = [_row(step, read, prompts, estimate) for step in steps]
    table = ModelTable(config.name, recipe, config.seed, config.evaluation.confidence, rows)
    page = render_model_table(
        table,
        config=config.model_dump(mode="json"),
        examples=_examples(config, read, prompts),
        spent=spending(read_ledger(config.root)),
    )
    write_atomically(config.root / page_of(name), page.encode())
    write_atomically(config.root / name, write_model_table(table))
    picture = model_table_picture(table)
    show_markdown(
        key=f"tpo-{slug(config.name)}-{slug(name.removesuffix('.json'))}",
        markdown="\n\n".join(
            [
                *sentences(table),
                *([f"![Test score by model]({picture})"] if picture else []),
                f"The whole page: `{config.place}/{page_of(name)}`",
            ]
        ),
        description=f"Run {config.name}, {recipe}",
    )
    return table


class _Read:
    """A model's test outputs as rows."""

    def __init__(self, test: JudgedSamples) -> None:
        self.values = values_of(test)
        self.samples = {sample.prompt_id: sample for sample in read_rows(test.samples, Sample)}
        self.scores = {score.prompt_id: score for score in read_rows(test.scores, Score)}
        self.tokens = {i: float(len(sample.output_token_ids)) for i, sample in self.samples.items()}


def _row(step: MeasuredModel, read: Mapping[str, _Read], prompts: Sequence[Prompt], estimate: Estimator) -> MeasuredRow:
    own, below = read[step.model], read[step.below] if step.below else None
    tokens = estimate(mean, list(own.tokens.values()))
    assert tokens is not None
    samples = own.samples.values()
    return MeasuredRow(
        model=step.model,
        below=step.below,
        score=estimate(mean, list(own.values.values())),
        gain=_change(estimate, own.values, below.values) if below else None,
        tokens=tokens,
        tokens_gain=_change(estimate, own.tokens, below.tokens) if below else None,
        by_category=grouped(estimate, own.values, prompts, lambda prompt: prompt.category),
        by_difficulty=grouped(estimate, own.values, prompts, lambda prompt: prompt.difficulty),
        error_rate=1 - sum(s.parse_error is None and s.tries == 1 for s in samples) / len(samples),
        made_from=_made_from(step.rows),
        dropped=_dropped(step.rows),
    )


def _change(estimate: Estimator, after: Mapping[str, float], before: Mapping[str, float]) -> Interval | None:
    """The mean difference over the prompts with a value for both."""
    shared = sorted(after.keys() & before.keys())
    return estimate(paired_difference, [after[i] for i in shared], [before[i] for i in shared])


def _made_from(rows: Mapping[str, Artifact]) -> dict[str, float]:
    """Number of rows of each kind, and the facts that their stages recorded."""
    found: dict[str, float] = {}
    for name, artifact in rows.items():
        found[name] = artifact.rows
        manifest = read_manifest(artifact.path)
        found |= dict(manifest.facts) if manifest else {}
    return found


def _dropped(rows: Mapping[str, Artifact]) -> dict[str, int]:
    found: dict[str, int] = {}
    for artifact in rows.values():
        manifest = read_manifest(artifact.path)
        account = manifest.account if manifest else None
        for reason, count in (account["dropped"] if account else {}).items():
            found[reason] = found.get(reason, 0) + count
    return found


def _examples(config: RunConfig, read: Mapping[str, _Read], prompts: Sequence[Prompt]) -> list[Asked]:
    """Test prompts spread evenly over the set."""
    picked = sorted({round(i) for i in np.linspace(0, len(prompts) - 1, min(EXAMPLES, len(prompts)))})
    thinks = config.prompt.variant != "direct"
    return [
        Asked(
            prompt.instruction,
            prompt.reference,
            prompt.category,
            prompt.difficulty,
            [_answer(model, rows, prompt.prompt_id, thinks=thinks) for model, rows in read.items()],
            prompt.earlier,
        )
        for prompt in (prompts[i] for i in picked)
    ]


def _answer(model: str, rows: _Read, prompt_id: str, *, thinks: bool) -> ShownAnswer:
    sample, score = rows.samples[prompt_id], rows.scores[prompt_id]
    return ShownAnswer(
        model,
        sample.thought if thinks else None,
        sample.response,
        len(sample.output_token_ids),
        score.value,
        score.correct,
        sample.parse_error,
    )
