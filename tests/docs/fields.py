"""Writes docs/fields.md, the reference of a profile's fields, from tpo/config/run.py: `python -m tests.docs.fields`."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tpo.config.run import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "fields.md"
HEAD = """# Every field of a profile

Generated from [`tpo/config/run.py`](../tpo/config/run.py) by `python -m tests.docs.fields`; a test fails if this page
is out of date. [configuration.md](configuration.md) explains profiles. A field without a default has to be set.
"""


def page() -> str:
    """The whole page; a section that occurs again refers to where it was described."""
    text, described = HEAD + section("The run", RunConfig), dict[type[BaseModel], str]()
    for title, model in sections_of(RunConfig):
        if model in described:
            text += f"\n## {title}\n\nAs {described[model]}.\n"
        else:
            described[model] = title
            text += section(title, model)
    return text


def section(title: str, model: type[BaseModel]) -> str:
    """A heading, and a row for each field that isn't a section itself."""
    about = re.sub(r"\s+", " ", (model.__doc__ or "").strip())
    rows = [row(key, field) for key, field in model.model_fields.items() if not models_in(field.annotation)]
    head = f"\n## {title}\n\n{about}\n"
    return head + ("\n| field | default | meaning |\n|---|---|---|\n" + "".join(rows) if rows else "")


def row(name: str, field: FieldInfo) -> str:
    """One field."""
    about = re.sub(r"\s+", " ", field.description or "").replace("|", "\\|")
    return f"| `{name}` | {default_of(field)} | {about}{choices_of(field.annotation)} |\n"


def default_of(field: FieldInfo) -> str:
    """A field's default as a profile would write it; empty if it has none."""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return ""
    if value is None:
        return "not set"
    shown = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str | Path) else value
    return f"`{shown}`".replace("|", "\\|")


def choices_of(annotation: Any) -> str:
    """The values that a field with fixed choices may have."""
    found = [str(value) for part in parts_of(annotation) if get_origin(part) is Literal for value in get_args(part)]
    return f" One of: {', '.join(f'`{value}`' for value in found)}." if len(found) > 1 else ""


def sections_of(model: type[BaseModel], above: str = "", union: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """All sections below a model, by their names in TOML; members of a union, and sections below them, by kind."""
    for name, field in model.model_fields.items():
        members = models_in(field.annotation)
        for member in members:
            kind = member.model_fields.get("kind")
            choice = kind.default if kind is not None and len(members) > 1 else None
            own = f' with `kind = "{choice}"`' if choice else ""
            below = f' with `{above}{name}.kind = "{choice}"`' if choice else union
            yield f"`[{above}{name}]`{own or union}", member
            yield from sections_of(member, f"{above}{name}.", below)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    return [part for part in parts_of(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]


def parts_of(annotation: Any) -> Iterator[Any]:
    """A type's parts, unions and annotations taken apart."""
    inner = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType) or hasattr(annotation, "__metadata__"):
        for part in inner[: 1 if hasattr(annotation, "__metadata__") else None]:
            yield from parts_of(part)
    elif get_origin(annotation) in (tuple, list):
        for part in inner:
            yield from parts_of(part)
    else:
        yield annotation


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {page().count(chr(10))} lines")
