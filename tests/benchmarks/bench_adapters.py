"""What loading a LoRA checkpoint as an adapter would save and cost, compared with its merged weights.

Checkpoints are merged when they are written. An engine reloads them in place and proves every weight; it could instead
keep the base model and load each epoch's adapter (vLLM's `enable_lora`). Two adapters of rank 16 on all linear layers
of SmolLM2-135M-Instruct stand for two epochs. In each round an engine of the product loads the merged weights of one of
them and answers writing tasks, greedily, and an engine with adapters does the same with the adapter. Prints seconds
until each is loaded, tokens per second, and how far the two are apart: outputs that are the same, and log-probs of
tokens that both sampled after the same tokens.

On a CPU vLLM computes adapters in plain torch, on GPUs with kernels: with `--gpu 1` this measures those, which nobody
has yet. Run with `python -m tests.benchmarks.bench_adapters`; takes about ten minutes on two cores. Needs the model:
make fetch PROFILE=smollm2-135m.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import measure
from tests.benchmarks.bench_sampling import CONTEXT, MODEL, writing_requests
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.engines.cluster.processes import engine_environment, start_ray
from tpo.engines.inference.sampler import Engine
from tpo.records import Artifact
from tpo.storage.store import folder_artifact

RANK, TOKENS, STEP = 16, 48, 0.003
"""The adapters' rank, the longest output, and the size of the adapters' random numbers, which change about half of the
outputs."""
Sampled = list[tuple[list[int], list[float]]]
"""Each prompt's output and the log-probs of its tokens."""


class MergedEngine(Engine):
    """The product's engine, which also samples greedily with log-probs."""

    def sample(self, prompts: Sequence[list[int]], adapter: tuple[int, str] | None = None) -> Sampled:
        """Greedy outputs, with the adapter of this number and folder, if any."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        params = SamplingParams(max_tokens=TOKENS, temperature=0, logprobs=0)
        request = None if adapter is None else LoRARequest(f"epoch {adapter[0]}", *adapter)
        rows: list[Any] = [{"prompt_token_ids": ids} for ids in prompts]
        results = self._batch.run(
            lambda: self._llm.generate(rows, [params] * len(rows), use_tqdm=False, lora_request=request)
        )
        outputs = [result.outputs[0] for result in results]
        return [
            (list(each.token_ids), [found[i].logprob for found, i in zip(each.logprobs, each.token_ids, strict=True)])
            for each in outputs
        ]


class AdapterEngine(MergedEngine):
    """An engine that has the base model and loads adapters."""

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"enable_lora": True, "max_lora_rank": RANK, "max_loras": 1, "max_cpu_loras": 2}

    def _fault(self, *_: object, **__: object) -> None:
        """No proof: weights below adapters have other names, and adapters' matrices aren't in the folder."""

    def load_adapter(self, number: int, folder: str) -> None:
        """Loads an adapter."""
        from vllm.lora.request import LoRARequest

        request = LoRARequest(f"epoch {number}", number, folder)
        assert self._batch.run(lambda: self._llm.llm_engine.add_lora(request))

    def probe(self, prompt: list[int], adapter: tuple[int, str]) -> str:
        """What comes of asking for a prompt's log-probs, which a proof would compare."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        request = LoRARequest(f"epoch {adapter[0]}", *adapter)

        def ask() -> Any:
            return self._llm.generate([{"prompt_token_ids": prompt}], [params], use_tqdm=False, lora_request=request)

        try:
            (result,) = self._batch.run(ask)
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"
        return f"{len(result.prompt_logprobs) - 1} tokens"


def main() -> None:
    """Measures and prints."""
    import ray

    chosen = measure.options(__doc__, threads=1, rounds=5, prompts=16, bfloat16=0, gpu=0)
    print(measure.describe_machine(chosen.threads))
    start_ray(ClusterConfig())
    config = EngineConfig(
        threads=chosen.threads,
        max_num_seqs=32,
        dtype="bfloat16" if chosen.bfloat16 else "float32",
        device="gpu" if chosen.gpu else "cpu",
        gpu_memory_utilization=0.4,  # both engines share a GPU
    )
    prompts = [request.prompt_token_ids for request in writing_requests(chosen.prompts)]

    def started(actor: type) -> Any:
        how = {"num_cpus": 0, "num_gpus": chosen.gpu / 2, "runtime_env": {"env_vars": engine_environment(config)}}
        engine = ray.remote(actor).options(**how).remote(config, CONTEXT)
        _load(engine, folder_artifact(MODEL.resolve()))
        _sample(engine, prompts[:2])
        return engine

    with tempfile.TemporaryDirectory() as folder:
        epochs = [_epoch(Path(folder) / str(number), number, config.dtype) for number in (1, 2)]
        merged, adapted = started(MergedEngine), started(AdapterEngine)
        base = measure.timed(lambda: _sample(adapted, prompts))
        times: dict[str, list[float]] = {name: [] for name in ("reload", "adapter", "merged", "adapted")}
        found = list[tuple[Sampled, Sampled]]()
        for number in range(chosen.rounds):
            _, adapter, whole = epochs[number % 2]
            # A number and a name that were never used: vLLM caches adapters by them.
            name = (number + 1, str(adapter))
            model = folder_artifact(whole)
            load: dict[str, Callable[[], None]] = {
                "reload": partial(_load, merged, model),
                "adapter": partial(_load_adapter, adapted, name),
            }
            sample: dict[str, Callable[[], Sampled]] = {
                "merged": partial(_sample, merged, prompts),
                "adapted": partial(_sample, adapted, prompts, name),
            }
            for key in list(load)[:: 1 if number % 2 else -1]:
                times[key].append(measure.timed(load[key]).seconds)
            outputs = {key: measure.timed(sample[key]) for key in list(sample)[:: 1 if number % 2 else -1]}
            for key, each in outputs.items():
                times[key].append(sum(len(ids) for ids, _ in each.found) / each.seconds)
            found.append((outputs["merged"].found, outputs["adapted"].found))
        unlike = np.mean([a[0] != b[0] for a, b in zip(base.found, found[0][1], strict=True)])
        assert unlike, "the adapter changes no output"
        _report(times, found, base_speed=sum(len(ids) for ids, _ in base.found) / base.seconds, unlike=float(unlike))
        print(f"log-probs of a prompt with an adapter: {ray.get(adapted.probe.remote(prompts[0], name))}")


def _load(engine: Any, model: Artifact) -> None:
    import ray

    assert ray.get(engine.load.remote(model)) is None


def _load_adapter(engine: Any, adapter: tuple[int, str]) -> None:
    import ray

    ray.get(engine.load_adapter.remote(*adapter))


def _sample(engine: Any, prompts: Sequence[list[int]], adapter: tuple[int, str] | None = None) -> Sampled:
    import ray

    found: Sampled = ray.get(engine.sample.remote(prompts, adapter))
    return found


def _report(
    times: dict[str, list[float]], found: Sequence[tuple[Sampled, Sampled]], *, base_speed: float, unlike: float
) -> None:
    print(f"the adapter changes {unlike:.2f} of the outputs of the base model")
    for name, what in (
        ("reload", "seconds to load merged weights in place and prove them"),
        ("adapter", "seconds to load an adapter, unproven"),
        ("merged", "tokens/s with merged weights"),
        ("adapted", f"tokens/s with an adapter ({base_speed:.1f} with adapters enabled and none used)"),
    ):
        print(f"{what}: {measure.spread(times[name])}")
    speed = measure.spread([a / b for a, b in zip(times["adapted"], times["merged"], strict=True)])
    print(f"speed with an adapter, of that with merged weights: {speed}")
    saved = float(np.median(times["reload"]) - np.median(times["adapter"]))
    slower = 1 / float(np.median(times["adapted"])) - 1 / float(np.median(times["merged"]))
    print(f"saved by an adapter {saved:.2f} s; used up after {saved / slower:.0f} tokens" if slower > 0 else "no cost")
    same = [a[0] == b[0] for merged, adapted in found for a, b in zip(merged, adapted, strict=True)]
    away = [
        x - y
        for merged, adapted in found
        for (ids, mine), (other_ids, others) in zip(merged, adapted, strict=True)
        for i, (x, y) in enumerate(zip(mine, others, strict=False))
        if ids[: i + 1] == other_ids[: i + 1]
    ]
    rms = float(np.sqrt(np.square(away).mean()))
    print(f"outputs the same {np.mean(same):.3f}; log-probs of the same tokens off by {rms:.1e} (root mean square)")


def _epoch(folder: Path, number: int, dtype: str) -> tuple[int, Path, Path]:
    """An adapter with random numbers, and the model with it merged, as a checkpoint would have them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(number)
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    how = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(base, how)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, STEP)
    adapter, whole = folder / "adapter", folder / "merged"
    model.save_pretrained(adapter)
    shutil.copytree(MODEL.resolve(), whole, ignore=shutil.ignore_patterns("*.safetensors"))
    merged = model.merge_and_unload().to(getattr(torch, dtype))
    merged.save_pretrained(whole)
    return number, adapter, whole


if __name__ == "__main__":
    main()
