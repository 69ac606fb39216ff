"""Misfits between a run and its models or machines: the checks shared by preflight and plan, each in one sentence.

A misfit is certain if the run would fail because of it, and uncertain if it is based on an estimate. Preflight rejects
runs with certain misfits and prints the others; a plan lists both. Callers pass the resources, since their sources
differ: this machine and the headers of weight files for preflight, the profile's machines and published shapes for a
plan.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpo.config.contexts import Context, contexts
from tpo.config.judges import GenerativeJudge
from tpo.config.recipes import ThinkPo
from tpo.config.resources import EngineConfig, TrainerConfig
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.hub.record import Download
from tpo.models.model_config import experts, quantization, read_model_config
from tpo.models.shape import Model
from tpo.planning.gpu_memory import TIGHT, GpuMemory
from tpo.planning.needs import Disk, cpus_needed, gpus_needed, model_judges, readable_size
from tpo.planning.workload import Kind

_ROOMY = 0.8
"""Fraction of this machine's memory for models; the rest is for other needs of their processes."""


@dataclass(frozen=True)
class Misfit:
    """An unmet requirement of a run."""

    what: str
    """The setting, or the part of the run, that needs it."""
    needed: str
    """What it needs, as a predicate: `is 3`."""
    found: str
    """What is available, or the condition that isn't met, as a clause: `there are 2`."""
    remedy: str
    """The remedy."""
    certain: bool = True
    """Whether the run would certainly fail; if False, it might."""

    def __str__(self) -> str:
        return f"{self.what} {self.needed}, but {self.found}: {self.remedy}"


def refuse(misfits: Iterable[Misfit]) -> list[str]:
    """Raises `InputError` with all certain misfits; returns the others as sentences."""
    found = list(dict.fromkeys(misfits))
    if certain := [str(misfit) for misfit in found if misfit.certain]:
        raise InputError("\n".join(certain))
    return [str(misfit) for misfit in found]


def context_misfits(asked: Context, tokens: int, name: str | Path) -> Iterator[Misfit]:
    """A model called `name` whose context of `tokens` is too short for its prompts and outputs."""
    if asked.tokens > tokens:
        yield Misfit(asked.keys, f"is {asked.tokens}", f"{name} has {tokens} tokens of context", asked.remedy)


def split_misfits(config: RunConfig, models: Mapping[Path | None, Model]) -> Iterator[Misfit]:
    """Models that vLLM can't split over the GPUs of an engine.

    `models` are by folder, M_0 at None. Models whose shape isn't known are missing from it and go unchecked here; vLLM
    checks them when it starts.
    """
    for name, engine, folder in _vllm_engines(config):
        model, gpus = models.get(folder), engine.tensor_parallel
        if model is not None and not model.shape.splits_over(gpus):
            shape = model.shape
            yield Misfit(
                f"{name}.tensor_parallel",
                f"is {gpus}",
                f"must divide the {shape.heads} attention heads and the intermediate size {shape.intermediate} of "
                f"{model.name}, and divide its {shape.kv_heads} key/value heads or be a multiple of them",
                f"choose {_one_of(shape.degrees)}",
            )


def quantization_misfits(config: RunConfig) -> Iterator[Misfit]:
    """Models that engines can't quantize, by their kind and their `config.json` if it is here; and engines that can,
    but slowly."""
    if config.judge_engine.quantization != "none":
        read = sorted({judge.kind for judge in model_judges(config) if not isinstance(judge, GenerativeJudge)})
        if read:
            yield Misfit(
                "judge_engine.quantization",
                f"is {config.judge_engine.quantization}",
                f"judges of kind {' and '.join(read)} are read by torch, which doesn't quantize here",
                'set it to "none"; pairwise and rubric judges can have it, which run in vLLM',
            )
    for name, engine, folder in _vllm_engines(config):
        if engine.quantization != "none":
            yield from _quantization_faults(name, engine, folder or config.model.folder)


def _quantization_faults(name: str, engine: EngineConfig, folder: Path) -> Iterator[Misfit]:
    key, needed = f"{name}.quantization", f"is {engine.quantization}"
    model = read_model_config(folder) if (folder / "config.json").is_file() else {}
    if (method := quantization(model)) is not None:
        lacking = f"the weights of {folder} are quantized already ({method})"
        yield Misfit(key, needed, lacking, f'set it to "none", which leaves {method} in place')
    if engine.device == "gpu":
        return
    if experts(model):
        lacking = f"{folder} is a mixture of experts, which vLLM can't quantize so on a CPU"
        yield Misfit(key, needed, lacking, f'set it to "none", or {name}.device to "gpu"')
    else:
        lacking = "a CPU has no instructions for it: the results are right, but take many times as long"
        yield Misfit(key, needed, lacking, 'use it on a CPU only to see its effect; otherwise set it to "none"', False)


def _vllm_engines(config: RunConfig) -> list[tuple[str, EngineConfig, Path | None]]:
    """The models that run in vLLM, each with its section; M_0 as None."""
    engines: list[tuple[str, EngineConfig, Path | None]] = [
        ("engine", config.engine, asked.folder) for asked in contexts(config)
    ]
    engines += [
        ("judge_engine", config.judge_engine, judge.folder)
        for judge in model_judges(config)
        if isinstance(judge, GenerativeJudge)
    ]
    if (rater := config.evaluation.fine_grained) is not None and rater.folder is not None:
        engines.append(("judge_engine", config.judge_engine, rater.folder))
    return engines


def cpu_misfits(config: RunConfig, there: int) -> Iterator[Misfit]:
    """CPUs that are needed at the same time but missing in Ray, which would wait for them forever."""
    for key, count in cpus_needed(config).items():
        if count > there:
            yield Misfit(
                key,
                f"is {count}",
                f"Ray has {there} CPUs here, and each takes one",
                "lower it, or set cluster.address to a Ray cluster that has them",
            )


def memory_misfits(needed: Mapping[str, int], there: int) -> Iterator[Misfit]:
    """Models that don't fit into this machine's memory together; `needed` is in bytes, by part of the run."""
    total = sum(needed.values())
    if total > _ROOMY * there:
        certain = total > there
        parts = " + ".join(f"{name} {readable_size(size)}" for name, size in needed.items())
        yield Misfit(
            "this machine's memory",
            f"must hold {readable_size(total)} at once ({parts})",
            f"has {readable_size(there)}{'' if certain else ', and processes use more than their models do'}",
            f"{'' if certain else 'it may not fit; '}lower engine.kv_cache_gib, engine.count, judge_engine.count or "
            'trainer.workers, use a smaller dtype, or device = "gpu"',
            certain,
        )


def disk_misfits(config: RunConfig, needed: Disk, free: int, *, is_here: bool = True) -> Iterator[Misfit]:
    """A disk too small for the remaining work; it is this machine's unless the run is made elsewhere (`is_here`).

    Rows are an upper bound, so only checkpoints can be certain not to fit.
    """
    if needed.total <= free:
        return
    certain = is_here and needed.checkpoints + needed.scratch > free
    keys = [] if isinstance(config.recipe, ThinkPo) else ["--to (ITER)"]
    keys += ["train.rounds"] if config.train.rounds > 1 else []
    keys += ["train.epochs"] if config.sft is None else ["train.epochs", "recipe.sft.epochs"]
    remedy = f"free some space, set folder in the profile to a larger disk, or lower {' or '.join(keys)}"
    if not is_here:
        remedy = "that much must be free where the run is made"
    elif not certain:
        remedy = "it may not fit; lower data.per_iteration, sample.k or sample.max_new_tokens if outputs are long"
    yield Misfit(
        str(config.root.resolve()),
        f"needs up to {readable_size(needed.total)} of disk ({readable_size(needed.checkpoints)} for one checkpoint "
        f"per epoch, {readable_size(needed.scratch)} while training, up to {readable_size(needed.rows)} for "
        "samples and judgments)",
        f"{readable_size(free)} is free {'there' if is_here else 'on this machine'}",
        remedy,
        certain,
    )


def download_misfits(downloads: Sequence[Download], *, is_here: bool) -> Iterator[Misfit]:
    """A disk too small for downloads from the model hub; it is this machine's unless the run is made elsewhere."""
    lacking, free = sum(each.lacking for each in downloads), min((each.free for each in downloads), default=0)
    if lacking > free:
        yield Misfit(
            "the model hub's cache (HF_HOME)",
            f"needs {readable_size(lacking)} more",
            f"{readable_size(free)} is free {'there' if is_here else 'on this machine'}",
            "free some space, or set HF_HOME to a larger disk" if is_here else "that much must be free on the machine",
            certain=is_here,
        )


def device_misfits(config: RunConfig) -> Iterator[Misfit]:
    """Sections that request a GPU; only call this for a machine without one."""
    sections: Mapping[str, EngineConfig | TrainerConfig] = {
        "engine": config.engine,
        "trainer": config.trainer,
        "judge_engine": config.judge_engine,
    }
    for name, section in sections.items():
        if section.device == "gpu":
            yield Misfit(
                f"{name}.device",
                "is gpu",
                "this machine has no GPU (no nvidia-smi, no /dev/nvidia0)",
                'set cluster.address to a Ray cluster that has GPUs, or use device = "cpu"',
            )


def gpu_misfits(config: RunConfig, there: int | None, known_by: str) -> Iterator[Misfit]:
    """Parts of the run that need more GPUs than there are; `there` is None if they can't be counted."""
    for name, count in gpus_needed(config).items():
        section = name.split()[0]
        keys = "trainer.workers" if section == "trainer" else f"{section}.count or {section}.tensor_parallel"
        fewer = f"lower {keys}" if there else f'set {section}.device to "cpu"'
        needed = f"needs {count} GPU{'' if count == 1 else 's'}"
        if there is None:
            lacking, remedy = "GPUs could not be counted (nvidia-smi -L failed)", "make sure that there are enough"
            yield Misfit(name, needed, lacking, remedy, certain=False)
        elif count > there:
            yield Misfit(
                name,
                needed,
                f"there {'is' if there == 1 else 'are'} {there} ({known_by})",
                f"{fewer}, or use a Ray cluster that has them: set cluster.address for a run, and [cluster] (nodes, "
                "gpus, gpu_memory_gib, gpu) for a plan",
            )


def gpu_memory_misfits(memory: Sequence[GpuMemory]) -> Iterator[Misfit]:
    """Work that doesn't fit into a GPU's memory, or only just: activations are included, but are an estimate."""
    for held in memory:
        needed, remedy = f"needs {readable_size(held.total)} of a GPU", _gpu_remedy(held.work)
        has = f"{readable_size(held.there)} may be used"
        if held.total > held.there:
            yield Misfit(held.work, needed, has, remedy)
        elif not held.fits:
            yield Misfit(held.work, needed, f"{has}, and the rest is too small for one sequence's KV cache", remedy)
        elif held.sequences is None and held.there - held.total < TIGHT * held.there:
            lacking = f"{has}, barely more, and activations are an estimate"
            yield Misfit(held.work, needed, lacking, f"if memory runs out, {remedy}", certain=False)


def gpu_size_misfits(config: RunConfig, gpus: int, gpu_bytes: int) -> Iterator[Misfit]:
    """A described machine whose GPU memory isn't known, so that nothing can be checked against it."""
    if gpus and not gpu_bytes and gpus_needed(config):
        yield Misfit(
            "cluster.gpus",
            f"is {gpus}",
            "their memory size is not known here",
            "set cluster.gpu_memory_gib (80 GB are 79.6), or make the plan on the machine itself",
        )


def _one_of(numbers: Sequence[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last


def _gpu_remedy(kind: Kind) -> str:
    remedy = _GPU_REMEDIES[kind.verb]
    if kind.purpose in ("short", "long"):
        return remedy.replace("sample.max_new", f"recipe.source.{kind.purpose}_sample.max_new")
    if kind.purpose == "sft":
        return re.sub(r"\btrain\.(?=[gml])", "recipe.sft.", remedy)
    return remedy


_GPU_REMEDIES = {
    "generate": "raise engine.tensor_parallel, or lower data.synthetic.max_prompt_tokens or max_new_tokens",
    "sample": "raise engine.tensor_parallel, or lower sample.max_new_tokens or data.max_prompt_tokens",
    "judge": "raise judge_engine.tensor_parallel, or lower judge.max_tokens or judge_engine.batch_tokens",
    "rate": "raise judge_engine.tensor_parallel, or lower evaluation.fine_grained.max_tokens",
    "train": 'set trainer.strategy = "fsdp" with more trainer.workers, train.gradient_checkpointing = true, a smaller '
    "train.micro_batch_size or train.max_tokens, or a [train.lora]",
}
