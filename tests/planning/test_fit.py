"""Claims about misfits: what each check says, what it lets pass, and when it is certain."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.rows import a_model
from tpo.config.contexts import contexts
from tpo.config.resources import EngineConfig
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.models.shape import PUBLISHED, Model
from tpo.planning.fit import (
    Misfit,
    context_misfits,
    cpu_misfits,
    device_misfits,
    disk_misfits,
    gpu_memory_misfits,
    gpu_misfits,
    gpu_size_misfits,
    memory_misfits,
    quantization_misfits,
    refuse,
    split_misfits,
)
from tpo.planning.gpu_memory import GpuMemory, engine_memory
from tpo.planning.needs import GIB, Disk
from tpo.planning.workload import Kind
from tpo.storage.ledger import WORK

JUDGED: dict[str, Any] = {"judge": {"kind": "pairwise"}, "evaluation": {"judge": {"kind": "pairwise"}}}
ON_GPU = {"device": "gpu"}
ARMORM: dict[str, Any] = {"judge": {"kind": "armorm"}, "judge_engine": ON_GPU}
THINKPO: dict[str, Any] = {
    "recipe": {"kind": "thinkpo", "sft": {}, "source": {"kind": "models", "short": "models/writer"}}
}


def a_run(**sections: Any) -> RunConfig:
    batches = {"train": {"batch_size": 96, "micro_batch_size": 1}}
    return RunConfig.model_validate({"folder": "runs", "name": "r"} | batches | sections)


def certain(misfits: Iterable[Misfit]) -> list[str]:
    return [str(misfit) for misfit in misfits if misfit.certain]


def uncertain(misfits: Iterable[Misfit]) -> list[str]:
    return [str(misfit) for misfit in misfits if not misfit.certain]


def test_kinds_of_work_are_those_of_the_ledger_in_its_order():
    assert tuple(str(kind) for kind in Kind if kind is not Kind.SFT_TRAIN) == WORK
    assert all(Kind.named(kind) is kind for kind in Kind)
    assert (Kind.TEST_JUDGE.purpose, Kind.TEST_JUDGE.verb, Kind.TRAIN.purpose) == ("test", "judge", "")


def test_all_certain_misfits_are_refused_together_and_each_is_mentioned_once():
    one = Misfit("a", "is 3", "there are 2", "lower it")
    may = replace(one, certain=False)
    with pytest.raises(InputError, match=r"^a is 3, but there are 2: lower it\nb is 3, but there are 2: lower it$"):
        refuse([one, may, replace(one, what="b"), one])
    assert refuse([may, may]) == ["a is 3, but there are 2: lower it"]
    assert refuse([]) == []


def test_a_context_suffices_up_to_its_last_token():
    (asked,) = contexts(a_run(data={"max_prompt_tokens": 256}, sample={"max_new_tokens": 96}))
    assert certain(context_misfits(asked, 351, "m")) == [
        "data.max_prompt_tokens + sample.max_new_tokens is 352, but m has 351 tokens of context: lower one of them"
    ]
    assert certain(context_misfits(asked, 352, "m")) == []


LLAMA, QWEN, SMOL = "Meta-Llama-3-8B-Instruct", "Qwen2.5-Math-7B-Instruct", "SmolLM2-135M-Instruct"


@pytest.mark.parametrize(
    ("sections", "models", "patterns"),
    [
        ({"engine": {"tensor_parallel": 4}}, {None: LLAMA}, []),
        ({"engine": {"tensor_parallel": 16}}, {None: LLAMA}, []),
        ({"engine": {"tensor_parallel": 3}}, {}, []),
        ({"engine": {"tensor_parallel": 3}}, {None: LLAMA}, ["the 32 attention heads and the intermediate size 14336"]),
        ({"engine": {"tensor_parallel": 3}}, {None: LLAMA}, ["its 8 key/value heads .*: choose 1, 2, 4, 8, 16 or 32$"]),
        ({"engine": {"tensor_parallel": 9}}, {None: SMOL}, ["^engine.tensor_parallel is 9, .*: choose 1 or 3$"]),
        (
            {"engine": {"tensor_parallel": 8}, **THINKPO},
            {None: LLAMA, Path("models/writer"): QWEN},
            ["28 attention heads .*choose 1, 2 or 4$"],
        ),
        (
            {"engine": {"tensor_parallel": 3}, "judge_engine": {"tensor_parallel": 3}, **JUDGED},
            {None: LLAMA, "judge": SMOL},
            ["^engine.tensor_parallel is 3"],
        ),
        ({"judge_engine": {"tensor_parallel": 8}, **JUDGED}, {"judge": SMOL}, ["^judge_engine.* of SmolLM2"] * 2),
    ],
)
def test_a_degree_that_does_not_split_a_model_is_refused_with_a_list_of_those_that_do(
    sections: dict[str, Any], models: dict[Any, str], patterns: list[str]
):
    config = a_run(**sections)
    folders = {folder if folder != "judge" else config.judge.folder: name for folder, name in models.items()}  # type: ignore[union-attr]
    found = certain(split_misfits(config, {f: Model(n, PUBLISHED[n], "", False) for f, n in folders.items()}))
    assert len(found) == len(patterns)
    for sentence, pattern in zip(found, patterns, strict=True):
        assert re.search(pattern, sentence), sentence


FP8 = {"dtype": "bfloat16", "quantization": "fp8_per_channel"}


def test_reward_models_are_not_quantized_and_vllms_models_are(tmp_path: Path):
    assert not [*quantization_misfits(a_run(engine=FP8 | ON_GPU, judge_engine=FP8 | ON_GPU))]
    (sentence,) = certain(quantization_misfits(a_run(**ARMORM | {"judge_engine": FP8 | ON_GPU})))
    assert sentence.startswith(
        "judge_engine.quantization is fp8_per_channel, but judges of kind armorm are read by torch"
    )
    assert not [*quantization_misfits(a_run(**JUDGED | {"judge_engine": FP8 | ON_GPU}))]
    (slow,) = uncertain(quantization_misfits(a_run(engine=FP8)))
    assert slow.startswith("engine.quantization is fp8_per_channel, but a CPU has no instructions for it")


@pytest.mark.parametrize(
    ("values", "engine", "lacking"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, ON_GPU, "are quantized already (gptq)"),
        ({"num_experts": 8}, {}, "is a mixture of experts"),
    ],
    ids=["quantized", "experts"],
)
def test_a_model_that_vllm_cannot_quantize_is_refused(
    tmp_path: Path, values: dict[str, Any], engine: dict[str, str], lacking: str
):
    config = a_run(model={"path": str(a_model(tmp_path / "m", **values))}, engine=FP8 | engine)
    (sentence,) = certain(quantization_misfits(config))
    assert lacking in sentence
    assert 'set it to "none"' in sentence
    assert not certain(quantization_misfits(a_run(model={"path": str(a_model(tmp_path / "n"))}, engine=FP8 | engine)))


def test_a_quantized_engine_takes_a_byte_for_each_weight_of_a_layer():
    shape = PUBLISHED["Llama-3.1-8B-Instruct"]
    how = {"context": 4096, "gpu_bytes": 80 * GIB}
    half, fp8 = (
        engine_memory(Kind.SAMPLE, shape, EngineConfig.model_validate(values | ON_GPU), **how).parts["weights"]
        for values in ({"dtype": "bfloat16"}, FP8)
    )
    assert half - fp8 == shape.layers * shape.layer_weights
    assert 0.5 < fp8 / half < 0.6


@pytest.mark.parametrize(
    ("sections", "there", "key"),
    [
        ({"trainer": {"workers": 32}}, 31, "trainer.workers"),
        ({"trainer": {"workers": 32}}, 32, None),
        ({"engine": {"tensor_parallel": 32}}, 31, "engine.tensor_parallel"),
        ({"engine": {"count": 32}}, 31, None),
        ({"trainer": {"workers": 32}, "cluster": {"address": "auto"}}, 1, None),
    ],
)
def test_needing_more_cpus_at_once_than_ray_has_is_refused(sections: dict[str, Any], there: int, key: str | None):
    message = (
        f"{key} is 32, but Ray has {there} CPUs here, and each takes one: lower it, or set cluster.address to a Ray "
    )
    assert certain(cpu_misfits(a_run(**sections), there)) == ([f"{message}cluster that has them"] if key else [])


@pytest.mark.parametrize(
    ("gib", "refused", "noted"),
    [
        (8.0, [], []),
        (8.1, [], ["10.0 GiB, and processes use more than their models do: it may not fit; lower engine.kv_cache_gib"]),
        (10.0, [], ["must hold 10.0 GiB at once (engine 8.0 GiB + trainer 2.0 GiB), but has 10.0 GiB, and processes"]),
        (10.1, ["must hold 10.1 GiB at once (engine 8.1 GiB + trainer 2.0 GiB), but has 10.0 GiB: lower engine."], []),
    ],
)
def test_too_little_memory_is_refused_and_tight_memory_is_noted(gib: float, refused: list[str], noted: list[str]):
    needed = {"engine": round((gib - 2) * GIB), "trainer": 2 * GIB}
    for found, expected in zip((certain, uncertain), (refused, noted), strict=True):
        sentences = found(memory_misfits(needed, 10 * GIB))
        assert len(sentences) == len(expected)
        assert all(text in sentence for text, sentence in zip(expected, sentences, strict=True)), sentences
    assert list(memory_misfits({}, 10 * GIB)) == []


ENDS = {
    "epochs": ": free some space, set folder in the profile to a larger disk, or lower --to (ITER) or train.epochs",
    "rows": "there: it may not fit; lower data.per_iteration, sample.k or sample.max_new_tokens if outputs are long",
    "elsewhere": "on this machine: that much must be free where the run is made",
    "sft": "or lower train.epochs or recipe.sft.epochs",
}


@pytest.mark.parametrize(
    ("free", "sections", "is_here", "is_certain", "end"),
    [
        (10, {}, True, None, None),
        (9, {}, True, False, "rows"),
        (6, {}, True, False, "rows"),
        (5, {}, True, True, "epochs"),
        (5, THINKPO, True, True, "sft"),
        (5, {}, False, False, "elsewhere"),
    ],
)
def test_checkpoints_that_do_not_fit_on_the_disk_are_refused_and_rows_that_may_not_fit_are_noted(
    free: int, sections: dict[str, Any], is_here: bool, is_certain: bool | None, end: str | None
):
    found = list(disk_misfits(a_run(**sections), Disk(4 * GIB, 5 * GIB, GIB), free * GIB, is_here=is_here))
    assert [misfit.certain for misfit in found] == ([] if is_certain is None else [is_certain])
    for misfit in found:
        assert end is not None and ENDS[end] in str(misfit)
        parts = "10.0 GiB of disk (5.0 GiB for one checkpoint per epoch, 1.0 GiB while training, up to 4.0 GiB for"
        assert f"runs/r needs up to {parts} samples and judgments), but {free}.0 GiB is free" in str(misfit)


def test_every_section_that_asks_for_a_gpu_is_named_on_a_machine_without_one():
    assert certain(device_misfits(a_run())) == []
    found = certain(device_misfits(a_run(engine=ON_GPU, trainer=ON_GPU, judge_engine=ON_GPU)))
    assert [sentence.split()[0] for sentence in found] == ["engine.device", "trainer.device", "judge_engine.device"]
    assert found[0].startswith("engine.device is gpu, but this machine has no GPU")
    assert "set cluster.address" in found[0]


@pytest.mark.parametrize(
    ("sections", "there", "needs"),
    [
        ({"engine": ON_GPU, "trainer": ON_GPU}, 1, []),
        ({**ARMORM, "engine": {**ON_GPU, "count": 2}}, 2, []),
        ({"engine": {**ON_GPU, "count": 3}, "trainer": ON_GPU}, 2, ["engine needs 3 GPUs"]),
        ({"engine": {**ON_GPU, "count": 2, "tensor_parallel": 2}}, 2, ["engine needs 4 GPUs"]),
        ({"trainer": {**ON_GPU, "workers": 3}}, 2, ["trainer needs 3 GPUs"]),
        (
            {**ARMORM, "engine": ON_GPU, "trainer": {**ON_GPU, "workers": 3}},
            0,
            ["engine needs 1 GPU", "judge_engine (armorm) needs 1 GPU", "trainer needs 3 GPUs"],
        ),
    ],
)
def test_a_part_that_needs_more_gpus_than_there_are_is_refused(sections: dict[str, Any], there: int, needs: list[str]):
    found = certain(gpu_misfits(a_run(**sections), there, "counted"))
    assert [sentence.split(", but")[0] for sentence in found] == needs
    there_are = f"there {'is' if there == 1 else 'are'} {there}"
    for sentence in found:
        assert f", but {there_are} (counted): {'lower' if there else 'set'} {sentence.split()[0]}." in sentence
        assert "set cluster.address for a run, and [cluster] (nodes," in sentence


def test_gpus_that_cannot_be_counted_are_noted_not_refused():
    assert uncertain(gpu_misfits(a_run(engine=ON_GPU), None, "")) == [
        "engine needs 1 GPU, but GPUs could not be counted (nvidia-smi -L failed): make sure that there are enough"
    ]
    assert certain(gpu_misfits(a_run(engine=ON_GPU), None, "")) == []


@pytest.mark.parametrize(
    ("kind", "parts", "sequences", "is_certain", "message"),
    [
        (Kind.TRAIN, 9.0, None, None, ""),
        (Kind.TRAIN, 9.1, None, False, "needs 9.1 GiB of a GPU, but 10.0 GiB may be used, barely more, and activ"),
        (Kind.TRAIN, 10.1, None, True, "needs 10.1 GiB of a GPU, but 10.0 GiB may be used: set trainer.strategy"),
        (
            Kind.SFT_TRAIN,
            10.1,
            None,
            True,
            "or recipe.sft.max_tokens, or a [recipe.sft.lora]",
        ),
        (Kind.SAMPLE, 9.9, 1, None, ""),
        (Kind.SAMPLE, 9.9, 0, True, "and the rest is too small for one sequence's KV cache: raise engine.tensor_par"),
        (Kind.SHORT_SAMPLE, 11, 0, True, "or lower recipe.source.short_sample.max_new_tokens or data.max_prompt_"),
        (Kind.GENERATE, 11, 0, True, "or lower data.synthetic.max_prompt_tokens or max_new_tokens"),
        (Kind.TEST_JUDGE, 11, None, True, "test judge needs 11.0 GiB of a GPU, but 10.0 GiB may be used: raise j"),
    ],
)
def test_work_too_large_for_a_gpu_is_refused_with_the_settings_that_shrink_it(
    kind: Kind, parts: float, sequences: int | None, is_certain: bool | None, message: str
):
    held = GpuMemory(kind, {"weights": round(parts * GIB)}, 10 * GIB, sequences=sequences)
    found = list(gpu_memory_misfits([held]))
    assert [misfit.certain for misfit in found] == ([] if is_certain is None else [is_certain])
    assert all(message in str(misfit) for misfit in found), found


def test_gpus_of_unknown_memory_are_refused_if_the_run_uses_any():
    assert certain(gpu_size_misfits(a_run(engine=ON_GPU), 8, 0)) == [
        "cluster.gpus is 8, but their memory size is not known here: set cluster.gpu_memory_gib (80 GB are "
        "79.6), or make the plan on the machine itself"
    ]
    for sections, gpu_bytes in (({}, 0), ({"engine": ON_GPU}, GIB)):
        assert certain(gpu_size_misfits(a_run(**sections), 8, gpu_bytes)) == []
