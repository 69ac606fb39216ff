"""Loads the prompts of one iteration, of validation or of test.

In: a source (the miniature world or files) and the sets that came earlier. Out: `Prompt`s, disjoint from those sets.

Prompts are drawn in an order that depends on the seed alone; each set takes the next ones that nobody had. A prompt
that is too long is dropped and counted, never cut: a cut instruction is another instruction. Instructions that differ
in case, blanks or Unicode form alone are one question: no two sets share it, and no set has it twice.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from tasks.source import origin, prompts_stage, question_key, read_source, why_unfit
from tasks.stage import complete_or_begun, stage_task
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder
from tpo.records import Account, Artifact, Prompt
from tpo.storage.store import read_rows


@stage_task("load_prompts", run_name="load {folder}")
def load_prompts(config: RunConfig, folder: str, model: Artifact, earlier: Sequence[Artifact]) -> Artifact:
    """The prompts of `folder`, disjoint from those of `earlier`.

    Raises `InputError` where the source cannot be read, lacks a column, or has too few fresh prompts.
    """
    stage = prompts_stage(config, folder, model, earlier)
    if (done := complete_or_begun(stage)) is not None:
        return done
    own = origin(config, folder)
    same, other = set[str](), set[str]()
    for artifact in earlier:
        keys = {question_key(prompt.instruction) for prompt in read_rows(artifact, Prompt)}
        (same if origin(config, artifact.path.relative_to(config.root).as_posix()) == own else other).update(keys)
    prompts, account = choose_prompts(
        read_source(config, folder),
        count=stage.config["data"]["count"],
        used=same,
        foreign=other,
        refuse_foreign=config.data.overlap == "refuse",
        unfit=why_unfit(config, ChatEncoder(model.path)),
        name=folder,
    )
    stage.write_shard(0, prompts)
    artifact = stage.commit(1, account=account)
    dropped = ", ".join(f"{count} {reason}" for reason, count in account.dropped.items() if count)
    say(f"{folder}: {len(prompts)} prompts{f' ({dropped} passed over)' if dropped else ''}")
    return artifact


def choose_prompts(
    candidates: Iterable[Prompt],
    *,
    count: int | Literal["all"],
    used: set[str],
    foreign: set[str],
    refuse_foreign: bool,
    unfit: Callable[[str], str | None],
    name: str,
) -> tuple[list[Prompt], Account]:
    """The first `count` prompts that are fresh and fit, and what became of the others on the way.

    Args:
        candidates: Prompts in the order in which they are to be taken.
        count: How many to take, or all there are.
        used: Keys of questions (`question_key`) that earlier sets took from the same source; passed over, as they
            must be.
        foreign: Keys of questions of earlier sets from other sources: a leak, skipped or refused.
        refuse_foreign: Whether to refuse it.
        unfit: Why the model cannot be asked an instruction, or None.
        name: What the set is called in errors.
    """
    chosen: dict[str, Prompt] = {}
    dropped: Counter[str] = Counter()
    seen = 0
    for prompt in candidates:
        if len(chosen) == count:
            break
        seen += 1
        key = question_key(prompt.instruction)
        if not prompt.instruction.strip():
            dropped["empty"] += 1
        elif key in chosen:
            dropped["duplicate"] += 1
        elif key in used:
            dropped["used_before"] += 1
        elif key in foreign:
            if refuse_foreign:
                raise InputError(
                    f"{name}: {prompt.instruction[:80]!r} is also in an earlier iteration, validation or test: take "
                    'it out of one of the files, or set data.overlap = "skip"'
                )
            dropped["overlap"] += 1
        elif (reason := unfit(prompt.instruction)) is not None:
            dropped[reason] += 1
        else:
            chosen[key] = prompt
    least = 1 if count == "all" else count
    if len(chosen) < least:
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items()) or "none dropped"
        raise InputError(
            f"{name}: {len(chosen)} fresh prompts in {seen} rows ({reasons}), expected {least}: add "
            "prompts, or lower data.per_iteration, data.validation or data.test"
        )
    return list(chosen.values()), Account(seen, len(chosen), dict(dropped))
