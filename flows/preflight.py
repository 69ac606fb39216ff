"""Checks before anything starts: `preflight` always, `check_before_work` if there is something to do.

`preflight` takes milliseconds and only looks at files. The rest looks at the machine, asks servers, and loads
tokenizers, which the run needs anyway, and a model's architecture if training requires something special of it: no
weights, no Ray, no vLLM, no Prefect. Raises `InputError` for what is certain to fail, saying what was found, what was
expected and what to do; if an estimate may be wrong, prints a warning instead.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from urllib.parse import urlsplit

from flows.conversations import check_conversations
from flows.prompt_counts import prompt_sets, sized, too_few_prompts
from judges.askers import ServerAsker
from judges.rater import ServerRatingAsker
from judges.reward_model import check_reward_folder
from judges.reward_server import RewardAsker
from judges.rubric import ServerRubricAsker
from prompts.instructions import can_be_shown, load_instruction_prompt
from prompts.quoting import without_control_tokens
from prompts.rating import load_rating_prompt
from prompts.rubric import labels_of, load_rubric_prompt
from prompts.thought import load_prompt
from prompts.verdict import load_verdict_prompt
from tasks.benchmark_prompts import check_benchmark
from tasks.source import question_key
from tpo.config.base import Endpoint
from tpo.config.contexts import contexts, pair_writers
from tpo.config.data import FileSource, InstructionSource, MiniatureSource, PromptConfig, SyntheticConfig
from tpo.config.fine_grained import FineGrainedConfig
from tpo.config.hub import local_path
from tpo.config.judges import (
    ArmoRMJudge,
    GenerativeJudge,
    PairwiseJudge,
    RewardModelJudge,
    RewardServerJudge,
    RubricJudge,
    ServedJudge,
    SingleJudge,
    VerifierJudge,
    checks_instructions,
    members_of,
)
from tpo.config.recipes import PairFile, PairModels, SelfTrain, ThinkPo, Tpo
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.data.benchmark_files import baseline_files
from tpo.data.pair_files import read_pair_rows
from tpo.data.prompt_files import check_prompt_file, file_of, read_prompt_rows
from tpo.engines.cluster.processes import LOOPBACK_NAMES, check_rays_folder, proxy_fault
from tpo.engines.inference.chat_client import Spent
from tpo.engines.inference.generator import ApiGenerator
from tpo.engines.inference.reply import TokenCount
from tpo.engines.training.check import check_generation_config, check_training
from tpo.engines.training.tracking import check_tracker, check_tracker_key
from tpo.errors import InputError, StoreError
from tpo.metrics.export import check_port
from tpo.models.armorm_format import check_armorm_folder
from tpo.models.folder import check_writer
from tpo.models.shape import Model, find_model
from tpo.models.tensors import read_tensors
from tpo.models.weights_check import check_weights
from tpo.planning.fit import (
    Misfit,
    context_misfits,
    cpu_misfits,
    device_misfits,
    disk_misfits,
    gpu_misfits,
    memory_misfits,
    quantization_misfits,
    refuse,
    split_misfits,
)
from tpo.planning.gate import gate_misfits
from tpo.planning.machine import cpu_count, free_disk, gpu_count, has_gpu, memory_bytes
from tpo.planning.needs import disk_needed, memory_needed, model_judges
from tpo.records import Message
from tpo.storage.bucket import Bucket
from tpo.storage.current import iterations_made
from tpo.storage.disk import remove, write_atomically
from tpo.storage.lock import check_unheld

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
    """Refuses a run that can't work on this machine with these files."""
    load_prompt(config.prompt)
    found = [*_context_misfits(config), *_split_misfits(config), *quantization_misfits(config)]
    for judge in config.single_judges:
        _check_judge(config, judge)
    if config.cluster.address is None and not has_gpu():
        found += device_misfits(config)
    refuse(found)
    check_tracker(config.tracking)
    _check_constraints(config)
    _check_files(config)
    refuse(gate_misfits(config))
    if config.data.synthetic is not None:
        _check_synthetic(config, config.data.synthetic)
    if config.evaluation.fine_grained is not None:
        _check_rater(config, config.evaluation.fine_grained)
        _check_kinds(config, config.evaluation.fine_grained)
    _check_folder(config.root)


def check_before_work(config: RunConfig, iterations: int) -> None:
    """Refuses a run to M_T, T = `iterations`, that this machine, its models or its servers can't do.

    Only for a run that has something to do: it writes a probe into the run folder, asks servers and loads tokenizers.
    """
    _check_run_folder(config)
    for fault in too_few_prompts(config, iterations):
        raise InputError(fault)
    config = sized(config)
    misfits = [*_disk_misfits(config, iterations), *machine_misfits(config), *gate_misfits(config)]
    for line in refuse([*misfits, *quantization_misfits(config)]):
        say(line)
    check_endpoints(config)
    check_tracker_key(config.tracking)
    check_port(config.metrics)
    for folder in writers(config):
        for line in check_weights(folder):
            say(line)
    check_generation_config(config.model.folder)
    check_training(config.model.folder, config.train, config.trainer)
    if config.sft is not None:
        check_training(config.model.folder, config.sft, config.trainer, section="recipe.sft")
    for line in (*check_templates(config), *check_conversations(config)):
        say(line)
    check_benchmarks(config)


def _check_run_folder(config: RunConfig) -> None:
    check_unheld(config.root)
    check_proxies(config)
    _check_places(config)
    _check_writing(config.root)
    if not isinstance(config.folder, Path):
        Bucket(config.place, config.storage).check_conditions()


def check_evaluation(config: RunConfig) -> None:
    """Refuses to evaluate a model that can't be asked on this machine; looks at files only."""
    load_prompt(config.prompt)
    folder, judge = config.model.folder, config.evaluation.judge
    tokens = check_writer(folder, device=config.engine.device)
    found = [
        misfit
        for asked in contexts(config)
        if asked.folder is None
        for misfit in context_misfits(asked, tokens, folder)
    ]
    if config.cluster.address is None and not has_gpu():
        found += device_misfits(config)
    refuse([*found, *quantization_misfits(config)])
    for member in members_of(judge):
        _check_judge(config, member)
    if config.evaluation.fine_grained is not None:
        _check_rater(config, config.evaluation.fine_grained)
    for benchmark in config.evaluation.benchmarks:
        if benchmark.needs_baseline(judge) and not baseline_files(benchmark):
            raise InputError(
                f"the benchmark {benchmark.title} compares responses, and a single model has nothing to be compared "
                "with: set its baseline_path in the profile's evaluation.benchmarks"
            )
    _check_folder(config.root)


def check_before_evaluation(config: RunConfig) -> None:
    """The same for what takes longer: it writes a probe, asks servers and loads the tokenizer."""
    _check_run_folder(config)
    check_endpoints(config)
    slow = refuse(quantization_misfits(config))
    for line in (*slow, *check_weights(config.model.folder), *check_templates(config)):
        say(line)
    check_benchmarks(config)


def check_judging(config: RunConfig) -> None:
    """Refuses to have the judge of a config score responses if it can't: its files, this machine, its chat template,
    its server, the run folder."""
    for member in members_of(config.judge):
        _check_judge(config, member)
    if config.cluster.address is None and not has_gpu():
        refuse(list(device_misfits(config)))
    _check_folder(config.root)
    _check_run_folder(config)
    check_endpoints(config)
    for line in (*refuse(quantization_misfits(config)), *_check_judges_templates(config)):
        say(line)


def check_benchmarks(config: RunConfig) -> None:
    """Refuses benchmarks whose files can't be used, or whose prompts are too long as the models are asked."""
    from tpo.models.chat import writer_encoder

    if config.evaluation.benchmarks:
        encoder = writer_encoder(config.model.folder, config.model)
        for benchmark in config.evaluation.benchmarks:
            check_benchmark(config, benchmark, encoder)


def check_proxies(config: RunConfig) -> None:
    """Refuses a run that asks servers elsewhere if the environment names a proxy that HTTP clients can't use."""
    judges = [judge for judge in config.single_judges if isinstance(judge, ServedJudge)]
    askers = (*judges, config.data.synthetic, config.evaluation.fine_grained)
    endpoints = [asker.endpoint for asker in askers if asker is not None and asker.endpoint]
    asked = {endpoint.base_url for endpoint in endpoints} | {os.environ.get("PREFECT_API_URL", "")}
    if not isinstance(config.folder, Path):
        asked.add(config.storage.endpoint_url or os.environ.get("AWS_ENDPOINT_URL", "https://s3.amazonaws.com"))
    elsewhere = sorted(url for url in asked if url and urlsplit(url).hostname not in LOOPBACK_NAMES)
    if config.tracking.to not in ("tensorboard", "none"):
        elsewhere.append(config.tracking.to)
    if elsewhere and (fault := proxy_fault(os.environ)) is not None:
        raise InputError(
            f"{fault}, and the run asks {elsewhere[0]}: name another proxy, or unset the variable if none is needed"
        )


def model_checks(config: RunConfig) -> list[Callable[[], object]]:
    """The checks of M_0 that a run makes beyond those of its folder's files, to be made one by one."""
    folder, sft = config.model.folder, config.sft
    checks: list[Callable[[], object]] = [
        lambda: _context_misfits(config),
        lambda: _split_misfits(config),
        lambda: check_weights(folder),
        lambda: check_generation_config(folder),
        lambda: check_training(folder, config.train, config.trainer),
    ]
    if sft is not None:
        checks.append(lambda: check_training(folder, sft, config.trainer, section="recipe.sft"))
    return checks


def check_tpo(config: RunConfig) -> None:
    """Refuses a run of TPO whose profile is another recipe's."""
    config.recipe_as(Tpo)


def check_self_training(config: RunConfig) -> None:
    """Refuses a run of self-training whose profile can't make one."""
    _check_no_other_scores(config)
    source, recipe = config.data.source, config.recipe_as(SelfTrain)
    right = "instruction_ids_column" if checks_instructions(config.judge) else "reference_column"
    if isinstance(source, FileSource) and not (getattr(source, right) and source.demonstration_column):
        raise InputError(
            f"data.source names no {right} or no demonstration_column, and self-training starts from demonstrations "
            "and needs to know what is right: name both"
        )
    most = config.data.per_iteration
    if most != "all" and (recipe.demonstrations or 0) > most:
        raise InputError(
            f"recipe.demonstrations is {recipe.demonstrations}, expected at most data.per_iteration, {most}: they are "
            "those of the first questions"
        )


def check_thinkpo(config: RunConfig) -> None:
    """Refuses a run of ThinkPO whose profile, models or files can't make one."""
    _check_no_other_scores(config)
    source, prompts = config.recipe_as(ThinkPo).source, config.data.source
    if isinstance(source, PairFile):
        read_pair_rows(source)
    elif config.sft is None:
        raise InputError(
            'recipe.source.kind is "models", but there is no section [recipe.sft], whose prompts the models write for: '
            'add [recipe.sft], or take pairs from a file (recipe.source.kind = "file")'
        )
    else:
        for prompt in (source.long_prompt, source.short_prompt):
            load_prompt(prompt)
        for model, own in ((source.long, "demonstrations"), (source.short, "seed")):
            if model != own:
                check_writer(local_path(model), device=config.engine.device)
    if config.sft is not None and isinstance(prompts, FileSource) and prompts.demonstration_column is None:
        raise InputError(
            "[recipe.sft] is set, but data.source.demonstration_column isn't: name the column that holds the responses "
            "to imitate"
        )


def _check_no_other_scores(config: RunConfig) -> None:
    if config.evaluation.benchmarks:
        raise InputError(
            f'evaluation.benchmarks is set and recipe.kind is "{config.recipe.kind}", whose runs measure none: leave '
            "them out, and evaluate a finished model with tpo evaluate <folder> (make evaluate MODEL=)"
        )
    if config.evaluation.fine_grained is not None:
        raise InputError(
            f'evaluation.fine_grained is set and recipe.kind is "{config.recipe.kind}", whose runs have no M_0 '
            "answering directly to be compared with: leave it out"
        )
    if config.health.max_attacked is not None:
        raise InputError(
            f'health.max_attacked is set and recipe.kind is "{config.recipe.kind}", whose runs attack no judge: leave '
            'it out, measure the judge with make judge-check ATTACK=1, or use recipe.kind = "tpo"'
        )
    if config.evaluation.verifier is not None:
        raise InputError(
            f'evaluation.verifier is set and recipe.kind is "{config.recipe.kind}", whose runs validate no models: '
            'leave it out, or use recipe.kind = "tpo"'
        )


def writers(config: RunConfig) -> list[Path]:
    """The folders of all models that generate text in a run, each once: M_0, generating judges, and any others."""
    folders = [config.model.folder]
    folders += [judge.folder for judge in model_judges(config) if isinstance(judge, GenerativeJudge) and judge.folder]
    if config.data.synthetic is not None and config.data.synthetic.folder is not None:
        folders.append(config.data.synthetic.folder)
    if config.evaluation.fine_grained is not None and config.evaluation.fine_grained.folder is not None:
        folders.append(config.evaluation.fine_grained.folder)
    source = config.recipe.source if isinstance(config.recipe, ThinkPo) else None
    if isinstance(source, PairModels):
        folders += [
            local_path(model) for model in (source.long, source.short) if model not in ("demonstrations", "seed")
        ]
    return list(dict.fromkeys(folders))


def _context_misfits(config: RunConfig) -> Iterator[Misfit]:
    """Each model that writes can be used as the run uses it, and has room for its own prompts and outputs."""
    seed = config.model.folder
    for asked in contexts(config):
        folder = asked.folder or seed
        tokens = check_writer(folder, trained=folder == seed, device=config.engine.device)
        yield from context_misfits(asked, tokens, folder)


def _split_misfits(config: RunConfig) -> Iterator[Misfit]:
    """vLLM can split each model over the GPUs of an engine, as far as its `config.json` tells."""
    seed = config.model.folder
    models = dict[Path | None, Model]()
    for folder in writers(config):
        # A model with an unusual shape, such as a mixture of experts, is left to vLLM.
        with contextlib.suppress(InputError):
            models[None if folder == seed else folder] = find_model(folder)
    yield from split_misfits(config, models)


def _check_judge(config: RunConfig, judge: SingleJudge) -> None:
    match judge:
        case RewardModelJudge():
            check_reward_folder(judge.folder, judge.score)
        case ArmoRMJudge():
            check_armorm_folder(judge.folder)
        case PairwiseJudge() | RubricJudge():
            _ = load_verdict_prompt(judge) if isinstance(judge, PairwiseJudge) else load_rubric_prompt(judge)
            if judge.folder is not None:
                check_writer(judge.folder, device=config.judge_engine.device)


def _check_rater(config: RunConfig, settings: FineGrainedConfig) -> None:
    """The rater's prompt and its folder can be used."""
    load_rating_prompt(settings)
    if settings.folder is not None:
        check_writer(settings.folder, device=config.judge_engine.device)


def _check_kinds(config: RunConfig, settings: FineGrainedConfig) -> None:
    """Without a rater, test prompts bring their kinds, as far as the config tells."""
    source = config.data.source
    if settings.model is not None or not isinstance(source, FileSource):
        return
    if source.category_column is None and source.difficulty_column is None:
        raise InputError(
            "evaluation.fine_grained has no model to rate instructions, and data.source brings neither categories nor "
            "difficulties: set evaluation.fine_grained.model, or name data.source.category_column or difficulty_column"
        )


def check_endpoints(config: RunConfig) -> None:
    """Refuses a run whose judge, rater or generator is behind a server that is down, doesn't know the key or the model,
    or doesn't take what it will be asked: each is asked once, just as the run will ask.

    Apart from `preflight`, since it asks the server: only a run that has something to do may.
    """
    for judge in {judge.model_dump_json(): judge for judge in config.single_judges}.values():
        for line in _ask_judge(judge):
            say(line)
    rater = config.evaluation.fine_grained
    if rater is not None and rater.endpoint is not None:
        for line in ServerRatingAsker(rater, rater.endpoint, load_rating_prompt(rater), TokenCount()).check():
            say(line)
    writer = config.data.synthetic
    if writer is not None and writer.endpoint is not None:
        few_shot = load_instruction_prompt(writer.template).render(QUESTIONS, writer.per_generation)
        ApiGenerator(writer, writer.endpoint, Spent(), without_control_tokens).check(few_shot)


def _ask_judge(judge: SingleJudge) -> Iterator[str]:
    """Asks a judge behind a server one question, just as the run will; yields what to know about its reply."""
    match judge:
        case PairwiseJudge(endpoint=Endpoint() as endpoint):
            yield from ServerAsker(judge, endpoint, load_verdict_prompt(judge), TokenCount()).check()
        case RubricJudge(endpoint=Endpoint() as endpoint):
            yield from ServerRubricAsker(judge, endpoint, load_rubric_prompt(judge), TokenCount()).check()
        case RewardServerJudge():
            yield from RewardAsker(judge, TokenCount()).check()


def _check_files(config: RunConfig) -> None:
    """The files that are read first are there, and have as many prompts as are taken of them until then."""
    source = config.data.source
    if not isinstance(source, FileSource):
        return
    if not isinstance(config.recipe, Tpo):
        first_read = [each.path for each in prompt_sets(config, 1)]
    else:
        first_read = [file_of(source, "", 1), file_of(source, "validation", 0), file_of(source, "test", 0)]
    for path in dict.fromkeys(first_read):
        check_prompt_file(source, path)
    for fault in too_few_prompts(config, 1):
        raise InputError(fault)


def _files_of(source: FileSource) -> list[Path]:
    """The files that are read before the second iteration, each once."""
    first_read = [("", 1), ("validation", 0), ("test", 0)]
    return list(dict.fromkeys(file_of(source, kind, iteration) for kind, iteration in first_read))


def _check_constraints(config: RunConfig) -> None:
    """Prompts bring verifiable instructions if a judge checks them; a prompt without any is unscored."""
    named = [
        (name, member)
        for name, judge in (("judge", config.judge), ("evaluation.judge", config.evaluation.judge))
        for member in members_of(judge)
    ]
    if config.evaluation.verifier is not None:
        named.append(("evaluation.verifier", config.evaluation.verifier))
    names = " and ".join(f"{name}.match" for name, judge in named if checks_instructions(judge))
    source = config.data.source
    others = [name for name, judge in named if isinstance(judge, VerifierJudge) and not checks_instructions(judge)]
    if others and isinstance(source, InstructionSource):
        raise InputError(
            f"{' and '.join(others)} is a verifier that compares with references, and data.source.kind is "
            f'"instructions", whose prompts have none: set {others[0]}.match = "instructions", or choose another judge'
        )
    if not names:
        return
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
    for file in settings.avoid:
        try:
            check_prompt_file(
                FileSource(path=file.path, instruction_column=file.instruction_column), local_path(file.path)
            )
        except InputError as error:
            raise InputError(f"data.synthetic.avoid: {error}") from error
    if isinstance(config.data.source, FileSource):
        _check_examples(config, config.data.source, settings)


def _check_examples(config: RunConfig, source: FileSource, settings: SyntheticConfig) -> None:
    """Checks that enough instructions are left for examples after validation and test take theirs."""
    path = file_of(source, "", 1)
    rows = [row for row in read_prompt_rows(source, path) if row.history is None]
    texts = {question_key(row.instruction) for row in rows if can_be_shown(row.instruction)}
    counts = {"validation": config.data.validation, "test": config.data.test}
    taken = {kind: count for kind, count in counts.items() if file_of(source, kind, 0) == path}
    left = len(texts) - sum(taken.values())
    if left < settings.shots:
        shares = "".join(f", {count} of them for {kind}" for kind, count in taken.items())
        raise InputError(
            f"{path} has {len(texts)} instructions that can be examples{shares}, and data.synthetic.shots = "
            f"{settings.shots} must be left: add some, give validation and test their own files, or lower shots"
        )


def _check_folder(root: Path) -> None:
    """Checks that the run folder exists or can be made, as far as its name and existing folders show."""
    root = root.resolve()
    try:
        parent = next(path for path in (root, *root.parents) if path.exists())
        longest_path, longest_name = os.pathconf(parent, "PC_PATH_MAX"), os.pathconf(parent, "PC_NAME_MAX")
    except OSError as error:
        # If a name or the whole path is longer than any file system allows, even looking fails.
        if error.errno != errno.ENAMETOOLONG:
            raise InputError(f"{root} cannot be looked at ({error.strerror}): set folder in the profile") from error
        parent, longest_path, longest_name = Path("/"), 4096, 255
    if (long := max(len(os.fsencode(part)) for part in root.parts)) > longest_name:
        raise InputError(
            f"{root} has a name of {long} bytes in it, but names have up to {longest_name} here: give the run a "
            "shorter --run-name, or set folder in the profile to one with shorter names"
        )
    if len(os.fsencode(root)) + _LONGEST_PATH_BELOW > longest_path:
        raise InputError(
            f"{root} has {len(os.fsencode(root))} bytes, and files in it need {_LONGEST_PATH_BELOW} more, but paths "
            f"have up to {longest_path} here: set folder in the profile to one with a shorter path"
        )
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{parent} is not a folder that can be written to: set folder in the profile to one that is")


def _check_places(config: RunConfig) -> None:
    """Checks the folders where Prefect and Ray keep their files."""
    home = Path(os.environ.get("PREFECT_HOME") or ".prefect").absolute()
    parent = next(path for path in (home, *home.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(
            f"{home}, where Prefect keeps its database, cannot be made or written to: set PREFECT_HOME to a folder "
            "that can be"
        )
    if config.cluster.address is None:
        check_rays_folder()


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


def _disk_misfits(config: RunConfig, iterations: int) -> Iterator[Misfit]:
    """Misfits if the remaining work doesn't fit on the disk."""
    done = iterations_made(config)
    left = range(done + 1, iterations + 1)
    written = sum(
        path.stat().st_size
        for part in ("train/epoch_*", "round_*/train/epoch_*", "round_*/train/state")
        for path in config.root.glob(f"iter_*/{part}/*.safetensors")
        if path.relative_to(config.root).parts[0] not in {f"iter_{t}" for t in range(done + 1)}
    )
    if not isinstance(config.recipe, Tpo):
        written = sum(path.stat().st_size for path in config.root.glob("**/train/epoch_*/*.safetensors"))
    needed = disk_needed(config, left, parameters=_parameters(config.model.folder), written=written)
    return disk_misfits(config, needed, free_disk(config.root))


def machine_misfits(config: RunConfig) -> Iterator[Misfit]:
    """This machine has the memory, the CPUs and the GPUs that a run needs at once; a cluster is left to Ray."""
    seed = config.model.folder
    yield from cpu_misfits(config, cpu_count())
    if config.cluster.address is None:
        if has_gpu():
            yield from gpu_misfits(config, gpu_count(), "this machine, by nvidia-smi -L and CUDA_VISIBLE_DEVICES")
        else:
            yield from device_misfits(config)
    yield from memory_misfits(memory_needed(config, lambda folder: _parameters(folder or seed)), memory_bytes())


def check_templates(config: RunConfig) -> list[str]:
    """What to know of the chat templates of the models that are asked or read here.

    Raises `InputError` if tokens would not be what the run relies on.
    """
    from tpo.models.chat import writer_encoder
    from tpo.models.template_check import ANSWER, check_asked, check_thinking

    prompt, seed = load_prompt(config.prompt), config.model.folder
    asked = [
        variant.render(question)
        for variant in (prompt, load_prompt(PromptConfig(variant="direct")))
        for question in QUESTIONS
    ]
    marked = [f"{prompt.thought_marker or ''} I add.\n{prompt.response_marker or ''} {ANSWER}".strip()]
    lines = check_asked(seed, asked, marked, writer_encoder(seed, config.model), thinking=prompt.thinks_natively)
    if isinstance(config.recipe, Tpo):
        lines += check_thinking(seed, writer_encoder(seed, config.model), natively=prompt.thinks_natively)
    for each in pair_writers(config):
        wording = load_prompt(each.prompt)
        lines += check_asked(each.folder or config.model.folder, [wording.render(q) for q in QUESTIONS], [ANSWER])
    if (writer := config.data.synthetic) is not None and writer.endpoint is None:
        few_shot = load_instruction_prompt(writer.template).render(QUESTIONS, writer.per_generation)
        lines += check_asked(writer.folder or config.model.folder, [few_shot], [f"<task>\n{ANSWER}\n</task>"])
    if (rater := config.evaluation.fine_grained) is not None and rater.folder is not None:
        rating = load_rating_prompt(rater)
        shown = [rating.render(question) for question in QUESTIONS]
        lines += check_asked(rater.folder, shown, ["[[Category: Other]] [[Complexity: 1]]"])
    return lines + _check_judges_templates(config)


def _check_judges_templates(config: RunConfig) -> list[str]:
    """The same for the judges alone."""
    from tpo.models.template_check import ANSWER, check_asked, check_labels_first, check_read

    lines = list[str]()
    for judge in {judge.folder: judge for judge in model_judges(config)}.values():
        assert judge.folder is not None
        if isinstance(judge, PairwiseJudge):
            verdict = load_verdict_prompt(judge)
            compared = [verdict.render(question, ANSWER, f"{ANSWER} Or 43.") for question in QUESTIONS]
            lines += check_asked(judge.folder, compared, [f"{ANSWER} [[A]]"])
            if judge.mode != "cot":
                check_labels_first(judge.folder)
        elif isinstance(judge, RubricJudge):
            rubric = load_rubric_prompt(judge)
            graded = [rubric.render(question, ANSWER) for question in QUESTIONS]
            lines += check_asked(judge.folder, graded, [f"{ANSWER} [[Score: 7]]"])
            if judge.expected_score:
                check_labels_first(judge.folder, "judge.expected_score", "false", labels_of(judge))
        else:
            read: list[Sequence[Message]] = [
                [Message(role="user", content=question), Message(role="assistant", content=ANSWER)]
                for question in QUESTIONS
            ]
            lines += check_read(judge.folder, read)
    return lines


def _parameters(folder: Path) -> int:
    """A model's number of parameters, from the headers of its files.

    Raises `InputError` if a file is truncated or isn't in safetensors format.
    """
    return sum(prod(tensor.shape) for tensor in read_tensors(folder).values())
