"""Claims about budgets: a run stopped at its budget or killed resumes and ends the same, and the ledger counts each
token as often as it was paid for.

The runs are those of `mock_run`, in a process that can fork.
"""

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.apart import found_apart
from tests.faults import mock_run
from tests.faults.mock_engines import ENGINES
from tests.sampling import exhaustive

KILLS = 15 if exhaustive() else 9

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The results of the runs."""
    return found_apart("tests.faults.test_budget", tmp_path_factory.mktemp("budget"))


@pytest.mark.parametrize("judge", ["verifier", "pairwise"])
def test_a_run_that_keeps_stopping_at_its_budget_ends_as_without_one(found: Mapping[str, Any], judge: str):
    run = found["budget"][judge]
    assert run["stops"] >= 5
    assert all("Completed work is saved: raise budget.tokens" in log for log in run["logs"])
    assert run["difference"] == [0, 0, 0]


@pytest.mark.parametrize("judge", ["verifier", "pairwise"])
def test_a_run_that_stops_at_its_budget_pays_for_nothing_twice(found: Mapping[str, Any], judge: str):
    run = found["budget"][judge]
    assert run["spent"] == run["expected"]


@pytest.mark.parametrize("judge", ["verifier", "pairwise"])
def test_each_start_exceeds_its_cap_by_at_most_one_shard_per_engine(found: Mapping[str, Any], judge: str):
    run = found["budget"][judge]
    assert all(over <= ENGINES * run["largest_shard"] for over in run["over"])


def test_a_killed_run_counts_everything_it_paid_for_and_at_most_one_shard_twice(found: Mapping[str, Any]):
    for run in found["killed"]:
        assert run["difference"] == [0, 0, 0], run["log"]
        missing = {work: run["expected"][work] - run["spent"].get(work, 0) for work in run["expected"]}
        # Never less than the result took, except for the line being written; never more than one extra shard.
        assert max(missing.values()) <= run["largest_shard"], run
        assert -run["largest_shard"] <= min(missing.values()), run
        assert sum(value != 0 for value in missing.values()) <= 1, run


def test_some_kills_make_a_run_pay_for_something_twice(found: Mapping[str, Any]):
    assert any(run["spent"] != run["expected"] for run in found["killed"])


@mock_run.prepared()
def main(parent: Path) -> None:
    """Makes the runs and writes their results."""
    mock_run.make_seed(parent / "seed")
    plans = {judge: mock_run.Plan(judge, iterations=1) for judge in ("verifier", "pairwise")}
    examples = {judge: mock_run.an_example(parent / judge, plan) for judge, plan in plans.items()}
    budgets = {judge: _with_caps(parent, judge, examples[judge]) for judge in plans}
    killed = []
    for i in range(KILLS):
        with mock_run.folder_for_runs(parent) as folder:
            example = examples["pairwise"]
            broken = mock_run.break_run(mock_run.FAULTS[0], random.Random(f"kill {i}"), folder, example)
            difference = broken.difference
            killed.append(
                {
                    "difference": [difference.lost, difference.duplicated, difference.changed],
                    "log": broken.log[-4000:],
                    "spent": _tokens(folder / "run"),
                    "expected": _tokens(example.root),
                    "largest_shard": _largest_line(example.root),
                }
            )
    (parent / "found.json").write_text(json.dumps({"budget": budgets, "killed": killed}))


def _with_caps(parent: Path, judge: str, example: Any) -> dict[str, Any]:
    """A run whose cap is raised by a seventh of the whole run's tokens each time that it is reached."""
    from tests.faults.compare import astuple, difference
    from tpo.storage.ledger import read_ledger

    total, cap = sum(_tokens(example.root).values()), 0
    folder = parent / f"capped_{judge}"
    folder.mkdir()
    logs, over, stops = [], [], 0
    while True:
        cap += total // 7
        log = folder / f"log_{stops}.txt"
        status = _run_with_cap(folder, judge, cap, log)
        if status == 0:
            break
        stops += 1
        logs.append(log.read_text())
        over.append(sum(entry.tokens for entry in read_ledger(folder / "run")) - cap)
    return {
        "stops": stops,
        "logs": logs,
        "over": over,
        "difference": list(astuple(difference(example.root, folder / "run"))),
        "spent": _tokens(folder / "run"),
        "expected": _tokens(example.root),
        "largest_shard": _largest_line(example.root),
    }


def _run_with_cap(folder: Path, judge: str, cap: int, log: Path) -> int:
    from flows.iterate import iterate
    from tpo.config.resources import BudgetConfig
    from tpo.errors import BudgetError

    child = os.fork()
    if child == 0:
        status = 1
        try:
            config = mock_run.config_of(folder, mock_run.Plan(judge))
            config = config.model_copy(update={"budget": BudgetConfig(tokens=cap)})
            iterate(config, 1)
            status = 0
        except BudgetError as error:
            log.write_text(str(error))
            status = 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _tokens(root: Path) -> Counter[str]:
    from tpo.storage.ledger import read_ledger

    found = Counter[str]()
    for entry in read_ledger(root):
        found[entry.stage] += entry.tokens
    return +found


def _largest_line(root: Path) -> int:
    """Tokens of the largest unit that is paid for at once: a shard, or a training."""
    from tpo.storage.ledger import read_ledger

    return max(entry.tokens for entry in read_ledger(root))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
