"""Prompts of one iteration, of validation or of test, disjoint from all earlier sets.

The order of prompts depends on the seed alone; each set takes the next unused ones. A prompt that is too long is
dropped and counted, never cut, since a cut instruction is a different instruction. Instructions that differ only in
case, white space or Unicode form count as one question: no two sets share it, and no set has it twice. So do
conversations of which all turns do. One that can't be a prompt is counted by its reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from tasks.source import origin, prompts_stage, question_key, read_source, why_unfit
from tasks.stage import complete_or_begun, stage_task
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.data.conversations import Unusable
from tpo.errors import InputError
from tpo.models.chat import writer_encoder
from tpo.records import Artifact, Prompt, RowCounts
from tpo.storage.store import stream_rows


@stage_task("load_prompts", run_name="load {folder}")
def load_prompts(config: RunConfig, folder: str, model: Artifact, earlier: Sequence[Artifact]) -> Artifact:
    """The prompts of `folder`, disjoint from those of `earlier`.

    Raises `InputError` if the source can't be read, lacks a column, or has too few unused prompts.
    """
    stage = prompts_stage(config, folder, model, earlier)
    if (done := complete_or_begun(stage)) is not None:
        return done
    own = origin(config, folder)
    same, other = set[str](), set[str]()
    for artifact in earlier:
        keys = {question_key(prompt.instruction, prompt.history) for prompt in stream_rows(artifact, Prompt)}
        (same if origin(config, artifact.path.relative_to(config.root).as_posix()) == own else other).update(keys)
    prompts, account = choose_prompts(
        read_source(config, folder),
        count=stage.config["data"]["count"],
        used=same,
        foreign=other,
        refuse_foreign=config.data.overlap == "refuse",
        unfit=why_unfit(config, writer_encoder(model.path, config.model)),
        name=folder,
    )
    stage.write_shard(0, prompts)
    artifact = stage.commit(1, account=account)
    dropped = ", ".join(f"{count} {reason}" for reason, count in account.dropped.items() if count)
    conversations = sum(prompt.history is not None for prompt in prompts)
    note = f", {conversations} of them conversations up to their last user turn" if conversations else ""
    say(f"{folder}: {len(prompts)} prompts{note}{f' ({dropped} passed over)' if dropped else ''}")
    return artifact


def choose_prompts(
    candidates: Iterable[Prompt | Unusable],
    *,
    count: int | Literal["all"],
    used: set[str],
    foreign: set[str],
    refuse_foreign: bool,
    unfit: Callable[[Prompt], str | None],
    name: str,
) -> tuple[list[Prompt], RowCounts]:
    """The first `count` unused prompts that fit, and how many were passed over, by reason.

    Args:
        candidates: Prompts in the order in which to take them; in place of one, why it can't be used.
        count: Number to take, or all there are.
        used: Keys of questions (`question_key`) that earlier sets took from the same source; passed over silently.
        foreign: Keys of questions in earlier sets from other sources: a leak, skipped or refused.
        refuse_foreign: Whether to refuse a leak.
        unfit: Returns why the model can't take a prompt, or None.
        name: The set's name in errors.
    """
    chosen: dict[str, Prompt] = {}
    dropped: Counter[str] = Counter()
    seen = 0
    for prompt in candidates:
        if len(chosen) == count:
            break
        seen += 1
        if isinstance(prompt, Unusable):
            dropped[str(prompt)] += 1
            continue
        key = question_key(prompt.instruction, prompt.history)
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
        elif (reason := unfit(prompt)) is not None:
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
    return list(chosen.values()), RowCounts(seen, len(chosen), dict(dropped))
