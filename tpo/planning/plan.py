"""A run before it runs: what goes where, whether it fits, how much it asks for, how long that takes, what it costs.

In: a config, T, the shapes of its models, the machines, and past runs. Out: a `Plan`. Arithmetic alone.

Too few GPUs and too little memory for weights, gradients and optimizer refuse a plan, since those are known. Hours,
money and lengths never do: they are estimates, and each says where it is from.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tpo.config.base import Endpoint
from tpo.config.contexts import context_of, contexts, pair_writers
from tpo.config.data import SyntheticConfig
from tpo.config.judges import JudgeConfig, PairwiseJudge, VerifierJudge
from tpo.config.recipes import SelfTrain, ThinkPo
from tpo.config.resources import EngineConfig
from tpo.config.run import RunConfig
from tpo.models.shape import Model
from tpo.planning.gpu_memory import TIGHT, GpuMemory, engine_memory, reader_memory, trainings_memory
from tpo.planning.needs import BYTES, GIB, Disk, cpus_needed, disk_needed, memory_needed
from tpo.planning.throughput import (
    PastRun,
    Rate,
    alike,
    counted,
    decode_rate,
    guess_source,
    hardware_of,
    past_rate,
    prefill_rate,
    training_rate,
)
from tpo.planning.workload import GUESSED_JUDGMENT_TOKENS, Lengths, Work, judge_longest, workload
from tpo.storage.ledger import API, Entry, Spending, spending

CACHED_SHARE = 0.5
"""Share of a comparison's tokens that the prefix cache is guessed to hold where all pairs are asked."""
_CPU_START, _CPU_RELOAD, _GPU_START, _LOAD_BYTES, _TRAIN_START = 40.0, 1.0, 45.0, 1e9, 30.0
"""Guesses, in seconds: engines start and take new weights on CPUs, start on GPUs and read so much of a model a second;
workers that train start."""
_CALL_SECONDS, _CALL_TOKENS = 1.0, 40.0
"""Guesses: a server's answer takes so long, and a second for so many tokens of it."""


@dataclass(frozen=True)
class Cluster:
    """The machines that a run is planned for."""

    nodes: int
    """How many."""
    gpus: int
    """GPUs of each."""
    gpu_bytes: int
    """Memory of each GPU; 0 where there are none."""
    gpu: str
    """What they are called."""
    known_by: str
    """Where that is from, for people."""
    memory_bytes: int
    """Memory of this machine."""
    cpus: int
    """CPUs of this machine that Ray has to give."""
    disk_bytes: int
    """Free where this machine keeps the run, or its working copy."""


@dataclass(frozen=True)
class Models:
    """The models of a run."""

    seed: Model
    """M_0."""
    judge: Model | None
    """The judge of training and validation; None where it is no model of ours."""
    evaluation: Model | None
    """The judge of the test set; None where it is no model of ours."""
    generator: Model | None = None
    """What writes prompts, M_0 perhaps; None where nothing does, or a server."""
    writers: Mapping[str, Model] = field(default_factory=dict)
    """What writes for ThinkPO's pairs, by its work; M_0 perhaps."""


@dataclass(frozen=True)
class Crew:
    """Who does one kind of work, and where."""

    work: str
    """The kind of work."""
    who: str
    """Who does it, for people."""
    each: int
    """GPUs that one of them has; 0 for CPUs and servers."""
    count: int
    """How many there are."""
    device: str
    """As the ledger has it."""
    places: Sequence[str]
    """GPUs by node, in one way that fits; Ray chooses."""

    @property
    def gpus(self) -> int:
        """GPUs that all of them have."""
        return self.each * self.count

    @property
    def devices(self) -> int:
        """What a rate is multiplied by: GPUs, or engines or workers on CPUs."""
        return self.gpus or self.count


@dataclass(frozen=True)
class Stage:
    """One kind of work with its forecast."""

    work: Work
    """How much it is."""
    crew: Crew
    """Who does it."""
    rate: Rate | None
    """How fast one device is; None where it takes no time worth a forecast."""
    start_seconds: float
    """Of all starts of engines and workers."""
    seconds: float
    """In all."""
    cost: float
    """Money."""

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.seconds * self.crew.gpus / 3600


@dataclass(frozen=True)
class Plan:
    """A run before it runs."""

    run: str
    """Its name."""
    goal: str
    """What it is brought to, for people: `to M_3`."""
    iterations: int
    """T."""
    models: Models
    """Its models."""
    cluster: Cluster
    """The machines."""
    crews: Sequence[Crew]
    """Who does what, and where."""
    gpu_memory: Sequence[GpuMemory]
    """What GPUs hold."""
    memory: Mapping[str, int]
    """Bytes that this machine's memory holds at once, by whom."""
    disk: Disk
    """Bytes that the run writes."""
    is_here: bool
    """Whether the run is planned for this machine, so that its disk is the run's: the profile describes no others."""
    lengths: Lengths
    """Mean tokens."""
    stages: Sequence[Stage]
    """The work, with forecasts."""
    spent: Sequence[Spending]
    """What the run has spent already."""
    problems: Sequence[str] = field(default=())
    """Why it cannot run so."""
    notes: Sequence[str] = field(default=())
    """What to know."""

    @property
    def fits(self) -> bool:
        """Whether the run can be made so, as far as is known: rows on the disk are a bound from above."""
        certain = self.disk.checkpoints + self.disk.scratch
        return not self.problems and not (self.is_here and certain > self.cluster.disk_bytes)

    @property
    def seconds(self) -> float:
        """Of all stages, one after another."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Of all stages, expected."""
        return sum(stage.work.expected.tokens for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """Of all stages."""
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def cost(self) -> float:
        """Of all stages."""
        return sum(stage.cost for stage in self.stages)


def make_plan(
    config: RunConfig,
    iterations: int,
    *,
    models: Models,
    cluster: Cluster,
    past: Sequence[PastRun],
    spent: Sequence[Entry] = (),
    problems: Sequence[str] = (),
) -> Plan:
    """The plan of M_0 to M_T, T = `iterations`; `problems` are those that are known already."""
    planner = _Planner(config, iterations, models, cluster, past, problems)
    return planner.plan(spent)


@dataclass(frozen=True)
class _Planner:
    """What every part of a plan follows from."""

    config: RunConfig
    iterations: int
    models: Models
    cluster: Cluster
    past: Sequence[PastRun]
    problems: Sequence[str]

    def plan(self, spent: Sequence[Entry]) -> Plan:
        config, lengths = self.config, self._lengths()
        works = [work for work in workload(config, self.iterations, lengths) if work.expected.answers]
        memory = self._gpu_memory()
        stages = [self._stage(work, lengths, memory) for work in works]
        crews: dict[str, Crew] = {}
        for stage in stages:
            crews.setdefault(stage.crew.who, stage.crew)
        return Plan(
            run=config.name,
            goal=self._goal(),
            iterations=self.iterations,
            models=self.models,
            cluster=self.cluster,
            crews=list(crews.values()),
            gpu_memory=memory,
            memory=self._machine_memory(),
            disk=self._disk(),
            is_here=self.config.cluster.gpus is None and self.config.cluster.address is None,
            lengths=lengths,
            stages=stages,
            spent=spending(spent),
            problems=[
                *self.problems,
                *self._too_many(stages),
                *self._unknown(stages),
                *self._too_large(memory),
                *self._unfit(),
            ],
            notes=[
                *self._tight(memory),
                *self._loading_workers(),
                *self._full_disk(),
                *self._idle(stages),
                *self._spanning(stages),
                *self._over_budget(stages, spent),
            ],
        )

    def _goal(self) -> str:
        if isinstance(self.config.recipe, ThinkPo):
            return "ThinkPO"
        return f"to {'SFT' if isinstance(self.config.recipe, SelfTrain) else 'M'}_{self.iterations}"

    def _judges(self) -> list[tuple[JudgeConfig, Model | None]]:
        return [(self.config.judge, self.models.judge), (self.config.evaluation.judge, self.models.evaluation)]

    def _lengths(self) -> Lengths:
        given, sample, data = self.config.throughput, self.config.sample, self.config.data
        runs = alike(self.past, "sample", device=self._device("sample"), parameters=self.models.seed.shape.parameters)
        prompt, output, sources = data.max_prompt_tokens / 2, sample.max_new_tokens / 2, ["guess"]
        if runs and (prompts := sum(entry.prompts for entry in runs[0].entries)):
            prompt = sum(entry.tokens_in for entry in runs[0].entries) / prompts
            output = sum(entry.tokens_out for entry in runs[0].entries) / sum(e.answers for e in runs[0].entries)
            sources = [f"past run {runs[0].name}"]
        if given.prompt_tokens is not None or given.output_tokens is not None:
            sources.insert(0, "profile")
            prompt, output = given.prompt_tokens or prompt, given.output_tokens or output
        return Lengths(
            prompt=min(prompt, data.max_prompt_tokens),
            output=min(output, sample.max_new_tokens),
            response=min(output, sample.max_new_tokens) * given.response_share,
            judgment=given.judgment_tokens or GUESSED_JUDGMENT_TOKENS,
            source=", ".join(sources if given.prompt_tokens is None or given.output_tokens is None else ["profile"]),
        )

    def _stage(self, work: Work, lengths: Lengths, memory: Sequence[GpuMemory]) -> Stage:
        crew = self._crew(work.kind)
        rate = self._rate(work, crew, lengths, memory)
        tokens = counted(work.kind, work.expected.tokens_in, work.expected.tokens_out)
        starts = 0.0 if rate is None else self._starts(work, crew, rate)
        # What a past run measured has its engines' idle time in it.
        measured = rate is None or rate.source.startswith("past run")
        busy = 1.0 if measured else self._busy_share(work, crew)
        seconds = starts + (tokens / (rate.tokens_per_second * crew.devices * busy) if rate else 0.0)
        cost = seconds / 3600 * crew.gpus * self.config.prices.gpu_hour
        if (server := self._server_of(work.kind)) is not None:
            cost += work.expected.tokens_in * server.endpoint.input_price / 1e6
            cost += work.expected.tokens_out * server.endpoint.output_price / 1e6
        return Stage(work, crew, rate, starts, seconds, cost)

    def _shards(self, work: Work, crew: Crew) -> int:
        """Pieces in which a round's prompts are handed out; 0 if they are not."""
        if work.kind == "train" or not crew.count or self._server_of(work.kind) is not None:
            return 0
        section = self.config.judge_engine if self._judge_of(work.kind) else self.config.engine
        return math.ceil(work.prompts / work.rounds / section.shard_prompts)

    def _busy_share(self, work: Work, crew: Crew) -> float:
        """Share of a crew that works, on average: each shard is one engine's, and the last ones leave others idle."""
        shards = self._shards(work, crew)
        return shards / (math.ceil(shards / crew.count) * crew.count) if shards else 1.0

    def _judge_of(self, kind: str) -> JudgeConfig | None:
        if not kind.endswith("judge"):
            return None
        return self.config.evaluation.judge if kind.startswith("test") else self.config.judge

    def _server_of(self, kind: str) -> "_Server | None":
        """The server that does a kind of work; None where we do."""
        who = self.config.data.synthetic if kind == "generate" else self._judge_of(kind)
        if not isinstance(who, SyntheticConfig | PairwiseJudge) or who.endpoint is None:
            return None
        return _Server(who.server, who.endpoint)

    def _model_of(self, kind: str) -> Model | None:
        if kind == "generate":
            return self.models.generator
        if kind in self.models.writers:
            return self.models.writers[kind]
        if not kind.endswith("judge"):
            return self.models.seed
        return self.models.evaluation if kind.startswith("test") else self.models.judge

    def _device(self, kind: str) -> str:
        config, judge = self.config, self._judge_of(kind)
        if self._server_of(kind) is not None:
            return API
        section = config.trainer if kind == "train" else config.judge_engine if judge else config.engine
        on_cpu = isinstance(judge, VerifierJudge) or section.device == "cpu"
        return "cpu" if on_cpu else self.cluster.gpu

    def _crew(self, kind: str) -> Crew:
        config, judge, device = self.config, self._judge_of(kind), self._device(kind)
        on_gpu = device not in ("cpu", API)
        if isinstance(judge, VerifierJudge):
            return Crew(kind, "the flow itself (verifier)", 0, 0, device, ())
        if (server := self._server_of(kind)) is not None:
            who = f"{server.name}, {server.endpoint.concurrency} calls at once"
            return Crew(kind, who, 0, 1, device, ())
        if kind == "train":
            count, each, what = config.trainer.workers, int(on_gpu), f"{config.trainer.strategy} worker"
        elif judge is not None:
            pairwise = isinstance(judge, PairwiseJudge)
            count, each = config.judge_engine.count, config.judge_engine.tensor_parallel if pairwise else 1
            what = "vLLM engine" if pairwise else "reader"
        else:
            count, each, what = config.engine.count, config.engine.tensor_parallel, "vLLM engine"
        what += "s" if count > 1 else ""
        of = f", {each} GPUs each" if on_gpu and each > 1 else ""
        model = self._model_of(kind)
        who = f"{count} {what}{of}: {model.name if model else ''}"
        return Crew(kind, who, each if on_gpu else 0, count, device, self._places(count, each) if on_gpu else ())

    def _places(self, count: int, each: int) -> list[str]:
        """Where they go, filled up node by node; nodes that are filled alike are named together."""
        per_node = max(1, self.cluster.gpus)
        if each == 1:
            whole, rest = divmod(count, per_node)
            full = [f"{_of('node', range(whole))}: {_of('GPU', range(per_node))}"] if whole else []
            return full + ([f"node {whole}: {_of('GPU', range(rest))}"] if rest else [])
        nodes: dict[int, list[str]] = {}
        for i in range(count):
            taken = range(i * each, (i + 1) * each)
            for node in sorted({gpu // per_node for gpu in taken}):
                there = [gpu % per_node for gpu in taken if gpu // per_node == node]
                nodes.setdefault(node, []).append(_of("GPU", there))
        same: dict[str, list[int]] = {}
        for node, taken_there in nodes.items():
            same.setdefault(" | ".join(taken_there), []).append(node)
        return [f"{_of('node', found)}: {gpus}" for gpus, found in same.items()]

    def _rate(self, work: Work, crew: Crew, lengths: Lengths, memory: Sequence[GpuMemory]) -> Rate | None:
        verb, model = work.kind.split()[-1], self._model_of(work.kind)
        if not work.expected.tokens:
            return None
        given = getattr(self.config.throughput, verb, None)
        if given is not None:
            return Rate(given, "profile")
        parameters = model.shape.parameters if model else 0
        server = self._server_of(work.kind)
        name = server.name if server is not None else ""
        found = past_rate(alike(self.past, work.kind, device=crew.device, parameters=parameters, server=name))
        if found is not None:
            return found
        if model is None:
            assert server is not None
            return _server_rate(work, server.endpoint)
        return Rate(self._guess(work, model, crew, lengths, memory), guess_source(crew.device))

    def _guess(self, work: Work, model: Model, crew: Crew, lengths: Lengths, memory: Sequence[GpuMemory]) -> float:
        config, shape = self.config, model.shape
        judge = self._judge_of(work.kind)
        section = config.trainer if work.kind == "train" else config.judge_engine if judge else config.engine
        hardware = hardware_of(crew.device, section.threads)
        if work.kind == "train":
            return training_rate(
                shape,
                hardware,
                checkpointing=config.train.gradient_checkpointing,
                epochs=config.train.epochs,
                frozen=config.train.lora is not None,
            )
        if judge is not None and not isinstance(judge, PairwiseJudge):
            return prefill_rate(shape, hardware)
        assert isinstance(section, EngineConfig)
        read, written = (
            work.expected.tokens_in / work.expected.answers,
            work.expected.tokens_out / work.expected.answers,
        )
        reads_much = judge is not None or work.kind == "generate"
        context = read + written / 2 if reads_much else lengths.prompt + written / 2
        number = BYTES[section.dtype]
        # An engine has one shard at a time.
        at_once = min(section.shard_prompts, work.prompts / work.rounds) * work.expected.answers / work.prompts
        sequences = max(1, min(section.max_num_seqs, round(at_once)))
        for held in memory:
            if held.work == _memory_of(work.kind):
                each = shape.kv_bytes(number) * context / section.tensor_parallel
                sequences = max(1, min(sequences, int(held.cache / each)))
        decode = decode_rate(
            shape, hardware, devices=max(1, crew.each), sequences=sequences, context=context, number_bytes=number
        )
        if not reads_much:
            return decode
        cached = CACHED_SHARE if judge and judge.tournament == "all_pairs" and work.kind == "judge" else 0.0
        return (read + written) / (read * (1 - cached) / prefill_rate(shape, hardware) + written / decode)

    def _starts(self, work: Work, crew: Crew, rate: Rate) -> float:
        """Seconds in which engines and workers start, one after another over all rounds."""
        model = self._model_of(work.kind)
        if rate.start_seconds is not None:
            # On CPUs an engine is started once and takes new weights: a run starts it as often as the past one did.
            stays = crew.device == "cpu" and work.kind != "train"
            return (min(rate.starts, work.rounds) if stays else work.rounds) * rate.start_seconds
        if model is None or not crew.count:
            return 0.0
        if work.kind == "train":
            return work.rounds * (_TRAIN_START if crew.device == "cpu" else _TRAIN_START + _loading(model))
        if crew.device == "cpu":
            return (
                _CPU_START + (work.rounds - 1) * _CPU_RELOAD
                if work.kind in ("sample", "judge", *self.models.writers) or self._has_own_generator(work.kind)
                else (work.rounds * _CPU_RELOAD)
            )
        return work.rounds * (_GPU_START + _loading(model))

    def _has_own_generator(self, kind: str) -> bool:
        """Whether this is the work of a model that does no other."""
        writer = self.config.data.synthetic
        return kind == "generate" and writer is not None and writer.folder is not None

    def _gpu_memory(self) -> list[GpuMemory]:
        config, gpu_bytes, found = self.config, self.cluster.gpu_bytes, list[GpuMemory]()
        if not gpu_bytes:
            return found
        seed = self.models.seed.shape
        if config.engine.device == "gpu":
            context = context_of(config)
            found.append(engine_memory("sample", seed, config.engine, context=context, gpu_bytes=gpu_bytes))
            for work, own in self._own_writers().items():
                context = context_of(config, work)
                found.append(engine_memory(work, own.shape, config.engine, context=context, gpu_bytes=gpu_bytes))
            if (writer := config.data.synthetic) and writer.folder and (model := self.models.generator):
                context = context_of(config, "generate")
                found.append(
                    engine_memory("generate", model.shape, config.engine, context=context, gpu_bytes=gpu_bytes)
                )
        if config.judge_engine.device == "gpu":
            for work, (judge, model) in zip(("judge", "test judge"), self._judges(), strict=True):
                if model is None:
                    continue
                longest = judge_longest(judge, model.shape.context)
                if isinstance(judge, PairwiseJudge):
                    held = engine_memory(work, model.shape, config.judge_engine, context=longest, gpu_bytes=gpu_bytes)
                else:
                    held = reader_memory(work, model.shape, config.judge_engine, longest=longest, gpu_bytes=gpu_bytes)
                if not any(replace(held, work=other.work) == other for other in found):
                    found.append(held)
        if config.trainer.device == "gpu":
            found += trainings_memory(config, seed, gpu_bytes=gpu_bytes)
        return found

    def _too_many(self, stages: Sequence[Stage]) -> Iterator[str]:
        there = self.cluster.nodes * self.cluster.gpus
        needed: dict[str, Crew] = {}
        for stage in stages:
            if stage.crew.gpus > there:
                needed.setdefault(stage.crew.who, stage.crew)
        for crew in needed.values():
            remedy = "trainer.workers" if crew.work == "train" else "engine.count and engine.tensor_parallel"
            if crew.work.endswith("judge"):
                remedy = "judge_engine.count and judge_engine.tensor_parallel"
            yield (
                f"{crew.work} asks for {crew.gpus} GPUs ({crew.who}), and there are {there} ({self.cluster.known_by}): "
                f"lower {remedy}, or describe the machines in [cluster] (nodes, gpus, gpu_memory_gib, gpu)"
            )

    def _unknown(self, stages: Sequence[Stage]) -> Iterator[str]:
        """GPUs whose memory nobody has told: what would be called fitting was not looked at."""
        if self.cluster.gpus and not self.cluster.gpu_bytes and any(stage.crew.gpus for stage in stages):
            yield (
                "cluster.gpus is set, and how much memory each has is not known here: set cluster.gpu_memory_gib "
                "(80 GB are 79.6), or make the plan on the machine itself"
            )

    def _too_large(self, memory: Sequence[GpuMemory]) -> Iterator[str]:
        for held in memory:
            if not held.fits:
                short = held.total - held.there
                lack = f"{short / GIB:,.1f} GiB more than there are" if short > 0 else "no room for one sequence's KV"
                yield f"{held.work} does not fit: {lack}; {_remedy(held.work)}"
        needed, here = sum(self._machine_memory().values()), self.cluster.memory_bytes
        if needed > here:
            yield (
                f"this machine's memory has {here / GIB:,.1f} GiB, and {needed / GIB:,.1f} are needed at once: lower "
                "engine.kv_cache_gib, engine.count, judge_engine.count or trainer.workers"
            )

    def _machine_memory(self) -> dict[str, int]:
        """Bytes of this machine's memory, by whom."""
        judges = {
            judge.folder: model.shape.parameters
            for judge, model in self._judges()
            if model is not None and not isinstance(judge, VerifierJudge) and judge.folder is not None
        }
        writer, model = self.config.data.synthetic, self.models.generator
        own = model.shape.parameters if writer is not None and writer.folder is not None and model else None
        seed = self.models.seed.shape.parameters
        writers = {model.name: model.shape.parameters for model in self._own_writers().values()}
        return memory_needed(self.config, parameters=seed, judges=judges, generator=own, writers=writers)

    def _own_writers(self) -> dict[str, Model]:
        """The models that write for ThinkPO's pairs and do no other work, by their work."""
        return {
            writer.work: self.models.writers[writer.work]
            for writer in pair_writers(self.config)
            if writer.folder is not None
        }

    def _unfit(self) -> Iterator[str]:
        """What this machine's CPUs or a model's shape forbid."""
        config, seed = self.config, self.models.seed
        for key, count in cpus_needed(config).items():
            if count > self.cluster.cpus:
                yield f"{key} is {count}, and Ray has {self.cluster.cpus} CPUs here to give, one each: lower it"
        for asked in contexts(config):
            model = self._model_of(asked.work)
            if model is not None and (fault := asked.fault(model.shape.context, model.name)) is not None:
                yield fault
        engines = [("engine", config.engine, seed)]
        engines += [("engine", config.engine, model) for model in self._own_writers().values()]
        if self.models.generator not in (None, seed):
            engines.append(("engine", config.engine, self.models.generator))
        for judge, model in self._judges():
            if isinstance(judge, PairwiseJudge) and model is not None:
                engines.append(("judge_engine", config.judge_engine, model))
        for name, engine, model in engines:
            if not model.shape.splits_over(engine.tensor_parallel):
                yield f"{name}.tensor_parallel is {engine.tensor_parallel}, and {model.unsplit}"

    def _tight(self, memory: Sequence[GpuMemory]) -> Iterator[str]:
        for held in memory:
            if held.fits and held.sequences is None and held.there - held.total < TIGHT * held.there:
                remedy = _remedy(held.work)
                yield f"{held.work}: little memory is left, and activations are an estimate; if it runs out, {remedy}"

    def _loading_workers(self) -> Iterator[str]:
        """What workers on GPUs take of a node's own memory: each loads the whole model there, or the first one alone if
        its weights are then spread."""
        train, trainer = self.config.train, self.config.trainer
        if trainer.device == "gpu" and self.iterations:
            spread = trainer.strategy == "fsdp"
            workers = 1 if spread else min(trainer.workers, self.cluster.gpus or trainer.workers)
            number = BYTES[train.precision] if train.lora else BYTES["float32"]
            held = workers * self.models.seed.shape.parameters * number
            yield (
                f"train: as workers start they hold {held / GIB:,.1f} GiB of a node's own memory, the whole model "
                f"{'in the first' if spread else 'each'}: so much must be free there"
            )

    def _disk(self) -> Disk:
        parameters = self.models.seed.shape.parameters
        return disk_needed(self.config, range(self.iterations + 1), parameters=parameters)

    def _full_disk(self) -> Iterator[str]:
        """That this machine's disk is too small, which may not be the run's."""
        needed, free, config = self._disk().total, self.cluster.disk_bytes, self.config
        if needed <= free:
            return
        keys = ["train.epochs", *(["recipe.sft.epochs"] if config.sft is not None else [])]
        keys = keys if isinstance(config.recipe, ThinkPo) else ["--to (ITER)", *keys]
        if config.cluster.gpus is None and config.cluster.address is None:
            remedy = f"free some, set folder in the profile to a larger disk, or lower {' or '.join(keys)}"
        else:
            remedy = "so much must be free where the run is made"
        yield (
            f"disk: up to {needed / GIB:,.1f} GiB are written in all, and {free / GIB:,.1f} are free on this machine "
            f"at {config.root}: {remedy}"
        )

    def _idle(self, stages: Sequence[Stage]) -> Iterator[str]:
        """Engines that never get a shard."""
        for stage in stages:
            shards = self._shards(stage.work, stage.crew)
            if 0 < shards < stage.crew.count:
                name = "judge_engine" if self._judge_of(stage.work.kind) else "engine"
                each, count = math.ceil(stage.work.prompts / stage.work.rounds), stage.crew.count
                yield (
                    f"{stage.work.kind}: {each:,} prompts are {shards} shard{'' if shards == 1 else 's'}, so that "
                    f"{count - shards} of {count} engines have nothing to do: lower {name}.shard_prompts to "
                    f"{math.ceil(each / count):,} to use all of them"
                )

    def _spanning(self, stages: Sequence[Stage]) -> Iterator[str]:
        for crew in {stage.crew.who: stage.crew for stage in stages}.values():
            if self.cluster.gpus and crew.each > self.cluster.gpus:
                yield (
                    f"{crew.work}: an engine of {crew.each} GPUs spans nodes of {self.cluster.gpus}; the network "
                    "between them sets its pace"
                )

    def _over_budget(self, stages: Sequence[Stage], spent: Sequence[Entry]) -> Iterator[str]:
        budget = self.config.budget
        forecast = {
            "hours": (budget.hours, sum(stage.seconds for stage in stages) / 3600),
            "tokens": (budget.tokens, sum(stage.work.expected.tokens for stage in stages)),
            "cost": (budget.cost, sum(stage.cost for stage in stages)),
        }
        for name, (cap, expected) in forecast.items():
            if cap is not None and expected > cap:
                yield (
                    f"budget.{name} is {cap:,}, and {expected:,.{0 if name == 'tokens' else 1}f} are forecast: the run "
                    "would stop cleanly before its end"
                )
        if spent:
            yield "the forecast is for the whole run; what it has spent already stands apart"


@dataclass(frozen=True)
class _Server:
    """A server that does a kind of work."""

    name: str
    """The model and its server, for people and in the ledger."""
    endpoint: Endpoint
    """How it is asked."""


def _server_rate(work: Work, endpoint: Endpoint) -> Rate:
    written = work.expected.tokens_out / work.expected.answers
    call = work.expected.tokens / work.expected.answers
    return Rate(endpoint.concurrency * call / (_CALL_SECONDS + written / _CALL_TOKENS), "guess (server)")


def _remedy(work: str) -> str:
    """What to do if one kind of work has too little memory."""
    remedy = _REMEDIES[work.split()[-1]]
    if work.startswith(("short ", "long ")):
        remedy = remedy.replace("sample.max_new_tokens", f"recipe.source.{work.replace(' ', '_')}.max_new_tokens")
    if work.startswith("sft "):
        remedy = re.sub(r"\btrain\.(?=[gml])", "recipe.sft.", remedy)
    return remedy


_REMEDIES = {
    "generate": "raise engine.tensor_parallel, or lower data.synthetic.max_prompt_tokens or max_new_tokens",
    "sample": "raise engine.tensor_parallel, or lower sample.max_new_tokens or data.max_prompt_tokens",
    "judge": "raise judge_engine.tensor_parallel, or lower judge.max_tokens or judge_engine.batch_tokens",
    "train": 'set trainer.strategy = "fsdp" with more trainer.workers, train.gradient_checkpointing = true, a smaller '
    "train.micro_batch_size or train.max_tokens, or a [train.lora]",
}


def _memory_of(kind: str) -> str:
    """Under which name the memory of a kind of work is listed."""
    return {"validation sample": "sample", "test sample": "sample", "validation judge": "judge"}.get(kind, kind)


def _loading(model: Model) -> float:
    return model.shape.parameters * 2 / _LOAD_BYTES


def _of(what: str, numbers: Sequence[int]) -> str:
    """`GPU 3`, `GPUs 0-3`, or one by one where they do not follow one another."""
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{what}s {numbers[0]}-{numbers[-1]}"
    return f"{what}s {', '.join(map(str, numbers))}"
