"""Pseudo-labels of DPO-ST (2407.18248, §3.3): the next model imitates the demonstrations and what earlier models got
right.

This is the paper's union L ∪ S. Of similar correct outputs one is kept, the demonstration first. No question has more
of them than nine in ten questions have, so that easy ones don't dominate. Every correct output that is left out is
counted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.handles import JudgedSamples
from tasks.solutions import Question, Written, answered_inputs, questions_of
from tasks.stage import complete_or_begun, stage_task
from tpo.config.recipes import SelfTrain
from tpo.config.renamed import as_noted
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.errors import StageError
from tpo.method.diversity import cap_per_question, deduplicated
from tpo.records import Artifact, Demonstration, RowCounts
from tpo.storage.store import Stage


@dataclass(frozen=True)
class Labels:
    """Outputs to imitate, with counts."""

    rows: list[Demonstration]
    """In the order of the questions; of a question the given one first."""
    cap: int
    """The largest number of outputs per question."""
    account: RowCounts
    """In distinct correct outputs, the given ones included."""


@stage_task("pseudo_label", run_name="label {folder}")
def pseudo_label(config: RunConfig, folder: str, given: Artifact, answers: Sequence[JudgedSamples]) -> Artifact:
    """The given outputs and the correct ones. Raises `StageError` if there is neither."""
    recipe = config.recipe_as(SelfTrain)
    stage = pseudo_labels_stage(config, folder, given, answers)
    if (done := complete_or_begun(stage)) is not None:
        return done
    questions = questions_of(given, answers)
    made = make_labels(questions, recipe, max_tokens=recipe.sft.max_tokens)
    if not made.rows:
        raise StageError(
            f"{stage.name}: 0 outputs to imitate for {len(questions)} questions (dropped: {made.account.reasons()}): "
            f"raise recipe.label_outputs or recipe.sft.max_tokens, or look at {answers[-1].scores.path}"
        )
    stage.write_shard(0, made.rows)
    sampled = sum(row.origin == "sampled" for row in made.rows)
    facts = {"sampled": sampled, "most a question": made.cap}
    artifact = stage.commit(1, account=made.account, facts=facts)
    dropped = made.account.reasons()
    say(f"{stage.name}: {len(made.rows)} outputs to imitate, {sampled} of them sampled; dropped: {dropped}")
    return artifact


def make_labels(questions: Sequence[Question], config: SelfTrain, *, max_tokens: int) -> Labels:
    """Each question's outputs for the next model, each prompt and output within `max_tokens`."""
    dropped: Counter[str] = Counter()
    kept: list[tuple[Question, list[Written]]] = []
    for question in questions:
        right = list(question.right.values())
        fitting = [w for w in right if len(question.prompt_token_ids) + len(w.token_ids) <= max_tokens]
        different = _different(fitting, config.dedup_threshold)
        dropped["too_long"] += len(right) - len(fitting)
        dropped["alike"] += len(fitting) - len(different)
        if different:
            kept.append((question, different))
    cap = cap_per_question([len(outputs) for _, outputs in kept], config.cap_quantile) if kept else 0
    rows = [_demonstration(question, written) for question, outputs in kept for written in outputs[:cap]]
    dropped["over_the_cap"] = sum(len(outputs) for _, outputs in kept) - len(rows)
    reasons = {reason: count for reason, count in dropped.items() if count}
    return Labels(rows, cap, RowCounts(len(rows) + sum(reasons.values()), len(rows), reasons))


def _different(outputs: Sequence[Written], similarity: float) -> list[Written]:
    """Those that aren't similar to an earlier one."""
    by_text = {written.text: written for written in outputs}
    given = next((written.solution for written in outputs if written.origin == "given"), None)
    sampled = [written.solution for written in outputs if written.origin == "sampled"]
    return [by_text[solution.text] for solution in deduplicated(sampled, given, similarity)]


def _demonstration(question: Question, written: Written) -> Demonstration:
    return Demonstration(question.prompt_id, question.prompt_token_ids, written.token_ids, written.text, written.origin)


def pseudo_labels_stage(config: RunConfig, folder: str, given: Artifact, answers: Sequence[JudgedSamples]) -> Stage:
    """Outputs to imitate: the given ones and the correct ones."""
    recipe = config.recipe_as(SelfTrain)
    return Stage(
        config.root,
        f"{folder}/demonstrations",
        Demonstration,
        inputs=answered_inputs(given, answers),
        config={
            **as_noted(recipe, include={"dedup_threshold", "cap_quantile"}),
            "max_tokens": recipe.sft.max_tokens,
        },
    )
