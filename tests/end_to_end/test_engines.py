"""Claims about the real engines on small weights: the sampler's seeds and weights, the trainer's loss."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests import sampling
from tests.benchmarks.bench_starts import with_actor
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import SampleConfig
from tpo.config.resources import ClusterConfig, EngineConfig, TrainerConfig
from tpo.config.training import TrainConfig
from tpo.engines.cluster.processes import engine_environment, start_ray
from tpo.engines.engines import engines_of_run
from tpo.engines.inference.sampler import Accept, Engine, Output, Request, SamplerPool
from tpo.engines.training.job import TrainingJob
from tpo.errors import StageError
from tpo.records import Artifact, Pair
from tpo.storage.store import folder_artifact

pytestmark = [pytest.mark.drawn(3), pytest.mark.end_to_end, pytest.mark.timeout(900)]

REQUESTS = [Request([1, 4, 30 + i, 40 + i, 5], seed=1000 * i) for i in range(6)]
SAMPLE = SampleConfig(max_new_tokens=12)


def make_model(folder: Path, *, seed: int, tied: bool = False) -> Artifact:
    """Random weights under the shipped tokenizer."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_SEED_MODEL)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder_artifact(folder)


def sampled(pool: SamplerPool, model: Artifact, shards: list[list[Request]]) -> list[list[int]]:
    found = dict(pool.generate(model, shards, SAMPLE, n=2, tries=1, accept=lambda *_: True))
    return [output.token_ids for i in range(len(shards)) for group in found[i] for output in group]


def outputs(pool: SamplerPool, model: Artifact, *, tries: int, accept: Accept = lambda *_: True) -> list[Output]:
    found = dict(pool.generate(model, [REQUESTS], SAMPLE, n=1, tries=tries, accept=accept))
    return [output for group in found[0] for output in group]


class SortingEngine(Engine):
    """Can leave top-p to vLLM."""

    def generate_sorting(self, *arguments: Any) -> list[list[Output]]:
        self._masks_top_p = False
        try:
            return self.generate(*arguments)
        finally:
            self._masks_top_p = True


@pytest.fixture(scope="module")
def pool() -> Iterator[SamplerPool]:
    pool = engines_of_run().sampler_pool(EngineConfig(threads=1), ClusterConfig(), 64)
    yield with_actor(pool, SortingEngine)
    pool.close()


def test_the_same_seed_gives_the_same_tokens_in_any_shards(pool: SamplerPool, tmp_path: Path):
    model = make_model(tmp_path / "a", seed=0)
    first = sampled(pool, model, [REQUESTS])
    assert sampled(pool, model, [REQUESTS[:2], REQUESTS[2:3], REQUESTS[3:]]) == first
    assert len({tuple(tokens) for tokens in first}) > 6


def test_top_p_without_a_sort_samples_the_same_tokens(pool: SamplerPool, tmp_path: Path):
    import ray

    sampled(pool, make_model(tmp_path / "a", seed=0), [REQUESTS])
    (engine,) = pool.actor_pool.actors

    def tokens(how: Any, top_p: float) -> list[list[int]]:
        sample = SampleConfig(max_new_tokens=12, top_p=top_p)
        found = ray.get(how.remote(REQUESTS, sample, 4, 1, _accept))
        return [output.token_ids for group in found for output in group]

    for top_p in (0.5, 0.95):
        assert tokens(engine.generate, top_p) == tokens(engine.generate_sorting, top_p)
    assert tokens(engine.generate, 0.5) != tokens(engine.generate, 1.0)


def _accept(*_: object) -> bool:
    return True


def test_rejected_outputs_are_sampled_again_up_to_the_cap(pool: SamplerPool, tmp_path: Path):
    model = make_model(tmp_path / "a", seed=0)
    wanted = {output.text for output in outputs(pool, model, tries=1)[::2]}
    again = outputs(pool, model, tries=5, accept=lambda output, _: output.text in wanted)
    assert {output.tries for output in again} == {1, 5}
    assert [output.text for output in again if output.tries == 1] == [
        output.text for output in outputs(pool, model, tries=1) if output.text in wanted
    ]


def test_a_live_engine_loads_new_weights_and_old_ones_again(pool: SamplerPool, tmp_path: Path):
    a, b = make_model(tmp_path / "a", seed=0), make_model(tmp_path / "b", seed=1)
    of_a, of_b = sampled(pool, a, [REQUESTS]), sampled(pool, b, [REQUESTS])
    assert of_a != of_b
    assert sampled(pool, a, [REQUESTS]) == of_a


@pytest.mark.story("an engine in two", 70)
def test_tied_embeddings_are_new_after_a_reload_in_the_same_engine(pool: SamplerPool, tmp_path: Path):
    """A fresh engine split in two samples the same.

    vLLM's workers are subprocesses here; on GPUs Ray places them, which vLLM doesn't support on CPUs.
    """
    a, b = (make_model(tmp_path / f"tied{seed}", seed=seed, tied=True) for seed in (2, 3))
    sampled(pool, a, [REQUESTS])
    actors = pool.actor_pool.actors
    reloaded = sampled(pool, b, [REQUESTS])
    assert pool.actor_pool.actors == actors
    split = engines_of_run().sampler_pool(EngineConfig(threads=1, tensor_parallel=2), ClusterConfig(), 64)
    try:
        assert sampled(split, b, [REQUESTS]) == reloaded
    finally:
        split.close()


class ForgetfulEngine(Engine):
    """Keeps the old tied head, as vLLM's own reload does."""

    def _reload(self, folder: str) -> None:
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})


@pytest.mark.parametrize("dtype", sampling.sampled("stale weights", ["float32", "bfloat16"], 1))
def test_stale_weights_are_noticed_and_rounding_is_not(tmp_path: Path, dtype: Literal["float32", "bfloat16"]):
    """Uses the real model with tied embeddings in the folder TPO_REAL_MODEL, if set."""
    import ray

    given = os.environ.get("TPO_REAL_MODEL")
    old = folder_artifact(Path(given)) if given else make_model(tmp_path / "old", seed=0, tied=True)
    new, one_layer = (moved(old, tmp_path / name, part) for name, part in (("new", ""), ("one", "layers.1.")))
    start_ray(ClusterConfig())
    config = EngineConfig(threads=1, dtype=dtype)
    environment = {"env_vars": engine_environment(config)}
    engine = ray.remote(ForgetfulEngine).options(num_cpus=0, runtime_env=environment).remote(config, 64)
    assert ray.get(engine.load.remote(old)) is None
    assert ray.get(engine.has_weights_of.remote(old))
    assert not ray.get(engine.has_weights_of.remote(one_layer))
    fault = ray.get(engine.load.remote(new))
    # Not every CPU has a packed copy of a bfloat16 head; without one, nothing is forgotten.
    assert "lm_head (packed)" in fault if fault or dtype == "float32" else ray.get(engine.has_weights_of.remote(new))
    ray.kill(engine)


def test_a_quantized_engine_loads_new_weights_in_place_and_notices_wrong_ones(tmp_path: Path):
    """In FP8, which vLLM computes on CPUs, too, slowly."""
    import ray

    old = make_model(tmp_path / "old", seed=0, tied=True)
    new, one_layer = moved(old, tmp_path / "new", ""), moved(old, tmp_path / "one", "layers.1.")
    start_ray(ClusterConfig())
    config = EngineConfig(threads=1, dtype="bfloat16", quantization="fp8_per_channel")
    environment = {"env_vars": engine_environment(config)}
    start = ray.remote(Engine).options(num_cpus=0, runtime_env=environment).remote
    reloaded, fresh = start(config, 64), start(config, 64)

    def said(engine: Any, model: Artifact) -> list[list[int]]:
        assert ray.get(engine.load.remote(model)) is None
        found = ray.get(engine.generate.remote(REQUESTS, SAMPLE, 1, 1, lambda *_: True))
        return [output.token_ids for (output,) in found]

    before = said(reloaded, old)
    assert ray.get(reloaded.has_weights_of.remote(old))
    assert not ray.get(reloaded.has_weights_of.remote(one_layer))
    after = said(reloaded, new)
    assert ray.get(reloaded.has_weights_of.remote(new))
    assert not ray.get(reloaded.has_weights_of.remote(old))
    assert after == said(fresh, new)
    assert said(reloaded, old) == before
    for engine in (reloaded, fresh):
        ray.kill(engine)


def moved(model: Artifact, folder: Path, part: str) -> Artifact:
    """A copy of the model with slightly changed weights in one part."""
    torch.manual_seed(0)
    shutil.copytree(model.path, folder)
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if part in name]:
        weights[name] += 1e-4 * torch.randn_like(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder_artifact(folder)


def test_training_starts_at_ln_2_and_lowers_the_loss(tmp_path: Path):
    model = make_model(tmp_path / "m", seed=0)
    pairs = [pair(i) for i in range(16)]
    how = TrainConfig(epochs=2, batch_size=8, micro_batch_size=4, learning_rate=1e-3, warmup_ratio=0)
    job = TrainingJob(model.path, pairs, tmp_path / "train", how, TrainerConfig(threads=1), ClusterConfig(), seed=0)
    epochs = engines_of_run().train_model(job, progress=lambda done, total: None)
    assert [epoch.step for epoch in epochs] == [2, 4]
    assert epochs[1].loss < epochs[0].loss < math.log(2) + 0.05
    before = LlamaForCausalLM.from_pretrained(model.path).state_dict()
    after = LlamaForCausalLM.from_pretrained(tmp_path / "train" / "epoch_2").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_failed_worker_says_why(tmp_path: Path):
    model = make_model(tmp_path / "m", seed=0)
    (model.path / "model.safetensors").write_bytes(b"not safetensors")
    how = TrainConfig(epochs=1, batch_size=1, micro_batch_size=1)
    job = TrainingJob(model.path, [pair(0)], tmp_path / "train", how, TrainerConfig(threads=1), ClusterConfig(), seed=0)
    with pytest.raises(StageError, match="training failed"):
        engines_of_run().train_model(job, progress=lambda done, total: None)


def pair(i: int) -> Pair:
    return Pair(f"p{i}", "regular", [1, 4, 20 + i, 5], [50, 51, 2], [60 + i, 61, 62, 2], 0, 1, 1.0, 0.0, 1.0)
