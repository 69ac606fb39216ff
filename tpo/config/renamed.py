"""Old names of sections and keys: translated to today's when read, and kept in manifests forever.

Profiles, overrides and older runs' files are translated before validation, with a note for each key, since validators
reject and never rewrite. Manifests keep the original names (`as_noted`), so that a run folder made before a key was
renamed is still complete.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from tpo.config.base import Section, sections_in
from tpo.config.data import SampleConfig, SyntheticConfig
from tpo.config.judges import PairConfig
from tpo.config.recipes import SelfTrain, ThinkPo
from tpo.config.resources import EngineConfig, StorageConfig
from tpo.config.run import RunConfig
from tpo.config.training import SftConfig, TrainingConfig
from tpo.errors import InputError

Note = Callable[[str], None]
"""Receives a line that says what to write instead of an old name."""


@dataclass(frozen=True)
class Renamed:
    """A renamed key."""

    section: type[Section]
    """The section that has it, or the base class of all that do."""
    old: str
    """The old name, which manifests still use."""
    new: str
    """Today's name."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Today's values by the old ones, if values were renamed too."""


RENAMED = (
    Renamed(SampleConfig, "tries", "max_attempts"),
    Renamed(SampleConfig, "evaluation_tries", "evaluation_max_attempts"),
    Renamed(SyntheticConfig, "most_generations", "max_generations"),
    Renamed(PairConfig, "error_share", "max_error_pair_ratio"),
    Renamed(TrainingConfig, "schedule", "lr_scheduler"),
    Renamed(TrainingConfig, "final_share", "min_lr_ratio"),
    Renamed(TrainingConfig, "warmup_share", "warmup_ratio"),
    Renamed(SftConfig, "too_long", "overlong", {"cut": "truncate"}),
    Renamed(ThinkPo, "differing_share", "mismatched_answer_ratio"),
    Renamed(ThinkPo, "most_pairs", "max_pairs"),
    Renamed(SelfTrain, "similarity", "dedup_threshold"),
    Renamed(EngineConfig, "memory_gib", "kv_cache_gib"),
    Renamed(EngineConfig, "max_sequences", "max_num_seqs"),
    Renamed(StorageConfig, "tries", "max_attempts"),
)
REMOVED: Mapping[str, str] = {
    "hub_id": 'to take a model from the hub, write model.path = "hf://{value}"; a folder that is there needs nothing',
    "hub_revision": "a revision follows the address: hf://org/name@revision",
}
"""Keys of `[model]` that are gone, with what to write instead; runs made before keep them."""
RECIPES = ("thinkpo", "self_train")
"""Kinds of recipes that used to be separate sections."""


def translated(values: Mapping[str, Any], note: Note) -> dict[str, Any]:
    """The values of a profile, of some of its keys, or of a run's `config.json`, with today's names.

    Raises `InputError` if one setting has both its old and its new name.
    """
    return _keys_translated(_without_removed(_sections_translated(values, note), note), [RunConfig], "", note)


def as_noted(section: Section, *, include: Set[str] | None = None, exclude: Set[str] | None = None) -> dict[str, Any]:
    """A section's values as manifests record them, by their old names; `include` and `exclude` take today's names."""
    values = section.model_dump(
        mode="json", include=None if include is None else {*include}, exclude=None if exclude is None else {*exclude}
    )
    for key in RENAMED:
        if isinstance(section, key.section) and key.new in values:
            value = values.pop(key.new)
            values[key.old] = {new: old for old, new in key.values.items()}.get(value, value)
    return values


def _without_removed(values: dict[str, Any], note: Note) -> dict[str, Any]:
    model = values.get("model")
    if not isinstance(model, dict) or not REMOVED.keys() & model.keys():
        return values
    for name, remedy in REMOVED.items():
        if model.get(name) is not None:
            note(f"model.{name} is not read any more: {remedy.format(value=model[name])}")
    return values | {"model": {name: value for name, value in model.items() if name not in REMOVED}}


def _sections_translated(values: Mapping[str, Any], note: Note) -> dict[str, Any]:
    """The same with the recipe in one section."""
    old = {name: value for name, value in values.items() if name in (*RECIPES, "sft")}
    found = {name: value for name, value in values.items() if name not in old}
    given = [name for name, value in old.items() if value is not None]
    recipes = [name for name in given if name in RECIPES]
    if "sft" in given and not recipes and old.keys() >= set(RECIPES):
        given.remove("sft")  # TPO runs kept their profile's fine-tuning section, but never used it
    clash = recipes if len(recipes) > 1 else [*given, "recipe"] if given and "recipe" in values else []
    if clash:
        both = " and ".join(f"[{name}]" for name in clash)
        raise InputError(f"{both} are both set, but a run has one recipe: keep one, with fine-tuning as [recipe.sft]")
    for name in recipes:
        note(f'[{name}] is deprecated: write [recipe] with kind = "{name}"')
        found["recipe"] = {"kind": name, **old[name]} if isinstance(old[name], dict) else old[name]
    if "sft" in given:
        note("[sft] is deprecated: write [recipe.sft]")
        recipe = found.get("recipe", {})
        found["recipe"] = recipe | {"sft": old["sft"]} if isinstance(recipe, dict) else recipe
    return found


def _keys_translated(
    values: Mapping[str, Any], sections: Sequence[type[BaseModel]], above: str, note: Note
) -> dict[str, Any]:
    """The same with today's keys in every section; `sections` are the classes that `values` may belong to."""
    found = {}
    for old, value in values.items():
        key = next((key for key in RENAMED if key.old == old and _any_is(sections, key.section)), None)
        if key is None:
            name, today = old, value
        else:
            name, today = key.new, key.values.get(value, value) if isinstance(value, str) else value
            if name in values:
                raise InputError(f"{above}{old} is the old name of {above}{name}, but both are set: remove the old one")
            also = f' = "{today}"' if today != value else ""
            note(f"{above}{old} is deprecated: write {above}{name}{also}")
        fields = [section.model_fields[name] for section in sections if name in section.model_fields]
        below = [section for field in fields for section in sections_in(field.annotation)]
        inner = isinstance(today, dict) and below
        found[name] = _keys_translated(today, below, f"{above}{name}.", note) if inner else today
    return found


def _any_is(sections: Sequence[type[BaseModel]], section: type[Section]) -> bool:
    return any(issubclass(each, section) for each in sections)
