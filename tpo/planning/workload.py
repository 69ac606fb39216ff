"""Workload of a run: prompts, answers and tokens by kind of work, expected and at most.

Pure arithmetic on the config, T, and known lengths. It expects every output to parse, every generation to yield the
requested number of new prompts, and every prompt to yield a pair. An adaptive tournament is expected to make as many
comparisons as in our benchmarks (2 per response with soft results, 3.75 with hard ones). Lengths are the profile's,
otherwise those of past runs, otherwise half of the limit.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import reduce
from typing import Literal, Self

from tpo.config.contexts import pair_writers
from tpo.config.data import FileSource, MiniatureSource, SampleConfig, SyntheticConfig
from tpo.config.gate import SECOND_JUDGE
from tpo.config.judges import (
    EnsembleJudge,
    GenerativeJudge,
    JudgeConfig,
    PairwiseJudge,
    RewardServerJudge,
    SingleJudge,
    VerifierJudge,
    compares,
    members_of,
    scores_alone,
)
from tpo.config.recipes import SelfTrain, ThinkPo
from tpo.config.run import RunConfig
from tpo.config.training import TrainingConfig
from tpo.method.tournament import FOR_HARD_VERDICTS, Adaptive

JUDGE_PROSE_TOKENS = 250
"""Tokens of a comparison besides question and answers: system turn, headings, chat template."""
FEW_SHOT_PROSE_TOKENS = 150
"""Tokens of a prompt that asks for instructions, besides its examples."""
GUESSED_JUDGMENT_TOKENS = 300
"""Assumed length of a judge's explanation, unless the profile gives one."""
RATING_PROSE_TOKENS = 300
"""Tokens of a question about an instruction's kind, besides the instruction and the names of categories."""
GUESSED_RATING_TOKENS = 50
"""Assumed length of a rater's reply."""
_PAIRS_ATTACKED = 9
"""Pairs that are judged for each prompt whose responses are attacked: as they are, and with each kind of attack."""
ESCALATED_SHARE = 0.5
"""Assumed share of prompts that an ensemble's later members are asked about with `escalate_below`."""
_CHARS_PER_TOKEN = 4
"""Assumed length of a token in English."""
_MAX_ROUNDS_APART = 1000
"""Iterations up to which trainings are added up one by one; beyond that, their mean is used."""
_SOFT_CALLS, _HARD_CALLS = 2.0, 3.75
"""Comparisons per response that adaptive tournaments made (tests/benchmarks/bench_tournament.py)."""


Purpose = Literal["", "short", "long", "sft", "validation", "test", "benchmark"]
"""The purpose of work: one side of ThinkPO's pairs, fine-tuning, a measurement or, if empty, the iteration itself."""
Verb = Literal["generate", "sample", "judge", "train", "rate"]
"""The activity."""


class Kind(StrEnum):
    """A kind of work, named as in the ledger (`tpo.storage.ledger.WORK`), in the order of an iteration."""

    purpose: Purpose
    verb: Verb

    def __new__(cls, purpose: Purpose, verb: Verb) -> Self:
        """A kind whose value is its name."""
        kind = str.__new__(cls, f"{purpose} {verb}".strip())
        kind._value_, kind.purpose, kind.verb = str(kind), purpose, verb
        return kind

    @classmethod
    def named(cls, name: str) -> "Kind":
        """The kind of this name."""
        return next(kind for kind in cls if kind == name)

    GENERATE = "", "generate"
    SHORT_SAMPLE = "short", "sample"
    LONG_SAMPLE = "long", "sample"
    SAMPLE = "", "sample"
    JUDGE = "", "judge"
    SFT_TRAIN = "sft", "train"
    """Only for GPU memory: fine-tuning's spending is booked under `TRAIN`."""
    TRAIN = "", "train"
    VALIDATION_SAMPLE = "validation", "sample"
    VALIDATION_JUDGE = "validation", "judge"
    TEST_SAMPLE = "test", "sample"
    TEST_JUDGE = "test", "judge"
    BENCHMARK_SAMPLE = "benchmark", "sample"
    BENCHMARK_JUDGE = "benchmark", "judge"
    RATE = "", "rate"
    """The kinds of all prompts that are rated."""


@dataclass(frozen=True)
class Lengths:
    """Mean lengths in tokens, with their source."""

    prompt: float
    """A prompt, including the thought prompt and chat template."""
    output: float
    """An output."""
    response: float
    """The part of an output that judges read."""
    judgment: float
    """One comparison by a judge that explains itself."""
    source: str
    """Where the lengths come from; human-readable."""


@dataclass(frozen=True)
class Amount:
    """An amount of work."""

    answers: int
    """Outputs generated or sampled, responses read, comparisons made, or pairs trained on, each pass counted."""
    tokens_in: int
    """Tokens read; in training, all tokens."""
    tokens_out: int
    """Tokens written."""

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.tokens_in + self.tokens_out


@dataclass(frozen=True)
class Work:
    """One kind of work over a whole run."""

    kind: Kind
    """The kind of work."""
    rounds: int
    """Number of times that it is done, each with another model."""
    prompts: int
    """Prompts in all rounds."""
    expected: Amount
    """The expected amount."""
    most: Amount
    """The maximum amount."""
    member: int = 0
    """For judging: the position of the judge that does it among the members of an ensemble."""


@dataclass(frozen=True)
class Calls:
    """Number of comparisons of one prompt's outputs."""

    expected: float
    """The expected number."""
    most: int
    """The maximum number."""


def workload(config: RunConfig, iterations: int, lengths: Lengths) -> list[Work]:
    """The work of M_0 to M_T, T = `iterations`, by kind, in the order of an iteration; ThinkPO has a fixed end, so all
    of it."""
    if isinstance(config.recipe, ThinkPo):
        return _thinkpo(config, config.recipe, lengths)
    if isinstance(config.recipe, SelfTrain):
        return _self_training(config, config.recipe, lengths, iterations)
    data, rounds, fresh = config.data, iterations * config.train.rounds, config.prompts_per_round
    validated, tested = iterations * config.train.epochs, iterations + 2
    in_pairs = compares(config.judge), compares(config.evaluation.judge)
    # M_0 is the baseline that others are compared with, so its own validation and test need no comparison.
    judged = validated + (0 if in_pairs[0] else 1), tested - (1 if in_pairs[1] else 0)
    if in_pairs[1] and config.evaluation.fine_grained is not None:
        # M_0 … M_T are compared with M_0 answering directly, too.
        judged = judged[0], judged[1] + iterations + 1
    return [
        *([_generating(data.synthetic, lengths, rounds, fresh)] if data.synthetic is not None else []),
        _sampling(config, Kind.SAMPLE, lengths, rounds, fresh, config.sample.k, config.sample.max_attempts),
        *_training_judging(config, lengths, rounds, fresh),
        _trained_with_replay(config, lengths, iterations),
        _sampling(
            config,
            Kind.VALIDATION_SAMPLE,
            lengths,
            validated + 1,
            data.validation,
            1,
            config.sample.evaluation_max_attempts,
        ),
        *_judging(Kind.VALIDATION_JUDGE, config.judge, lengths, judged[0], data.validation, 1),
        _sampling(config, Kind.TEST_SAMPLE, lengths, tested, data.test, 1, config.sample.evaluation_max_attempts),
        *_test_judging(config, lengths, iterations, judged[1]),
        *benchmark_work(config, lengths, tested),
        *rating_work(config, lengths, data.test),
    ]


def _training_judging(config: RunConfig, lengths: Lengths, rounds: int, fresh: int) -> list[Work]:
    """The samples of every round and, once, their best and worst responses as they are and attacked."""
    plain = _judging(Kind.JUDGE, config.judge, lengths, rounds, fresh, config.sample.k)
    if config.health.max_attacked is None or not rounds:
        return plain
    attacks = _judging(Kind.JUDGE, config.judge, lengths, 1, *attacked_groups(config, fresh))
    return [_together(one, other) for one, other in zip(plain, attacks, strict=True)]


def attacked_groups(config: RunConfig, prompts: int) -> tuple[int, int]:
    """How many groups of how many responses a judge is asked about that is attacked on some of `prompts` prompts."""
    attacked = min(prompts, config.health.attacked_prompts)
    return (attacked, 1 + _PAIRS_ATTACKED) if scores_alone(config.judge) else (_PAIRS_ATTACKED * attacked, 2)


def _test_judging(config: RunConfig, lengths: Lengths, iterations: int, tested: int) -> list[Work]:
    """The test of every model, and the validation answers of M_0 to M_T if the test's judge scores them too."""
    judge, data = config.evaluation.judge, config.data
    test = _judging(Kind.TEST_JUDGE, judge, lengths, tested, data.test, 1)
    if SECOND_JUDGE not in config.second_judges:
        return test
    models = iterations + (0 if compares(judge) else 1)
    second = _judging(Kind.TEST_JUDGE, judge, lengths, models, data.validation, 1)
    return [_together(one, other) for one, other in zip(test, second, strict=True)]


def training_steps(config: RunConfig, iterations: int) -> int:
    """Optimizer steps of all trainings up to T = `iterations`, with every possible pair or demonstration."""
    recipe, count = config.recipe, config.data.count
    if isinstance(recipe, ThinkPo):
        return config.train.steps(recipe.max_pairs or count) + (0 if config.sft is None else config.sft.steps(count))
    if isinstance(recipe, SelfTrain):
        given = min(count, recipe.demonstrations or count)
        pairs = iterations * config.train.steps(count * recipe.pairs_per_question) if recipe.dpo else 0
        return pairs + sum(recipe.sft.steps(given + t * count) for t in range(iterations + 1))
    rounds, fresh, share = config.train.rounds, config.prompts_per_round, config.pair.replay_share
    replayed = round(fresh * share / (1 - share))
    later = max(0, iterations - 1) * config.train.steps(fresh + replayed)
    return rounds * (later + (config.train.steps(fresh) if iterations else 0))


def benchmark_work(config: RunConfig, lengths: Lengths, models: int) -> list[Work]:
    """Benchmarks of this many models, without custom ones whose size isn't known."""
    found = list[Work]()
    for benchmark in config.evaluation.benchmarks:
        prompts, sample = benchmark.known_size, config.sample
        if not prompts:
            continue
        if benchmark.max_new_tokens is not None:
            sample = sample.model_copy(update={"max_new_tokens": benchmark.max_new_tokens})
        tries = 1 if benchmark.temperature == 0 else sample.evaluation_max_attempts
        longest = benchmark.max_prompt_tokens
        found.append(
            _sampling(config, Kind.BENCHMARK_SAMPLE, lengths, models, prompts, 1, tries, sample, longest_prompt=longest)
        )
        judge = benchmark.verifier or config.evaluation.judge
        found += _judging(Kind.BENCHMARK_JUDGE, judge, lengths, models, prompts, 1)
    kinds = dict.fromkeys((work.kind, work.member) for work in found)
    return [reduce(_together, (work for work in found if (work.kind, work.member) == each)) for each in kinds]


def rating_work(config: RunConfig, lengths: Lengths, tested: int) -> list[Work]:
    """Ratings of `tested` test prompts and of benchmarks, each prompt once; none without a rater.

    Prompts are expected to bring what their source names a column for. What a benchmark's file brings isn't known.
    """
    settings = config.evaluation.fine_grained
    if settings is None or settings.model is None:
        return []
    sizes = [benchmark.known_size for benchmark in config.evaluation.benchmarks if benchmark.has_kinds]
    prompts = sum(sizes) + (0 if brings_kinds(config) else tested)
    listed = sum(len(name) for name in settings.categories) / _CHARS_PER_TOKEN
    longest = settings.max_tokens - settings.max_new_tokens
    read = min(longest, RATING_PROSE_TOKENS + listed + lengths.prompt)
    written = min(settings.max_new_tokens, GUESSED_RATING_TOKENS)
    expected = Amount(prompts, round(prompts * read), prompts * written)
    most = Amount(prompts, prompts * longest, prompts * settings.max_new_tokens)
    return [Work(Kind.RATE, 1 + len(sizes), prompts, expected, most)] if prompts else []


def brings_kinds(config: RunConfig) -> bool:
    """Whether the test prompts bring categories and difficulties, as far as the config tells."""
    source = config.data.source
    if isinstance(source, FileSource):
        return source.category_column is not None and source.difficulty_column is not None
    return not (isinstance(source, MiniatureSource) and len(source.categories) == 1)


def _thinkpo(config: RunConfig, recipe: ThinkPo, lengths: Lengths) -> list[Work]:
    """One output per prompt from each writer, up to two trainings, and the test of every model."""
    prompts = config.data.count if config.sft is not None else 0
    written = [
        _sampling(config, Kind.named(writer.work), lengths, 1, prompts, 1, writer.sample.max_attempts, writer.sample)
        for writer in pair_writers(config)
    ]
    pairs = recipe.max_pairs or config.data.count
    trained = _trained(config.train, lengths, 1, pairs, outputs=2)
    if config.sft is not None:
        trained = _together(_trained(config.sft, lengths, 1, prompts, outputs=1), trained)
    tested = 2 if config.sft is None else 3
    return [
        *written,
        trained,
        _sampling(
            config, Kind.TEST_SAMPLE, lengths, tested, config.data.test, 1, config.sample.evaluation_max_attempts
        ),
        *_judging(Kind.TEST_JUDGE, config.evaluation.judge, lengths, tested, config.data.test, 1),
    ]


def _self_training(config: RunConfig, how: SelfTrain, lengths: Lengths, iterations: int) -> list[Work]:
    """Outputs for pairs and pseudo-labels, one more fine-tuning than iterations, and the test of every model.

    Assumes that each iteration adds one output a question to imitate, and that every possible pair is made.
    """
    questions = config.data.count
    given = min(questions, how.demonstrations or questions)
    outputs = how.label_outputs + (how.pair_outputs if how.dpo else 0)
    written = _sampling(config, Kind.SAMPLE, lengths, iterations, questions, outputs, config.sample.max_attempts)
    judged = _judging(Kind.JUDGE, config.judge, lengths, iterations, questions, outputs)
    if iterations <= _MAX_ROUNDS_APART:
        trained = [_trained(how.sft, lengths, 1, given + t * questions, outputs=1) for t in range(iterations + 1)]
    else:
        trained = [_trained(how.sft, lengths, iterations + 1, given + iterations * questions // 2, outputs=1)]
    if how.dpo and iterations:
        trained.append(_trained(config.train, lengths, iterations, questions * how.pairs_per_question, outputs=2))
    tested = iterations + 2 + (iterations if how.dpo else 0)
    return [
        written,
        *judged,
        reduce(_together, trained),
        _sampling(
            config, Kind.TEST_SAMPLE, lengths, tested, config.data.test, 1, config.sample.evaluation_max_attempts
        ),
        *_judging(Kind.TEST_JUDGE, config.evaluation.judge, lengths, tested, config.data.test, 1),
    ]


def _together(one: Work, other: Work) -> Work:
    """The sum of two works of one kind."""

    def added(a: Amount, b: Amount) -> Amount:
        return Amount(a.answers + b.answers, a.tokens_in + b.tokens_in, a.tokens_out + b.tokens_out)

    return Work(
        one.kind,
        one.rounds + other.rounds,
        one.prompts + other.prompts,
        added(one.expected, other.expected),
        added(one.most, other.most),
        one.member,
    )


def judge_longest(judge: SingleJudge, context: int | None = None) -> int:
    """Maximum tokens of one chat with a judge, including its judgment."""
    if isinstance(judge, VerifierJudge):
        return 0
    if isinstance(judge, RewardServerJudge):
        return judge.max_response_chars // _CHARS_PER_TOKEN  # the server knows its context, and we don't
    return judge.max_tokens if context is None else min(judge.max_tokens, context)


def judgment_longest(judge: GenerativeJudge, context: int | None = None) -> int:
    """Maximum tokens that a judge writes per reply."""
    if not judge.explains:
        return 1
    return judge.max_new_tokens or min(2048, judge_longest(judge, context) // 4)


def _trained_with_replay(config: RunConfig, lengths: Lengths, iterations: int) -> Work:
    """The rounds' trainings; from the second iteration on, with pairs of earlier ones."""
    rounds, fresh, share = config.train.rounds, config.prompts_per_round, config.pair.replay_share
    if not share or iterations < 2:
        return _trained(config.train, lengths, iterations * rounds, fresh, outputs=2)
    # Assumes that there are enough earlier pairs, as there are from the second iteration on if `share` is at most half.
    replayed = round(fresh * share / (1 - share))
    return _together(
        _trained(config.train, lengths, rounds, fresh, outputs=2),
        _trained(config.train, lengths, (iterations - 1) * rounds, fresh + replayed, outputs=2),
    )


def _generating(settings: SyntheticConfig, lengths: Lengths, rounds: int, fresh: int) -> Work:
    prompts = rounds * fresh
    expected, most = -(-prompts // settings.per_generation), prompts * settings.max_generations
    # Examples have no thought prompt, which is most of `lengths.prompt` for short instructions.
    read = min(settings.max_prompt_tokens, FEW_SHOT_PROSE_TOKENS + settings.shots * lengths.prompt)
    written = min(settings.max_new_tokens, settings.per_generation * lengths.prompt)
    return Work(
        Kind.GENERATE,
        rounds,
        prompts,
        Amount(expected, round(expected * read), round(expected * written)),
        Amount(most, most * settings.max_prompt_tokens, most * settings.max_new_tokens),
    )


def _sampling(
    config: RunConfig,
    kind: Kind,
    lengths: Lengths,
    rounds: int,
    prompts: int,
    k: int,
    max_attempts: int,
    sample: SampleConfig | None = None,
    *,
    longest_prompt: int | None = None,
) -> Work:
    asked, longest = rounds * prompts, (sample or config.sample).max_new_tokens
    # For a writer with its own settings no lengths are known: assume half of its limit, or the known mean if that is
    # less.
    output = min(lengths.output, longest if sample is None else longest / 2)
    return Work(
        kind,
        rounds,
        asked,
        Amount(asked * k, round(asked * lengths.prompt), round(asked * k * output)),
        Amount(
            asked * k,
            asked * (longest_prompt or config.data.max_prompt_tokens),
            asked * k * longest * max_attempts,
        ),
    )


def _judging(kind: Kind, judge: JudgeConfig, lengths: Lengths, rounds: int, prompts: int, k: int) -> list[Work]:
    """The work of a judge, or of each member of an ensemble that is asked about K outputs a prompt.

    Of the members asked about close prompts only, half of the prompts are expected.
    """
    found = list[Work]()
    for number, each in enumerate(members_of(judge)):
        if k == 1 and compares(each) and not compares(judge):
            continue
        work = _judging_by(kind, each, lengths, rounds, prompts, k)
        if number and k > 1 and isinstance(judge, EnsembleJudge) and judge.escalate_below is not None:
            work = replace(work, expected=_part(work.expected, ESCALATED_SHARE))
        found.append(replace(work, member=number))
    return found


def _part(amount: Amount, share: float) -> Amount:
    return Amount(round(amount.answers * share), round(amount.tokens_in * share), round(amount.tokens_out * share))


def _judging_by(kind: Kind, judge: SingleJudge, lengths: Lengths, rounds: int, prompts: int, k: int) -> Work:
    asked = rounds * prompts
    if isinstance(judge, VerifierJudge):
        read = Amount(asked * k, 0, 0)
        return Work(kind, rounds, asked, read, read)
    longest = judge_longest(judge)
    if not isinstance(judge, GenerativeJudge):
        tokens = min(longest, lengths.prompt + lengths.response)
        return Work(
            kind,
            rounds,
            asked,
            Amount(asked * k, round(asked * k * tokens), 0),
            Amount(asked * k, asked * k * longest, 0),
        )
    calls = calls_of(judge, k)
    written_most = judgment_longest(judge)
    written = min(lengths.judgment, written_most) if judge.explains else 1
    shown = 2 if isinstance(judge, PairwiseJudge) else 1
    read_in = min(longest - written, JUDGE_PROSE_TOKENS + lengths.prompt + shown * lengths.response)
    return Work(
        kind,
        rounds,
        asked,
        Amount(
            round(asked * calls.expected),
            round(asked * calls.expected * read_in),
            round(asked * calls.expected * written),
        ),
        Amount(asked * calls.most, asked * calls.most * (longest - written_most), asked * calls.most * written_most),
    )


def calls_of(judge: GenerativeJudge, k: int) -> Calls:
    """Replies about K outputs of one prompt, expected and at most; a judge that compares compares a single output with
    a baseline."""
    if not isinstance(judge, PairwiseJudge):
        return Calls(k * judge.samples, k * judge.samples)
    if k == 1:
        return Calls(2, 2)
    if judge.tournament == "all_pairs":
        return Calls(k * (k - 1), k * (k - 1))
    soft = judge.mode == "probability"
    design = Adaptive() if soft else FOR_HARD_VERDICTS
    most = min(k * (k - 1), k * design.calls_per_response)
    return Calls(min(most, k * (_SOFT_CALLS if soft else _HARD_CALLS)), most)


def _trained(training: TrainingConfig, lengths: Lengths, rounds: int, rows: int, *, outputs: int) -> Work:
    """Trainings on rows of `outputs` outputs each."""
    passes = rounds * min(rows * training.epochs, training.steps(rows) * training.batch_size)
    expected = min(training.max_tokens, lengths.prompt + lengths.output)
    return Work(
        Kind.TRAIN,
        rounds,
        rounds * rows,
        Amount(passes, round(passes * outputs * expected), 0),
        Amount(passes, passes * outputs * training.max_tokens, 0),
    )
