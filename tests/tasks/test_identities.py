"""Claims about what identifies the result of each stage."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from prompts.template import TEMPLATES
from tasks.demonstrate import demonstrations_stage
from tasks.fine_tune import fine_tune_stage
from tasks.handles import (
    Candidate,
    JudgedSamples,
    JudgeInput,
    SamplingSpec,
    direct_spec,
    labelling_spec,
    measuring_spec,
    pairing_spec,
    seed_model,
    training_spec,
    validation_spec,
    write_spec,
)
from tasks.judge_stages import judgments_stage, scores_stage
from tasks.pair import pairs_stage
from tasks.pair_by_answer import pairs_by_answer_stage
from tasks.pseudo_label import pseudo_labels_stage
from tasks.rate import Brought, ratings_stage
from tasks.replay import replay_stage
from tasks.sample import samples_stage
from tasks.source import is_written, prompts_stage
from tasks.synthesize import generations_stage
from tasks.train import reference_of, train_stage
from tasks.validate import model_stage
from tests.rows import a_config, a_model
from tpo.config.contexts import context_of
from tpo.config.fine_grained import FineGrainedConfig
from tpo.config.recipes import SelfTrain, ThinkPo
from tpo.config.renamed import as_noted
from tpo.config.run import RunConfig
from tpo.config.training import SftConfig
from tpo.records import Artifact
from tpo.storage.store import Stage

EVERYTHING = {"prompts", "samples", "judgments", "scores", "pairs", "train", "model", "test"}
AFTER_PROMPTS = EVERYTHING - {"prompts"}
AFTER_SCORES = {"pairs", "train", "model", "test"}


def shown(value: object) -> str:
    """A value as a test id: the same in every process."""
    return ", ".join(sorted(map(str, value))) if isinstance(value, set) else str(value)


def identity(stage: Stage) -> Artifact:
    """The artifact that the stage would make, identified by its inputs and config."""
    matters = {key: value for key, value in leaves(stage.config) if key not in stage.without_effect}
    name = hashlib.sha256(repr((stage.record, sorted(stage.inputs.items()), matters)).encode()).hexdigest()
    return Artifact(stage.folder, 1, name)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def identities(config: RunConfig) -> dict[str, str]:
    """The identity of each stage up to the first iteration."""
    seed = seed_model(config)
    validation = identity(prompts_stage(config, "iter_0/prompts/validation", seed, []))
    test = identity(prompts_stage(config, "iter_0/prompts/test", seed, [validation]))
    stages = {}
    generations = None
    if is_written(config, "iter_1/prompts"):
        generations = identity(generations_stage(config, "iter_1/prompts", seed, [validation, test]))
        stages["generations"] = generations
    prompts = identity(prompts_stage(config, "iter_1/prompts", seed, [validation, test], generations))
    samples, judgments, answers = asked(config, training_spec(config, 1), seed, prompts)
    pairs = identity(pairs_stage(config, 1, answers))
    train = identity(train_stage(config, "iter_1", seed, seed, pairs))
    mixed = identity(replay_stage(config, 2, 1, pairs, [pairs]))
    later = train_stage(config, "iter_2", train, reference_of(config, seed, train), mixed)
    trained = Artifact(train.path, 1, train.fingerprint + identity(later).fingerprint)
    incumbent = Candidate(seed, asked(config, validation_spec(config, 0, 0), seed, validation)[2])
    candidate = Candidate(train, asked(config, validation_spec(config, 1, 1), train, validation)[2])
    model = identity(model_stage(config, 1, incumbent, [candidate]))
    _, _, tested = asked(config, measuring_spec(config, 1), model, test)
    stages |= {
        "prompts": prompts, "samples": samples, "judgments": judgments, "scores": answers.scores, "pairs": pairs,
        "train": trained, "model": model, "test": tested.scores,
    }  # fmt: skip
    return {name: artifact.fingerprint for name, artifact in stages.items()}


def asked(
    config: RunConfig, spec: SamplingSpec, model: Artifact, prompts: Artifact
) -> tuple[Artifact, Artifact, JudgedSamples]:
    samples = identity(samples_stage(config, spec, model, prompts))
    submitted = JudgeInput(samples, prompts)
    judgments = identity(judgments_stage(config, spec, submitted))
    scores = identity(scores_stage(config, spec, submitted, judgments))
    return samples, judgments, JudgedSamples(samples, scores)


def changed_by(config: RunConfig, **changes: Any) -> set[str]:
    before, after = identities(config), identities(changed(config, **changes))
    return {name for name in before if before[name] != after[name]}


def changed(config: RunConfig, **changes: Any) -> RunConfig:
    """The config with some values replaced: `section__field=value`."""
    values = config.model_dump()
    for path, value in changes.items():
        *sections, last = path.split("__")
        place = values
        for section in sections:
            place = place[section]
        place[last] = value
    return RunConfig.model_validate(values)


def test_the_same_config_gives_the_same_stages(tmp_path: Path):
    assert identities(a_config(tmp_path)) == identities(a_config(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another"},
        {"folder": Path("elsewhere")},
        {"engine__count": 2},
        {"engine__device": "gpu"},
        {"engine__threads": 1},
        {"engine__kv_cache_gib": 4},
        {"engine__shard_prompts": 7},
        {"engine__tensor_parallel": 2},
        {"engine__max_num_seqs": 8},
        {"trainer__device": "gpu"},
        {"trainer__threads": 1},
        {"cluster__address": "auto"},
        {"evaluation__confidence": 0.9},
        {"judge_engine__count": 2},
        {"judge_engine__batch_tokens": 64},
        {"judge_engine__dtype": "bfloat16"},
        {"health__max_unscored": 0.5},
        {"tracking__to": "none"},
        {"tracking__project": "another"},
        {"train__micro_batch_size": 16},
        {"train__packing": True},
        {"train__gradient_checkpointing": True},
        {"train__alpha": 2.0},
        {"train__divergence_alpha": 0.4},
    ],
    ids=shown,
)
def test_where_a_run_runs_its_batching_and_unused_values_identify_nothing(tmp_path: Path, changes: dict[str, Any]):
    assert changed_by(a_config(tmp_path), **changes) == set()


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"seed": 1}, EVERYTHING),
        ({"data__per_iteration": 3}, EVERYTHING),
        ({"data__test": 3}, EVERYTHING),
        ({"data__max_prompt_tokens": 99}, EVERYTHING),
        ({"data__overlap": "refuse"}, EVERYTHING),
        ({"prompt__variant": "specific"}, EVERYTHING),
        ({"engine__dtype": "bfloat16"}, AFTER_PROMPTS),
        ({"sample__k": 3}, AFTER_PROMPTS),
        ({"sample__temperature": 0.5}, AFTER_PROMPTS),
        ({"sample__max_attempts": 2}, AFTER_PROMPTS),
        ({"sample__evaluation_max_attempts": 2}, {"model", "test"}),
        ({"judge__match": "math"}, {"judgments", "scores", "pairs", "train", "model", "test"}),
        ({"judge__length_bias": 1.0}, {"scores", "pairs", "train", "model", "test"}),
        ({"pair__min_margin": 0.1}, AFTER_SCORES),
        ({"pair__rho": 0.1}, AFTER_SCORES),
        ({"pair__replay_share": 0.1}, {"train"}),
        ({"train__learning_rate": 0.1}, {"train", "model", "test"}),
        ({"trainer__workers": 2, "train__micro_batch_size": 16}, {"train", "model", "test"}),
        ({"validation__min_scored_share": 0.5}, {"model", "test"}),
        ({"train__lora": {"rank": 4}}, {"train", "model", "test"}),
        ({"validation__min_parse_rate": 0.5}, {"model", "test"}),
        ({"evaluation__judge__match": "math"}, {"test"}),
    ],
    ids=shown,
)
def test_a_change_remakes_what_depends_on_it_and_nothing_else(
    tmp_path: Path, changes: dict[str, Any], stages: set[str]
):
    assert changed_by(a_config(tmp_path), **changes) == stages


def test_rounds_identify_trainings_and_all_that_is_sampled_for_them(tmp_path: Path):
    config = changed(a_config(tmp_path), data__per_iteration=12)
    assert changed_by(config, train__rounds=2) == EVERYTHING
    rows = [Artifact(tmp_path, 1, name) for name in "mps"]

    def trained(rounds: int, number: int, *carried: Artifact) -> str:
        each = changed(config, train__rounds=rounds)
        return identity(train_stage(each, "iter_1", rows[0], rows[0], rows[1], number, *carried)).fingerprint

    stages = [trained(1, 1), trained(2, 1), trained(3, 1), trained(2, 2, rows[2]), trained(2, 2, rows[1])]
    assert len({*stages}) == len(stages)


def test_the_sharding_of_weights_over_workers_identifies_a_training(tmp_path: Path):
    config = changed(a_config(tmp_path), train__micro_batch_size=16, trainer__workers=2)
    assert changed_by(config, trainer__strategy="fsdp") == {"train", "model", "test"}
    other_adapters = changed(config, train__lora={"rank": 4})
    for name, value in {"rank": 8, "alpha": 1.0, "target_modules": ["q_proj"]}.items():
        assert changed_by(other_adapters, **{f"train__lora__{name}": value}) == {"train", "model", "test"}, name


def test_quantization_identifies_what_engines_make_and_changes_nothing_at_its_default(tmp_path: Path):
    config = changed(a_config(tmp_path), engine__dtype="bfloat16", judge_engine__dtype="bfloat16")
    seed = seed_model(config)
    assert "quantization" not in samples_stage(config, training_spec(config, 1), seed, seed).config
    assert changed_by(config, engine__quantization="fp8_per_channel") == AFTER_PROMPTS
    # The verifier runs no model.
    assert changed_by(config, judge_engine__quantization="fp8_per_channel") == set()
    compared = changed(config, judge={"kind": "pairwise", "model": str(a_model(tmp_path / "judge"))})
    after = changed_by(compared, judge_engine__quantization="fp8_per_channel")
    assert after == EVERYTHING - {"prompts", "samples"}


IN_WHICH_PIECES = tuple(f"train__{name}" for name in ("micro_batch_size", "packing", "gradient_checkpointing"))
UNUSED = (
    *("train__alpha", "train__divergence_alpha", "evaluation__benchmarks"),
    *("evaluation__second_opinion", "evaluation__verifier", "gate"),
)
"""Not used by the default loss and divergence, nor by the stages of a run without benchmarks and a gate, nor by those
that each judge has for itself; tests/tasks/test_gate.py has the gate's."""
WHERE_IT_RUNS = (
    *("name", "folder", "model", "engine", "judge_engine", "trainer", "cluster", "health", "evaluation__confidence"),
    *("tracking", "throughput", "prices", "budget", "storage", "report", "metrics"),
)
WHAT_IT_IS = (
    *("engine__dtype", "trainer__workers", "trainer__strategy"),
    *("model__chat_template_options", "model__thinking"),
)
OTHER_VALUES: dict[str, Any] = {
    "evaluation__benchmarks": [{"kind": "ifeval", "path": "ifeval.jsonl"}],
    "evaluation__verifier": {"length_bias": 0.5},
    "gate__scores": ["validation"],
    "health__max_attacked": 0.5,
    "gate__margins": None,
    "gate__accept": [1],
    "name": "another",
    "folder": Path("elsewhere"),
    "model__path": None,
    "model__package": None,
    "model__chat_template_options": {"reasoning_effort": "low"},
    "prompt__response_marker": None,
    "data__source__path": None,
    "data__source__instruction_ids_column": None,
    "data__source__kwargs_column": None,
    "prompt__user_template": None,
    "prompt__system_template": None,
    "data__source__kind": None,
    "judge__kind": None,
    "judge__answer_pattern": "(x)",
    "train__batch_size": 64,
    "train__alpha": 0.5,
    "train__max_steps": 5,
    "train__length_desensitization": 0.5,
    "train__label_smoothing": None,
    "recipe__kind": None,
    "sample__max_thought_tokens": 5,
    "sample__evaluation_temperature": 0.5,
    "sample__calculator": "gsm8k",
    "train__lora": {"rank": 4},
    "train__micro_batch_size": 16,
    "engine__quantization": None,
    "judge_engine__quantization": None,
    "trainer__workers": None,
    "trainer__strategy": None,
    "evaluation__judge__kind": None,
    "evaluation__judge__answer_pattern": "(x)",
    "evaluation__fine_grained": None,
    "cluster__address": "auto",
    "cluster__gpus": 4,
    "cluster__gpu_memory_gib": 80.0,
    "throughput__sample": 9.0,
    "throughput__judge": 9.0,
    "throughput__train": 9.0,
    "throughput__prompts": 9,
    "throughput__prompt_tokens": 9.0,
    "throughput__output_tokens": 9.0,
    "throughput__judgment_tokens": 9.0,
    "budget__hours": 1.0,
    "budget__tokens": 1000,
    "budget__cost": None,
    "storage__endpoint_url": "http://another",
    "metrics__port": 9464,
    "data__also_fits": {"variant": "specific"},
    "data__synthetic": None,
    "pair__rho": 0.1,
    "pair__min_margin": 0.3,
}
"""Values that no rule finds; None if another test changes the field, which needs a file or another field."""


def fields(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a config by its path, with a different value."""
    for name, info in type(section).model_fields.items():
        path, value = prefix + name, getattr(section, name)
        if isinstance(value, BaseModel):
            yield from fields(value, f"{path}__")
        else:
            yield path, OTHER_VALUES[path] if path in OTHER_VALUES else another(value, info.annotation)


def another(value: Any, annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return next(option for option in get_args(annotation) if option != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 + 0.3
    return value + 1 if isinstance(value, int) else f"{value or 'x'}_"


def test_every_field_of_a_config_identifies_something_or_only_says_where_a_run_runs(tmp_path: Path):
    """A new field must be classified: if a stage forgot it, changing it would silently do nothing."""
    config = a_config(tmp_path)
    before = identities(config)
    for path, value in fields(config):
        if value is None:
            continue
        after = identities(changed(config, **{path: value}))
        where = path not in WHAT_IT_IS and path.startswith((*WHERE_IT_RUNS, *IN_WHICH_PIECES, *UNUSED))
        assert (after == before) is where, path


def test_every_field_of_fine_tuning_identifies_what_it_makes(tmp_path: Path):
    values = a_config(tmp_path).model_dump() | {"trainer": {"workers": 1}}
    model, rows = Artifact(tmp_path, 1, "m"), Artifact(tmp_path, 1, "d")

    def made(**changes: Any) -> str:
        config = RunConfig.model_validate(values | {"recipe": {"kind": "self_train", "sft": changes}})
        return identity(fine_tune_stage(config, "sft", model, rows)).fingerprint

    other = {"lora": {"rank": 4}, "max_steps": 5, "batch_size": 64, "micro_batch_size": 16}
    for name, info in SftConfig.model_fields.items():
        if name != "overlong":  # which selects the demonstrations, before any training
            value = other[name] if name in other else another(info.default, info.annotation)
            assert (made(**{name: value}) != made()) is (f"train__{name}" not in IN_WHICH_PIECES), name


def test_a_custom_response_marker_identifies_what_is_asked_with_it(tmp_path: Path):
    template = tmp_path / "user.jinja"
    template.write_text("{{ instruction }} Write {{ response_marker }} before your response.")
    asked = changed(a_config(tmp_path), prompt__user_template=template)
    assert changed_by(asked, prompt__response_marker="Here goes:") >= {"prompts", "samples", "model"}


def test_values_that_a_training_uses_identify_it(tmp_path: Path):
    config = changed(a_config(tmp_path), train__loss="irpo", train__divergence="alpha_divergence")
    for name, value in {"train__alpha": 2.0, "train__divergence_alpha": 0.4}.items():
        assert changed_by(config, **{name: value}) == {"train", "model", "test"}
    for schedule, stages in (("cosine", {"train", "model", "test"}), ("constant", set())):
        config = changed(a_config(tmp_path), train__lr_scheduler=schedule)
        assert changed_by(config, train__warmup_ratio=0.2) == stages


@pytest.mark.parametrize("name", ["alpha", "divergence_alpha", "micro_batch_size", "packing", "gradient_checkpointing"])
def test_a_training_by_an_earlier_version_is_recognized_despite_unused_values_in_its_manifest(
    tmp_path: Path, name: str
):
    config = a_config(tmp_path)
    model, reference, pairs = (Artifact(tmp_path, 1, kind) for kind in "mrp")
    stage = train_stage(config, "iter_1", model, reference, pairs)
    noted = {**stage.config, "train": as_noted(config.train, exclude={"reference", "rounds"}) | {name: 123}}
    assert stage.changes(stage.inputs, noted) == []
    assert stage.changes(stage.inputs, {**noted, "seed": 9}) == [f"seed: 9 → {config.seed}"]


def test_every_field_of_self_training_identifies_what_it_makes_except_the_ablations(tmp_path: Path):
    values = a_config(tmp_path).model_dump()
    rows, answers = Artifact(tmp_path, 1, "d"), JudgedSamples(Artifact(tmp_path, 1, "x"), Artifact(tmp_path, 1, "y"))

    def made(**changes: Any) -> list[str]:
        config = RunConfig.model_validate(values | {"recipe": {"kind": "self_train", **changes}})
        given = config.recipe_as(SelfTrain).demonstrations
        specs = (pairing_spec(config, 1), labelling_spec(config, 1))
        stages = [
            demonstrations_stage(config, "iter_0/sft", rows, rows, None, given),
            *(samples_stage(config, spec, rows, rows) for spec in specs),
            pairs_by_answer_stage(config, "iter_1/dpo", rows, [answers]),
            pseudo_labels_stage(config, "iter_1/sft", rows, [answers]),
        ]
        return [identity(stage).fingerprint for stage in stages]

    assert made(dpo=False) == made()
    for name, info in SelfTrain.model_fields.items():
        if name not in ("kind", "sft", "dpo"):
            value = 7 if name == "demonstrations" else another(info.default, info.annotation)
            changed_stages = [a != b for a, b in zip(made(), made(**{name: value}), strict=True)]
            assert sum(changed_stages) == 1, name


RATES = {"model": None, "categories": ("a", "b"), "max_new_tokens": 99, "max_tokens": 999, "user_template": None}
"""Settings that change ratings; None if a file or folder must change."""


@pytest.mark.parametrize("field", [*RATES, "min_prompts"])
def test_every_field_of_a_rater_identifies_its_ratings_unless_it_only_says_what_is_shown(tmp_path: Path, field: str):
    assert FineGrainedConfig.model_fields.keys() == {*RATES, "min_prompts", "endpoint", "system_template"}
    shipped = (TEMPLATES / "rating.user.jinja").read_text()
    (tmp_path / "user.jinja").write_text(shipped.replace("Say in one", "Now say in one"))
    other = {"model": str(a_model(tmp_path / "other", context=9)), "user_template": tmp_path / "user.jinja"}
    value = other.get(field) or RATES.get(field, 3)
    prompts, asked = Artifact(tmp_path, 1, "p"), Brought(categories=False, complexities=True)

    def made(**changes: Any) -> str:
        settings = {"model": str(a_model(tmp_path / "rater")), **changes}
        config = a_config(tmp_path, evaluation={"fine_grained": settings})
        return identity(ratings_stage(config, "iter_0/ratings", prompts, asked)).fingerprint

    assert (made(**{field: value}) != made()) is (field in RATES)
    given = Brought(categories=True, complexities=True)
    config = a_config(tmp_path, evaluation={"fine_grained": {}})
    with_rater = a_config(tmp_path, evaluation={"fine_grained": {"model": str(tmp_path / "rater")}})
    unasked = [ratings_stage(each, "iter_0/ratings", prompts, given) for each in (config, with_rater)]
    assert identity(unasked[0]) == identity(unasked[1])


def test_pairs_and_pseudo_labels_are_identified_by_the_answers_of_all_models_so_far(tmp_path: Path):
    config = RunConfig.model_validate(a_config(tmp_path).model_dump() | {"recipe": {"kind": "self_train"}})
    given, *rows = (Artifact(tmp_path, 1, name) for name in "gabcd")
    first, second = JudgedSamples(rows[0], rows[1]), JudgedSamples(rows[2], rows[3])
    for stage in (pairs_by_answer_stage, pseudo_labels_stage):
        pools = ([first], [second], [first, second], [second, first])
        names = {identity(stage(config, "iter_1/sft", given, pool)).fingerprint for pool in pools}
        assert len(names) == len(pools)


def test_the_reference_model_of_dpo_identifies_it_if_it_is_another(tmp_path: Path):
    config = a_config(tmp_path)
    assert changed_by(config, train__reference="seed") == {"train"}
    seed, later = Artifact(tmp_path, 1, "m0"), Artifact(tmp_path, 1, "m1")
    assert reference_of(config, seed, later) == later
    assert reference_of(changed(config, train__reference="seed"), seed, later) == seed


CHOOSES = {
    "max_similarity": 0.5, "min_words": 2, "without_words": ("draw",), "avoid": [],
}  # fmt: skip
"""Settings of synthetic prompts that choose among generations, with other values."""
GENERATES = {
    "model": None, "shots": 4, "pool": 20, "per_generation": 2, "temperature": 0.5, "top_p": 0.5,
    "max_prompt_tokens": 99, "max_new_tokens": 99, "template": None,
}  # fmt: skip
"""Settings that change the generations themselves; None if a file or folder must change."""


def synthetic(folder: Path, **changes: Any) -> RunConfig:
    """A run whose prompts a separate model writes, avoiding a benchmark's."""
    (folder / "benchmark.jsonl").write_text('{"prompt": "Say it."}')
    (folder / "few_shot.jinja").write_text("{{ count }}{% for e in examples %}<task>{{ e }}</task>{% endfor %}")
    settings = {
        "model": str(a_model(folder / "writer")),
        "avoid": [{"path": folder / "benchmark.jsonl", "instruction_column": "prompt"}],
        "template": folder / "few_shot.jinja",
    }
    config = a_config(folder, judge={"kind": "pairwise"})
    return changed(config, data__synthetic=settings | changes)


def test_every_field_of_synthetic_prompts_is_classified_as_choosing_or_generating(tmp_path: Path):
    settings = synthetic(tmp_path).data.synthetic
    assert settings is not None
    assert type(settings).model_fields.keys() == {*CHOOSES, *GENERATES, "endpoint", "max_generations"}


@pytest.mark.parametrize("field", [*CHOOSES, *GENERATES])
def test_settings_that_choose_among_generations_remake_none(tmp_path: Path, field: str):
    config, value = synthetic(tmp_path), (CHOOSES | GENERATES)[field]
    if value is None:
        value = {"model": str(a_model(tmp_path / "other", context=9)), "template": tmp_path / "other.jinja"}[field]
        (tmp_path / "other.jinja").write_text("M {{ count }}{% for e in examples %}<task>{{ e }}</task>{% endfor %}")
    changes = changed_by(config, **{f"data__synthetic__{field}": value})
    assert changes == EVERYTHING | ({"generations"} if field in GENERATES else set())


def test_the_number_of_prompts_and_attempts_remakes_no_generation(tmp_path: Path):
    assert changed_by(synthetic(tmp_path), data__synthetic__max_generations=2) == set()
    assert "generations" not in changed_by(synthetic(tmp_path), data__per_iteration=3)


def test_a_generators_model_and_a_benchmark_are_identified_by_their_content(tmp_path: Path):
    config = synthetic(tmp_path)
    before = identities(config)
    assert changed_by(config, data__synthetic__model=str(a_model(tmp_path / "copy"))) == set()
    rewrite(tmp_path / "benchmark.jsonl", b"Say", b"Tell")
    after = identities(config)
    assert before["generations"] == after["generations"] and before["prompts"] != after["prompts"]
    rewrite(tmp_path / "writer" / "model.safetensors", b"w", b"W")
    assert identities(config)["generations"] != after["generations"]


def test_a_server_that_writes_prompts_is_identified_by_the_name_of_its_model(tmp_path: Path):
    config = synthetic(tmp_path, model="m", endpoint={"base_url": "http://one/v1"})
    assert changed_by(config, data__synthetic__endpoint__base_url="http://two/v1") == set()
    assert changed_by(config, data__synthetic__endpoint__concurrency=2) == set()
    assert changed_by(config, data__synthetic__model="n") == EVERYTHING | {"generations"}
    assert "generations" not in changed_by(config, engine__dtype="bfloat16")


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("edit", "stages"),
    [
        (lambda folder: rewrite(folder / "prompts.jsonl", b"Question 7", b"Question 8"), EVERYTHING),
        (lambda folder: rewrite(folder / "mine.jinja", b"Say", b"Tell"), EVERYTHING),
        (lambda folder: rewrite(folder / "model" / "model.safetensors", b"w", b"W"), EVERYTHING),
    ],
    ids=["a byte of the prompt file", "the text of a template", "a byte of the seed model"],
)
def test_the_content_of_files_counts_and_not_their_names(
    tmp_path: Path, edit: Callable[[Path], None], stages: set[str]
):
    template = tmp_path / "mine.jinja"
    template.write_text("Say <R> before: {{ instruction }}")
    config = a_config(tmp_path, prompt={"variant": "specific", "user_template": template})
    before = identities(config)
    edit(tmp_path)
    after = identities(config)
    assert {name for name in before if before[name] != after[name]} == stages


def test_each_iteration_is_identified_by_its_own_file(tmp_path: Path):
    for t in range(3):
        (tmp_path / f"{t}.jsonl").write_text(f'{{"instruction": "{t}"}}')
    config = changed(a_config(tmp_path), data__source__path=tmp_path / "{iteration}.jsonl")
    model = Artifact(tmp_path, 1, "m")

    def hashes() -> list[str]:
        return [prompts_stage(config, f"iter_{t}/prompts", model, []).inputs["source"] for t in (1, 2)]

    before = hashes()
    rewrite(tmp_path / "2.jsonl", b"2", b"3")
    assert [old == new for old, new in zip(before, hashes(), strict=True)] == [True, False]


JUDGED = {"judgments", "scores", "pairs", "train", "model"}
SERVER = {"base_url": "http://one/v1"}
RUBRIC: dict[str, Any] = {
    "model": "n", "template": "additive", "rubric": "Rhyme.", "min_score": 1, "max_score": 7, "score_pattern": "(x)",
    "temperature": 0.5, "expected_score": True, "max_new_tokens": 9, "max_tokens": 99, "max_response_chars": 9,
    "endpoint__structured_outputs": True,
}  # fmt: skip
"""Settings of a rubric that change its grades, with other values; `samples` needs a temperature, too."""


@pytest.mark.parametrize(
    ("judge", "changes", "stages"),
    [
        ({"kind": "armorm"}, {"judge__max_tokens": 99}, JUDGED),
        ({"kind": "armorm"}, {"judge_engine__dtype": "bfloat16"}, JUDGED),
        ({"kind": "armorm"}, {"judge_engine__threads": 2}, set()),
        ({"kind": "pairwise"}, {"judge__mode": "verdict"}, JUDGED),
        ({"kind": "pairwise"}, {"judge__tournament": "adaptive"}, JUDGED),
        ({"kind": "pairwise"}, {"judge__ridge": 1.0}, JUDGED - {"judgments"}),
        ({"kind": "pairwise", "model": "m", "endpoint": SERVER}, {"judge__endpoint__base_url": "http://two/v1"}, set()),
        ({"kind": "pairwise", "model": "m", "endpoint": SERVER}, {"judge__model": "n"}, JUDGED),
        ({"kind": "pairwise", "model": "m", "endpoint": SERVER}, {"judge__endpoint__structured_outputs": True}, JUDGED),
        ({"kind": "pairwise", "model": "m", "endpoint": SERVER}, {"judge__endpoint__concurrency": 2}, set()),
        ({"kind": "pairwise", "model": "m", "endpoint": SERVER}, {"judge__endpoint__max_total_tokens": 2}, set()),
        ({"kind": "pairwise", "model": "m", "endpoint": SERVER}, {"judge__endpoint__key_variable": "K"}, set()),
        ({"kind": "pairwise", "model": "m", "endpoint": SERVER}, {"judge_engine__dtype": "bfloat16"}, set()),
        *(
            ({"kind": "rubric", "model": "m", "endpoint": SERVER}, {f"judge__{name}": value}, JUDGED)
            for name, value in RUBRIC.items()
        ),
        *(
            ({"kind": "reward_server", "model": "m", "endpoint": SERVER}, {f"judge__{name}": value}, JUDGED)
            for name, value in {"model": "n", "protocol": "json", "label": 1, "max_response_chars": 9}.items()
        ),
        ({"kind": "reward_server", "model": "m", "endpoint": SERVER}, {"judge__endpoint__base_url": "http://t"}, set()),
        ({"kind": "reward_server", "model": "m", "endpoint": SERVER}, {"judge__items_per_request": 2}, set()),
        ({"kind": "rubric", "model": "m", "endpoint": SERVER}, {"judge__endpoint__base_url": "http://two/v1"}, set()),
        ({"kind": "rubric", "model": "m", "endpoint": SERVER}, {"judge__endpoint__concurrency": 2}, set()),
        ({"kind": "rubric", "model": "m", "endpoint": SERVER}, {"judge_engine__dtype": "bfloat16"}, set()),
    ],
    ids=shown,
)
def test_a_judge_is_identified_by_what_decides_its_verdicts(
    tmp_path: Path, judge: dict[str, Any], changes: dict[str, Any], stages: set[str]
):
    assert changed_by(a_config(tmp_path, judge=judge), **changes) - {"test"} == stages


def an_ensemble(**settings: Any) -> dict[str, Any]:
    members = [
        {"name": "first", "judge": {"kind": "pairwise"}, "unit": 2.0, "veto_below": settings.pop("veto_below", 0.0)},
        {"name": "second", "judge": {"kind": "verifier", **settings.pop("verifier", {})}, "unit": 1.0},
    ]
    members[1] |= {name: settings.pop(name) for name in ("weight", "unit", "name") if name in settings}
    return {"kind": "ensemble", "members": members, "combine": "veto", **settings}


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"weight": 2.0}, JUDGED - {"judgments"}),
        ({"unit": 2.0}, JUDGED - {"judgments"}),
        ({"veto_below": 0.5}, JUDGED - {"judgments"}),
        ({"verifier": {"length_bias": 0.5}}, JUDGED - {"judgments"}),
        ({"verifier": {"match": "math"}}, JUDGED),
        ({"name": "other"}, JUDGED),
        ({"escalate_below": 1.0}, JUDGED),
        ({"agreement": "all"}, {"pairs", "train", "model"}),
    ],
    ids=shown,
)
def test_an_ensemble_is_identified_by_its_members_and_how_they_are_combined(
    tmp_path: Path, settings: dict[str, Any], stages: set[str]
):
    before, after = (identities(a_config(tmp_path, judge=an_ensemble(**each))) for each in ({}, settings))
    assert {name for name in before if before[name] != after[name]} - {"test"} == stages


@pytest.mark.parametrize("kind", ["armorm", "pairwise", "reward_model", "rubric"])
def test_a_judges_model_is_identified_by_its_content_and_not_its_path(tmp_path: Path, kind: str):
    here, there, other = (a_model(tmp_path / name) for name in ("here", "there", "other"))
    (other / "model.safetensors").write_bytes(b"other weights")
    config = a_config(tmp_path, judge={"kind": kind, "model": str(here)})
    assert changed_by(config, judge__model=str(there)) == set()
    assert changed_by(config, judge__model=str(other)) - {"test"} == JUDGED


def test_a_baseline_matters_only_to_a_pairwise_judge(tmp_path: Path):
    samples, prompts, *baselines = (Artifact(tmp_path, 1, name) for name in ("samples", "prompts", "a", "b"))
    for kind, matters in (("verifier", False), ("armorm", False), ("pairwise", True)):
        config = a_config(tmp_path, judge={"kind": kind})
        spec = validation_spec(config, 1, 1)
        stages = [judgments_stage(config, spec, JudgeInput(samples, prompts, each)) for each in baselines]
        assert (stages[0].inputs != stages[1].inputs) == matters


@pytest.mark.parametrize(
    ("kind", "changes", "again"),
    [
        ("direct", {"sample__max_thought_tokens": 20}, False),
        ("thinking", {"sample__max_thought_tokens": 20}, True),
        ("direct", {"sample__top_p": 0.5}, True),
        ("direct", {"sample__max_new_tokens": 64}, True),
        ("direct, greedy", {"sample__top_p": 0.5}, False),
        ("thinking, greedy", {"sample__top_p": 0.5}, False),
        ("training, greedy", {"sample__top_p": 0.5}, True),
    ],
)
def test_a_value_that_outputs_do_not_depend_on_does_not_remake_them(
    tmp_path: Path, kind: str, changes: dict[str, Any], again: bool
):
    """Both ways: a manifest from before this rule has the value, and is still current."""
    config = a_config(tmp_path)
    if kind.endswith("greedy"):
        config = changed(config, sample__evaluation_temperature=0.0)
    artifact = Artifact(tmp_path, 1, "a")

    def stage(config: RunConfig) -> Stage:
        spec = {
            "direct": direct_spec(config),
            "thinking": measuring_spec(config, 1),
            "training": training_spec(config, 1),
        }[kind.split(",")[0]]
        return samples_stage(config, spec, artifact, artifact)

    one, other = stage(config), stage(changed(config, **changes))
    assert one.config != other.config
    for mine, theirs in ((one, other), (other, one)):
        assert bool(mine.changes(theirs.inputs, theirs.config)) is again


def test_thinkpos_writers_are_sampled_once_in_their_own_context(tmp_path: Path):
    values = a_config(tmp_path).model_dump()
    source = {"kind": "models", "short": "models/short", "short_sample": {"max_new_tokens": 50, "max_attempts": 1}}
    config = RunConfig.model_validate(values | {"recipe": {"kind": "thinkpo", "sft": {}, "source": source}})
    spec = write_spec(config, config.recipe_as(ThinkPo).source, "short")  # type: ignore[arg-type]
    artifact = Artifact(tmp_path, 1, "a")
    sampled = samples_stage(config, spec, artifact, artifact).config["sample"]
    assert (sampled["k"], sampled["tries"]) == (1, 1)
    assert context_of(config, spec.work) == config.data.max_prompt_tokens + 50
    assert context_of(config) == config.data.max_prompt_tokens + config.sample.max_new_tokens


def test_a_rule_for_a_reward_models_score_is_in_its_judgments_and_the_only_one_of_before_is_not(tmp_path: Path):
    """Judgments of runs from before `judge.score` stay current."""
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text("{}")

    def judged_by(**values: str) -> Mapping[str, Any]:
        judge = {"kind": "reward_model", "model": str(tmp_path / "judge"), **values}
        config = changed(a_config(tmp_path), judge=judge)
        row = Artifact(tmp_path, 1, "x")
        found = judgments_stage(config, training_spec(config, 1), JudgeInput(row, row)).config["judge"]
        assert isinstance(found, Mapping)
        return found

    assert judged_by() == judged_by(score="logit") == {"kind": "reward_model", "max_tokens": 4096, "dtype": "float32"}
    assert judged_by(score="difference(1, 0)") == {**judged_by(), "score": "difference(1, 0)"}
