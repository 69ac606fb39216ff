"""The numbers of a run's benchmarks, from judged outputs: `benchmarks.json`, and files for other tools in `exports/`.

Each kind's arithmetic is a function of one model's `_Read` rows; what it needs a judge for was judged before. Both are
written anew each time; no stage depends on them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from judges.base import BASELINE
from tasks.estimates import Estimator, grouped, outcome, values_of
from tasks.handles import BenchmarkAnswers, JudgedSamples
from tasks.stage import stage_task
from tpo.config.benchmarks import AlpacaEval, ArenaHard, BenchmarkConfig
from tpo.config.hub import local_path
from tpo.config.judges import compares, judge_name
from tpo.config.run import RunConfig
from tpo.data.benchmark_files import question_ids, read_benchmark, read_difficulties
from tpo.errors import InputError
from tpo.method.arena_hard import ArenaScore, Game, Rule, Style, arena_hard_score, style_of
from tpo.method.instructions import loose_verdicts, parse_constraints, strict_verdicts
from tpo.method.stats import function_of_means, lc_interval, lc_win_rate, mean
from tpo.models.chat import writer_encoder
from tpo.records import Judgment, Prompt, Sample
from tpo.report.benchmark_exports import Answered, Files, alpaca_eval_files, arena_hard_files, ifeval_files
from tpo.report.benchmarks import BENCHMARKS, EXPORTS, BenchmarkRow, Benchmarks, BenchmarkTable, write_benchmarks
from tpo.report.summary import Interval
from tpo.report.table import DIRECT
from tpo.storage.disk import make_folder, write_atomically
from tpo.storage.store import complete_artifact, read_rows


@dataclass(frozen=True)
class _Result:
    """One model's numbers, and its files for other tools."""

    numbers: Mapping[str, Interval]
    by_category: Mapping[str, Interval]
    files: Files
    unscored: int
    remarks: Sequence[str] = ()


@stage_task("measure_benchmarks", run_name="measure benchmarks")
def measure_benchmarks(config: RunConfig, answers: Sequence[BenchmarkAnswers]) -> Benchmarks:
    """The tables of all benchmarks."""
    tables = []
    for benchmark in config.evaluation.benchmarks:
        own = [each for each in answers if each.of.benchmark.title == benchmark.title]
        tables.append(_table(config, benchmark, own))
    found = Benchmarks(config.name, config.seed, config.evaluation.confidence, tables)
    write_atomically(config.root / BENCHMARKS, write_benchmarks(found))
    return found


def _table(config: RunConfig, benchmark: BenchmarkConfig, answers: Sequence[BenchmarkAnswers]) -> BenchmarkTable:
    rows = []
    for each in answers:
        read = _Read(config, each)
        found = _measure(read)
        for path, content in found.files.items():
            target = config.root / EXPORTS / benchmark.title / path
            make_folder(target.parent)
            write_atomically(target, content)
        samples = read.samples.values()
        rows.append(
            BenchmarkRow(
                model=each.model,
                numbers=found.numbers,
                by_category=found.by_category,
                unscored=found.unscored,
                parse_error_rate=float(np.mean([s.parse_error is not None or s.tries > 1 for s in samples])),
                thought_chars=float(np.mean([len(s.thought) for s in samples])),
                response_chars=float(np.mean([len(s.response) for s in samples])),
                exports=[f"{EXPORTS}/{benchmark.title}/{path}" for path in found.files],
                remarks=found.remarks,
            )
        )
    return BenchmarkTable(
        name=benchmark.title,
        kind=benchmark.kind,
        prompts=answers[0].of.prompts.rows,
        of=read_benchmark(benchmark).of,
        judge=judge_name(benchmark.verifier or config.evaluation.judge),
        baseline=baseline_name(benchmark) if benchmark.needs_baseline(config.evaluation.judge) else None,
        decoding=_decoding(config, benchmark),
        rows=rows,
    )


def baseline_name(benchmark: BenchmarkConfig) -> str:
    """What responses are compared with, as tables and exports name it."""
    if isinstance(benchmark, AlpacaEval) and benchmark.baseline_path is not None:
        return benchmark.baseline_name
    if isinstance(benchmark, ArenaHard) and benchmark.baseline_path is not None:
        other = benchmark.creative_baseline_path
        return benchmark.baseline + ("" if other is None else f" and {benchmark.creative_baseline_name}")
    return DIRECT


def _decoding(config: RunConfig, benchmark: BenchmarkConfig) -> str:
    own = config.sample.evaluation_temperature
    usual = config.sample.temperature if own is None else own
    temperature = usual if benchmark.temperature is None else benchmark.temperature
    longest = benchmark.max_new_tokens or config.sample.max_new_tokens
    return f"{'greedy' if temperature == 0 else f'temperature {temperature:g}'}, up to {longest:,} tokens"


class _Read:
    """One model's rows, each read once."""

    def __init__(self, config: RunConfig, answers: BenchmarkAnswers) -> None:
        self.config, self.benchmark, self.answers = config, answers.of.benchmark, answers
        self.model = config.name if answers.model in config.name else f"{config.name}-{answers.model}"
        self.prompts = read_rows(answers.of.prompts, Prompt)
        self.samples = {sample.prompt_id: sample for sample in read_rows(answers.answers.samples, Sample)}
        self.values = values_of(answers.answers)
        self.estimate = Estimator(config.evaluation.confidence)

    @property
    def baseline(self) -> JudgedSamples:
        """What the outputs are compared with; M_0 answering directly is compared with itself."""
        return self.answers.baseline or self.answers.answers

    @cached_property
    def baseline_samples(self) -> dict[str, Sample]:
        return {sample.prompt_id: sample for sample in read_rows(self.baseline.samples, Sample)}

    @cached_property
    def shares(self) -> dict[str, float]:
        """By prompt, 1 if the model's response is better than the baseline's, 0 if it is worse; what isn't scored for
        both is left out. A judge that compares gives shares of its two verdicts."""
        if compares(self.config.evaluation.judge):
            return self.values
        theirs = values_of(self.baseline)
        return {key: outcome(value, theirs[key]) for key, value in self.values.items() if key in theirs}

    def percent(self, name: str, values: Mapping[str, float]) -> dict[str, Interval]:
        """The mean in percent under a name; nothing without values."""
        found = self.estimate(mean, [100 * value for value in values.values()])
        return {} if found is None else {name: found}

    def by_category(self, values: Mapping[str, float]) -> dict[str, Interval]:
        """Means in percent by category; none if there is one category alone."""
        percent = {key: 100 * value for key, value in values.items()}
        found = grouped(self.estimate, percent, self.prompts, lambda prompt: prompt.category)
        return found if len(found) > 1 else {}


def _measure(read: _Read) -> _Result:
    match read.benchmark.kind:
        case "ifeval":
            return _ifeval(read)
        case "alpaca_eval":
            return _alpaca_eval(read)
        case "arena_hard":
            return _arena_hard(read)
        case _:
            return _scored(read)


def _scored(read: _Read) -> _Result:
    """Accuracy, the share of instructions that are followed, or the judge's mean score or win rate."""
    verifier, judge = read.benchmark.verifier, read.config.evaluation.judge
    unscored = len(read.prompts) - len(read.values)
    if verifier is None and not compares(judge):
        own = read.estimate(mean, list(read.values.values()))
        groups = grouped(read.estimate, read.values, read.prompts, lambda prompt: prompt.category)
        return _Result({} if own is None else {"mean_score": own}, groups, {}, unscored)
    name = "win_rate" if verifier is None else "instructions" if verifier.match == "instructions" else "accuracy"
    return _Result(read.percent(name, read.values), read.by_category(read.values), {}, unscored)


def _ifeval(read: _Read) -> _Result:
    """IFEval's numbers; a response that breaks the format is checked as it is."""
    responses = [(prompt, read.samples[prompt.prompt_id].response) for prompt in read.prompts]
    pairs = [(prompt.constraints, response) for prompt, response in responses if prompt.constraints is not None]
    if not pairs:
        raise InputError(f"{local_path(read.benchmark.path)} has no verifiable instructions to measure by")
    files = ifeval_files([Answered(prompt.instruction, response) for prompt, response in responses], model=read.model)
    numbers = ifeval_numbers(pairs, read.config.evaluation.confidence)
    return _Result(numbers, {}, files, len(responses) - len(pairs))


def ifeval_numbers(responses: Sequence[tuple[str | None, str]], confidence: float) -> dict[str, Interval]:
    """IFEval's four numbers in percent and their average, of responses with their prompts' constraints."""
    rows = []
    for text, response in responses:
        constraints = parse_constraints(text or "[]")
        strict, loose = strict_verdicts(constraints, response), loose_verdicts(constraints, response)
        rows.append([len(constraints), all(strict), sum(strict), all(loose), sum(loose)])

    def number(function: Callable[[Any], Any]) -> Interval:
        found = function_of_means(rows, lambda means: 100 * function(means), confidence=confidence)
        return Interval(found.value, found.low, found.high, found.n)

    return {
        "average": number(lambda m: (m[1] + m[2] / m[0] + m[3] + m[4] / m[0]) / 4),
        "prompt_strict": number(lambda m: m[1]),
        "instruction_strict": number(lambda m: m[2] / m[0]),
        "prompt_loose": number(lambda m: m[3]),
        "instruction_loose": number(lambda m: m[4] / m[0]),
    }


def _alpaca_eval(read: _Read) -> _Result:
    """Win rate and length-controlled win rate over the prompts with a preference."""
    benchmark = read.benchmark
    assert isinstance(benchmark, AlpacaEval)
    answered = [
        Answered(
            prompt.instruction,
            read.samples[prompt.prompt_id].response,
            read.baseline_samples[prompt.prompt_id].response,
            1 + read.shares[prompt.prompt_id] if prompt.prompt_id in read.shares else None,
        )
        for prompt in read.prompts
    ]
    kept = [(i, each) for i, each in enumerate(answered) if each.preference is not None]
    numbers = read.percent("win_rate", read.shares)
    remarks = []
    try:
        numbers |= _length_controlled(benchmark, kept, read.config.evaluation.confidence)
    except ValueError as error:
        remarks.append(f"No length-controlled win rate for {read.answers.model}: {error}.")
    files = alpaca_eval_files(
        answered,
        model=read.model,
        baseline=baseline_name(benchmark),
        judge=judge_name(read.config.evaluation.judge),
    )
    return _Result(numbers, read.by_category(read.shares), files, len(answered) - len(kept), remarks)


def _length_controlled(
    benchmark: AlpacaEval, kept: Sequence[tuple[int, Answered]], confidence: float
) -> dict[str, Interval]:
    known = None if benchmark.gamed_path is None else read_difficulties(local_path(benchmark.gamed_path))
    if known is not None and (missing := next((i for i, _ in kept if i not in known.by_row), None)) is not None:
        raise InputError(
            f"{benchmark.gamed_path} has no difficulty for row {missing}: expected AlpacaEval's df_gamed.csv"
        )
    arguments = {
        "preference": [each.preference for _, each in kept],
        "model_chars": [len(each.response) for _, each in kept],
        "baseline_chars": [len(each.baseline or "") for _, each in kept],
        "difficulty": None if known is None else [known.by_row[i] for i, _ in kept],
        "gamed": None if known is None else known.gamed,
    }
    name = "lc_minimal_win_rate" if known is None else "lc_win_rate"
    value = lc_win_rate(**arguments).lc_win_rate  # type: ignore[arg-type]
    low, high = lc_interval(**arguments, confidence=confidence)  # type: ignore[arg-type]
    return {name: Interval(value, min(low, value), max(high, value), len(kept))}


def _arena_hard(read: _Read) -> _Result:
    """The version's score; for v2.0 also with style control. The interval is the rule's own."""
    benchmark = read.benchmark
    assert isinstance(benchmark, ArenaHard)
    rule: Rule = "old" if benchmark.version == "v0.1" else "current"
    answered, styles = _arena_answers(read, benchmark)
    games = [each.games for each in answered]
    numbers, groups, remarks = dict[str, Interval](), dict[str, Interval](), list[str]()
    unscored = sum(game == (None, None) for game in games)
    if unscored < len(games):
        numbers["score"] = _interval(arena_hard_score(games, rule))
        if rule == "current":
            numbers["style_controlled_score"] = _interval(arena_hard_score(games, rule, style=styles))
        for category in sorted({each.category for each in answered if each.category is not None}):
            own = [each.games for each in answered if each.category == category]
            if len(own) < len(games) and any(game != (None, None) for game in own):
                groups[category] = _interval(arena_hard_score(own, rule))
    else:
        remarks.append(f"No score for {read.answers.model}: the judge gave no verdict.")
    files = arena_hard_files(
        answered, model=read.model, version=benchmark.version, judge=judge_name(read.config.evaluation.judge)
    )
    return _Result(numbers, groups, files, unscored, remarks)


def _arena_answers(read: _Read, benchmark: ArenaHard) -> tuple[list[Answered], list[tuple[Style, Style]]]:
    encoder = writer_encoder(read.config.model.folder, read.config.model)
    games, found, styles = _games(read), list[Answered](), list[tuple[Style, Style]]()

    def style(text: str) -> Style:
        return style_of(text, len(encoder.ids(text, as_text=True)))

    for uid, prompt in zip(question_ids(benchmark), read.prompts, strict=True):
        response = read.samples[prompt.prompt_id].response
        baseline = read.baseline_samples[prompt.prompt_id].response
        styles.append((style(response), style(baseline)))
        played, replies = games.get(prompt.prompt_id, ((None, None), ("", "")))
        found.append(
            Answered(
                prompt.instruction,
                response,
                baseline,
                uid=uid,
                category=prompt.category,
                games=played,
                replies=replies,
                style=styles[-1][0],
            )
        )
    return found, styles


def _games(read: _Read) -> dict[str, tuple[Game, tuple[str, str]]]:
    """Both verdicts by prompt, and what the judge said. A score of each response is a verdict that no order changes."""
    if not compares(read.config.evaluation.judge) or read.answers.baseline is None:
        return {key: ((_label(1 - 2 * share), _label(2 * share - 1)), ("", "")) for key, share in read.shares.items()}
    judgments = read_rows(complete_artifact(read.answers.answers.scores.path.parent / "judgments"), Judgment)
    said = {(each.prompt_id, each.index): each for each in judgments}
    found = dict[str, tuple[Game, tuple[str, str]]]()
    for prompt in read.prompts:
        first, second = said.get((prompt.prompt_id, BASELINE)), said.get((prompt.prompt_id, 0))
        if first is None and second is None and read.shares.get(prompt.prompt_id) == 0.5:
            found[prompt.prompt_id] = (("A=B", "A=B"), ("", ""))  # the same text
        else:
            game = (_label(first and first.outcome), _label(second and second.outcome))
            found[prompt.prompt_id] = (game, (_reply(first), _reply(second)))
    return found


def _label(result: Any) -> str | None:
    """A verdict on assistants A and B from A's result, -1 to 1."""
    if result is None:
        return None
    return "A=B" if result == 0 else "A>B" if result > 0 else "B>A"


def _reply(judgment: Judgment | None) -> str:
    return "" if judgment is None else str(json.loads(judgment.detail).get("text", ""))


def _interval(found: ArenaScore) -> Interval:
    return Interval(found.score, min(found.low, found.score), max(found.high, found.score), found.prompts)
