"""A config as the code before kept it in `config.json`: with the old names of keys, and a section for each recipe."""

from typing import Any

from pydantic import BaseModel

from tpo.config.base import Section
from tpo.config.recipes import Tpo
from tpo.config.renamed import as_noted
from tpo.config.run import RunConfig


def as_before(config: RunConfig) -> dict[str, Any]:
    """The values of that `config.json`."""
    recipe = config.recipe
    values = _named_as_before(config.model_copy(update={"recipe": Tpo()}))
    del values["recipe"], values["storage"]["cache"]
    own = {} if isinstance(recipe, Tpo) else _named_as_before(recipe)
    sft, kind = own.pop("sft", None), own.pop("kind", None)
    return values | {"sft": sft, "thinkpo": None, "self_train": None} | ({kind: own} if kind else {})


def _named_as_before(section: BaseModel) -> dict[str, Any]:
    assert isinstance(section, Section)
    inner = {name: _named_as_before(value) for name, value in section if isinstance(value, BaseModel)}
    return as_noted(section) | inner
