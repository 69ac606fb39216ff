"""Benchmarks in a run: their files first, so that a fault in one shows before anything is sampled, then every model.

What is compared needs a baseline: the published outputs if the benchmark names their file, otherwise those of M_0
answering directly, which are asked first.
"""

from collections.abc import Sequence

from flows.fine_grained import rate_prompts
from tasks.handles import (
    BenchmarkAnswers,
    BenchmarkSet,
    JudgedSamples,
    baseline_of,
    benchmark_folder,
    benchmark_spec,
)
from tasks.judge import judge
from tasks.load_benchmark import load_baseline, load_benchmark
from tasks.sample import sample
from tpo.config.benchmarks import BenchmarkConfig
from tpo.config.data import PromptConfig
from tpo.config.run import RunConfig
from tpo.data.benchmark_files import baseline_files
from tpo.records import Artifact
from tpo.report.table import DIRECT


def open_benchmarks(config: RunConfig) -> list[BenchmarkSet]:
    """The run's benchmarks with their prompts and the judged outputs of their baselines."""
    return [_open(config, benchmark) for benchmark in config.evaluation.benchmarks]


def ask_directly(config: RunConfig, sets: Sequence[BenchmarkSet], seed: Artifact) -> list[BenchmarkAnswers]:
    """M_0's outputs without a thought prompt."""
    return [
        _ask(config, each, seed, 0, DIRECT, each.baseline, prompt=PromptConfig(variant="direct"), inner="/direct")
        for each in sets
    ]


def ask(
    config: RunConfig,
    sets: Sequence[BenchmarkSet],
    model: Artifact,
    iteration: int,
    directly: Sequence[BenchmarkAnswers] = (),
    *,
    name: str | None = None,
) -> list[BenchmarkAnswers]:
    """The outputs of M_t; `directly` are those of M_0 answering directly, the baseline of what has no other."""
    plain = {each.of.benchmark.title: each.answers for each in directly}
    return [
        _ask(
            config,
            each,
            model,
            iteration,
            name or f"M_{iteration}",
            each.baseline or plain.get(each.benchmark.title),
            prompt=config.prompt,
        )
        for each in sets
    ]


def _open(config: RunConfig, benchmark: BenchmarkConfig) -> BenchmarkSet:
    prompts = load_benchmark(config, benchmark)
    ratings = None
    if benchmark.has_kinds:
        ratings = rate_prompts(config, prompts, f"{benchmark_folder(benchmark, 0)}/ratings")
    if not baseline_files(benchmark):
        return BenchmarkSet(benchmark, prompts, None, ratings)
    given = load_baseline(config, benchmark, prompts)
    spec = benchmark_spec(config, benchmark, f"{benchmark_folder(benchmark, 0)}/baseline", config.prompt)
    baseline = judge(config, spec, given, prompts, baseline_of(spec, given, None))
    return BenchmarkSet(benchmark, prompts, baseline, ratings)


def _ask(
    config: RunConfig,
    asked: BenchmarkSet,
    model: Artifact,
    iteration: int,
    name: str,
    against: JudgedSamples | None,
    *,
    prompt: PromptConfig,
    inner: str = "",
) -> BenchmarkAnswers:
    spec = benchmark_spec(config, asked.benchmark, benchmark_folder(asked.benchmark, iteration) + inner, prompt)
    samples = sample(config, spec, model, asked.prompts)
    answers = judge(config, spec, samples, asked.prompts, baseline_of(spec, samples, against))
    return BenchmarkAnswers(asked, name, answers, against)
