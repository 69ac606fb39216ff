"""Prompts that a model writes for one iteration, from examples (Self-Rewarding, 2401.10020, §2.2). They have no
reference.

Generations are stored apart from the prompts chosen from them. They are made in rounds, whose size follows from the
share of fresh prompts so far. So the prompts come from the first generations that suffice, regardless of interruptions,
and a different freshness threshold doesn't repeat or pay for any generation. Unlike in the paper, all examples come
from the source.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prompts.instructions import InstructionPrompt, WrittenInstruction, can_be_shown, load_instruction_prompt
from prompts.quoting import without_control_tokens
from tasks.handles import with_files
from tasks.source import make_prompt, prompts_stage, question_key, read_source, source_file, source_values, why_unfit
from tasks.spending import api_tokens, generating_meter
from tasks.stage import begin, stage_task
from tpo.config.contexts import context_of
from tpo.config.data import FileSource, SyntheticConfig
from tpo.config.hub import local_path
from tpo.config.run import RunConfig
from tpo.console import progress_bar, say
from tpo.data.conversations import Unusable
from tpo.data.prompt_files import read_prompt_rows
from tpo.engines.inference.chat_client import RefusedChat, Spent
from tpo.engines.inference.generator import ApiGenerator, ChatResult, EngineGenerator, GenerationRequest, Generator
from tpo.engines.inference.reply import Reply
from tpo.engines.inference.sampler import request_seed
from tpo.errors import InputError, StageError
from tpo.method.similarity import NearTexts, words_of
from tpo.models.chat import writer_encoder
from tpo.records import Artifact, Generation, Prompt, RowCounts, read_turns
from tpo.storage.disk import remove
from tpo.storage.ledger import Meter
from tpo.storage.store import (
    Stage,
    check_files,
    folder_artifact,
    read_rows,
    read_shards,
)

DRAWS = 20
"""How often examples are drawn again until they fit into a prompt together."""
MIN_YIELD = 0.05
"""Share of generations with a fresh prompt below which rounds stop growing."""


@stage_task("synthesize", run_name="write {folder}")
def synthesize(config: RunConfig, folder: str, model: Artifact, earlier: Sequence[Artifact]) -> Artifact:
    """Prompts of `folder` written by a model, none similar to those of `earlier`; `model` is M_0.

    Raises `StageError` if the generations are used up before there are enough fresh prompts.
    """
    stage = generations_stage(config, folder, model, earlier)
    generations = stage.complete()
    if generations and (done := prompts_stage(config, folder, model, earlier, generations).complete()):
        return done
    writing = _Writing.of(config, folder, model, earlier)
    choice = _choice(config, model, earlier, writing.examples)
    prompt = load_instruction_prompt(writing.settings.template)
    made = 0
    while True:
        if generations:
            made = _take(choice, generations, prompt, after=made)
        if generations and not choice.missing:
            break
        generations = _write_more(config, stage, writing, choice, made)
    chosen = prompts_stage(config, folder, model, earlier, generations)
    for change in chosen.begin():
        say(f"{folder}: chosen again, {change}")
    chosen.write_shard(0, choice.taken)
    facts = {"generations": choice.generations}
    artifact = chosen.commit(1, account=choice.account, facts=facts)
    say(f"{folder}: {len(choice.taken)} prompts of {choice.generations} generations ({_told(choice.dropped)})")
    return artifact


@dataclass(frozen=True)
class _Writing:
    """The generator with its settings."""

    settings: SyntheticConfig
    folder: str
    seed: int
    model: Artifact | None
    examples: Sequence[Prompt]
    prompt: InstructionPrompt

    @classmethod
    def of(cls, config: RunConfig, folder: str, seed: Artifact, earlier: Sequence[Artifact]) -> "_Writing":
        """Raises `InputError` if the source has too few examples."""
        settings = config.data.synthetic
        assert settings is not None
        sets = [read_rows(artifact, Prompt) for artifact in earlier[:2]]
        taken = {question_key(prompt.instruction, prompt.history) for prompts in sets for prompt in prompts}
        pool = example_pool(read_source(config, folder), taken=taken, most=settings.pool)
        if len(pool) < settings.shots:
            raise InputError(
                f"{folder}: {len(pool)} instructions of data.source can be examples, without those that validation and "
                f"test take; expected data.synthetic.shots = {settings.shots} or more: add some, or lower it"
            )
        prompt = load_instruction_prompt(settings.template)
        return cls(settings, folder, config.seed, generator_model(config, seed), pool, prompt)

    def ask(self, index: int, fits: Callable[[GenerationRequest], bool]) -> "_PendingRequest":
        """The prompt of generation number `index`. Raises `InputError` if no draw of examples fits."""
        for draw in range(DRAWS):
            rng = np.random.default_rng(request_seed(self.seed, self.folder, "examples", index, draw))
            shown = [self.examples[i] for i in rng.choice(len(self.examples), self.settings.shots, replace=False)]
            messages = self.prompt.render([example.instruction for example in shown], self.settings.per_generation)
            question = GenerationRequest(messages, request_seed(self.seed, self.folder, "generation", index))
            if fits(question):
                return _PendingRequest(index, [example.prompt_id for example in shown], question)
        raise InputError(
            f"{self.folder}: none of {DRAWS} draws of {self.settings.shots} examples fits into "
            f"data.synthetic.max_prompt_tokens = {self.settings.max_prompt_tokens}: raise it, lower "
            "data.synthetic.shots, or leave long instructions out of data.source"
        )


@dataclass(frozen=True)
class _PendingRequest:
    """One request for a generation."""

    index: int
    example_ids: list[str]
    question: GenerationRequest

    def with_reply(self, reply: ChatResult) -> Generation:
        """Its record, from the reply."""
        if isinstance(reply, RefusedChat):
            return Generation(self.index, self.example_ids, "", True, reply.reason)
        return Generation(self.index, self.example_ids, reply.text, reply.finished, None)


def example_pool(source: Iterator[Prompt | Unusable], *, taken: set[str], most: int) -> list[Prompt]:
    """The first distinct instructions of a source that can be shown and whose keys (`question_key`) aren't taken; a
    conversation's last turn means little without the others and is no example."""
    pool: dict[str, Prompt] = {}
    for prompt in source:
        if len(pool) == most:
            break
        if isinstance(prompt, Unusable) or prompt.history is not None:
            continue
        key = question_key(prompt.instruction)
        if key not in taken and can_be_shown(prompt.instruction):
            pool.setdefault(key, prompt)
    return list(pool.values())


class Choice:
    """Chooses fresh prompts among generated instructions, in order, until there are enough.

    Args:
        count: Number to choose.
        known: Instructions that prompts must not resemble, by the reason for dropping those that do; of several reasons
            the first counts.
        max_similarity: ROUGE-L above which two instructions are too similar.
        unfit: Returns why an instruction can't be used at all, or None.
    """

    def __init__(
        self,
        *,
        count: int,
        known: Mapping[str, Sequence[str]],
        max_similarity: float,
        unfit: Callable[[str], str | None],
    ) -> None:
        self._count = count
        self._unfit = unfit
        listed = [(reason, text) for reason, texts in known.items() for text in texts]
        self._reasons = [reason for reason, _ in listed]
        self._equal = {text: reason for reason, text in reversed(listed)}
        self._near = NearTexts(max_similarity, (text for _, text in listed))
        self.taken: list[Prompt] = []
        self.dropped: Counter[str] = Counter()
        self.generations = 0

    @property
    def missing(self) -> int:
        """Number still missing."""
        return self._count - len(self.taken)

    @property
    def account(self) -> RowCounts:
        """Counts of everything that was looked at; generations after the last chosen prompt aren't."""
        return RowCounts(len(self.taken) + self.dropped.total(), len(self.taken), dict(self.dropped))

    def look_at(self, written: Sequence[WrittenInstruction]) -> None:
        """Chooses the fresh prompts of one generation."""
        if not self.missing:
            return
        self.generations += 1
        for each in written:
            if not self.missing:
                break
            if (reason := each.fault or self._why_not(each.instruction)) is not None:
                self.dropped[str(reason)] += 1
                continue
            self.taken.append(make_prompt(each.instruction, None, None, None))
            self._near.add(each.instruction)
            self._equal[each.instruction] = "duplicate"

    def refused(self) -> None:
        """Counts a generation that a server refused to make."""
        if self.missing:
            self.generations += 1
            self.dropped["refused"] += 1

    def _why_not(self, instruction: str) -> str | None:
        if (reason := self._unfit(instruction) or self._equal.get(instruction)) is not None:
            return reason
        if (place := self._near.first_near(instruction)) is None:
            return None
        return self._reasons[place] if place < len(self._reasons) else "near_duplicate"


def next_round(*, made: int, taken: int, missing: int, per_generation: int, most: int) -> int:
    """Total number of generations after another round, at most `most`.

    Enough for the missing prompts at the share that was fresh so far; in the first round, all are expected to be fresh.
    A round at most doubles the number, since the share was measured on what there is.
    """
    if not made:
        return min(most, math.ceil(missing / per_generation))
    more = math.ceil(missing / max(taken / made, MIN_YIELD))
    return min(most, made + min(more, made))


def _choice(config: RunConfig, model: Artifact, earlier: Sequence[Artifact], examples: Sequence[Prompt]) -> Choice:
    settings = config.data.synthetic
    assert settings is not None
    sets = [[prompt.instruction for prompt in read_rows(artifact, Prompt)] for artifact in earlier]
    benchmarks = [
        text
        for file in settings.avoid
        for row in read_prompt_rows(
            FileSource(path=file.path, instruction_column=file.instruction_column), local_path(file.path)
        )
        for text in (row.instruction, *(turn["content"] for turn in read_turns(row.history) if turn["role"] == "user"))
    ]
    fits = why_unfit(config, writer_encoder(model.path, config.model))
    forbidden = {word.casefold() for word in settings.without_words}

    def unfit(instruction: str) -> str | None:
        words = words_of(instruction)
        if len(words) < settings.min_words:
            return "too_short"
        return "forbidden_word" if forbidden.intersection(words) else fits(make_prompt(instruction, None, None, None))

    return Choice(
        count=config.prompts_per_round,
        known={
            "benchmark": benchmarks,
            "overlap": [text for texts in sets[:2] for text in texts],
            "used_before": [text for texts in sets[2:] for text in texts],
            "example": [example.instruction for example in examples],
        },
        max_similarity=settings.max_similarity,
        unfit=unfit,
    )


def _take(choice: Choice, generations: Artifact, prompt: InstructionPrompt, *, after: int) -> int:
    """Passes on all generations after the first `seen`; returns how many there are."""
    made = 0
    for shard in read_shards(generations, Generation):
        for generation in shard:
            made += 1
            if made > after and generation.refused is not None:
                choice.refused()
            elif made > after:
                choice.look_at(prompt.split(generation.output, finished=generation.finished))
    return made


def _write_more(config: RunConfig, stage: Stage, writing: _Writing, choice: Choice, made: int) -> Artifact:
    """Makes one more round of generations."""
    count, settings = config.prompts_per_round, writing.settings
    wanted = next_round(
        made=made,
        taken=len(choice.taken),
        missing=choice.missing,
        per_generation=settings.per_generation,
        most=settings.max_generations * count,
    )
    if wanted <= made:
        raise StageError(
            f"{writing.folder}: {len(choice.taken)} fresh prompts in {made} generations ({_told(choice.dropped)}), "
            f"expected {count}: raise data.synthetic.max_generations or max_similarity, give data.source more and "
            f"other examples, or lower data.per_iteration; look at {stage.folder}, whose content is kept"
        )
    generator = _generator(config, writing)
    begin(stage, shard_size=generator.shard_size(config.engine.shard_prompts))
    assert stage.shard_size is not None
    shards = math.ceil(wanted / stage.shard_size)
    _write_shards(config, stage, writing, generator, shards)
    return stage.commit(shards)


def _write_shards(config: RunConfig, stage: Stage, writing: _Writing, generator: Generator, shards: int) -> None:
    size = stage.shard_size or 1
    missing = [i for i in range(shards) if not stage.has_shard(i)]
    if missing and writing.model is not None:
        check_files(writing.model)
    asked = dict[int, list[_PendingRequest]]()
    with (
        progress_bar(f"write {writing.folder}", shards * size, "generations") as advance,
        generating_meter(config, stage.name, writing.model) as meter,
    ):

        def questions() -> Iterator[tuple[Path, list[GenerationRequest]]]:
            for i in missing:
                if meter.is_spent():
                    return
                asked[i] = [
                    writing.ask(index, lambda question: generator.fits(question.messages))
                    for index in range(i * size, (i + 1) * size)
                ]
                yield _journal(stage, i), [each.question for each in asked[i]]

        if missing:
            meter.check()
        left = len(missing)
        for position, replies in generator.reply(questions(), lambda done: _book(meter, done)):
            shard = missing[position]
            meter.book(prompts=len(replies))
            stage.write_shard(
                shard, [each.with_reply(reply) for each, reply in zip(asked.pop(shard), replies, strict=True)]
            )
            left -= 1
            advance((shards - left) * size)
        if left:
            meter.check()
    for i in range(shards):
        remove(_journal(stage, i))


def _generator(config: RunConfig, writing: _Writing) -> Generator:
    settings = writing.settings
    if settings.endpoint is not None:
        used = api_tokens(config.root, "generate")
        spent = Spent(used.input_tokens, used.output_tokens)
        return ApiGenerator(settings, settings.endpoint, spent, without_control_tokens)
    assert writing.model is not None
    return EngineGenerator(settings, writing.model, config.engine, config.cluster, context_of(config, "generate"))


def _book(meter: Meter, replies: Sequence[Reply]) -> None:
    meter.book(
        answers=len(replies),
        tokens_in=sum(reply.input_tokens for reply in replies),
        tokens_out=sum(reply.output_tokens for reply in replies),
    )


def _journal(stage: Stage, shard: int) -> Path:
    return stage.folder / f"journal-{shard:05d}.jsonl"


def _told(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "none dropped"


def generations_stage(config: RunConfig, folder: str, seed: Artifact, earlier: Sequence[Artifact]) -> Stage:
    """The generations for `folder`; `earlier` are the sets of prompts made before.

    Examples come from what validation and test have left of the source. How many generations are used, and so how many
    are made, isn't part of the identity: with another threshold the same generations are looked through again, and
    more are made only if they don't suffice.
    """
    settings = config.data.synthetic
    assert settings is not None
    model = generator_model(config, seed)
    how = {"shots", "pool", "per_generation", "temperature", "top_p", "max_prompt_tokens", "max_new_tokens"}
    writer = {"model": settings.model} if model is None else config.engine.precision
    return Stage(
        config.root,
        f"{folder.removesuffix('prompts')}generations",
        Generation,
        inputs={
            **{f"prompts {i}": artifact for i, artifact in enumerate(earlier[:2])},
            **({} if model is None else {"generator": model}),
            **source_file(config, folder),
            "few-shot template": with_files(load_instruction_prompt(settings.template).fingerprint, settings.template),
        },
        config={
            "seed": config.seed,
            "source": source_values(config),
            "synthetic": settings.model_dump(mode="json", include=how) | writer,
        },
    )


def generator_model(config: RunConfig, seed: Artifact) -> Artifact | None:
    """The model that writes prompts; None if it is behind a server."""
    settings = config.data.synthetic
    if settings is None or settings.endpoint is not None:
        return None
    return seed if settings.folder is None else folder_artifact(settings.folder)
