"""`make chaos N=50`: breaks N runs of the miniature at random, resumes each, and counts what is lost.

The engine is `real`, the whole command on Prefect, Ray, vLLM and TRL, of any recipe (two minutes per run), or `mock`,
TPO's stages on engines that answer at once (two seconds per run). Prints a table by kind of fault, and exits with
status 1 if a single row is lost, duplicated or changed, or a run doesn't end.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.faults import real_run
from tests.faults.compare import Difference, astuple
from tests.faults.mock_run import (
    FAULTS,
    Broken,
    Plan,
    an_example,
    break_run,
    folder_for_runs,
    make_seed,
    prepared,
)

PLANS = (Plan("verifier"), Plan("pairwise"), Plan("verifier", rounds=2, gate=True))
Outcome = tuple[str, Broken]


def mock_runs(count: int, seed: int, parent: Path) -> Iterator[Outcome]:
    """Breaks `count` runs on mock engines, each kind of fault in turn and with each judge."""
    with prepared():
        make_seed(parent / "seed")
        examples = [an_example(parent / f"example {i}", plan) for i, plan in enumerate(PLANS)]
        for i in range(count):
            fault, example = FAULTS[i % len(FAULTS)], examples[i // len(FAULTS) % len(PLANS)]
            with folder_for_runs(parent) as folder:
                yield fault.name, break_run(fault, random.Random(f"{seed} {i}"), folder, example)


def real_runs(count: int, seed: int, parent: Path, recipe: str) -> Iterator[Outcome]:
    """Breaks `count` runs of the whole command."""
    yield from real_run.broken_runs(count, seed, parent, real_run.RECIPES[recipe])


def table(outcomes: Sequence[Outcome], seconds: float) -> list[str]:
    """One line per kind of fault, and their total."""
    names = sorted({name for name, _ in outcomes})
    width = max(map(len, [*names, "all"]))
    lines = [f"{'fault':{width}}  runs  broken  recovered  lost  duplicated  changed"]
    for name in [*names, "all"]:
        found = [broken for fault, broken in outcomes if name in (fault, "all")]
        lost, duplicated, changed = astuple(sum((broken.difference for broken in found), Difference()))
        stopped, recovered = sum(b.stopped for b in found), sum(b.recovered for b in found)
        lines.append(
            f"{name:{width}}  {len(found):4d}  {stopped:6d}  {recovered:9d}  {lost:4d}  {duplicated:10d}  {changed:7d}"
        )
    return [*lines, f"{len(outcomes)} runs in {seconds:.0f} s"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Breaks runs and prints the outcomes."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["real", "mock"], default="real")
    parser.add_argument("--recipe", choices=list(real_run.RECIPES), default="iterate")
    options = parser.parse_args(arguments)
    make: Callable[[int, int, Path], Iterator[Outcome]] = partial(real_runs, recipe=options.recipe)
    if options.engine == "mock":
        if options.recipe != "iterate":
            parser.error(f"--engine mock runs iterate; for {options.recipe}: tests/flows")
        make = mock_runs
    started, outcomes = time.monotonic(), list[Outcome]()
    with tempfile.TemporaryDirectory(prefix="tpo-chaos-") as folder:
        for name, broken in make(options.runs, options.seed, Path(folder)):
            outcomes.append((name, broken))
            if broken.difference or not broken.recovered:
                print(f"run {len(outcomes) - 1}, {name}: {broken.difference}\n{broken.log[-4000:]}", file=sys.stderr)
            elif options.engine == "real" or len(outcomes) % 100 == 0:
                print(f"{len(outcomes)} runs, the last one: {name}", file=sys.stderr, flush=True)
    print("\n".join(table(outcomes, time.monotonic() - started)))
    return int(any(broken.difference or not broken.recovered for _, broken in outcomes))


if __name__ == "__main__":
    sys.exit(main())
