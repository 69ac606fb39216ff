"""Preference pairs of self-training (DPO-ST, 2407.18248, §3.2): a correct and a wrong output, several pairs per
question.

The demonstration counts as a correct output. An output without an answer is wrong, as in the paper's code. Of all pairs
of a question, the least similar are taken, so that they differ in more than a digit. Every question without a pair is
counted, by reason.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tasks.handles import JudgedSamples
from tasks.shortage import Shortage
from tasks.solutions import Question, Written, answered_inputs, questions_of
from tasks.stage import complete_or_begun, stage_task
from tpo.config.recipes import SelfTrain
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.method.diversity import Contrast, least_alike
from tpo.records import Artifact, Pair, RowCounts
from tpo.storage.store import Stage


@dataclass(frozen=True)
class PairsByAnswer:
    """Pairs with counts."""

    pairs: list[Pair]
    """In the order of the questions; within a question, least similar first."""
    questions: int
    """Questions that have a pair."""
    account: RowCounts
    """In possible pairs; a question with none counts as one."""


@stage_task("pair_by_answer", run_name="pair {folder}")
def pair_by_answer(config: RunConfig, folder: str, given: Artifact, answers: Sequence[JudgedSamples]) -> Artifact:
    """Pairs of correct and wrong outputs. Raises `StageError` if fewer than `health.min_pairs` of the questions give
    one."""
    stage = pairs_by_answer_stage(config, folder, given, answers)
    if (done := complete_or_begun(stage)) is not None:
        return done
    questions, recipe = questions_of(given, answers), config.recipe_as(SelfTrain)
    made = make_pairs(questions, most=recipe.pairs_per_question, max_tokens=config.train.max_tokens)
    shortage = Shortage(stage.name, made.questions, len(questions), made.account.dropped, unit="questions")
    if shortage.is_serious(config.health.min_pairs):
        raise shortage.error(config.health.min_pairs, _remedy(made.account.dropped, config, answers))
    stage.write_shard(0, made.pairs)
    artifact = stage.commit(1, account=made.account, facts={"questions": made.questions})
    say(f"{stage.name}: {len(made.pairs)} pairs of {made.questions} questions; dropped: {made.account.reasons()}")
    return artifact


def _remedy(dropped: Mapping[str, int], config: RunConfig, answers: Sequence[JudgedSamples]) -> str:
    """The remedy for the most common reason why a question has no pair."""
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
    """Up to `most` pairs per question, each prompt and output within `max_tokens`."""
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
    return PairsByAnswer(pairs, paired, RowCounts(len(pairs) + sum(kept.values()), len(pairs), kept))


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


def pairs_by_answer_stage(config: RunConfig, folder: str, given: Artifact, answers: Sequence[JudgedSamples]) -> Stage:
    """Pairs of correct and wrong outputs to the same questions."""
    return Stage(
        config.root,
        f"{folder}/pairs",
        Pair,
        inputs=answered_inputs(given, answers),
        config={
            "pairs_per_question": config.recipe_as(SelfTrain).pairs_per_question,
            "max_tokens": config.train.max_tokens,
        },
    )
