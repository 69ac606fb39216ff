"""A plan of a run: placement of its parts, whether they fit, amount of work, duration and cost.

Pure arithmetic on the config, the models' shapes, the machines and past runs. Too few GPUs, or too little memory for
weights, gradients and optimizer, make a plan fail, since these are exact. Hours, cost and lengths never do: they are
estimates, each with its source.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tpo.config.contexts import contexts
from tpo.config.recipes import SelfTrain, ThinkPo
from tpo.config.run import RunConfig
from tpo.hub.record import Download
from tpo.planning.fit import (
    Misfit,
    context_misfits,
    cpu_misfits,
    disk_misfits,
    download_misfits,
    gpu_memory_misfits,
    gpu_misfits,
    gpu_size_misfits,
    memory_misfits,
    quantization_misfits,
    split_misfits,
)
from tpo.planning.gate import gate_misfits
from tpo.planning.gpu_memory import GpuMemory, run_memory
from tpo.planning.needs import BYTES, GIB, Disk, disk_needed, memory_needed
from tpo.planning.placement import Cluster, EngineGroup, Models, Placement
from tpo.planning.speed import Speed, Stage, lengths_of
from tpo.planning.throughput import PastRun
from tpo.planning.workload import Lengths, workload
from tpo.storage.ledger import Entry, Spending, spending


@dataclass(frozen=True)
class Plan:
    """A plan of a run."""

    run: str
    """The run's name."""
    goal: str
    """How far the run goes; human-readable: `to M_3`."""
    iterations: int
    """T."""
    models: Models
    """Its models."""
    cluster: Cluster
    """The machines."""
    engines: Sequence[EngineGroup]
    """The engines and workers, and where they run."""
    gpu_memory: Sequence[GpuMemory]
    """The memory of GPUs, by kind of work."""
    memory: Mapping[str, int]
    """Peak memory on this machine in bytes, by part of the run."""
    disk: Disk
    """Bytes that the run writes."""
    is_here: bool
    """Whether the run is planned for this machine and its disk: the profile describes no others."""
    lengths: Lengths
    """Mean lengths, in tokens."""
    stages: Sequence[Stage]
    """The work, with forecasts."""
    spent: Sequence[Spending]
    """The run's spending so far."""
    downloads: Sequence[Download] = field(default=())
    """Downloads from the model hub before the run begins."""
    problems: Sequence[str] = field(default=())
    """Reasons why the run would fail."""
    notes: Sequence[str] = field(default=())
    """Warnings and remarks."""

    @property
    def fits(self) -> bool:
        """Whether no problem is known."""
        return not self.problems

    @property
    def seconds(self) -> float:
        """Total of all stages, which run one after another."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Expected total of all stages."""
        return sum(stage.work.expected.tokens for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """Total of all stages."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def cost(self) -> float:
        """Total of all stages."""
        return sum(stage.cost for stage in self.stages)


def make_plan(
    config: RunConfig,
    iterations: int,
    *,
    models: Models,
    cluster: Cluster,
    past: Sequence[PastRun],
    spent: Sequence[Entry] = (),
    downloads: Sequence[Download] = (),
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Plan:
    """The plan of M_0 to M_T, T = `iterations`; `problems` and `notes` are those already known."""
    placement = Placement(config, models, cluster)
    lengths, memory = lengths_of(placement, past), run_memory(config, models, cluster.gpu_bytes)
    speed = Speed(placement, lengths, memory, past)
    works = workload(config, iterations, lengths)
    stages = [speed.stage(work) for work in works if work.expected.answers]
    engines: dict[str, EngineGroup] = {}
    for stage in stages:
        engines.setdefault(stage.engines.who, stage.engines)
    by_folder = models.by_folder(config)
    plan = Plan(
        run=config.name,
        goal=_goal(config, iterations),
        iterations=iterations,
        models=models,
        cluster=cluster,
        engines=list(engines.values()),
        gpu_memory=memory,
        memory=memory_needed(config, lambda folder: by_folder[folder].shape.parameters),
        disk=disk_needed(config, range(iterations + 1), parameters=models.seed.shape.parameters),
        is_here=config.cluster.gpus is None and config.cluster.address is None,
        lengths=lengths,
        stages=stages,
        spent=spending(spent),
        downloads=downloads,
    )
    misfits = list(dict.fromkeys(_misfits(config, plan)))
    remarks = [
        *_loading_workers(config, plan),
        *_idle(speed, stages),
        *_spanning(plan),
        *_over_budget(config, plan),
    ]
    return replace(
        plan,
        problems=[*problems, *(str(misfit) for misfit in misfits if misfit.certain)],
        notes=[*notes, *(str(misfit) for misfit in misfits if not misfit.certain), *remarks],
    )


def _goal(config: RunConfig, iterations: int) -> str:
    if isinstance(config.recipe, ThinkPo):
        return "ThinkPO"
    return f"to {'SFT' if isinstance(config.recipe, SelfTrain) else 'M'}_{iterations}"


def _misfits(config: RunConfig, plan: Plan) -> Iterator[Misfit]:
    cluster, models = plan.cluster, plan.models.by_folder(config)
    yield from gpu_misfits(config, cluster.nodes * cluster.gpus, cluster.known_by)
    yield from gpu_size_misfits(config, cluster.gpus, cluster.gpu_bytes)
    yield from gpu_memory_misfits(plan.gpu_memory)
    yield from memory_misfits(plan.memory, cluster.memory_bytes)
    yield from cpu_misfits(config, cluster.cpus)
    for asked in contexts(config):
        model = models[asked.folder]
        yield from context_misfits(asked, model.shape.context, model.name)
    yield from split_misfits(config, models)
    yield from quantization_misfits(config)
    yield from gate_misfits(config)
    yield from disk_misfits(config, plan.disk, cluster.disk_bytes, is_here=plan.is_here)
    yield from download_misfits(plan.downloads, is_here=plan.is_here)


def _loading_workers(config: RunConfig, plan: Plan) -> Iterator[str]:
    """Host memory of a node that starting GPU workers take: each loads the whole model there or, with FSDP, only the
    first one does."""
    train, trainer = config.train, config.trainer
    if trainer.device == "gpu" and plan.iterations:
        spread = trainer.strategy == "fsdp"
        workers = 1 if spread else min(trainer.workers, plan.cluster.gpus or trainer.workers)
        number = BYTES[train.precision] if train.lora else BYTES["float32"]
        held = workers * plan.models.seed.shape.parameters * number
        yield (
            f"train: at start-up the workers hold {held / GIB:,.1f} GiB of a node's host memory, the whole model "
            f"{'in the first one' if spread else 'in each'}: that much must be free there"
        )


def _idle(speed: Speed, stages: Sequence[Stage]) -> Iterator[str]:
    """Engines that never get a shard."""
    for stage in stages:
        work, count, shards = stage.work, stage.engines.count, speed.shards(stage.work, stage.engines)
        if 0 < shards < count:
            name = "judge_engine" if work.kind.verb in ("judge", "rate") else "engine"
            each = math.ceil(work.prompts / work.rounds)
            yield (
                f"{work.kind}: {each:,} prompts are {shards} shard{'' if shards == 1 else 's'}, so "
                f"{count - shards} of {count} engines are idle: lower {name}.shard_prompts to "
                f"{math.ceil(each / count):,} to use all of them"
            )


def _spanning(plan: Plan) -> Iterator[str]:
    for engines in {stage.engines.who: stage.engines for stage in plan.stages}.values():
        if plan.cluster.gpus and engines.each > plan.cluster.gpus:
            yield (
                f"{engines.work}: an engine of {engines.each} GPUs spans nodes of {plan.cluster.gpus}, so the "
                "network between them limits its speed"
            )


def _over_budget(config: RunConfig, plan: Plan) -> Iterator[str]:
    budget = config.budget
    forecast = {
        "hours": (budget.hours, plan.seconds / 3600),
        "tokens": (budget.tokens, plan.tokens),
        "cost": (budget.cost, plan.cost),
    }
    for name, (cap, expected) in forecast.items():
        if cap is not None and expected > cap:
            yield (
                f"budget.{name} is {cap:,}, but {expected:,.{0 if name == 'tokens' else 1}f} are forecast: the run "
                "would stop cleanly before it is finished"
            )
    if plan.spent:
        yield "the forecast covers the whole run; what has been spent so far is listed separately"
