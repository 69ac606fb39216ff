"""What benchmarks that compare two ways share: alternating rounds, the median ratio with its spread, and how it prints.

Two ways run in one process, in turn, in rounds that begin with each of them alternately, so that neither always gets
what the other warmed up or left behind. Each round gives a ratio, and what is reported is the median of the rounds'
ratios with the smallest and the largest. With `--json` the last line is the row as JSON.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from tpo.engines.cluster.processes import environment

Found = TypeVar("Found")


@dataclass(frozen=True)
class Timed(Generic[Found]):
    """One way's result in one round."""

    found: Found
    """What it returned."""
    seconds: float
    """Wall-clock time, which includes the machine's other work."""
    cpu_seconds: float
    """CPU time of this process, all threads."""


@dataclass(frozen=True)
class Spread:
    """A ratio over several rounds."""

    median: float
    """Median of the rounds."""
    low: float
    """Smallest."""
    high: float
    """Largest."""

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Row:
    """One row of the table of performance."""

    row: int
    """Its number."""
    what: str
    """What is measured."""
    peer: str
    """What it is compared with, with versions."""
    goal: str
    """The ratio to reach, such as `≥ 2.5`."""
    median: float
    """Median ratio of the rounds."""
    low: float
    """Smallest ratio."""
    high: float
    """Largest ratio."""
    limit: str
    """What limits us, measured."""


def options(doc: str | None, **more: int) -> argparse.Namespace:
    """The command line: `--json`, `--threads`, and integers by name with their defaults.

    Restarts the process, unless it was, with the product's environment for that many threads: the OpenMP library is
    chosen when a process starts.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the row as one line of JSON, too")
    for name, default in {"threads": 2, **more}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    found = parser.parse_args()
    variables = environment(found.threads)
    if not variables.items() <= os.environ.items():
        _restart(variables)
    return found


def _restart(variables: Mapping[str, str]) -> NoReturn:
    os.execve(sys.executable, [*sys.orig_argv], {**os.environ, **variables})


def timed(work: Callable[[], Found]) -> Timed[Found]:
    """The result of some work, and the time that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return Timed(found, time.perf_counter() - wall, time.process_time() - cpu)


def alternate(
    ways: Mapping[str, Callable[[int], Timed[Found]]], rounds: int, *, warm_up: int = 0
) -> dict[str, list[Timed[Found]]]:
    """Each way's results in each round, by the way's name; ways get the number of the round, from 0.

    Ways measure themselves (`timed`), so that preparation doesn't count. Warm-up rounds, numbered below 0, are
    discarded. Each time is printed on standard error when it is known, since some take an hour together.
    """
    results: dict[str, list[Timed[Found]]] = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        for name, way in list(ways.items())[:: 1 if number % 2 else -1]:
            found = way(number)
            print(f"round {number + 1}: {name} {found.seconds:.1f} s", file=sys.stderr, flush=True)
            if number >= 0:
                results[name].append(found)
    return results


def spread(ratios: Sequence[float]) -> Spread:
    """Median, smallest and largest."""
    return Spread(statistics.median(ratios), min(ratios), max(ratios))


def ratio_of_seconds(slow: Sequence[Timed[Found]], fast: Sequence[Timed[Found]], *, cpu: bool = False) -> Spread:
    """How many times as long the first took, round by round."""
    pairs = zip(slow, fast, strict=True)
    return spread([a.cpu_seconds / b.cpu_seconds if cpu else a.seconds / b.seconds for a, b in pairs])


def describe_machine(threads: int) -> str:
    """The machine, its load, and the versions that matter, in a line."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, {threads} threads; "
        f"Python {platform.python_version()}, {versions('torch', 'transformers', 'trl')}"
    )


def versions(*packages: str) -> str:
    """Packages with their versions."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def peak_product(rows: int = 2048, size: int = 2048, *, seconds: float = 2.0) -> float:
    """Operations per second of this process in products of float32 matrices: the best of several."""
    import torch

    first, second = torch.randn(rows, size), torch.randn(size, size)
    best, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        took = timed(lambda: first @ second).seconds
        best = max(best, 2 * rows * size * size / took)
    return best


def bandwidth(mebibytes: int = 256, *, seconds: float = 2.0) -> float:
    """Bytes per second that this process reads from memory: the best of several sums of more than caches hold."""
    import torch

    values = torch.ones(mebibytes * 2**18)
    best, began = 0.0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        best = max(best, 4 * values.numel() / timed(values.sum).seconds)
    return best


def report(row: Row, *, as_json: bool) -> None:
    """Prints a row of the table; as JSON, too, if asked."""
    ratio = Spread(row.median, row.low, row.high)
    print(f"row {row.row}: {row.what}: {ratio} of {row.peer} (goal {row.goal}); limit: {row.limit}")
    if as_json:
        print(json.dumps(asdict(row), ensure_ascii=False))
