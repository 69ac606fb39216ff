"""Speed-up of two engines over one, each on its own core, and the machine's limit for it.

Prints output tokens per second of one engine and of two on the same requests, and the ratio, in several alternating
rounds; then the same ratio for plain loops without engines in one process and in two: arithmetic in the cache, and
copies too large for any cache. If the loops don't double, engines can't either.

The engines are the product's, behind its pool: the miniature's seed model on thought prompts, K = 8, the default shards
of 25 prompts. The tokens must be the same with one engine or two, which is checked. The cores must be idle: the load at
the start is printed. Run with `python -m tests.benchmarks.bench_engines`; takes about five minutes.
"""

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from prompts.thought import VARIANTS
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import SampleConfig
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.engines.cluster.room import Room
from tpo.engines.inference.sampler import Request, SamplerPool, request_seed
from tpo.miniature.world import problems
from tpo.models.chat import ChatEncoder
from tpo.storage.store import folder_artifact

ROUNDS, PROMPTS, CONTEXT = 5, 800, 352
LOOP_SECONDS = 5.0
ENGINE = EngineConfig(threads=1)
SAMPLE = SampleConfig()


def main() -> None:
    """Measure and print."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # for the loops' processes, and for this one
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before anything starts")
    # Ray reserves no CPUs: three engines exist at the same time, of which one or two work.
    pools = [
        SamplerPool(ENGINE.model_copy(update={"count": count}), ClusterConfig(), CONTEXT, room=Room(), cpus=0)
        for count in (1, 2)
    ]
    size = ENGINE.shard_prompts
    requests = list(itertools.islice(_requests(), (ROUNDS + 1) * PROMPTS))
    shards = [requests[i : i + size] for i in range(0, len(requests), size)]
    each = PROMPTS // size
    found: dict[str, list[float]] = {"one engine": [], "two engines": []}
    loops: dict[str, list[float]] = {"arithmetic": [], "copies": []}
    try:
        for pool in pools:  # started, and warmed up
            _tokens(pool, shards[:each])
        with ProcessPoolExecutor(2, get_context("spawn")) as processes:
            for i in range(1, ROUNDS + 1):
                work = shards[i * each : (i + 1) * each]
                # Alternating, so that neither always benefits from what the other warmed up or left behind.
                for name, pool in list(zip(found, pools, strict=True))[:: 1 if i % 2 else -1]:
                    found[name].append(_rate(pool, work))
                for name, loop in (("arithmetic", _arithmetic), ("copies", _copies)):
                    loops[name].append(_in_two(processes, loop) / _in_one(processes, loop))
    finally:
        for pool in pools:
            pool.close()
    for name, rates in found.items():
        print(f"{name:12s} {_spread(rates, ',.0f')} output tokens a second")
    print(f"two ÷ one    {_spread([two / one for one, two in zip(*found.values(), strict=True)], '.2f')}")
    for name, ratios in loops.items():
        print(f"{name:12s} {_spread(ratios, '.2f')} in two processes ÷ one")


def _requests() -> Iterator[Request]:
    encoder = ChatEncoder(SHIPPED_SEED_MODEL)
    prompt = VARIANTS["generic"]
    for problem in problems("train", 0):
        yield Request(encoder.encode(prompt.render(problem.instruction)), request_seed(problem.instruction))


def _tokens(pool: SamplerPool, shards: Sequence[Sequence[Request]]) -> list[list[int]]:
    """The tokens of all outputs, in order."""
    found = dict(
        pool.generate(
            folder_artifact(SHIPPED_SEED_MODEL),
            shards,
            SAMPLE,
            n=SAMPLE.k,
            tries=1,
            accept=lambda *_: True,
        )
    )
    return [output.token_ids for i in range(len(shards)) for group in found[i] for output in group]


_CHECKED: dict[int, list[list[int]]] = {}


def _rate(pool: SamplerPool, shards: Sequence[Sequence[Request]]) -> float:
    """Output tokens per second."""
    started = time.perf_counter()
    tokens = _tokens(pool, shards)
    seconds = time.perf_counter() - started
    assert _CHECKED.setdefault(shards[0][0].seed, tokens) == tokens, "one engine and two sample different tokens"
    return sum(map(len, tokens)) / seconds


def _arithmetic(seconds: float) -> float:
    """Products of small matrices per second: they stay in the cache."""
    a = np.ones((128, 128), np.float32)
    return _times(lambda: a @ a, seconds)


def _copies(seconds: float) -> float:
    """Copies of 64 MiB per second: they go through memory."""
    source, target = np.ones((2, 2**24), np.float32)
    return _times(lambda: np.copyto(target, source), seconds)


def _times(step: Callable[[], object], seconds: float) -> float:
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        step()
        count += 1
    return count / passed


def _in_one(processes: ProcessPoolExecutor, loop: Callable[[float], float]) -> float:
    return processes.submit(loop, LOOP_SECONDS).result()


def _in_two(processes: ProcessPoolExecutor, loop: Callable[[float], float]) -> float:
    return sum(processes.map(loop, [LOOP_SECONDS] * 2))


def _spread(values: Sequence[float], form: str) -> str:
    """The median, minimum and maximum."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


if __name__ == "__main__":
    main()
