"""Our own time and memory in one iteration: everything that is neither an engine nor a trainer.

Prints seconds by stage, CPU and wall-clock, and the driver's peak memory for several numbers of prompts with 8 outputs
each, to show how they grow. Each size is measured in its own process, with Prefect imported as in a run. The stages are
the flow's; engine and trainer answer at once, and the time to make their answers is measured and excluded. Prompts have
60 words; outputs have 300 tokens, half of them are right, and one in sixteen breaks the format. Validation and test
have 1,500 (the paper's) and 600 prompts at every size: what grows is the rest. Run with `python -m
tests.benchmarks.bench_own_time`, manually with `--prompts 100000` or `--source miniature`.
"""

import argparse
import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.faults.mock_engines import MockEngines
from tests.faults.mock_run import make_seed
from tests.without_prefect import without_prefect
from tpo.config.data import SampleConfig
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.engines.inference.forcing import Rule
from tpo.engines.inference.sampler import Accept, Output, Request
from tpo.engines.training.job import TrainingJob
from tpo.miniature.world import WORDS
from tpo.records import Artifact
from tpo.run_context import RunContext, using

K, VALIDATION, TEST = 8, 1500, 600
SIZES = (5000, 20_000)
VOCABULARY = 128_000
"""Vocabulary of the models that runs of this size use: their token ids aren't small integers."""
BUDGET_SECONDS, BUDGET_MIB = 30.0, 1024.0
"""Limits for an iteration of 5,000 × 8."""


class InstantPool:
    """Replaces `SamplerPool`; outputs are combined from ready-made ones, each with a unique word."""

    def __init__(self) -> None:
        draw = random.Random(0)
        self.seconds = 0.0
        self._texts = [" ".join(draw.choices(WORDS, k=120)) for _ in range(97)]
        self._ids = [[draw.randrange(VOCABULARY) for _ in range(297)] for _ in range(101)]

    def generate(
        self,
        model: Artifact,
        shards: Iterable[Sequence[Request]],
        sample: SampleConfig,
        *,
        n: int,
        tries: int,
        accept: Accept,
        rules: Sequence[Rule] = (),
        shard_count: int | None = None,
    ) -> Iterator[tuple[int, list[list[Output]]]]:
        """Outputs, shard by shard."""
        for i, shard in enumerate(shards):
            started = time.process_time()
            outputs = [[self._output(request.seed + j, tries) for j in range(n)] for request in shard]
            self.seconds += time.process_time() - started
            yield i, outputs

    def _output(self, seed: int, tries: int) -> Output:
        thought, response = self._texts[seed % 97], self._texts[seed // 97 % 97]
        broken = tries == 1 and seed % 16 == 0
        marker = "" if broken else "Here is my response:"
        text = f"Here is my thought process: {seed} {thought}\n{marker} {response} The answer is {seed % 2}."
        return Output([seed % VOCABULARY, *self._ids[seed % 101], 2], text, True, 1)


class InstantEngines(MockEngines):
    """The mock's engines, whose training skips most rows, since that isn't our own work."""

    def train_model(self, job: TrainingJob, **options: Any) -> Any:
        return super().train_model(replace(job, rows=list(itertools.islice(job.rows, 1))), **options)


class Clock:
    """Adds up the time of stages, without the pool's."""

    def __init__(self, pool: InstantPool) -> None:
        self._pool = pool
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self.peak: dict[str, float] = {}

    def timed(self, name: str, stage: Callable[..., Any]) -> Callable[..., Any]:
        """The stage, timed."""

        def run(*arguments: Any, **settings: Any) -> Any:
            wall, cpu, mock = time.perf_counter(), time.process_time(), self._pool.seconds
            found = stage(*arguments, **settings)
            mock = self._pool.seconds - mock
            self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu - mock
            self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall - mock
            self.peak[name] = peak_mib()
            return found

        return run


def peak_mib() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measures each size in its own process, and prints."""
    options = _options()
    if options.one:
        print(json.dumps(measure(options.prompts[0], options.source)))
        return
    print(f"{'prompts × 8':>12} {'CPU s':>7} {'wall s':>7} {'peak MiB':>9} {'ms a prompt':>12} {'KiB a prompt':>13}")
    measured: dict[int, tuple[float, float]] = {}
    for prompts in options.prompts:
        command = [sys.executable, "-m", "tests.benchmarks.bench_own_time", "--one", "--source", options.source]
        done = subprocess.run([*command, "--prompts", str(prompts)], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        cpu, wall = sum(found["cpu"].values()), sum(found["wall"].values())
        held = found["peak"] - found["before"]
        print(
            f"{prompts:12,} {cpu:7.1f} {wall:7.1f} {found['peak']:9.0f} {1000 * cpu / prompts:12.2f} "
            f"{1024 * held / prompts:13.1f}"
        )
        for stage in found["cpu"]:
            times = f"{found['cpu'][stage]:7.1f} {found['wall'][stage]:7.1f}"
            print(f"{stage:>12} {times} {found['peaks'][stage]:9.0f}")
        print(f"{'imports':>12} {'':15} {found['before']:9.0f}   with {', '.join(found['loaded']) or 'nothing heavy'}")
        measured[prompts] = wall, found["peak"]
        if prompts == SIZES[0] and (cpu > BUDGET_SECONDS or found["peak"] > BUDGET_MIB):
            print(f"more than {BUDGET_SECONDS:.0f} s or {BUDGET_MIB:.0f} MiB")
    if options.json:
        _report(measured)


def _report(measured: Mapping[int, tuple[float, float]]) -> None:
    """The rows of the table of performance: time beside an 8B iteration by plan, and memory as prompts grow."""
    from flows.cli.plan import plan_run
    from tests.benchmarks import measure

    small, large = min(measured), max(measured)
    seconds = plan_run(load_config(Path("deploy/profiles/llama3-8b-armorm.toml"), []), 1).seconds
    share = measured[small][0] / seconds
    what, peer = f"own seconds at {small:,} × {K}", f"an iteration of llama3-8b-armorm by plan, {seconds:.0f} s"
    limit = "parsing, JSON lines and hashes in one process"
    measure.report(measure.Row(11, what, peer, "≤ 0.01", share, share, share, limit), as_json=True)
    growth = measured[large][1] / measured[small][1]
    what, peer = f"driver's peak memory at {large:,} × {K}", f"at {small:,} × {K}"
    limit = "numbers kept for each prompt and response, beside what the imports take; rows are read a shard at a time"
    measure.report(measure.Row(12, what, peer, "≤ 1.5", growth, growth, growth, limit), as_json=True)


def measure(prompts: int, source: str) -> dict[str, Any]:
    """Times and memory of one iteration, after M_0 was measured."""
    from flows.iterate import iterate

    pool = InstantPool()
    clock = Clock(pool)
    before = peak_mib()
    with (
        tempfile.TemporaryDirectory() as folder,
        without_prefect(clock.timed),
        using(RunContext(engines=InstantEngines(pool))),
    ):
        config = a_run(Path(folder), prompts, source)
        iterate(config, 0)
        for times in (clock.cpu, clock.wall, clock.peak):
            times.clear()
        iterate(config, 1)
    loaded = [name for name in ("torch", "transformers", "ray", "vllm", "trl", "pandas") if name in sys.modules]
    return {
        "cpu": clock.cpu,
        "wall": clock.wall,
        "peaks": clock.peak,
        "before": before,
        "peak": peak_mib(),
        "loaded": loaded,
    }


def a_run(folder: Path, prompts: int, source: str) -> RunConfig:
    """A run of the paper's size on a seed model with almost no weights."""
    make_seed(folder / "seed")
    values: dict[str, Any] = {
        "folder": folder,
        "model": {"path": str(folder / "seed")},
        "data": {"per_iteration": prompts, "validation": VALIDATION, "test": TEST, "max_prompt_tokens": 512},
        "sample": {"k": K, "max_new_tokens": 512},
        "train": {"max_tokens": 1024},
        "health": {"max_unscored": 1.0},
        "tracking": {"to": "none"},
    }
    if source == "file":
        values["data"]["source"] = {
            "kind": "file",
            "path": str(folder / "prompts.jsonl"),
            "reference_column": "answer",
        }
        draw = random.Random(0)
        with (folder / "prompts.jsonl").open("w") as file:
            for i in range(prompts + VALIDATION + TEST):
                text = f"{i} {' '.join(draw.choices(WORDS, k=60))}"
                file.write(json.dumps({"instruction": text, "answer": str(i % 2)}) + "\n")
    return RunConfig.model_validate(values)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, nargs="+", default=list(SIZES), help="prompts, 8 outputs each")
    parser.add_argument("--source", choices=["file", "miniature"], default="file", help="where prompts come from")
    parser.add_argument("--json", action="store_true", help="also print rows 11 and 12 of the table of performance")
    parser.add_argument("--one", action="store_true", help="measure in this process and print JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
