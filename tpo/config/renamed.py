"""Old names of sections and keys, read as those of today.

What a user or an earlier version wrote is translated before anything is validated, with a note for each key: validators
reject and never rewrite.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tpo.errors import InputError

Note = Callable[[str], None]
"""Receives what to write in place of an old name."""

RECIPES = ("thinkpo", "self_train")
"""Kinds of recipes that used to be sections of their own."""


def translated(values: Mapping[str, Any], note: Note) -> dict[str, Any]:
    """The values of a profile, of some of its keys, or of a run's `config.json`, under today's names.

    Raises `InputError` if one setting has both its old and its new name.
    """
    old = {name: value for name, value in values.items() if name in (*RECIPES, "sft")}
    found = {name: value for name, value in values.items() if name not in old}
    given = [name for name, value in old.items() if value is not None]
    recipes = [name for name in given if name in RECIPES]
    if "sft" in given and not recipes and old.keys() >= set(RECIPES):
        given.remove("sft")  # a run of TPO kept what its profile said of fine-tuning, and never used it
    clash = recipes if len(recipes) > 1 else [*given, "recipe"] if given and "recipe" in values else []
    if clash:
        both = " and ".join(f"[{name}]" for name in clash)
        raise InputError(f"{both} are there, and a run has one recipe: keep one, with fine-tuning as [recipe.sft]")
    for name in recipes:
        note(f'[{name}] is deprecated: write [recipe] with kind = "{name}"')
        found["recipe"] = {"kind": name, **old[name]} if isinstance(old[name], dict) else old[name]
    if "sft" in given:
        note("[sft] is deprecated: write [recipe.sft]")
        recipe = found.get("recipe", {})
        found["recipe"] = recipe | {"sft": old["sft"]} if isinstance(recipe, dict) else recipe
    return found
