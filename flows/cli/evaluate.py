"""`make evaluate`: a model on benchmarks, asked as its run asks it."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from flows.preflight import check_before_evaluation, check_evaluation
from flows.recipes import config_of_run, fetch_hub_files, profile_path
from tpo.config.benchmarks import BenchmarkConfig, EvaluationConfig
from tpo.config.data import DataConfig, ModelConfig, PromptConfig
from tpo.config.gate import GateConfig
from tpo.config.judges import VerifierJudge
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.errors import InputError, StoreError, shortened
from tpo.models.folder import check_model_folder
from tpo.report.benchmarks import BENCHMARKS, Benchmarks, read_benchmarks
from tpo.storage.current import is_current
from tpo.storage.mirror import reading

_MAX_PROMPT_TOKENS = 2048
_ADAPTER: TypeAdapter[BenchmarkConfig] = TypeAdapter(BenchmarkConfig)


def evaluation_config(
    model: str,
    *,
    benchmarks: Sequence[str],
    profile: str | None,
    run_name: str | None,
    variant: str | None,
    limit: int | None,
    max_new_tokens: int | None,
    overrides: Sequence[str],
) -> RunConfig:
    """The config of an evaluation: the profile's prompt, sampling, engines, judge and benchmarks, without what only a
    training needs.

    Raises `InputError` if there is no benchmark, or one that isn't known.
    """
    own = config_of_run(ModelConfig(path=model).folder)
    written = load_config(profile_path(profile) if profile else own or profile_path("laptop"), overrides)
    changes = {"limit": limit, "max_new_tokens": max_new_tokens}
    changed = {name: value for name, value in changes.items() if value is not None}
    chosen = [_roomy(written, each.model_copy(update=changed), model) for each in _chosen(written, benchmarks)]
    try:
        evaluation = EvaluationConfig(
            judge=written.evaluation.judge,
            confidence=written.evaluation.confidence,
            benchmarks=tuple(chosen),
            fine_grained=written.evaluation.fine_grained,
        )
    except ValidationError as error:
        raise InputError(f"evaluation: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    update = {
        "name": run_name or f"evaluation-{model_name(model)}" + (f"-{variant}" if variant else ""),
        "model": written.model.model_copy(update={"path": model, "package": _package(written, model)}),
        "evaluation": evaluation,
        "judge": VerifierJudge(),
        "gate": GateConfig(),
        "data": DataConfig(max_prompt_tokens=written.data.max_prompt_tokens),
    }
    if variant is not None:
        update["prompt"] = PromptConfig.model_validate({"variant": variant})
        if variant == "direct":
            update["sample"] = written.sample.model_copy(update={"max_thought_tokens": None})
    return written.model_copy(update=update)


def evaluated(config: RunConfig) -> Benchmarks | None:
    """The results of an evaluation that is finished and current."""
    with reading(config):
        if not is_current(config):
            return None
        try:
            return read_benchmarks(config.root / BENCHMARKS)
        except StoreError:
            return None


def ready(config: RunConfig) -> tuple[RunConfig, Benchmarks | None]:
    """The config with everything fetched, and the results if there is nothing to do; raises `InputError` if the model
    or a benchmark can't be used here."""
    config = fetch_hub_files(config)
    check_evaluation(config)
    if (found := evaluated(config)) is None:
        check_before_evaluation(config)
    return config, found


def model_name(model: str) -> str:
    """A model's name in tables: `laptop-M_3` for `runs/laptop/iter_3/model`, otherwise its folder's."""
    parts = Path(model.rstrip("/")).parts
    if len(parts) >= 3 and parts[-1] == "model" and (found := re.fullmatch(r"iter_(\d+)", parts[-2])):
        return f"{parts[-3]}-M_{found[1]}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1].partition("@")[0]).strip("-.") or "model"


def _roomy(written: RunConfig, benchmark: BenchmarkConfig, model: str) -> BenchmarkConfig:
    """The benchmark with room for prompts of up to 2,048 tokens, as far as the model's context leaves that, unless it
    says itself how long they may be."""
    folder = ModelConfig(path=model).folder
    if benchmark.max_prompt_tokens is not None or not folder.is_dir():
        return benchmark
    left = check_model_folder(folder) - (benchmark.max_new_tokens or written.sample.max_new_tokens)
    longest = max(written.data.max_prompt_tokens, min(_MAX_PROMPT_TOKENS, left))
    return benchmark.model_copy(update={"max_prompt_tokens": longest})


def _package(written: RunConfig, model: str) -> object:
    return written.model.package if model == written.model.path else None


def _chosen(written: RunConfig, words: Sequence[str]) -> list[BenchmarkConfig]:
    """The benchmarks of the profile, or those of it that are named; `kind=path` is one that it doesn't have."""
    known = {each.title: each for each in written.evaluation.benchmarks}
    found = list[BenchmarkConfig]()
    for word in words or list(known):
        name, given, path = word.partition("=")
        if given:
            found.append(_by_path(name, path))
        elif name in known:
            found.append(known[name])
        else:
            there = f"the profile has {', '.join(known)}" if known else "the profile has none"
            raise InputError(
                f"there is no benchmark {shortened(repr(name))}: {there}; or name a kind with its file, such as "
                "BENCH=ifeval=ifeval.jsonl"
            )
    if not found:
        raise InputError(
            "there is no benchmark: name a kind with its file, such as BENCH=ifeval=ifeval.jsonl, or set "
            "evaluation.benchmarks in the profile"
        )
    return found


def _by_path(kind: str, path: str) -> BenchmarkConfig:
    try:
        return _ADAPTER.validate_python({"kind": kind, "path": path})
    except ValidationError as error:
        raise InputError(f"BENCH={kind}={path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
