"""A benchmark's prompts, all of them and in the order of its file, and the outputs of its baseline.

Unlike a run's own prompts they are neither shuffled nor filtered: one that is too long for the model is refused before
work starts (`tasks.benchmark_prompts`). A question that occurs twice is asked twice.
"""

from tasks.benchmark_prompts import distinct
from tasks.handles import benchmark_folder
from tasks.stage import complete_or_begun, stage_task
from tpo.config.benchmarks import BenchmarkConfig
from tpo.config.hub import local_path
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.data.benchmark_files import baseline_files, baseline_outputs, read_benchmark
from tpo.records import Artifact, Prompt, RowCounts, Sample
from tpo.storage.store import Stage, external_file, read_rows


@stage_task("load_benchmark", run_name="load {benchmark.title}")
def load_benchmark(config: RunConfig, benchmark: BenchmarkConfig) -> Artifact:
    """The prompts of a benchmark. Raises `InputError` if its file can't be read."""
    stage = benchmark_stage(config, benchmark)
    if (done := complete_or_begun(stage)) is not None:
        return done
    found = read_benchmark(benchmark)
    prompts = distinct(found.rows)
    left = {"beyond_limit": found.of - len(prompts)} if found.of > len(prompts) else {}
    stage.write_shard(0, prompts)
    artifact = stage.commit(1, account=RowCounts(found.of, len(prompts), left))
    say(f"{stage.name}: {len(prompts)} of {found.of} prompts")
    return artifact


@stage_task("load_baseline", run_name="load the baseline of {benchmark.title}")
def load_baseline(config: RunConfig, benchmark: BenchmarkConfig, prompts: Artifact) -> Artifact:
    """The outputs of a benchmark's baseline, from its file, as if sampled."""
    stage = baseline_stage(config, benchmark, prompts)
    if (done := complete_or_begun(stage)) is not None:
        return done
    rows = read_rows(prompts, Prompt)
    outputs = baseline_outputs(benchmark, read_benchmark(benchmark).rows)
    assert outputs is not None
    stage.write_shard(0, [_given(row.prompt_id, output) for row, output in zip(rows, outputs, strict=True)])
    return stage.commit(1, account=RowCounts(len(rows), len(rows), {}))


def _given(prompt_id: str, output: str) -> Sample:
    return Sample(prompt_id, 0, [], [], output, "", output, None, 1)


def benchmark_stage(config: RunConfig, benchmark: BenchmarkConfig) -> Stage:
    """The prompts of a benchmark: by its file, its columns, and how they are put."""
    values = benchmark.columns.model_dump(mode="json", exclude={"path"}) | {"limit": benchmark.limit}
    if benchmark.kind == "gsm8k":
        values["instruction"] = benchmark.instruction if benchmark.answer_only else None
    files = {"source": benchmark.path}
    if benchmark.kind == "alpaca_eval" and benchmark.gamed_path is not None:
        files["gamed"] = benchmark.gamed_path  # no prompt depends on it, but the results do
    return Stage(
        config.root,
        f"{benchmark_folder(benchmark, 0)}/prompts",
        Prompt,
        inputs={name: external_file(local_path(path)) for name, path in files.items()},
        config={"kind": benchmark.kind, **values},
    )


def baseline_stage(config: RunConfig, benchmark: BenchmarkConfig, prompts: Artifact) -> Stage:
    """The outputs of a benchmark's baseline."""
    files = {f"baseline {i}": external_file(path) for i, path in enumerate(baseline_files(benchmark))}
    return Stage(
        config.root,
        f"{benchmark_folder(benchmark, 0)}/baseline/samples",
        Sample,
        inputs={"prompts": prompts, **files},
        config={},
    )
