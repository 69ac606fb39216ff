"""The table of docs/performance.md: runs its benchmarks, keeps each row's last result, and writes the table.

    python -m tests.benchmarks.performance [BENCHMARK ...]        (default: all of them; --write only writes the table)

Results are kept in docs/performance.json, so that rows can be measured one at a time and on several machines: every row
says on which machine, when, and by which command.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Spread, describe_machine
from tests.faults.table import write_between

DOCS = Path(__file__).parents[2] / "docs"
RESULTS, PAGE = DOCS / "performance.json", DOCS / "performance.md"
BEGIN, END = "<!-- written by make bench -->\n", "<!-- end -->\n"
BENCHMARKS = {
    "bench_sampling": "",
    "bench_reload": "",
    "bench_starts": "",
    "bench_tournament": "",
    "bench_reward": "",
    "bench_dpo": "",
    "bench_attention": "",
    "bench_checkpoints": "",
    "bench_own_time": "--prompts 5000 100000",
    "bench_laptop": "",
}
"""The benchmarks of the table in its order, with their options."""


@dataclass(frozen=True)
class Goal:
    """A goal as a row has it, such as `≥ 2.5`."""

    text: str
    """Its words."""

    def is_met(self, median: float) -> bool | None:
        """Whether a median reaches it; None if it isn't a single number."""
        sign, _, rest = self.text.partition(" ")
        if sign not in ("≥", "≤"):
            return None
        number = float(rest.split()[0].rstrip(",;"))
        return median >= number if sign == "≥" else median <= number


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help="such as bench_reload (default: all)")
    parser.add_argument("--write", action="store_true", help="only write the table from the kept results")
    chosen = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in [] if chosen.write else chosen.benchmarks or BENCHMARKS:
        kept |= {str(row["row"]): row for row in measured(name)}
        RESULTS.write_text(json.dumps(dict(sorted(kept.items(), key=lambda item: int(item[0]))), indent=1) + "\n")
    write_between(PAGE, BEGIN, END, table(kept))


def measured(name: str) -> list[dict[str, Any]]:
    """The rows that a benchmark measures, with machine, day and command."""
    command = f"python -m tests.benchmarks.{name} {BENCHMARKS[name]}".strip()
    print(f"== {command}", flush=True)
    arguments = [sys.executable, *command.split()[1:], "--json"]
    rows, machine = [], describe_machine(1)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"row"'):
                rows.append(json.loads(line))
                continue
            print(line, end="", flush=True)
            if " cores, load " in line:
                machine = line.strip()
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}")
    return [{**row, "machine": machine, "day": f"{datetime.now(UTC):%Y-%m-%d}", "command": command} for row in rows]


def table(kept: dict[str, dict[str, Any]]) -> str:
    """The table, and where each of its rows was measured."""
    lines = ["| # | ratio | of | goal | measured: median [lowest, highest] | limit |", "|---|---|---|---|---|---|"]
    for number, row in kept.items():
        ratio = Spread(row["median"], row["low"], row["high"])
        figures = f"{row['median']:.3f}" if row["low"] == row["high"] else str(ratio)
        met = {True: "", False: " (missed)", None: ""}[Goal(row["goal"]).is_met(row["median"])]
        lines.append(f"| {number} | {row['what']} | {row['peer']} | {row['goal']} | {figures}{met} | {row['limit']} |")
    lines += ["", "| # | command | machine | day |", "|---|---|---|---|"]
    lines += [f"| {number} | `{row['command']}` | {row['machine']} | {row['day']} |" for number, row in kept.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
