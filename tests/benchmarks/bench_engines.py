"""How much faster two engines sample than one, a core each, and what the machine allows.

In: nothing. Out: output tokens a second of one engine and of two on the same requests, and their quotient, in several
rounds side by side; and the same quotient of plain loops without engines in one process and in two: of arithmetic in
the cache, and of copies that no cache holds. Where the loops do not double, engines cannot.

The engines are the product's, behind the product's pool: the miniature's seed model on thought prompts, K = 8, shards
of 25 prompts as by default. Whether one or two sample, the tokens are the same, which is checked. The cores must be
quiet: the load at the start is printed. Run with `python -m tests.benchmarks.bench_engines`; about five minutes.
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
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # of the loops' processes, and of this one's
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before anything starts")
    # Ray's count of CPUs is left out of it: three engines are there at a time, of which one or two work.
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
        for pool in pools:  # started, and warm
            _tokens(pool, shards[:each])
        with ProcessPoolExecutor(2, get_context("spawn")) as processes:
            for i in range(1, ROUNDS + 1):
                work = shards[i * each : (i + 1) * each]
                # In turns, so that neither always has what the other warmed or left behind.
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
    """Output tokens a second."""
    started = time.perf_counter()
    tokens = _tokens(pool, shards)
    seconds = time.perf_counter() - started
    assert _CHECKED.setdefault(shards[0][0].seed, tokens) == tokens, "one engine and two sample different tokens"
    return sum(map(len, tokens)) / seconds


def _arithmetic(seconds: float) -> float:
    """Products of small matrices a second: they stay in the cache."""
    a = np.ones((128, 128), np.float32)
    return _times(lambda: a @ a, seconds)


def _copies(seconds: float) -> float:
    """Copies of 64 MiB a second: they pass through memory."""
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
    """The median, and the least and the most."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


if __name__ == "__main__":
    main()
