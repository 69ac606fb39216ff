"""The lineage of a published model: parents and data by hash, judge, settings and results.

Every field is chosen explicitly: a config also contains folders, addresses and a user's `extra_body`, which must not be
published. Files are identified by names and hashes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.publication.finished_model import FinishedModel, TpoModel, rounds_of
from flows.publication.finished_table import TableModel, trainings
from prompts.native import NativeThoughts
from tpo import __version__
from tpo.config.base import SHIPPED_MODELS
from tpo.config.data import ModelConfig
from tpo.config.hub import SCHEME, addresses_in, local_path, parse_address
from tpo.config.judges import EnsembleJudge, JudgeConfig, VerifierJudge
from tpo.config.recipes import Tpo
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.models.files import read_text
from tpo.storage.store import Manifest

_LICENCE = ("license", "license_name", "license_link")
_MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True)
class Base:
    """The model that training started from."""

    name: str
    """Its name on the model hub or, if it isn't from there, that of its folder."""
    on_hub: bool
    """Whether the name is that of a repository on the model hub."""
    revision: str | None
    """Its branch, tag or commit there."""
    sha256: str
    """SHA-256 over its files."""
    licence: Mapping[str, Any]
    """The license metadata of its model card; empty if unknown."""


@dataclass(frozen=True)
class StepRound:
    """One round of an iteration."""

    prompts: int
    """Prompts."""
    prompts_sha256: str
    """SHA-256 over them."""
    pairs: int
    """Pairs of their outputs."""
    error_pairs: int
    """Pairs whose rejected output breaks the format."""
    pairs_sha256: str
    """SHA-256 over them."""
    replayed: int
    """Pairs of earlier iterations that were added."""
    rho: float | None
    """Strength of length control."""


@dataclass(frozen=True)
class Step:
    """One iteration."""

    model: str
    """M_t."""
    sha256: str
    """SHA-256 over its files in the run."""
    parent: str
    """SHA-256 over the files of M_{t-1}."""
    chosen_epoch: int
    """The epoch that became M_t; 0 if no epoch was better and M_{t-1} was kept."""
    rounds: Sequence[StepRound]
    """What it was trained on; one, unless the run has several rounds an iteration."""


@dataclass(frozen=True)
class Training:
    """One training of a run whose models a table lists."""

    model: str
    """What it made: SFT_1, DPO_2, ThinkPO."""
    kind: str
    """`sft` or `dpo`."""
    sha256: str
    """SHA-256 over its checkpoints in the run."""
    parent: str
    """SHA-256 over the files of the model that it began with."""
    rows: int
    """Demonstrations or pairs."""
    rows_sha256: str
    """SHA-256 over them."""


@dataclass(frozen=True)
class Judge:
    """The judge of responses."""

    kind: str
    """Kind of judge."""
    model: str | None
    """Name of its model; None if there is none."""
    sha256: str | None
    """SHA-256 over the model's files; None if they weren't on this machine."""
    settings: Mapping[str, Any]
    """Further settings that affect its scores."""


@dataclass(frozen=True)
class Lineage:
    """The lineage of a published model."""

    model: str
    """M_t, SFT_t or ThinkPO."""
    recipe: str
    """`tpo`, `thinkpo` or `self_train`."""
    run: str
    """Name of the run."""
    seed: int
    """Of prompts, sampling, pairs and training order."""
    sha256: str
    """SHA-256 over the model's files in the run."""
    base: Base
    """M_0."""
    steps: Sequence[Step | Training]
    """Iterations 1 to t, or the trainings up to the model, except those whose folders were deleted."""
    data: Mapping[str, str]
    """SHA-256 of the files and folders that prompts were read from, by name."""
    source: str
    """Kind of source of the prompts."""
    prompt: Mapping[str, Any]
    """The thought prompt, and the markers that split outputs."""
    sampling: Mapping[str, Any]
    """How outputs were sampled."""
    judge: Judge | None
    """The judge of training responses; None if nothing was trained on scores, as in ThinkPO."""
    evaluation_judge: Judge
    """The judge of test responses."""
    pairing: Mapping[str, Any]
    """How scores became pairs."""
    training: Mapping[str, Any]
    """Loss and optimizer."""
    fine_tuning: Mapping[str, Any] | None
    """The same of supervised fine-tuning; None if there was none."""
    numbers: Sequence[Mapping[str, Any]]
    """Test results of M_0 answering directly, M_0, …, M_t, or of the models of the table up to this one."""
    confidence: float
    """Level of the intervals."""
    made_with: str
    """Version of this software."""


_NUMBERS = ("model", "score", "win_rate", "gain", "gain_over_direct", "parse_error_rate", "thought_chars",
            "response_chars")  # fmt: skip
_TABLE_NUMBERS = ("model", "below", "score", "gain", "tokens", "tokens_gain", "error_rate")


def lineage_of(model: FinishedModel) -> Lineage:
    """The lineage of a finished model."""
    config = model.config
    base = _base(config.model, model.parent)
    judgments, tested = model.judged
    return Lineage(
        model=model.name,
        recipe=config.recipe.kind,
        run=config.name,
        seed=config.seed,
        sha256=model.sha256,
        base=base,
        steps=list(_steps(model)),
        data=_data(model, base),
        source=config.data.source.kind if config.data.synthetic is None else "synthetic",
        prompt=_prompt(model),
        sampling=config.sample.model_dump(mode="json"),
        judge=None if judgments is None else _judge(config.judge, judgments.inputs.get("judge model")),
        evaluation_judge=_judge(config.evaluation.judge, tested.inputs.get("judge model")),
        pairing=_pairing(config),
        training=config.train.model_dump(mode="json"),
        fine_tuning=None if config.sft is None else config.sft.model_dump(mode="json"),
        numbers=list(_measured(model)),
        confidence=model.summary.confidence if isinstance(model, TpoModel) else config.evaluation.confidence,
        made_with=f"tpo {__version__}",
    )


def hub_name(path: str) -> tuple[str, str | None] | None:
    """Name and revision of the repository that an address on the hub names; None for a folder."""
    if not path.startswith(SCHEME):
        return None
    address = parse_address(path)
    return address.repo, address.revision


def _base(config: ModelConfig, sha256: str) -> Base:
    found = hub_name(config.path)
    if config.path in SHIPPED_MODELS:
        return Base(config.path, on_hub=False, revision=None, sha256=sha256, licence={"license": "apache-2.0"})
    licence = _licence(config.folder / "README.md")
    name, revision = found or (config.folder.resolve().name, None)
    return Base(name, on_hub=found is not None, revision=revision, sha256=sha256, licence=licence)


def _licence(card: Path) -> dict[str, Any]:
    """The license metadata of a model card."""
    try:
        text = read_text(card, _MAX_CARD_BYTES) if card.is_file() else ""
        head = yaml.safe_load(text.removeprefix("---\n").partition("\n---")[0]) if text.startswith("---\n") else {}
    except (InputError, yaml.YAMLError):
        return {}
    values = head if isinstance(head, dict) else {}
    return {key: values[key] for key in _LICENCE if isinstance(values.get(key), str)}


def _steps(model: FinishedModel) -> Iterator[Step | Training]:
    if isinstance(model, TpoModel):
        yield from _iterations(model)
    if isinstance(model, TableModel):
        yield from (_training(model, *found) for found in trainings(model))


def _training(model: TableModel, folder: str, kind: str, made: Manifest) -> Training:
    rows = model.manifests[f"{folder}/{'pairs' if kind == 'dpo' else 'demonstrations'}"]
    iteration = folder.partition("/")[0].removeprefix("iter_")
    names = {"sft": "SFT", "dpo": "ThinkPO"}
    name = names.get(folder) or f"{kind.upper()}_{iteration}"
    return Training(name, kind, made.fingerprint, made.inputs["model"], rows.rows, rows.fingerprint)


def _pairing(config: RunConfig) -> dict[str, Any]:
    """How scores, or lengths, became pairs."""
    if isinstance(config.recipe, Tpo):
        return config.pair.model_dump(mode="json")
    return config.recipe.model_dump(mode="json", exclude={"kind", "sft", "source"})


def _iterations(model: TpoModel) -> Iterator[Step]:
    for t in range(1, model.iteration + 1):
        rounds = rounds_of(model.config, t)
        needed = (f"iter_{t}/model", *(f"{folder}/{name}" for folder in rounds for name in ("prompts", "pairs")))
        if not all(name in model.manifests for name in needed):
            continue
        chosen = model.manifests[f"iter_{t}/model"]
        yield Step(
            model=f"M_{t}",
            sha256=chosen.fingerprint,
            parent=chosen.inputs["model 0"],
            chosen_epoch=chosen.facts["epoch"],
            rounds=[_round(model, folder) for folder in rounds],
        )


def _round(model: FinishedModel, folder: str) -> StepRound:
    prompts, pairs = model.manifests[f"{folder}/prompts"], model.manifests[f"{folder}/pairs"]
    replay = model.manifests.get(f"{folder}/replay")
    return StepRound(
        prompts=prompts.rows,
        prompts_sha256=prompts.fingerprint,
        pairs=pairs.rows,
        error_pairs=pairs.facts.get("error_rejected", 0),
        pairs_sha256=pairs.fingerprint,
        replayed=replay.facts["replayed"] if replay else 0,
        rho=pairs.facts.get("rho"),
    )


def _data(model: FinishedModel, base: Base) -> dict[str, str]:
    """Files that prompts or pairs were read from, without the models that wrote some of them."""
    hosted = {str(local_path(address)): parse_address(address).repo for _, address in addresses_in(model.config)}
    found = dict[str, str]()
    for name, manifest in model.manifests.items():
        if "/prompts" in name or name == "dpo/pairs":
            for path, sha256 in (manifest.external or {}).items():
                if sha256 != base.sha256:
                    found[hosted.get(path) or Path(path.removeprefix("package:")).name] = sha256
    return dict(sorted(found.items()))


def _prompt(model: FinishedModel) -> dict[str, Any]:
    prompt, thinking = model.prompt, model.encoder.thinking
    return {
        "variant": prompt.variant,
        "thought_marker": prompt.thought_marker,
        "response_marker": prompt.response_marker,
        "prefill": prompt.prefill,
        "native_thoughts": thinking.kind,
        "native_tags": list(thinking.tags),
        "native_use": prompt.native.use if isinstance(prompt.native, NativeThoughts) else None,
        "chat_template_options": model.config.model.chat_template_options,
        "sha256": prompt.fingerprint,
    }


def _judge(config: JudgeConfig, sha256: str | None) -> Judge:
    if isinstance(config, VerifierJudge):
        return Judge("verifier", None, None, config.model_dump(mode="json", exclude={"kind"}))
    if isinstance(config, EnsembleJudge):
        members = [
            {"name": each.name, "weight": each.weight, **asdict(_judge(each.judge, None))} for each in config.members
        ]
        settings = config.model_dump(mode="json", exclude={"kind", "members"}) | {"members": members}
        return Judge("ensemble", None, None, settings)
    keep = {
        *("mode", "tournament", "ridge", "max_new_tokens", "max_tokens", "template", "min_score", "max_score"),
        *("score_pattern", "samples", "temperature", "expected_score"),
    } & set(type(config).model_fields)
    found = hub_name(config.model)
    served = getattr(config, "endpoint", None) is not None
    name = found[0] if found else config.model if served else Path(config.model).name
    return Judge(config.kind, name, sha256, config.model_dump(mode="json", include=keep))


def _measured(model: FinishedModel) -> Iterator[dict[str, Any]]:
    if isinstance(model, TpoModel):
        for row in model.summary.models:
            if row.iteration <= model.iteration:
                yield {name: getattr(row, name) for name in _NUMBERS}
    if isinstance(model, TableModel):
        for measured in model.table.rows:
            yield {name: getattr(measured, name) for name in _TABLE_NUMBERS}
            if measured.model == model.name:
                return
