"""`make plan`: what a run will need and cost, as text or JSON: placement, fit, workload, hours, cost.

Model shapes come from `config.json` or, before a download, from their published values, so a plan needs no GPU and
loads no model library. Of models on the hub it fetches the config and the tokenizer, and says what else will come.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table
from rich.text import Text

from flows.prompt_counts import sized, too_few_prompts
from tasks.spending import device_name
from tpo.config.contexts import pair_writers
from tpo.config.judges import EnsembleJudge, GenerativeJudge, JudgeConfig, VerifierJudge, members_of
from tpo.config.recipes import ThinkPo
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.hub.fetch import Found, looked_up
from tpo.models.folder import check_writer, has_weights
from tpo.models.model_config import check_use, read_model_config
from tpo.models.shape import Model, find_model
from tpo.planning.gpu_memory import GpuMemory
from tpo.planning.machine import cpu_count, free_disk, gpus_here, memory_bytes
from tpo.planning.needs import GIB, readable_size
from tpo.planning.placement import Cluster, Models
from tpo.planning.plan import Plan, make_plan
from tpo.planning.speed import Stage
from tpo.planning.throughput import read_past_runs
from tpo.report.table import NOTHING, duration, plain_table, table_console
from tpo.storage.ledger import TOTAL, read_ledger


def plan_run(config: RunConfig, iterations: int) -> Plan:
    """The plan of a run; raises `InputError` if a model's shape isn't known.

    A recipe without iterations ignores `iterations`.
    """
    iterations = 1 if isinstance(config.recipe, ThinkPo) else iterations
    hub = looked_up(config)
    config, problems = hub.config, [*hub.faults, *_prompt_problems(hub.config, iterations)]
    config = sized(config, counting=not problems)
    return make_plan(
        config,
        iterations,
        models=_models_of(config, hub),
        cluster=cluster_of(config),
        past=read_past_runs(config.root.parent),
        spent=read_ledger(config.root),
        downloads=hub.downloads,
        problems=problems,
        notes=[hub.unasked] if hub.unasked else [],
    )


def _prompt_problems(config: RunConfig, iterations: int) -> Iterator[str]:
    """Prompt files that are present but can't be read, or have too few prompts."""
    try:
        yield from too_few_prompts(config, iterations)
    except InputError as error:
        yield str(error)


def _models_of(config: RunConfig, hub: Found) -> Models:
    """The same as `models_of`; a model on the hub that can't be had and isn't known otherwise ends the plan."""
    try:
        return models_of(config)
    except InputError as error:
        message = f"{hub.unasked}; but {error}" if hub.unasked else str(error)
        raise InputError("\n".join(hub.faults) or message) from error


def models_of(config: RunConfig) -> Models:
    """The models of a run, by their folders."""
    seed = _find_writer(config.model.folder, trained=True, device=config.engine.device)
    writer = config.data.synthetic
    generator = None
    if writer is not None and writer.endpoint is None:
        generator = seed if writer.folder is None else _find_writer(writer.folder, device=config.engine.device)
    writers = {
        writer.work: seed if writer.folder is None else _find_writer(writer.folder, device=config.engine.device)
        for writer in pair_writers(config)
    }
    judge, evaluation = (_judge_model(config, judge) for judge in (config.judge, config.evaluation.judge))
    rater = config.evaluation.fine_grained
    rates = None
    if rater is not None and rater.folder is not None:
        rates = _find_writer(rater.folder, device=config.judge_engine.device)
    return Models(seed, judge, evaluation, generator, writers, rates, _member_models(config))


def cluster_of(config: RunConfig) -> Cluster:
    """The machines that the profile describes, or else this one."""
    described, here = config.cluster, gpus_here()
    memory = (
        described.gpu_memory_gib
        if described.gpu_memory_gib is not None
        else min((gpu.memory_gib for gpu in here), default=0.0)
    )
    known = "this machine" if described.gpus is None else "as described in [cluster]"
    return Cluster(
        nodes=described.nodes,
        gpus=len(here) if described.gpus is None else described.gpus,
        gpu_bytes=int(memory * GIB),
        gpu=device_name(config, "gpu"),
        known_by=known,
        memory_bytes=memory_bytes(),
        cpus=cpu_count(),
        disk_bytes=free_disk(config.root) + _written(config.root),
    )


def _written(root: Path) -> int:
    """Bytes that a run already takes on disk."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def _member_models(config: RunConfig) -> dict[Path | None, Model]:
    """The models of ensembles' members, by their folders."""
    ensembles = [each for each in (config.judge, config.evaluation.judge) if isinstance(each, EnsembleJudge)]
    found = dict[Path | None, Model]()
    for member in (member for ensemble in ensembles for member in members_of(ensemble)):
        model = _judge_model(config, member)
        if model is not None and not isinstance(member, VerifierJudge) and member.folder is not None:
            found[member.folder] = model
    return found


def _judge_model(config: RunConfig, judge: JudgeConfig) -> Model | None:
    if isinstance(judge, VerifierJudge | EnsembleJudge) or judge.folder is None:
        return None
    if isinstance(judge, GenerativeJudge):
        return _find_writer(judge.folder, device=config.judge_engine.device)
    return find_model(judge.folder)


def _find_writer(folder: Path, *, trained: bool = False, device: str) -> Model:
    """A generating model, checked as a run would check it, as far as its files are present."""
    model = find_model(folder)
    if has_weights(folder):
        check_writer(folder, trained=trained, device=device)
    elif model.is_there:
        check_use(folder, read_model_config(folder), trained=trained, device=device)
    return model


def to_json(plan: Plan) -> str:
    """The plan and its totals, as JSON."""
    values = dataclasses.asdict(plan)
    values |= {"seconds": plan.seconds, "tokens": plan.tokens, "gpu_hours": plan.gpu_hours, "cost": plan.cost}
    return json.dumps(values, indent=1, ensure_ascii=False)


def print_plan(plan: Plan) -> None:
    """Prints the plan; problems, if any, come last."""
    console = table_console()

    def section(title: str, *parts: Table | str) -> None:
        console.print(Text(title, style="bold"))
        for part in parts:
            console.print(Text(part) if isinstance(part, str) else part)
        console.print()

    console.print(Text(f"Plan of run {plan.run}, {plan.goal}\n", style="bold"))
    section("Models and machines", _models(plan), _machines(plan))
    if plan.downloads:
        section("Downloads", *_downloads(plan))
    section("Placement", _engines(plan))
    if plan.gpu_memory:
        section("Memory of the fullest GPU, in GiB", *map(_memory_lines, plan.gpu_memory))
    section("Memory and disk of this machine", *_this_machine(plan))
    section("Workload", _amounts(plan), _lengths(plan))
    section("Time and cost", _forecast(plan), *_totals(plan))
    if plan.spent:
        section("Spent so far (ledger.jsonl)", _spent(plan))
    if plan.notes:
        section("Notes", *(f"- {note}" for note in plan.notes))
    if plan.problems:
        section("Problems: it can't run like this", *(f"- {problem}" for problem in plan.problems))
    else:
        console.print(Text(_verdict(plan), style="bold"))


def _verdict(plan: Plan) -> str:
    needed, free = plan.disk.total, plan.cluster.disk_bytes
    if needed <= free:
        return "It fits."
    up_to, there = readable_size(needed), readable_size(free)
    if not plan.is_here:
        return f"On a disk with {up_to} free (this machine's has {there}): It fits."
    return f"It may not fit: it writes up to {up_to}, but the disk has {there} free."


def _models(plan: Plan) -> Table:
    table = _grid()
    models = plan.models
    writers = {work.replace("sample", "writer"): model for work, model in models.writers.items()}
    named = {
        "M_0": models.seed,
        "generator": models.generator,
        **writers,
        "judge": models.judge,
        "test judge": models.evaluation,
        "rater": models.rater,
    }
    usual = {"test judge": models.judge, "generator": models.seed, **dict.fromkeys(writers, models.seed)}
    for role, model in named.items():
        if model is not None and model != usual.get(role):
            missing = "" if model.is_there else f" ({model.known_by})"
            table.add_row(role, Text(f"{model.name}, {model.billions} parameters{missing}"))
    return table


def _machines(plan: Plan) -> str:
    cluster = plan.cluster
    if not cluster.gpus:
        return "machines      no GPUs"
    gib = f"{cluster.gpu_bytes / GIB:,.1f} GiB"
    nodes, gpus = counted_as("node", cluster.nodes), counted_as("GPU", cluster.gpus)
    return f"machines      {nodes} of {gpus} ({cluster.gpu}, {gib} each), {cluster.known_by}"


def _downloads(plan: Plan) -> Iterator[str]:
    for each in plan.downloads:
        here = (
            "" if each.lacking > 0.99 * each.size else f", of which {readable_size(each.size - each.lacking)} are here"
        )
        yield f"{', '.join(each.keys):12}  {each.address}: {readable_size(each.size)}{here}"
    yield f"{TOTAL:12}  {readable_size(sum(each.lacking for each in plan.downloads))} to come, before the run begins"


def _engines(plan: Plan) -> Table:
    table = _grid()
    for engines in plan.engines:
        table.add_row(engines.work, Text("; ".join([engines.who, *engines.places])))
    return table


def _memory_lines(held: GpuMemory) -> str:
    parts = " + ".join(f"{name} {size / GIB:,.1f}" for name, size in held.parts.items() if size >= 0.05 * GIB)
    verdict = "fits" if held.fits else "DOES NOT FIT"
    line = f"{held.work:12}  {parts} = {held.total / GIB:,.1f} of {held.there / GIB:,.1f}: {verdict}"
    if held.sequences is not None and held.fits:
        line += f"; KV cache {held.cache / GIB:,.1f}, enough for {held.sequences} sequences of maximum length"
    return line


def _this_machine(plan: Plan) -> list[str]:
    disk = plan.disk
    lines = [
        f"disk          up to {readable_size(disk.total)}: {readable_size(disk.checkpoints)} for a checkpoint per "
        f"epoch, {readable_size(disk.scratch)} while training, {readable_size(disk.rows)} for samples and judgments; "
        f"{readable_size(plan.cluster.disk_bytes)} are free or already taken by this run"
    ]
    if plan.memory:
        parts = " + ".join(f"{who} {size / GIB:,.2f}" for who, size in plan.memory.items())
        needed, here = sum(plan.memory.values()) / GIB, plan.cluster.memory_bytes / GIB
        lines.insert(0, f"memory        {parts} = {needed:,.2f} of {here:,.1f} GiB")
    return lines


def _amounts(plan: Plan) -> Table:
    table = plain_table(None)
    for header in ("work", "rounds", "prompts", "answers", "tokens read", "written", "total, at most"):
        table.add_column(header, justify="left" if header == "work" else "right")
    for stage in plan.stages:
        work = stage.work
        table.add_row(
            work.kind,
            f"{work.rounds:,}",
            f"{work.prompts:,}",
            f"{work.expected.answers:,}",
            large(work.expected.tokens_in),
            large(work.expected.tokens_out),
            large(work.most.tokens),
        )
    table.add_row(TOTAL, "", "", "", "", large(plan.tokens), large(sum(s.work.most.tokens for s in plan.stages)))
    return table


def _lengths(plan: Plan) -> str:
    found = plan.lengths
    return (
        f"Mean lengths ({found.source}): prompt {found.prompt:,.0f} tokens, output {found.output:,.0f}, of which the "
        f"response is {found.response:,.0f}. Answers are outputs, responses read, comparisons, or pairs per epoch."
    )


def _forecast(plan: Plan) -> Table:
    table = plain_table(None)
    for header in ("work", "devices", "tokens/s each", "source", "start-up", "time", "GPU hours", "cost"):
        table.add_column(header, justify="left" if header in ("work", "source") else "right")
    for stage in plan.stages:
        table.add_row(stage.work.kind, *_forecast_cells(stage))
    table.add_row(TOTAL, "", "", "", "", duration(plan.seconds), f"{plan.gpu_hours:,.1f}", _money(plan.cost))
    return table


def _forecast_cells(stage: Stage) -> list[str]:
    if stage.rate is None:
        return ["", "", "", "", NOTHING, "", ""]
    gpus = f"{stage.gpu_hours:,.1f}" if stage.engines.gpus else NOTHING
    devices = str(stage.engines.devices) if stage.engines.device != "api" else "server"
    speed = f"{stage.rate.tokens_per_second:,.0f}"
    return [
        devices,
        speed,
        stage.rate.source,
        duration(stage.start_seconds),
        duration(stage.seconds),
        gpus,
        _money(stage.cost),
    ]


def _totals(plan: Plan) -> list[str]:
    lines = []
    if any(stage.rate is not None and stage.rate.is_guess for stage in plan.stages):
        lines.append(
            "Guesses come from published peak speeds and may be off by a factor of two or three: measure a small run "
            "of this profile, and the next plan uses its ledger; or set [throughput]."
        )
    gpus = plan.cluster.nodes * plan.cluster.gpus
    if plan.gpu_hours:
        rented = gpus * plan.seconds / 3600
        lines.append(f"GPU hours count GPUs in use; {counted_as('GPU', gpus)} for the whole run are {rented:,.1f}.")
    if plan.gpu_hours and not any(stage.cost for stage in plan.stages):
        lines.append("No price is set: set prices.gpu_hour to forecast the cost.")
    return lines


def _spent(plan: Plan) -> Table:
    table = plain_table(None)
    for header in ("work", "prompts", "answers", "tokens read", "written", "time", "GPU hours", "cost"):
        table.add_column(header, justify="left" if header == "work" else "right")
    for line in plan.spent:
        amounts = (f"{line.prompts:,}", f"{line.answers:,}", large(line.tokens_in), large(line.tokens_out))
        table.add_row(line.work, *amounts, duration(line.seconds), f"{line.gpu_seconds / 3600:,.2f}", _money(line.cost))
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=12, no_wrap=True)
    table.add_column()
    return table


def counted_as(what: str, count: int) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _money(cost: float) -> str:
    return f"{cost:,.2f}" if cost else NOTHING


def large(count: int) -> str:
    """A count in readable form, like `1.2 M`."""
    for size, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:,.1f}{name}"
    return str(count)
