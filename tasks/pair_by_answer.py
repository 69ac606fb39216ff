"""Pairs right with wrong: the preferences of self-training (DPO-ST, 2407.18248, §3.2).

In: demonstrations that are given, and what the models so far answered to the same questions. Out: `Pair`s of a right
and a wrong output, several a question, and an account of every question that gave none.

The demonstration is a right output too. An output without an answer is wrong, as in the paper's code. Of all pairs of a
right and a wrong output to a question, those are taken that are least alike, so that what tells them apart is not one
digit.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.lineage import Answers, pairs_by_answer_stage
from tasks.retry import may_pass
from tasks.shortage import Shortage
from tasks.solutions import Question, Written, questions_of
from tpo.config.recipes import SelfTrain
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.method.diversity import Contrast, least_alike
from tpo.records import Account, Artifact, Pair


@dataclass(frozen=True)
class PairsByAnswer:
    """Pairs and how they came about."""

    pairs: list[Pair]
    """In the order of the questions; of a question the least alike first."""
    questions: int
    """Questions that have a pair."""
    account: Account
    """In pairs that could be made; a question of which none can counts as one."""


@task(name="pair_by_answer", task_run_name="pair {folder}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def pair_by_answer(config: RunConfig, folder: str, given: Artifact, answers: Sequence[Answers]) -> Artifact:
    """Pairs of right and wrong outputs. Raises `StageError` if fewer than `health.min_pairs` give one."""
    stage = pairs_by_answer_stage(config, folder, given, answers)
    if (done := stage.complete()) is not None:
        return done
    for change in stage.begin():
        say(f"{stage.name}: made again, {change}")
    questions, recipe = questions_of(given, answers), config.recipe_as(SelfTrain)
    made = make_pairs(questions, most=recipe.pairs_per_question, max_tokens=config.train.max_tokens)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(made.account.dropped.items()))
    shortage = Shortage(stage.name, made.questions, len(questions), made.account.dropped, unit="questions")
    if shortage.is_serious(config.health.min_pairs):
        raise shortage.error(config.health.min_pairs, _remedy(made.account.dropped, config, answers))
    stage.write_shard(0, made.pairs)
    artifact = stage.commit(1, account=made.account, facts={"questions": made.questions})
    say(f"{stage.name}: {len(made.pairs)} pairs of {made.questions} questions; dropped: {reasons or 'none'}")
    return artifact


def _remedy(dropped: Mapping[str, int], config: RunConfig, answers: Sequence[Answers]) -> str:
    """What to do about the reason that most questions without a pair share."""
    reasons = ("no_wrong_output", "no_right_output", "too_long")
    where = f"look at {answers[-1].samples.path}"
    match max(reasons, key=lambda reason: dropped.get(reason, 0)):
        case "too_long":
            return f"raise train.max_tokens ({config.train.max_tokens}) to the length of the outputs"
        case "no_right_output":
            return f"set judge.answer_pattern to how answers are given, or {where}"
        case _:
            more = f"raise recipe.pair_outputs ({config.recipe_as(SelfTrain).pair_outputs})"
            return f"{more}, take harder questions, or {where}"


def make_pairs(questions: Iterable[Question], *, most: int, max_tokens: int) -> PairsByAnswer:
    """Up to `most` pairs a question, each prompt and output within `max_tokens`."""
    pairs: list[Pair] = []
    paired = 0
    dropped: Counter[str] = Counter()
    for question in questions:
        right = list(question.right.values())
        wrong = [written for text, written in question.wrong.items() if text not in question.right]
        room = max_tokens - len(question.prompt_token_ids)
        chosen, rejected = ([each for each in side if len(each.token_ids) <= room] for side in (right, wrong))
        if not (chosen and rejected):
            dropped[_why_none(right, wrong)] += 1
            continue
        found = least_alike([each.solution for each in chosen], [each.solution for each in rejected], most)
        dropped["too_long"] += len(right) * len(wrong) - len(chosen) * len(rejected)
        dropped["more_alike"] += len(chosen) * len(rejected) - len(found)
        pairs += [_pair(question, contrast) for contrast in found]
        paired += 1
    kept = {reason: count for reason, count in dropped.items() if count}
    return PairsByAnswer(pairs, paired, Account(len(pairs) + sum(kept.values()), len(pairs), kept))


def _why_none(right: Sequence[Written], wrong: Sequence[Written]) -> str:
    if right and wrong:
        return "too_long"
    return "no_wrong_output" if right else "no_right_output"


def _pair(question: Question, contrast: Contrast) -> Pair:
    chosen, rejected = question.right[contrast.chosen.text], question.wrong[contrast.rejected.text]
    return Pair(
        prompt_id=question.prompt_id,
        kind="error_rejected" if rejected.broken else "regular",
        prompt_token_ids=question.prompt_token_ids,
        chosen_token_ids=chosen.token_ids,
        rejected_token_ids=rejected.token_ids,
        chosen_index=chosen.index,
        rejected_index=rejected.index,
        chosen_score=chosen.score,
        rejected_score=rejected.score,
        margin=None,
    )
