"""Makes pseudo-labels: what the next model imitates is what is given and what the models so far got right.

In: demonstrations that are given, and what the models so far answered to the same questions. Out: `Demonstration`s, the
union L ∪ S of DPO-ST (2407.18248, §3.3), and an account of every right output that is left out.

Of right outputs that are alike one is kept, the demonstration before all others; and no question has more of them than
nine in ten questions have, so that those which are easy do not crowd out the rest.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.lineage import Answers, pseudo_labels_stage
from tasks.retry import may_pass
from tasks.solutions import Question, Written, questions_of
from tpo.config.recipes import SelfTrain
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.errors import StageError
from tpo.method.diversity import cap_per_question, deduplicated
from tpo.records import Account, Artifact, Demonstration


@dataclass(frozen=True)
class Labels:
    """Outputs to imitate and how they came about."""

    rows: list[Demonstration]
    """In the order of the questions; of a question the given one first."""
    cap: int
    """Outputs that a question has at most."""
    account: Account
    """In distinct right outputs, the given ones among them."""


@task(name="pseudo_label", task_run_name="label {folder}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def pseudo_label(config: RunConfig, folder: str, given: Artifact, answers: Sequence[Answers]) -> Artifact:
    """What is given and what was answered right. Raises `StageError` where there is neither."""
    recipe = config.recipe_as(SelfTrain)
    stage = pseudo_labels_stage(config, folder, given, answers)
    if (done := stage.complete()) is not None:
        return done
    for change in stage.begin():
        say(f"{stage.name}: made again, {change}")
    questions = questions_of(given, answers)
    made = make_labels(questions, recipe, max_tokens=recipe.sft.max_tokens)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(made.account.dropped.items()))
    if not made.rows:
        raise StageError(
            f"{stage.name}: 0 outputs to imitate for {len(questions)} questions ({reasons or 'none is right'}): raise "
            f"recipe.label_outputs or recipe.sft.max_tokens, or look at {answers[-1].scores.path}"
        )
    stage.write_shard(0, made.rows)
    sampled = sum(row.origin == "sampled" for row in made.rows)
    facts = {"sampled": sampled, "most a question": made.cap}
    artifact = stage.commit(1, account=made.account, facts=facts)
    say(f"{stage.name}: {len(made.rows)} outputs to imitate, {sampled} of them sampled; dropped: {reasons or 'none'}")
    return artifact


def make_labels(questions: Sequence[Question], config: SelfTrain, *, max_tokens: int) -> Labels:
    """What each question's next model imitates, each prompt and output within `max_tokens`."""
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
    return Labels(rows, cap, Account(len(rows) + sum(reasons.values()), len(rows), reasons))


def _different(outputs: Sequence[Written], similarity: float) -> list[Written]:
    """Those of them that are not alike."""
    by_text = {written.text: written for written in outputs}
    given = next((written.solution for written in outputs if written.origin == "given"), None)
    sampled = [written.solution for written in outputs if written.origin == "sampled"]
    return [by_text[solution.text] for solution in deduplicated(sampled, given, similarity)]


def _demonstration(question: Question, written: Written) -> Demonstration:
    return Demonstration(question.prompt_id, question.prompt_token_ids, written.token_ids, written.text, written.origin)
