"""vLLM engines in Ray actors, which sample outputs or judges' replies, shard by shard, from requests as token ids.

Every request has its own seed, so samples don't depend on batches, order or engine. An engine works on several shards
at once, so that it isn't left with the last long outputs of one (`tpo.engines.inference.running_batch`).

A running engine loads the next model's weights, which saves the half minute of a start. Since reloads have failed
silently before, `tpo.engines.inference.weight_proof` then verifies that the engine has exactly the folder's weights.
"""

import dataclasses
import functools
import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from tpo.config.data import SampleConfig
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.engines.cluster.actor_pool import ActorPool, JobSpec, Remedies
from tpo.engines.cluster.gpus import GpuMeter
from tpo.engines.cluster.placement import Role
from tpo.engines.cluster.processes import engine_environment, start_ray
from tpo.engines.cluster.room import Room
from tpo.engines.inference.forcing import ARGUMENT, PROCESSOR, Rule, as_argument
from tpo.engines.inference.reply import Decoding, Reply
from tpo.engines.inference.running_batch import Call, Caller, RunningBatch
from tpo.engines.inference.weight_proof import WORKER_EXTENSION, Expected, expected, probe_tokens
from tpo.metrics.live import GpuReading
from tpo.records import Artifact

T = TypeVar("T")
CPU_BLOCK_TOKENS = 32
"""Tokens per block of the prefix cache on the CPU: the minimum that its attention supports."""
SEED_STRIDE = 1009
"""Distance between the seeds of two attempts; above any K, since output n of a request is sampled with seed + n."""
TOP_P, TOP_P_PROCESSOR = "tpo_top_p", "tpo.engines.inference.top_p:TopP"
"""On CPUs: the key of top-p among a request's extra arguments, and the class that applies it in vLLM."""
MAX_SHARDS_AT_ONCE = 32
"""Shards that an engine works on at once, at most."""

_REMEDIES = Remedies(
    memory="If memory ran out, lower engine.kv_cache_gib or engine.max_num_seqs (of a judge: judge_engine.*)",
    late="Lower engine.shard_prompts, or raise engine.shard_seconds (of a judge: judge_engine.*)",
    cache="Raise engine.kv_cache_gib, on a GPU engine.gpu_memory_utilization (of a judge: judge_engine.*), or lower "
    "sample.max_new_tokens",
)


@dataclass(frozen=True)
class Request:
    """One prompt to sample from."""

    prompt_token_ids: list[int]
    """The prompt's tokens."""
    seed: int
    """Seed of its first output; output n is sampled with seed + n."""


@dataclass(frozen=True)
class Output:
    """One sampled output."""

    token_ids: list[int]
    """Its tokens as sampled, end token included."""
    text: str
    """Its text without special tokens."""
    finished: bool
    """False if the token limit cut it."""
    tries: int
    """Number of outputs sampled until this one was accepted."""
    discarded_tokens: int = 0
    """Tokens of the rejected ones."""


Accept = Callable[[Output, Callable[[Sequence[int]], str]], bool]
"""Whether an output is accepted, given a function that decodes tokens; others are sampled again."""


def request_seed(*parts: object) -> int:
    """A seed in [0, 2^31) from anything that identifies a request, far from the seeds of its other attempts."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFFFFFF


def later_seed(seed: int, attempt: int) -> int:
    """The seed of a request's attempt number `attempt`, from 1."""
    return (seed + (attempt - 1) * SEED_STRIDE) & 0x7FFFFFFF


def engine_settings(config: EngineConfig, context_tokens: int, *, forcing: bool = False) -> dict[str, Any]:
    """vLLM's settings for an engine; with `forcing`, requests may prescribe tokens (`inference.forcing`).

    On the CPU, a compiled model starts minutes later than an eager one, chunked prefill breaks seeds, and only whole
    blocks of the prefix cache are shared, which by default are longer than our prompts.
    """
    on_cpu = {"enforce_eager": True, "enable_chunked_prefill": False, "block_size": CPU_BLOCK_TOKENS}
    return {
        "dtype": config.dtype,
        "quantization": None if config.quantization == "none" else config.quantization,
        "max_model_len": context_tokens,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": max(8192, context_tokens),
        "enable_prefix_caching": True,
        "tensor_parallel_size": config.tensor_parallel,
        "distributed_executor_backend": _backend(config),
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "trust_remote_code": False,
        "worker_extension_cls": WORKER_EXTENSION,
        # Load the files that were checked, and not consolidated*.safetensors and params.json, if those exist, too.
        "load_format": "safetensors",
        "config_format": "hf",
        "tokenizer_mode": "hf",
        "disable_log_stats": True,
        "generation_config": "vllm",
        "enable_sleep_mode": sleeps(config),
        **({"logits_processors": [PROCESSOR]} if forcing else {}),
        **(on_cpu if config.device == "cpu" else {}),
    }


def sleeps(config: EngineConfig) -> bool:
    """Whether an engine can sleep: one on a single GPU. vLLM's sleep frees nothing on a CPU, an engine on several GPUs
    has workers that hold them, and weights that vLLM quantized are gone when it wakes up: loading them anew then was
    never tried."""
    return config.device == "gpu" and config.tensor_parallel == 1 and config.quantization == "none"


class Engine:
    """One vLLM engine, in a Ray actor; started by its first `load`. Several threads may call it at once."""

    def __init__(self, config: EngineConfig, context_tokens: int, forcing: bool = False) -> None:
        self._config = config
        self._context_tokens = context_tokens
        self._forcing = forcing
        self._llm: Any = None
        self._batch = RunningBatch()
        self._decoding = threading.Lock()
        self._gpus = GpuMeter() if config.device == "gpu" else None
        self._loaded: str | None = None
        self._is_asleep = False
        self._incomparable: frozenset[str] = frozenset()
        """Weights that differ from the files' right after a start: vLLM transforms them, so a reload proves nothing."""

    def load(self, model: Artifact) -> str | None:
        """Loads the weights of `model`, unless it has them; returns None, or why it can't, with a remedy.

        It verifies them. An engine whose weights can't be compared with a folder's keeps those that it started with,
        and is replaced. Requests in progress are dropped.
        """
        return None if self._loaded == model.fingerprint else self._batch.run(lambda: self._load(model))

    def _load(self, model: Artifact) -> str | None:
        if self._incomparable:
            return "it has loaded another model"
        self._loaded = None
        started = self._llm is None
        if started:
            self._llm = self._start(str(model.path))
            self._batch.attach(self._llm.llm_engine)
        else:
            self._batch.drop()
            self._reload(str(model.path))
        if (fault := self._fault(model, started)) is not None:
            return fault
        self._loaded = model.fingerprint
        return None

    def sleep(self) -> None:
        """Frees the GPU's memory, weights included; the next `load` wakes it up."""

        def fall_asleep() -> None:
            self._batch.drop()
            self._loaded, self._is_asleep = None, True
            self._llm.sleep(level=2)

        self._batch.run(fall_asleep)

    def generate(
        self,
        requests: Sequence[Request],
        sample: SampleConfig,
        n: int,
        tries: int,
        accept: Accept,
        rules: Sequence[Rule] = (),
    ) -> list[list[Output]]:
        """`n` outputs per request, each sampled up to `tries` times until it is accepted."""
        params = self._params(sample, rules)
        caller = Caller()
        self._batch.add(
            [Call((i, None), request.prompt_token_ids, params(request.seed, n)) for i, request in enumerate(requests)],
            caller,
        )
        outputs: list[list[Output]] = [[] for _ in requests]
        pending = len(requests)
        while pending:
            (i, place), result = caller.next_answer()
            if place is None:
                outputs[i] = [_output(output, 1) for output in result.outputs]
                sampled = range(n)
            else:
                before = outputs[i][place]
                discarded = before.discarded_tokens + len(before.token_ids)
                outputs[i][place] = _output(result.outputs[0], before.tries + 1, discarded)
                sampled = range(place, place + 1)
            again = [
                Call(
                    (i, j),
                    requests[i].prompt_token_ids,
                    params(later_seed(requests[i].seed, outputs[i][j].tries + 1) + j, 1),
                )
                for j in sampled
                if outputs[i][j].tries < tries and not accept(outputs[i][j], self._decode)
            ]
            self._batch.add(again, caller)
            pending += len(again) - 1
        return outputs

    def read_gpus(self) -> list[GpuReading]:
        """How busy its GPUs were since the last call, and their memory."""
        return self._gpus.read() if self._gpus else []

    def reply(self, prompts: Sequence[list[int]], decoding: Decoding, labels: Sequence[list[int]]) -> list[Reply]:
        """A greedy reply per prompt; with `labels`, as token ids, their probabilities as the reply."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if decoding.labels:
            shared = _common_prefix(labels)
            first = [label[len(shared)] for label in labels]
            options: dict[str, Any] = {"max_tokens": 1, "logprob_token_ids": first}
        else:
            shared, first = [], []
            options = {"max_tokens": decoding.max_new_tokens}
        params = SamplingParams(temperature=0, output_kind=RequestOutputKind.FINAL_ONLY, **options)
        caller = Caller()
        self._batch.add([Call(i, [*ids, *shared], params) for i, ids in enumerate(prompts)], caller)
        results = dict(caller.next_answer() for _ in prompts)
        return [_reply(results[i], decoding, first) for i in range(len(prompts))]

    def _start(self, model: str) -> Any:
        from vllm import LLM

        return LLM(model=model, **self._settings())

    def _settings(self) -> dict[str, Any]:
        settings = engine_settings(self._config, self._context_tokens, forcing=self._forcing)
        if self._masks_top_p:
            settings["logits_processors"] = [*settings.get("logits_processors", ()), TOP_P_PROCESSOR]
        return settings

    @functools.cached_property
    def _masks_top_p(self) -> bool:
        """Whether `TopP` applies top-p: where vLLM would sort the vocabulary for it, without Triton's kernel."""
        from vllm.triton_utils import HAS_TRITON

        return self._config.device == "cpu" and not HAS_TRITON

    def _params(self, sample: SampleConfig, rules: Sequence[Rule]) -> Callable[[int, int], Any]:
        """vLLM's settings of a request, by its seed and its number of outputs."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        extra: dict[str, Any] = {ARGUMENT: as_argument(rules)} if rules else {}
        top_p = sample.top_p
        if self._masks_top_p and top_p < 1 and sample.temperature > 0:
            extra[TOP_P], top_p = top_p, 1.0

        def params(seed: int, n: int) -> Any:
            return SamplingParams(
                n=n,
                seed=seed,
                temperature=sample.temperature,
                top_p=top_p,
                max_tokens=sample.max_new_tokens,
                extra_args=extra or None,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )

        return params

    def _decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        tokenizer = self._llm.get_tokenizer()
        with self._decoding:
            return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _reload(self, folder: str) -> None:
        self._llm.collective_rpc("read_ahead", args=(folder, self._config.dtype))
        if self._is_asleep:
            self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        if self._config.device == "cpu":
            self._llm.collective_rpc("refresh_tied_heads")
        if self._is_asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._is_asleep = False
        self._llm.reset_prefix_cache()

    def has_weights_of(self, model: Artifact) -> bool:
        """Whether the engine computes with the weights in `model`, as transformers does (`weight_proof`)."""
        return self._batch.run(lambda: self._fault(model, started=False)) is None

    def _fault(self, model: Artifact, started: bool) -> str | None:
        """Evidence that the engine doesn't have the weights of `model`, with a remedy, or None."""
        from vllm.config import set_current_vllm_config

        on_cpu = self._config.device == "cpu"
        # vLLM's decorators patch some classes of transformers (OLMo 2), which then can only be created within its
        # config.
        with set_current_vllm_config(self._llm.llm_engine.vllm_config), ThreadPoolExecutor(1) as beside:
            probed = beside.submit(self._expected, model) if on_cpu else None
            foreign = self._foreign_weights(model)
        if started:
            self._incomparable = foreign
        if stale := sorted(foreign - self._incomparable):
            return f"{len(stale)} of its weights are not in {model.path}, e.g. {stale[0]}: it has loaded another model"
        if probed is None:
            return None
        away = probed.result().difference(self._probe())
        if away.is_rounding:
            return None
        dtype = " and ".join(self._config.precision.values())
        return (
            f"its log-probs on a probe differ by {away.found:.2g} nats from those that transformers computes with the "
            f"weights in {model.path}, and rounding to {dtype} explains only {away.rounding:.2g}: vLLM reads or "
            "computes this model differently, and would not sample from the model that is trained. Check that "
            "config.json describes the weights; if it does, this version of vLLM cannot be used with this model"
        )

    def _foreign_weights(self, model: Artifact) -> frozenset[str]:
        """The engine's weights that aren't in `model`, on any of its workers."""
        found = self._llm.collective_rpc("foreign_weights", args=(str(model.path), self._config.dtype))
        return frozenset(name for names in found for name in names)

    @property
    def _probe_tokens(self) -> list[int]:
        return probe_tokens(self._llm.llm_engine.model_config.get_vocab_size(), self._context_tokens)

    def _expected(self, model: Artifact) -> Expected:
        """What transformers computes for the probe with the weights of `model`."""
        import torch

        dtype, in_fp8 = getattr(torch, self._config.dtype), self._config.quantization != "none"
        return expected(self._probe_tokens, model.path, dtype, in_fp8=in_fp8)

    def _probe(self) -> list[float]:
        """The engine's own log-probs of the probe's tokens but the first."""
        from vllm import SamplingParams

        probe = self._probe_tokens
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        (result,) = self._llm.generate([{"prompt_token_ids": probe}], [params], use_tqdm=False)
        return [
            alternatives[token].logprob
            for token, alternatives in zip(probe[1:], result.prompt_logprobs[1:], strict=True)
        ]


def cpus_each(config: EngineConfig, cluster: ClusterConfig, cpus: float) -> float:
    """Ray's CPUs that each CPU engine takes, with `cpus` for each of its ranks.

    On this machine alone, engines are idle while others work, so all together take as many as one: then they needn't
    make way for training workers.
    """
    return cpus * config.tensor_parallel / (config.count if cluster.address is None else 1)


class SamplerPool:
    """Engines that share the work of a run; started at first use, kept until `close`.

    `cpus` is how many of Ray's CPUs each CPU engine takes per rank: 0 for engines that are idle while others work.
    `forcing` says whether requests may have rules (`tpo.engines.inference.forcing`).
    """

    def __init__(
        self,
        config: EngineConfig,
        cluster: ClusterConfig,
        context_tokens: int,
        *,
        room: Room,
        cpus: float = 1.0,
        forcing: bool = False,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._forcing = forcing
        on_gpu = config.device == "gpu"
        role = Role(
            name="engine",
            make=Engine,
            arguments=(config, context_tokens, forcing),
            cpus=0 if on_gpu else cpus_each(config, cluster, cpus),
            gpus=config.tensor_parallel if on_gpu else 0,
            environment=engine_environment(config),
            concurrency=MAX_SHARDS_AT_ONCE + 1,  # and a question about its GPUs
            one_by_one=cluster.address is None and not on_gpu,
            sleeps=sleeps(config),
        )
        self.actor_pool = ActorPool(role, config.count, room)

    def start_early(self, model: Artifact) -> None:
        """Has the engines start with `model`, without waiting for them."""
        start_ray(self._cluster)
        wanted = dataclasses.replace(model, path=model.path.resolve())
        self.actor_pool.start_early(lambda engine: engine.load.remote(wanted), self._config.start_seconds)

    def generate(
        self,
        model: Artifact,
        shards: Iterable[Sequence[Request]],
        sample: SampleConfig,
        *,
        n: int,
        tries: int,
        accept: Accept,
        rules: Sequence[Rule] = (),
        shard_count: int | None = None,
    ) -> Iterator[tuple[int, list[list[Output]]]]:
        """Samples all shards with `model`; yields each shard's index and outputs as soon as they are done.

        The next shard is taken when an engine has room for it; if their number is known, no engine holds more than its
        part of them. `rules` force tokens of every output; they need a pool with `forcing`.

        Raises `StageError` if engines keep failing on the same shard, or don't start.
        """
        assert self._forcing or not rules
        return self._spread(
            model,
            shards,
            submit=lambda engine, shard: engine.generate.remote(list(shard), sample, n, tries, accept, rules),
            whole=lambda outputs: len(outputs) == n and all(output.token_ids for output in outputs),
            at_once=shards_at_once(self._config, n * self._config.shard_prompts, shard_count),
        )

    def reply(
        self, model: Artifact, shards: Sequence[Sequence[list[int]]], decoding: Decoding, labels: Sequence[list[int]]
    ) -> Iterator[tuple[int, list[Reply]]]:
        """The replies of `model` to all shards of prompts, as `generate` yields them."""
        return self._spread(
            model,
            shards,
            submit=lambda engine, shard: engine.reply.remote(list(shard), decoding, labels),
            whole=lambda reply: reply.output_tokens > 0,
            at_once=shards_at_once(self._config, max(map(len, shards), default=1), len(shards)),
        )

    def _spread(
        self,
        model: Artifact,
        shards: Iterable[Sequence[T]],
        *,
        submit: Callable[[Any, Sequence[T]], Any],
        whole: Callable[[Any], bool],
        at_once: int,
    ) -> Iterator[tuple[int, Any]]:
        """The engines' results for each shard as soon as it is done: one per prompt, each complete."""

        def fault(shard: Sequence[T], results: Sequence[Any]) -> str | None:
            found = sum(map(whole, results))
            if found == len(results) == len(shard):
                return None
            return f"complete outputs for {found} prompts, expected {len(shard)}"

        start_ray(self._cluster)
        wanted = dataclasses.replace(model, path=model.path.resolve())
        orders = JobSpec(
            prepare=lambda engine: engine.load.remote(wanted),
            submit=submit,
            fault=fault,
            seconds=self._config.shard_seconds,
            start_seconds=self._config.start_seconds,
            model=str(model.path),
            remedies=_REMEDIES,
            at_once=at_once,
        )
        yield from self.actor_pool.work(shards, orders)

    def close(self) -> None:
        """Stops all engines and releases their memory."""
        self.actor_pool.close()


def shards_at_once(config: EngineConfig, sequences: int, shards: int | None) -> int:
    """How many shards of that many sequences an engine works on at once: enough to fill it, and one to follow; if the
    number of shards is known, not more than its part of them."""
    full = min(MAX_SHARDS_AT_ONCE, 1 + math.ceil(config.max_num_seqs / sequences))
    return full if shards is None else max(1, min(full, math.ceil(shards / config.count)))


def _backend(config: EngineConfig) -> str | None:
    """vLLM's backend for an engine's workers: Ray can spread them over nodes, but only with GPUs."""
    if config.tensor_parallel == 1:
        return None
    return "ray" if config.device == "gpu" else "mp"


def _common_prefix(labels: Sequence[list[int]]) -> list[int]:
    """The tokens that all labels begin with."""
    shared = []
    for tokens in zip(*labels, strict=False):
        if len(set(tokens)) > 1:
            break
        shared.append(tokens[0])
    return shared


def _output(output: Any, tries: int, discarded_tokens: int = 0) -> Output:
    return Output(list(output.token_ids), output.text, output.finish_reason == "stop", tries, discarded_tokens)


def _reply(result: Any, decoding: Decoding, first: Sequence[int]) -> Reply:
    """vLLM's result for one prompt as a reply; with labels, its text is the most probable one."""
    (output,) = result.outputs
    found = tuple(float(output.logprobs[0][token].logprob) for token in first)
    return Reply(
        text=decoding.labels[found.index(max(found))] if first else output.text,
        finished=bool(first) or output.finish_reason == "stop",
        input_tokens=len(result.prompt_token_ids),
        output_tokens=len(output.token_ids),
        cached_tokens=result.num_cached_tokens or 0,
        label_logprobs=found if first else None,
    )
