"""What is checked before anything starts: `preflight` always, `check_before_work` where there is something to do.

In: a config. Out: nothing, or an `InputError` that says what was found, what was expected and what to do.

`preflight` takes milliseconds and looks at files alone. The rest looks at the machine, asks servers, and loads
tokenizers, which the run needs anyway, and a model's architecture where training asks for something special of it: no
weights, no Ray, no vLLM, no Prefect. Refused is what cannot work for certain;
where an estimate may be wrong, a line says so.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

from judges.armorm import check_armorm_folder
from judges.reward_model import check_reward_folder
from prompts.instructions import can_be_shown, load_instruction_prompt
from prompts.thought import load_prompt
from prompts.verdict import load_verdict_prompt
from tasks.lineage import SHIPPED_SEED_MODEL, completed
from tpo.bucket import Bucket
from tpo.config import (
    MINIATURE,
    ArmoRMJudge,
    FileSource,
    JudgeConfig,
    MiniatureSource,
    PairFile,
    PairwiseJudge,
    PromptConfig,
    RewardModelJudge,
    RunConfig,
    SyntheticConfig,
    checks_instructions,
)
from tpo.console import say
from tpo.disk import remove, write_atomically
from tpo.engines.api import ChatClient
from tpo.engines.model_folder import check_model_folder
from tpo.engines.tensor_files import read_tensors
from tpo.engines.tracking import check_tracker, check_tracker_key
from tpo.engines.training_check import check_training
from tpo.errors import InputError, StoreError
from tpo.forecast import GIB, cpus_needed, disk_needed, gpus_needed, memory_needed, model_judges
from tpo.machine import cpu_count, free_disk, gpu_count, memory_bytes
from tpo.model_shape import Model, find_model
from tpo.pair_files import read_pair_rows
from tpo.prompt_files import check_prompt_file, file_of, read_prompt_rows
from tpo.records import Message

QUESTIONS = (
    "Say hello.",
    "What is 12 + 30?\nAnswer briefly.",
    "  def f(x):\n    return x\n",
    "日本語で答えて。 Ça va ?",
)
"""Plain instructions that chat templates are tried on."""
_LONGEST_PATH_BELOW = 120
"""Characters of the longest path below a run folder, temporary names included."""


def preflight(config: RunConfig) -> None:
    """Refuses a run that cannot work on this machine with these files."""
    load_prompt(config.prompt)
    _check_model(config)
    for judge in (config.judge, config.evaluation.judge):
        _check_judge(judge)
    _check_gpus(config)
    _check_splits(config)
    check_tracker(config.tracking)
    if isinstance(config.data.source, FileSource):
        _check_files(config.data.source)
    _check_constraints(config)
    if config.data.synthetic is not None:
        _check_synthetic(config, config.data.synthetic)
    _check_folder(config.root)


def check_before_work(config: RunConfig, iterations: int) -> None:
    """Refuses a run to M_T, T = `iterations`, that this machine, its models or its servers cannot do.

    Only for a run that has something to do: it writes a probe into the run folder, asks servers and loads tokenizers.
    """
    _check_writing(config.root)
    if not isinstance(config.folder, Path):
        Bucket(config.place, config.storage).check_conditions()
    _check_cpus(config)
    parameters = _parameters(_seed_folder(config))
    for line in (
        *_check_disk(config, iterations, parameters),
        *_check_memory(config, parameters),
        *_count_gpus(config),
    ):
        say(line)
    check_endpoints(config)
    check_tracker_key(config.tracking)
    check_training(_seed_folder(config), config.train, config.trainer)
    if config.sft is not None:
        check_training(_seed_folder(config), config.sft, config.trainer, section="sft")
    for line in check_templates(config):
        say(line)


def check_tpo(config: RunConfig) -> None:
    """Refuses a run of TPO whose profile is another recipe's."""
    for section, recipe in (("thinkpo", "thinkpo"), ("self_train", "self-train")):
        if getattr(config, section) is not None:
            raise InputError(f"the profile has a section [{section}], which is another recipe's: call make {recipe}")


def check_self_training(config: RunConfig) -> None:
    """Refuses a run of self-training whose profile cannot make one."""
    source = config.data.source
    if config.self_train is None:
        raise InputError(
            "the profile has no section [self_train], expected one that says how a model learns from its own answers: "
            "take deploy/profiles/self-train.toml as an example"
        )
    right = "instruction_ids_column" if checks_instructions(config.judge) else "reference_column"
    if isinstance(source, FileSource) and not (getattr(source, right) and source.demonstration_column):
        raise InputError(
            f"data.source names no {right} or no demonstration_column, and self-training starts from demonstrations "
            "and needs to know what is right: name both"
        )
    if (config.self_train.demonstrations or 0) > config.data.per_iteration:
        raise InputError(
            f"self_train.demonstrations is {config.self_train.demonstrations}, expected at most data.per_iteration, "
            f"{config.data.per_iteration}: they are those of the first questions"
        )


def check_thinkpo(config: RunConfig) -> None:
    """Refuses a run of ThinkPO whose profile, models or files cannot make one."""
    if config.thinkpo is None:
        raise InputError(
            "the profile has no section [thinkpo], expected one that says where long and short outputs are from: take "
            "deploy/profiles/thinkpo.toml as an example"
        )
    source, prompts = config.thinkpo.source, config.data.source
    if isinstance(source, PairFile):
        read_pair_rows(source)
    elif config.sft is None:
        raise InputError(
            'thinkpo.source.kind is "models", and there is no section [sft]: models write for the prompts of '
            'fine-tuning; add [sft], or take pairs from a file (thinkpo.source.kind = "file")'
        )
    else:
        for prompt in (source.long_prompt, source.short_prompt):
            load_prompt(prompt)
        for model, own in ((source.long, "demonstrations"), (source.short, "seed")):
            if model != own:
                check_model_folder(Path(model))
    if config.sft is not None and isinstance(prompts, FileSource) and prompts.demonstration_column is None:
        raise InputError(
            "[sft] is there, and data.source.demonstration_column is not: name the column that holds the responses to "
            "imitate"
        )


def _seed_folder(config: RunConfig) -> Path:
    return SHIPPED_SEED_MODEL if config.model.path == MINIATURE else Path(config.model.path)


def _check_model(config: RunConfig) -> None:
    folder = _seed_folder(config)
    context = check_model_folder(folder)
    needed = config.data.max_prompt_tokens + config.sample.max_new_tokens
    if needed > context:
        raise InputError(
            f"data.max_prompt_tokens + sample.max_new_tokens is {needed}, more than the {context} tokens of context "
            f"of {folder}: lower one of them"
        )


def _check_judge(judge: JudgeConfig) -> None:
    match judge:
        case RewardModelJudge():
            check_reward_folder(judge.folder)
        case ArmoRMJudge():
            check_armorm_folder(judge.folder)
        case PairwiseJudge():
            load_verdict_prompt(judge)
            if judge.folder is not None:
                check_model_folder(judge.folder)


def check_endpoints(config: RunConfig) -> None:
    """Refuses a run whose judge or generator is behind a server that is down, or does not know the key or the model.

    Apart from `preflight`, since it asks the server: only a run that has something to do may.
    """
    for judge in (config.judge, config.evaluation.judge):
        if isinstance(judge, PairwiseJudge) and judge.endpoint is not None:
            ChatClient(judge.endpoint, judge.model).check()
    writer = config.data.synthetic
    if writer is not None and writer.endpoint is not None:
        ChatClient(writer.endpoint, writer.model).check()


def _check_gpus(config: RunConfig) -> None:
    wanted = [
        name
        for name, device in (
            ("engine", config.engine.device),
            ("trainer", config.trainer.device),
            ("judge_engine", config.judge_engine.device),
        )
        if device == "gpu"
    ]
    if wanted and config.cluster.address is None and not _has_gpu():
        raise InputError(
            f"{' and '.join(f'{name}.device' for name in wanted)} is gpu, and this machine has none (no nvidia-smi, no "
            '/dev/nvidia0): set cluster.address to a Ray cluster that has GPUs, or use device = "cpu"'
        )


def _check_splits(config: RunConfig) -> None:
    """vLLM can split each model over the GPUs of an engine, as far as its `config.json` tells."""
    judges = [judge for judge in (config.judge, config.evaluation.judge) if isinstance(judge, PairwiseJudge)]
    asked = [
        ("engine", config.engine.tensor_parallel, _seed_folder(config)),
        *(("judge_engine", config.judge_engine.tensor_parallel, judge.folder) for judge in judges if judge.folder),
    ]
    if config.data.synthetic is not None and config.data.synthetic.folder is not None:
        asked.append(("engine", config.engine.tensor_parallel, config.data.synthetic.folder))
    for name, gpus, folder in asked:
        model = _known_model(folder)
        if model is not None and not model.shape.splits_over(gpus):
            raise InputError(f"{name}.tensor_parallel is {gpus}, and {model.unsplit}")


def _known_model(folder: Path) -> Model | None:
    """None where a model has a shape of its own, as a mixture of experts has: vLLM will know it."""
    with contextlib.suppress(InputError):
        return find_model(folder)
    return None


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def _check_files(source: FileSource) -> None:
    for path in _files_of(source):
        check_prompt_file(source, path)


def _files_of(source: FileSource) -> list[Path]:
    """The files that are read before the second iteration, each once."""
    first_read = [("", 1), ("validation", 0), ("test", 0)]
    return list(dict.fromkeys(file_of(source, kind, iteration) for kind, iteration in first_read))


def _check_constraints(config: RunConfig) -> None:
    """Prompts bring verifiable instructions if a judge checks them; a prompt without any is unscored."""
    named = (("judge", config.judge), ("evaluation.judge", config.evaluation.judge))
    names = " and ".join(f"{name}.match" for name, judge in named if checks_instructions(judge))
    if not names:
        return
    source = config.data.source
    remedy = (
        "name data.source.instruction_ids_column and kwargs_column of a file that has both, as IFEval's do, set "
        'data.source.kind = "instructions", or choose another judge'
    )
    comes_without = isinstance(source, MiniatureSource)
    if isinstance(source, FileSource):
        comes_without = source.instruction_ids_column is None
    if comes_without:
        raise InputError(
            f'{names} is "instructions", and prompts of data.source (kind "{source.kind}") come without verifiable '
            f"instructions: {remedy}"
        )
    if isinstance(source, FileSource):
        for path in _files_of(source):
            if not any(row.constraints for row in read_prompt_rows(source, path)):
                column = source.instruction_ids_column
                raise InputError(
                    f'{names} is "instructions", and no row of {path} has an instruction id in {column!r}: {remedy}'
                )


def _check_synthetic(config: RunConfig, settings: SyntheticConfig) -> None:
    """A model can be shown the examples that it is to be shown, and what is to be kept clear of can be read."""
    load_instruction_prompt(settings.template)
    if settings.endpoint is None:
        folder = settings.folder or _seed_folder(config)
        context, needed = check_model_folder(folder), settings.max_prompt_tokens + settings.max_new_tokens
        if needed > context:
            raise InputError(
                f"data.synthetic.max_prompt_tokens + max_new_tokens is {needed}, more than the {context} tokens of "
                f"context of {folder}: lower one of them, with fewer or shorter examples, or have another model write"
            )
    for file in settings.avoid:
        try:
            check_prompt_file(FileSource(path=file.path, instruction_column=file.instruction_column), file.path)
        except InputError as error:
            raise InputError(f"data.synthetic.avoid: {error}") from error
    if isinstance(config.data.source, FileSource):
        _check_examples(config, config.data.source, settings)


def _check_examples(config: RunConfig, source: FileSource, settings: SyntheticConfig) -> None:
    """Enough instructions are left as examples where validation and test have taken theirs."""
    path = file_of(source, "", 1)
    texts = {row.instruction for row in read_prompt_rows(source, path) if can_be_shown(row.instruction)}
    counts = {"validation": config.data.validation, "test": config.data.test}
    taken = {kind: count for kind, count in counts.items() if file_of(source, kind, 0) == path}
    left = len(texts) - sum(taken.values())
    if left < settings.shots:
        told = "".join(f", {count} of them for {kind}" for kind, count in taken.items())
        raise InputError(
            f"{path} has {len(texts)} instructions that can be examples{told}, and data.synthetic.shots = "
            f"{settings.shots} must be left: add some, give validation and test files of their own, or lower shots"
        )


def _check_folder(root: Path) -> None:
    """The run folder is there or can be made, as far as its name and what is there already tell."""
    root = root.resolve()
    try:
        parent = next(path for path in (root, *root.parents) if path.exists())
        longest_path, longest_name = os.pathconf(parent, "PC_PATH_MAX"), os.pathconf(parent, "PC_NAME_MAX")
    except OSError as error:
        # Where a name or the whole is longer than any file system takes, even looking fails.
        if error.errno != errno.ENAMETOOLONG:
            raise InputError(f"{root} cannot be looked at ({error.strerror}): set folder in the profile") from error
        parent, longest_path, longest_name = Path("/"), 4096, 255
    if (long := max(len(os.fsencode(part)) for part in root.parts)) > longest_name:
        raise InputError(
            f"{root} has a name of {long} bytes in it, and names have up to {longest_name} here: give the run a "
            "shorter --run-name, or set folder in the profile to one with shorter names"
        )
    if len(os.fsencode(root)) + _LONGEST_PATH_BELOW > longest_path:
        raise InputError(
            f"{root} has {len(os.fsencode(root))} bytes, and files below it need {_LONGEST_PATH_BELOW} more: paths "
            f"have {longest_path} here; set folder in the profile to one with a shorter path"
        )
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{parent} is not a folder that can be written to: set folder in the profile to one that is")


def _check_writing(root: Path) -> None:
    """A file can be written where the run folder is or will be, as the store writes them; it is removed again."""
    parent = next(path for path in (root.resolve(), *root.resolve().parents) if path.exists())
    probe = parent / f".tpo-probe-{os.getpid()}"
    try:
        write_atomically(probe, b"whether this can be written")
        remove(probe)
    except StoreError as error:
        raise InputError(
            f"a probe could not be written into {parent}: {error}; or set folder in the profile to another place"
        ) from error


def _check_disk(config: RunConfig, iterations: int, parameters: int) -> Iterator[str]:
    """What is left to do fits on the disk; a line where it may not."""
    # A run that has nothing yet is not walked: that would read all of a seed model that may be large.
    done = completed(config, iterations) if (config.root / "iter_0").is_dir() else -1
    left = range(done + 1, iterations + 1)
    written = sum(
        path.stat().st_size for t in left for path in config.root.glob(f"iter_{t}/train/epoch_*/*.safetensors")
    )
    needed = disk_needed(config, left, parameters=parameters, written=written)
    root, free = config.root.resolve(), free_disk(config.root)
    told = (
        f"{root}: {_size(free)} are free, and what is left of M_{iterations} needs {_size(needed.total)} "
        f"({_size(needed.checkpoints)} for a checkpoint an epoch, {_size(needed.scratch)} while training, up to "
        f"{_size(needed.rows)} for samples and judgments)"
    )
    if needed.checkpoints + needed.scratch > free:
        raise InputError(
            f"{told}: free some, set folder in the profile to a larger disk, or lower train.epochs or --to"
        )
    if needed.total > free:
        yield f"{told}: it may not fit; lower data.per_iteration, sample.k or sample.max_new_tokens if outputs are long"


def _check_memory(config: RunConfig, parameters: int) -> Iterator[str]:
    """What is in this machine's memory at the same time fits into it; a line where little is left."""
    judges = {folder: _parameters(folder) for judge in model_judges(config) if (folder := judge.folder) is not None}
    writer = config.data.synthetic and config.data.synthetic.folder
    needed = memory_needed(
        config, parameters=parameters, judges=judges, generator=_parameters(writer) if writer else None
    )
    total, here = sum(needed.values()), memory_bytes()
    told = (
        f"{' + '.join(f'{name} {_size(size)}' for name, size in needed.items())} are {_size(total)} of memory at once, "
        f"and this machine has {_size(here)}"
    )
    remedy = (
        "lower engine.memory_gib, engine.count, judge_engine.count or trainer.workers, use a smaller dtype, or device "
        '= "gpu"'
    )
    if total > here:
        raise InputError(f"{told}: {remedy}")
    if total > 0.8 * here:
        yield f"{told}: with what processes take beyond their models it may not fit; {remedy}"


def _check_cpus(config: RunConfig) -> None:
    """Ray has the CPUs that must be there at once; it would wait for them for ever."""
    here = cpu_count()
    for key, count in cpus_needed(config).items():
        if count > here:
            raise InputError(
                f"{key} is {count}, and Ray has {here} CPUs here to give, one each: lower it, or set cluster.address "
                "to a Ray cluster that has them"
            )


def _count_gpus(config: RunConfig) -> Iterator[str]:
    """As many GPUs are here as any part of the run works on; a line where they cannot be counted."""
    needed = gpus_needed(config)
    if not needed or config.cluster.address is not None:
        return
    found = gpu_count()
    asked = ", ".join(f"{name} {count}" for name, count in needed.items())
    if found is None:
        yield f"GPUs cannot be counted (nvidia-smi -L fails), and {asked} are asked for: make sure that they are there"
    elif max(needed.values()) > found:
        raise InputError(
            f"{asked} GPUs are asked for, and this machine has {found} (nvidia-smi -L, CUDA_VISIBLE_DEVICES): "
            "lower engine.count, engine.tensor_parallel, judge_engine.count or trainer.workers, or set cluster.address "
            "to a Ray cluster that has them"
        )


def check_templates(config: RunConfig) -> list[str]:
    """What to know of the chat templates of the models that are asked or read here.

    Raises `InputError` where tokens would not be what the run relies on.
    """
    from tpo.engines.template_check import ANSWER, check_asked, check_read

    prompt = load_prompt(config.prompt)
    asked = [
        variant.render(question)
        for variant in (prompt, load_prompt(PromptConfig(variant="direct")))
        for question in QUESTIONS
    ]
    marked = [f"{prompt.thought_marker or ''} I add.\n{prompt.response_marker or ''} {ANSWER}".strip()]
    lines = check_asked(_seed_folder(config), asked, marked)
    if (writer := config.data.synthetic) is not None and writer.endpoint is None:
        few_shot = load_instruction_prompt(writer.template).render(QUESTIONS, writer.per_generation)
        lines += check_asked(writer.folder or _seed_folder(config), [few_shot], [f"<task>\n{ANSWER}\n</task>"])
    for judge in {judge.folder: judge for judge in model_judges(config)}.values():
        assert judge.folder is not None
        if isinstance(judge, PairwiseJudge):
            verdict = load_verdict_prompt(judge)
            compared = [verdict.render(question, ANSWER, f"{ANSWER} Or 43.") for question in QUESTIONS]
            lines += check_asked(judge.folder, compared, [f"{ANSWER} [[A]]"])
        else:
            read: list[Sequence[Message]] = [
                [Message(role="user", content=question), Message(role="assistant", content=ANSWER)]
                for question in QUESTIONS
            ]
            lines += check_read(judge.folder, read)
    return lines


def _parameters(folder: Path) -> int:
    """How many parameters a model has, by the headers of its files.

    Raises `InputError` where a file is cut off or is no safetensors.
    """
    return sum(prod(tensor.shape) for tensor in read_tensors(folder).values())


def _size(count: int) -> str:
    """Bytes for people."""
    return f"{count / GIB:,.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:,.1f} MiB"
