"""Results on the miniature: three iterations with three seeds, and once without length control. 20 to 40 minutes.

Prints the figures of docs/results.md. With a folder, runs are kept there and resumed: `python -m
tests.benchmarks.bench_miniature [FOLDER]`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tpo.report.summary import Interval, ModelRow, Summary, read_summary

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run and print."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="tpo-bench-")).resolve()
    runs = [_iterate(folder, f"seed{seed}", f"seed={seed}") for seed in (0, 1, 2)]
    free = _iterate(folder, "seed0-without-length-control", "seed=0", "pair.rho=0")
    for run in runs:
        _print_claims(run)
    print(f"response length by iteration, ρ chosen: {_lengths(runs[0])}; ρ = 0: {_lengths(free)}")


def _iterate(folder: Path, name: str, *overrides: str) -> Summary:
    command = [sys.executable, "-m", "flows", "iterate", "--to", "3", "--run-name", name]
    for override in (f'folder="{folder}"', *overrides):
        command += ["--set", override]
    subprocess.run(command, cwd=ROOT, check=True)
    return read_summary(folder / name / "summary.json")


def _print_claims(summary: Summary) -> None:
    rows = {row.model: row for row in summary.models}
    first, last = rows["M_0"], summary.models[-1]
    worst = min(last.by_category, key=lambda name: last.by_category[name].value - first.by_category[name].value)
    fall = first.by_category[worst].value - last.by_category[worst].value
    print(f"\nseed {summary.seed}")
    print(
        f"  M_0 direct {_percent(rows['M_0 direct'].score)}, M_0 {_percent(first.score)}, last {_percent(last.score)}"
    )
    print(f"  gain over M_0 {_percent(last.gain)}, over M_0 direct {_percent(last.gain_over_direct)}")
    print(f"  category that does worst against M_0: {worst}, falls by {100 * fall:+.1f} points")
    print(f"  response length {last.response_chars / first.response_chars:.2f} × M_0's")
    print(f"  parse errors {first.parse_error_rate:.1%} → {last.parse_error_rate:.1%}")
    for row in summary.models[2:]:
        print(f"  {row.model}: {sum(row.seconds.values()):.0f} s, ρ {row.rho}, epoch {row.chosen_epoch}")


def _percent(found: Interval | None) -> str:
    return "–" if found is None else f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _lengths(summary: Summary) -> str:
    models: list[ModelRow] = [row for row in summary.models if row.model != "M_0 direct"]
    return " → ".join(f"{row.response_chars:.0f}" for row in models)


if __name__ == "__main__":
    main()
