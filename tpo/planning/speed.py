"""Forecast of a run's time and cost by kind of work: lengths, rates, start-up, idle engines.

Each figure comes from the profile, from past runs or from a guess, in this order, and names its source
(`tpo.planning.throughput`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tpo.config.base import Endpoint
from tpo.config.judges import GenerativeJudge, JudgeConfig, PairwiseJudge
from tpo.config.resources import TrainerConfig
from tpo.models.shape import Model
from tpo.planning.gpu_memory import GpuMemory
from tpo.planning.needs import BYTES
from tpo.planning.placement import EngineGroup, Placement
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
from tpo.planning.workload import GUESSED_JUDGMENT_TOKENS, Kind, Lengths, Work

CACHED_SHARE = 0.5
"""Fraction of a comparison's tokens assumed to be in the prefix cache if all pairs are compared."""
_CPU_START, _CPU_RELOAD, _GPU_START, _LOAD_BYTES, _TRAIN_START = 40.0, 1.0, 45.0, 1e9, 30.0
"""Guesses: seconds for an engine to start, or to load new weights, on CPUs; to start on GPUs; bytes of a model read per
second; seconds for training workers to start."""
_CALL_SECONDS, _CALL_TOKENS = 1.0, 40.0
"""Guesses: seconds of latency of a server's answer, and tokens that it then writes per second."""
_HELD_AS = {
    Kind.VALIDATION_SAMPLE: Kind.SAMPLE,
    Kind.TEST_SAMPLE: Kind.SAMPLE,
    Kind.BENCHMARK_SAMPLE: Kind.SAMPLE,
    Kind.VALIDATION_JUDGE: Kind.JUDGE,
    Kind.BENCHMARK_JUDGE: Kind.TEST_JUDGE,
}
"""The kind of work under which another's GPU memory is listed."""


@dataclass(frozen=True)
class Stage:
    """One kind of work with its forecast."""

    work: Work
    """The amount of work."""
    engines: EngineGroup
    """The engines or workers that do it."""
    rate: Rate | None
    """Speed of one device; None if the work has no tokens and so takes almost no time."""
    start_seconds: float
    """Seconds for all starts of engines and workers."""
    seconds: float
    """Total seconds, starts included."""
    cost: float
    """Cost, in the currency of the prices."""

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.seconds * self.engines.gpus / 3600


def lengths_of(placement: Placement, past: Sequence[PastRun]) -> Lengths:
    """Mean tokens of prompts, outputs and judgments."""
    config = placement.config
    given, sample, data = config.throughput, config.sample, config.data
    parameters = placement.models.seed.shape.parameters
    runs = alike(past, Kind.SAMPLE, device=placement.device(Kind.SAMPLE), parameters=parameters)
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


@dataclass(frozen=True)
class Speed:
    """The forecast of durations, and its basis."""

    placement: Placement
    """The assignment of work to models and devices."""
    lengths: Lengths
    """Mean lengths, in tokens."""
    memory: Sequence[GpuMemory]
    """The memory of GPUs, which limits how many sequences run at once."""
    past: Sequence[PastRun]
    """Past runs with their ledgers."""

    def stage(self, work: Work) -> Stage:
        """The forecast of one kind of work."""
        engines, server = self.placement.engines(work.kind, work.member), self.placement.server(work.kind, work.member)
        rate = self._rate(work, engines)
        tokens = counted(work.kind, work.expected.tokens_in, work.expected.tokens_out)
        starts = 0.0 if rate is None else self._starts(work, engines, rate)
        # A measured rate already includes the engines' idle time.
        measured = rate is None or rate.source.startswith("past run")
        busy = 1.0 if measured else self._busy_share(work, engines)
        seconds = starts + (tokens / (rate.tokens_per_second * engines.devices * busy) if rate else 0.0)
        cost = seconds / 3600 * engines.gpus * self.placement.config.prices.gpu_hour
        if server is not None:
            cost += work.expected.tokens_in * server.endpoint.input_price / 1e6
            cost += work.expected.tokens_out * server.endpoint.output_price / 1e6
        return Stage(work, engines, rate, starts, seconds, cost)

    def shards(self, work: Work, engines: EngineGroup) -> int:
        """Shards per round; 0 if the work isn't sharded."""
        section = self.placement.section(work.kind)
        served = self.placement.server(work.kind, work.member) is not None
        if isinstance(section, TrainerConfig) or not engines.count or served:
            return 0
        return math.ceil(work.prompts / work.rounds / section.shard_prompts)

    def _busy_share(self, work: Work, engines: EngineGroup) -> float:
        """Mean fraction of the engines that is busy: a shard goes to one engine, so the last ones leave others idle."""
        shards = self.shards(work, engines)
        return shards / (math.ceil(shards / engines.count) * engines.count) if shards else 1.0

    def _rate(self, work: Work, engines: EngineGroup) -> Rate | None:
        model = self.placement.model(work.kind, work.member)
        server = self.placement.server(work.kind, work.member)
        if not work.expected.tokens:
            return None
        given = getattr(self.placement.config.throughput, work.kind.verb, None)
        if given is not None:
            return Rate(given, "profile")
        parameters = model.shape.parameters if model else 0
        name = server.name if server is not None else ""
        found = past_rate(alike(self.past, work.kind, device=engines.device, parameters=parameters, server=name))
        if found is not None:
            return found
        if model is None:
            assert server is not None
            return _server_rate(work, server.endpoint)
        return Rate(self._guess(work, model, engines), guess_source(engines.device))

    def _guess(self, work: Work, model: Model, engines: EngineGroup) -> float:
        train, shape = self.placement.config.train, model.shape
        section, judge = self.placement.section(work.kind), self.placement.judge(work.kind, work.member)
        hardware = hardware_of(engines.device, section.threads)
        if isinstance(section, TrainerConfig):
            return training_rate(
                shape,
                hardware,
                checkpointing=train.gradient_checkpointing,
                epochs=train.epochs,
                frozen=train.lora is not None,
            )
        if judge is not None and not isinstance(judge, GenerativeJudge):
            return prefill_rate(shape, hardware)
        answers = work.expected.answers
        read, written = work.expected.tokens_in / answers, work.expected.tokens_out / answers
        reads_much = judge is not None or work.kind.verb in ("generate", "rate")
        context = (read if reads_much else self.lengths.prompt) + written / 2
        number = BYTES[section.dtype]
        # An engine works on one shard at a time.
        at_once = min(section.shard_prompts, work.prompts / work.rounds) * answers / work.prompts
        sequences = max(1, min(section.max_num_seqs, round(at_once)))
        for held in self.memory:
            if held.work == _HELD_AS.get(work.kind, work.kind):
                each = shape.kv_bytes(number) * context / section.tensor_parallel
                sequences = max(1, min(sequences, int(held.cache / each)))
        decode = decode_rate(
            shape, hardware, devices=max(1, engines.each), sequences=sequences, context=context, number_bytes=number
        )
        if not reads_much:
            return decode
        cached = CACHED_SHARE if _compares_all(judge) and work.kind is Kind.JUDGE else 0.0
        return (read + written) / (read * (1 - cached) / prefill_rate(shape, hardware) + written / decode)

    def _starts(self, work: Work, engines: EngineGroup, rate: Rate) -> float:
        """Seconds that engines and workers take to start, summed over all rounds."""
        model = self.placement.model(work.kind, work.member)
        on_cpu, trains = engines.device == "cpu", work.kind.verb == "train"
        if rate.start_seconds is not None:
            # On CPUs an engine stays up and loads new weights, so a run starts it as often as the past one did.
            stays = on_cpu and not trains
            return (min(rate.starts, work.rounds) if stays else work.rounds) * rate.start_seconds
        if model is None or not engines.count:
            return 0.0
        loading = 0.0 if on_cpu else model.shape.parameters * 2 / _LOAD_BYTES
        if trains:
            return work.rounds * (_TRAIN_START + loading)
        if not on_cpu:  # It sleeps between rounds, or stays up, and loads weights for each.
            return _GPU_START + work.rounds * loading
        first = _CPU_START if self._starts_engines(work.kind) else _CPU_RELOAD
        return first + (work.rounds - 1) * _CPU_RELOAD

    def _starts_engines(self, kind: Kind) -> bool:
        """Whether this work starts its own engines on CPUs; other work uses engines that are already up."""
        writer = self.placement.config.data.synthetic
        if kind is Kind.GENERATE:
            return writer is not None and writer.folder is not None
        return kind in (Kind.SAMPLE, Kind.JUDGE, Kind.RATE, *self.placement.models.writers)


def _server_rate(work: Work, endpoint: Endpoint) -> Rate:
    written = work.expected.tokens_out / work.expected.answers
    call = work.expected.tokens / work.expected.answers
    return Rate(endpoint.concurrency * call / (_CALL_SECONDS + written / _CALL_TOKENS), "guess (server)")


def _compares_all(judge: JudgeConfig | None) -> bool:
    """Whether a judge makes every ordered comparison, whose shared prefixes the engine computes once."""
    return isinstance(judge, PairwiseJudge) and judge.tournament == "all_pairs"
