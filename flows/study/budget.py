"""What a run's models are paid with: planned before it starts, and taken when it is complete.

Prompts, samples and judge calls are those that its models are made from, by the manifests, so that a killed attempt
doesn't count twice; tokens are the ledger's, which keeps what such an attempt has cost. What only measures models (the
test, benchmarks, second judges, ratings of prompts) isn't counted: it doesn't make them better.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tpo.config.recipes import SelfTrain
from tpo.config.run import RunConfig
from tpo.planning.plan import Plan
from tpo.planning.workload import Kind, training_steps
from tpo.report.study import Amount, Budget
from tpo.storage.ledger import read_ledger, work_of
from tpo.storage.store import Manifest, is_set_aside, read_manifest

_MEASURING = {Kind.TEST_SAMPLE, Kind.TEST_JUDGE, Kind.BENCHMARK_SAMPLE, Kind.BENCHMARK_JUDGE, Kind.RATE}


def planned_budget(config: RunConfig, plan: Plan) -> Budget:
    """The budget of a run according to its plan."""
    works = [stage.work for stage in plan.stages if stage.work.kind not in _MEASURING]
    sampled = [work for work in works if work.kind.verb == "sample"]
    # Self-training samples every question twice an iteration, for pairs and for labels, which its plan takes together.
    twice = isinstance(config.recipe, SelfTrain) and config.recipe.dpo
    return {
        "prompts": sum(work.prompts for work in sampled) * (2 if twice else 1),
        "samples": sum(work.expected.answers for work in sampled),
        "judge calls": sum(work.expected.answers for work in works if work.kind.verb == "judge"),
        "tokens": sum(work.expected.tokens for work in works),
        "training steps": training_steps(config, plan.iterations),
    }


def spent_budget(config: RunConfig, iterations: int) -> Budget:
    """What a complete run has taken up to iteration T = `iterations`."""
    found: dict[Amount, float] = {"prompts": 0, "samples": 0, "judge calls": 0, "tokens": 0, "training steps": 0}
    for manifest in manifests(config.root):
        if not makes_models(manifest.stage, iterations):
            continue
        kind = manifest.stage.rsplit("/", 1)[-1]
        if kind == "samples":
            found["samples"] += manifest.rows
            found["prompts"] += manifest.rows / manifest.config["sample"]["k"]
        elif kind == "judgments":
            found["judge calls"] += manifest.rows
        else:
            found["training steps"] += manifest.facts.get("steps", 0)
    entries = read_ledger(config.root)
    found["tokens"] = sum(entry.tokens for entry in entries if makes_models(entry.stage, iterations))
    return found


def mean_budget(budgets: Sequence[Budget]) -> Budget:
    """The mean of several runs' budgets."""
    return {name: sum(each[name] for each in budgets) / len(budgets) for name in budgets[0]} if budgets else {}


def makes_models(stage: str, iterations: int) -> bool:
    """Whether a stage, given its path below the run folder, is part of making models up to iteration T."""
    iteration = re.match(r"iter_(\d+)/", stage)
    return work_of(stage) not in _MEASURING and (iteration is None or int(iteration[1]) <= iterations)


def manifests(root: Path) -> Iterator[Manifest]:
    """The manifests of a run's stages."""
    for path in sorted(root.rglob("manifest.json")):
        if not is_set_aside(path.relative_to(root)) and (manifest := read_manifest(path.parent)) is not None:
            yield manifest
