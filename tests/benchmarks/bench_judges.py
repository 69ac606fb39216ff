"""The miniature's judges on preferences of its world, plain and attacked, as docs/judges.md shows them.

The preferences are 300 problems of the validation split, each with a right response and a wrong one in the words of its
models. Run with `python -m tests.benchmarks.bench_judges [FOLDER]`; takes about eight minutes on two cores. The folder
keeps the file, the judgments and the pages; without one, a temporary folder is used.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from flows.cli.judge_check import JudgeCheckOptions, check_judges
from flows.recipes import prefect_environment
from tpo.miniature.opinions import honest_answer
from tpo.miniature.world import problems
from tpo.report.judge_check import as_markdown

PROMPTS = 300
SOFT = '[judge]\nkind = "pairwise"\nmode = "probability"\n'
"""The evaluator without an explanation, by the probabilities of its labels."""


def write_preferences(path: Path, count: int, *, seed: int = 0) -> None:
    """Writes preferences of the miniature's world in RewardBench's shape, with references."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "prompt": problem.instruction,
            "chosen": honest_answer(problem, rng, right=True).text,
            "rejected": honest_answer(problem, rng, right=False).text,
            "subset": problem.category,
            "reference": problem.reference,
        }
        for problem in itertools.islice(problems("validation", 11), count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        data, soft = folder / "miniature.jsonl", folder / "soft.toml"
        write_preferences(data, PROMPTS)
        soft.write_text(SOFT, encoding="utf-8")
        prefect_environment()
        for judges in (["verifier"], ["pairwise", "armorm"], [str(soft)], ["rubric"]):
            print(as_markdown(check_judges(JudgeCheckOptions(judges, data, folder=folder, attack=True))))


if __name__ == "__main__":
    main()
