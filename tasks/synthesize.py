"""Has a model write the prompts of one iteration, from examples (Self-Rewarding, 2401.10020, §2.2).

In: instructions of the source, and the sets that came earlier. Out: `Generation`s, shard by shard, and the fresh
`Prompt`s that are chosen from them; they have no reference.

Generations are kept apart from the prompts chosen from them and are made in rounds, sized by the share that was fresh
so far. So the prompts follow from the first generations that suffice, whatever broke on the way, and with another
measure of freshness no generation is made or paid for twice. Unlike in the paper, all examples are the source's.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from prefect import task
from prefect.cache_policies import NO_CACHE

from prompts.instructions import InstructionPrompt, Written, can_be_shown, load_instruction_prompt
from prompts.verdict import without_control_tokens
from tasks.lineage import generations_stage, generator_model, prompts_stage
from tasks.retry import may_pass
from tasks.source import make_prompt, question_key, read_source, why_unfit
from tasks.spending import api_tokens, generating_meter
from tpo.config.contexts import context_of
from tpo.config.data import FileSource, SyntheticConfig
from tpo.config.run import RunConfig
from tpo.console import progress_bar, say
from tpo.data.prompt_files import read_prompt_rows
from tpo.engines.inference.chat_client import Refused, Spent
from tpo.engines.inference.generator import ApiGenerator, EngineGenerator, Generator, Question, Told
from tpo.engines.inference.reply import Reply
from tpo.engines.inference.sampler import request_seed
from tpo.errors import InputError, StageError
from tpo.method.similarity import NearTexts, words_of
from tpo.models.chat import ChatEncoder
from tpo.records import Account, Artifact, Generation, Prompt
from tpo.storage.disk import remove
from tpo.storage.ledger import Meter
from tpo.storage.store import Stage, check_files, read_rows, read_shards

DRAWS = 20
"""Times that examples are drawn until they fit into a prompt together."""
LEAST_SHARE = 0.05
"""Share of generations that gave a fresh prompt, below which rounds do not grow any more."""


@task(name="synthesize", task_run_name="write {folder}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def synthesize(config: RunConfig, folder: str, model: Artifact, earlier: Sequence[Artifact]) -> Artifact:
    """Prompts of `folder` that a model wrote, near none of those of `earlier`; `model` is M_0.

    Raises `StageError` where generations run out before there are enough fresh ones.
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
    """What generations are made with."""

    settings: SyntheticConfig
    folder: str
    seed: int
    model: Artifact | None
    examples: Sequence[Prompt]
    prompt: InstructionPrompt

    @classmethod
    def of(cls, config: RunConfig, folder: str, seed: Artifact, earlier: Sequence[Artifact]) -> "_Writing":
        """Raises `InputError` where the source has too few examples."""
        settings = config.data.synthetic
        assert settings is not None
        sets = [read_rows(artifact, Prompt) for artifact in earlier[:2]]
        taken = {question_key(prompt.instruction) for prompts in sets for prompt in prompts}
        pool = example_pool(read_source(config, folder), taken=taken, most=settings.pool)
        if len(pool) < settings.shots:
            raise InputError(
                f"{folder}: {len(pool)} instructions of data.source can be examples, beside those that validation and "
                f"test have taken; expected data.synthetic.shots = {settings.shots} or more: add some, or lower it"
            )
        prompt = load_instruction_prompt(settings.template)
        return cls(settings, folder, config.seed, generator_model(config, seed), pool, prompt)

    def ask(self, index: int, fits: Callable[[Question], bool]) -> "_Asked":
        """What generation number `index` is asked; raises `InputError` where no draw of examples fits."""
        for draw in range(DRAWS):
            rng = np.random.default_rng(request_seed(self.seed, self.folder, "examples", index, draw))
            shown = [self.examples[i] for i in rng.choice(len(self.examples), self.settings.shots, replace=False)]
            messages = self.prompt.render([example.instruction for example in shown], self.settings.per_generation)
            question = Question(messages, request_seed(self.seed, self.folder, "generation", index))
            if fits(question):
                return _Asked(index, [example.prompt_id for example in shown], question)
        raise InputError(
            f"{self.folder}: none of {DRAWS} draws of {self.settings.shots} examples fits into "
            f"data.synthetic.max_prompt_tokens = {self.settings.max_prompt_tokens}: raise it, lower "
            "data.synthetic.shots, or leave long instructions out of data.source"
        )


@dataclass(frozen=True)
class _Asked:
    """One generation as it is asked for."""

    index: int
    example_ids: list[str]
    question: Question

    def answered(self, told: Told) -> Generation:
        """The record of what came."""
        if isinstance(told, Refused):
            return Generation(self.index, self.example_ids, "", True, told.reason)
        return Generation(self.index, self.example_ids, told.text, told.finished, None)


def example_pool(source: Iterator[Prompt], *, taken: set[str], most: int) -> list[Prompt]:
    """The first distinct instructions of a source that can be shown and whose keys (`question_key`) are not taken."""
    pool: dict[str, Prompt] = {}
    for prompt in source:
        if len(pool) == most:
            break
        key = question_key(prompt.instruction)
        if key not in taken and can_be_shown(prompt.instruction):
            pool.setdefault(key, prompt)
    return list(pool.values())


class Choice:
    """The fresh prompts among what a model wrote, taken in its order until there are enough.

    Args:
        count: How many to take.
        known: Instructions to be kept clear of, by the reason for which one near them is dropped; of several reasons
            the first counts.
        max_similarity: ROUGE-L above which two instructions are near.
        unfit: Why an instruction cannot be taken whatever else there is, or None.
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
        """How many are still to be taken."""
        return self._count - len(self.taken)

    @property
    def account(self) -> Account:
        """What became of everything that was looked at; what came when there were enough was not."""
        return Account(len(self.taken) + self.dropped.total(), len(self.taken), dict(self.dropped))

    def look_at(self, written: Sequence[Written]) -> None:
        """Takes what is fresh of one generation."""
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
        """Counts a generation that a server would not make."""
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
    """How many generations there should be in all after another round, at most `most`.

    As many more as the missing prompts take at the share that was fresh so far; of the first, every one is expected to
    be. A round at most doubles what there is, since that share was measured on what there is.
    """
    if not made:
        return min(most, math.ceil(missing / per_generation))
    more = math.ceil(missing / max(taken / made, LEAST_SHARE))
    return min(most, made + min(more, made))


def _choice(config: RunConfig, model: Artifact, earlier: Sequence[Artifact], examples: Sequence[Prompt]) -> Choice:
    settings = config.data.synthetic
    assert settings is not None
    sets = [[prompt.instruction for prompt in read_rows(artifact, Prompt)] for artifact in earlier]
    benchmarks = [
        row.instruction
        for file in settings.avoid
        for row in read_prompt_rows(FileSource(path=file.path, instruction_column=file.instruction_column), file.path)
    ]
    fits, forbidden = why_unfit(config, ChatEncoder(model.path)), {word.casefold() for word in settings.without_words}

    def unfit(instruction: str) -> str | None:
        words = words_of(instruction)
        if len(words) < settings.min_words:
            return "too_short"
        return "forbidden_word" if forbidden.intersection(words) else fits(instruction)

    return Choice(
        count=config.data.count,
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
    """Has the generations after the first so many looked at; how many there are."""
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
    """One more round of generations, beside those that there are."""
    count, settings = config.data.count, writing.settings
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
            f"other examples, or lower data.per_iteration; look at {stage.folder}, what is there is kept"
        )
    generator = _generator(config, writing)
    for change in stage.begin(shard_size=generator.shard_size(config.engine.shard_prompts)):
        say(f"{stage.name}: made again, {change}")
    assert stage.shard_size is not None
    shards = math.ceil(wanted / stage.shard_size)
    _write_shards(config, stage, writing, generator, shards)
    return stage.commit(shards)


def _write_shards(config: RunConfig, stage: Stage, writing: _Writing, generator: Generator, shards: int) -> None:
    size = stage.shard_size or 1
    missing = [i for i in range(shards) if not stage.has_shard(i)]
    if missing and writing.model is not None:
        check_files(writing.model)
    asked = dict[int, list[_Asked]]()
    with (
        progress_bar(f"write {writing.folder}", shards * size, "generations") as advance,
        generating_meter(config, stage.name, writing.model) as meter,
    ):

        def questions() -> Iterator[tuple[Path, list[Question]]]:
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
        for position, told in generator.reply(questions(), lambda replies: _book(meter, replies)):
            shard = missing[position]
            meter.book(prompts=len(told))
            stage.write_shard(shard, [each.answered(said) for each, said in zip(asked.pop(shard), told, strict=True)])
            left -= 1
            advance((shards - left) * size)
        if left:
            meter.check()
    for i in range(shards):
        remove(_journal(stage, i))


def _generator(config: RunConfig, writing: _Writing) -> Generator:
    settings = writing.settings
    if settings.endpoint is not None:
        used = api_tokens(config.root, generating=True)
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
