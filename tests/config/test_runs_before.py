"""Claims about runs made before keys got today's names: their configs are read, and nothing is remade.

`runs_before.json` has, for a run of each kind, the `config.json` that earlier code wrote, and the config values and
inputs' names that it recorded in the manifest of every stage. It was written by that code and must not be regenerated.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.demonstrate import demonstrations_stage
from tasks.fine_tune import fine_tune_stage
from tasks.handles import (
    Candidate,
    JudgedSamples,
    JudgeInput,
    SamplingSpec,
    against_spec,
    direct_spec,
    labelling_spec,
    measuring_spec,
    pairing_spec,
    training_spec,
    validation_spec,
    write_spec,
)
from tasks.handles import evaluation_spec as spec_of  # a name that pytest doesn't take for a test's
from tasks.judge_stages import judgments_stage, scores_stage
from tasks.pair import pairs_stage
from tasks.pair_by_answer import pairs_by_answer_stage
from tasks.pair_by_length import pairs_by_length_stage, pairs_from_file_stage
from tasks.pseudo_label import pseudo_labels_stage
from tasks.sample import samples_stage
from tasks.source import is_written, prompts_stage
from tasks.synthesize import generations_stage
from tasks.train import train_stage
from tasks.validate import model_stage
from tests.config.before import as_before
from tests.finished_run import finish
from tests.rows import a_config
from tpo.config.load import ignore, load_config
from tpo.config.recipes import PairModels, SelfTrain, ThinkPo
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.records import Artifact
from tpo.storage.current import is_current, iterations_made, keep_config, mark_finished
from tpo.storage.store import Stage

BEFORE: dict[str, Any] = json.loads((Path(__file__).parent / "runs_before.json").read_text(encoding="utf-8"))
ANY = Artifact(Path("any"), 1, "any")
ANSWERS = JudgedSamples(ANY, ANY)


def kept(folder: Path, values: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder / "config.json"


def asked(config: RunConfig, spec: SamplingSpec) -> list[Stage]:
    submitted = JudgeInput(ANY, ANY, ANY if spec.purpose == "evaluate" else None)
    return [
        samples_stage(config, spec, ANY, ANY),
        judgments_stage(config, spec, submitted),
        scores_stage(config, spec, submitted, ANY),
    ]


def stages_of(config: RunConfig) -> list[Stage]:
    """Every kind of stage of a run, some made from inputs that don't exist."""
    if isinstance(config.recipe, ThinkPo):
        return [
            *of_measured(config),
            *of_thinkpo(config, config.recipe),
            train_stage(config, "dpo", ANY, ANY, ANY),
        ]
    if isinstance(config.recipe, SelfTrain):
        return [*of_measured(config), *of_self_training(config, config.recipe)]
    return of_tpo(config)


def of_tpo(config: RunConfig) -> list[Stage]:
    splits = [prompts_stage(config, f"iter_0/prompts/{split}", ANY, []) for split in ("validation", "test")]
    written = ANY if is_written(config, "iter_1/prompts") else None
    specs = (
        training_spec(config, 1),
        validation_spec(config, 1, 1),
        measuring_spec(config, 1),
        direct_spec(config),
        against_spec(config, 1),
    )
    return [
        *splits,
        *([generations_stage(config, "iter_1/prompts", ANY, [])] if written else []),
        prompts_stage(config, "iter_1/prompts", ANY, [ANY, ANY], written),
        *(stage for spec in specs for stage in asked(config, spec)),
        pairs_stage(config, 1, ANSWERS),
        train_stage(config, "iter_1", ANY, ANY, ANY),
        model_stage(config, 1, Candidate(ANY, ANSWERS), [Candidate(ANY, ANSWERS)]),
    ]


def of_measured(config: RunConfig) -> list[Stage]:
    return [
        prompts_stage(config, "base/prompts/test", ANY, []),
        *asked(config, spec_of(config, "base")),
    ]


def of_thinkpo(config: RunConfig, recipe: ThinkPo) -> list[Stage]:
    if not isinstance(recipe.source, PairModels):
        return [pairs_from_file_stage(config, "dpo", ANY)]
    written = [write_spec(config, recipe.source, side) for side in ("long", "short")]
    return [
        prompts_stage(config, "sft/prompts", ANY, [ANY]),
        demonstrations_stage(config, "sft", ANY, ANY, None),
        fine_tune_stage(config, "sft", ANY, ANY),
        *(samples_stage(config, spec, ANY, ANY) for spec in written),
        *(demonstrations_stage(config, spec.folder, ANY, ANY, ANY) for spec in written),
        pairs_by_length_stage(config, "dpo", ANY, ANY),
    ]


def of_self_training(config: RunConfig, recipe: SelfTrain) -> list[Stage]:
    return [
        prompts_stage(config, "base/prompts/train", ANY, [ANY]),
        demonstrations_stage(config, "iter_0/sft", ANY, ANY, None, recipe.demonstrations),
        fine_tune_stage(config, "iter_0/sft", ANY, ANY),
        *asked(config, pairing_spec(config, 1)),
        *asked(config, labelling_spec(config, 1)),
        pairs_by_answer_stage(config, "iter_1/dpo", ANY, [ANSWERS]),
        pseudo_labels_stage(config, "iter_1/sft", ANY, [ANSWERS]),
        train_stage(config, "iter_1/dpo", ANY, ANY, ANY),
    ]


@pytest.mark.parametrize("name", BEFORE)
def test_manifests_record_the_names_and_values_that_they_always_had(tmp_path: Path, name: str):
    there = [f"recipe.source.path={__file__}"] if name == "thinkpo-from-a-file" else []
    stages = stages_of(load_config(kept(tmp_path, BEFORE[name]["config"]), there))
    found = {
        stage.name: {
            "inputs": sorted(stage.inputs),
            "config": stage.config,
            "without_effect": sorted(stage.without_effect),
        }
        for stage in stages
    }
    assert found == BEFORE[name]["stages"]


@pytest.mark.parametrize("name", BEFORE)
def test_the_config_of_an_old_run_is_read_silently_and_still_matches_it(tmp_path: Path, name: str):
    notes: list[str] = []
    config = load_config(kept(tmp_path, BEFORE[name]["config"]), [f"folder={tmp_path}"], note=notes.append)
    assert notes == []
    config.root.mkdir()
    kept(config.root, BEFORE[name]["config"] | {"folder": str(tmp_path)})
    mark_finished(config)
    assert is_current(config)
    assert not is_current(config.model_copy(update={"seed": config.seed + 1}))
    keep_config(config)
    assert is_current(config) and load_config(config.root / "config.json") == config


@pytest.mark.parametrize("name", BEFORE)
def test_a_config_can_be_written_as_earlier_code_wrote_it(tmp_path: Path, name: str):
    values = BEFORE[name]["config"]
    assert as_before(load_config(kept(tmp_path, values))) == values


def test_an_old_run_is_complete_under_its_own_config(tmp_path: Path):
    config = a_config(tmp_path)
    finish(config, 1)
    kept(config.root, as_before(config))
    assert is_current(config) and iterations_made(config) == 1


OLD_SECTIONS: list[tuple[str, list[str], dict[str, Any], list[str]]] = [
    ("[thinkpo]\nswap = true", [], {"kind": "thinkpo", "swap": True}, ["[thinkpo]"]),
    (
        "[thinkpo.source]\nkind = 'models'\n[sft]\nepochs = 1",
        [],
        {"kind": "thinkpo", "source": {"kind": "models"}, "sft": {"epochs": 1}},
        ["[thinkpo]", "[sft]"],
    ),
    (
        "[self_train]\n[sft.lora]\nrank = 4",
        [],
        {"kind": "self_train", "sft": {"lora": {"rank": 4}}},
        ["[self_train]", "[sft]"],
    ),
    (
        "[recipe]\nkind = 'thinkpo'\ngap = 'small'",
        ["thinkpo.swap=true"],
        {"kind": "thinkpo", "gap": "small", "swap": True},
        ["[thinkpo]"],
    ),
    ("[thinkpo]\ngap = 'small'", ["recipe.gap=large"], {"kind": "thinkpo", "gap": "large"}, ["[thinkpo]"]),
    (
        "[self_train]\n[sft]\nepochs = 1\nbatch_size = 64",
        ["sft.epochs=2", "self_train={dpo=false}"],
        {"kind": "self_train", "dpo": False, "sft": {"epochs": 2, "batch_size": 64}},
        ["[self_train]", "[sft]", "[sft]", "[self_train]"],
    ),
    (
        "[self_train]\n[sft]\nepochs = 1\nbatch_size = 64",
        ["sft={epochs=2}"],
        {"kind": "self_train", "sft": {"epochs": 2}},
        ["[self_train]", "[sft]", "[sft]"],
    ),
]


@pytest.mark.parametrize(("profile", "overrides", "recipe", "noted"), OLD_SECTIONS)
def test_a_section_with_an_old_name_is_read_as_a_recipe_with_a_note(
    tmp_path: Path, profile: str, overrides: list[str], recipe: dict[str, Any], noted: list[str]
):
    (tmp_path / "old.toml").write_text(profile)
    notes: list[str] = []
    config = load_config(tmp_path / "old.toml", overrides, note=notes.append)
    assert config == RunConfig.model_validate({"recipe": recipe})
    assert [note.split(": ")[1].split(" is ")[0] for note in notes] == noted
    assert all("deprecated: write [recipe" in note for note in notes)


@pytest.mark.parametrize(
    ("profile", "pattern"),
    [
        ("[thinkpo]\n[self_train]", r"\[thinkpo\] and \[self_train\] are both set, but a run has one recipe"),
        ("[recipe]\nkind = 'tpo'\n[sft]", r"\[sft\] and \[recipe\] are both set.* as \[recipe\.sft\]"),
        ("[recipe]\nkind = 'thinkpo'\n[thinkpo]", r"\[thinkpo\] and \[recipe\] are both set"),
        ("[sft]", "recipe: expected a section whose key kind"),
        ("thinkpo = 4\n[sft]", "recipe: Input should be a valid dictionary"),
    ],
)
def test_a_profile_with_two_recipes_or_half_of_one_is_refused(tmp_path: Path, profile: str, pattern: str):
    (tmp_path / "old.toml").write_text(profile)
    with pytest.raises(InputError, match=pattern):
        load_config(tmp_path / "old.toml", note=ignore)


def test_fine_tuning_that_a_tpo_run_recorded_and_never_used_is_left_out(tmp_path: Path):
    values = copy.deepcopy(BEFORE["tpo"]["config"])
    used = load_config(kept(tmp_path, values))
    assert load_config(kept(tmp_path, values | {"sft": {"epochs": 7}})) == used
