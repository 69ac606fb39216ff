"""Loads the prompts of one iteration, of validation or of test.

In: a source (the miniature world or files) and the sets that came earlier. Out: `Prompt`s, disjoint from those sets.

Prompts are drawn in an order that depends on the seed alone; each set takes the next ones that nobody had. A prompt
that is too long is dropped and counted, never cut: a cut instruction is another instruction.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from prompts.thought import load_prompt
from tasks.lineage import prompt_file, prompts_stage
from tasks.retry import may_pass
from tpo.config import FileSource, MiniatureSource, RunConfig
from tpo.console import say
from tpo.engines.chat import ChatEncoder
from tpo.errors import InputError
from tpo.miniature import world
from tpo.prompt_files import read_prompt_rows
from tpo.records import Account, Artifact, Message, Prompt
from tpo.store import read_rows


@task(name="load_prompts", task_run_name="load {folder}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def load_prompts(config: RunConfig, folder: str, model: Artifact, earlier: Sequence[Artifact]) -> Artifact:
    """The prompts of `folder`, disjoint from those of `earlier`.

    Raises `InputError` where the source cannot be read, lacks a column, or has too few fresh prompts.
    """
    stage = prompts_stage(config, folder, model, earlier)
    if (done := stage.complete()) is not None:
        return done
    for change in stage.begin():
        say(f"{folder}: made again, {change}")
    encoder = ChatEncoder(model.path)
    ways = [load_prompt(way) for way in (config.prompt, config.data.also_fits) if way is not None]
    own = origin(config, folder)
    same, other = set[str](), set[str]()
    for artifact in earlier:
        ids = {prompt.prompt_id for prompt in read_rows(artifact, Prompt)}
        (same if origin(config, artifact.path.relative_to(config.root).as_posix()) == own else other).update(ids)
    prompts, account = choose_prompts(
        read_source(config, folder),
        count=stage.config["data"]["count"],
        used=same,
        foreign=other,
        refuse_foreign=config.data.overlap == "refuse",
        unfit=lambda text: next(
            filter(None, (why_unfit(encoder, way.render(text), config.data.max_prompt_tokens) for way in ways)), None
        ),
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
    count: int,
    used: set[str],
    foreign: set[str],
    refuse_foreign: bool,
    unfit: Callable[[str], str | None],
    name: str,
) -> tuple[list[Prompt], Account]:
    """The first `count` prompts that are fresh and fit, and what became of the others on the way.

    Args:
        candidates: Prompts in the order in which they are to be taken.
        count: How many to take.
        used: Ids that earlier sets took from the same source; passed over, as they must be.
        foreign: Ids of earlier sets from other sources: a leak, skipped or refused.
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
        if not prompt.instruction.strip():
            dropped["empty"] += 1
        elif prompt.prompt_id in chosen:
            dropped["duplicate"] += 1
        elif prompt.prompt_id in used:
            dropped["used_before"] += 1
        elif prompt.prompt_id in foreign:
            if refuse_foreign:
                raise InputError(
                    f"{name}: {prompt.instruction[:80]!r} is also in an earlier iteration, validation or test: take "
                    'it out of one of the files, or set data.overlap = "skip"'
                )
            dropped["overlap"] += 1
        elif (reason := unfit(prompt.instruction)) is not None:
            dropped[reason] += 1
        else:
            chosen[prompt.prompt_id] = prompt
    if len(chosen) < count:
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items()) or "none dropped"
        raise InputError(
            f"{name}: {len(chosen)} fresh prompts in {seen} rows ({reasons}), expected {count}: add prompts, or lower "
            "data.per_iteration, data.validation or data.test"
        )
    return list(chosen.values()), Account(seen, len(chosen), dict(dropped))


def why_unfit(encoder: ChatEncoder, messages: Sequence[Message], max_prompt_tokens: int) -> str | None:
    """Why a model cannot be asked with some messages: they are too long, or its chat template changes them."""
    try:
        return "too_long" if len(encoder.encode(messages)) > max_prompt_tokens else None
    except InputError:
        return "chat_template"


def origin(config: RunConfig, folder: str) -> str:
    """Where the prompts of a set come from: two sets of one origin share its rows."""
    source = config.data.source
    if isinstance(source, MiniatureSource):
        return MiniatureSource.__name__
    return str(prompt_file(source, folder))


def read_source(config: RunConfig, folder: str) -> Iterator[Prompt]:
    """All prompts of a set's origin, in the order that the seed gives."""
    source = config.data.source
    if isinstance(source, MiniatureSource):
        return _from_miniature(source, folder, config.seed)
    return _from_file(source, prompt_file(source, folder), config.seed)


def make_prompt(
    instruction: str,
    reference: str | None,
    category: str | None,
    difficulty: int | None,
    demonstration: str | None = None,
) -> Prompt:
    """A prompt with the id that its instruction gives it."""
    prompt_id = hashlib.sha256(instruction.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]
    return Prompt(prompt_id, instruction, reference, category, difficulty, demonstration)


def _from_miniature(source: MiniatureSource, folder: str, seed: int) -> Iterator[Prompt]:
    kind = folder.rsplit("/", 1)[-1]
    split: world.Split = "validation" if kind == "validation" else "test" if kind == "test" else "train"
    for problem in world.problems(split, seed, source.categories or None):
        yield make_prompt(problem.instruction, problem.reference, problem.category, problem.difficulty, problem.worked)


def _from_file(source: FileSource, path: Path, seed: int) -> Iterator[Prompt]:
    rows = read_prompt_rows(source, path)
    for i in np.random.default_rng(seed).permutation(len(rows)):
        yield make_prompt(**vars(rows[int(i)]))
