"""Reads a profile: TOML and overrides in, a `RunConfig` out, or one error that names every fault with its remedy."""

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tpo.config.run import RunConfig
from tpo.errors import InputError, shortened

MAX_PROFILE_BYTES = 2**20
"""Size of the largest profile that is read."""


def load_config(profile: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a profile describes, with overrides of the form `section.key=value` applied in order.

    A profile is TOML, or the `config.json` that a run keeps.
    A value is read as TOML where it is TOML (`4`, `0.1`, `true`, `["a"]`) and as text otherwise. Paths in the
    profile are relative to the current folder. Raises `InputError` naming the key, what was found and what was
    expected.
    """
    values = _read_profile(profile)
    try:
        for override in overrides:
            _apply(values, override)
        _check_values(values)
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"profile {profile} is refused:\n" + "\n".join(_explain(error))) from None
    except RecursionError:
        raise InputError(f"profile {profile} is refused: its values, or an override, are nested too deeply") from None


def _read_profile(profile: Path) -> dict[str, Any]:
    kind = "JSON" if profile.suffix == ".json" else "TOML"
    place = shortened(str(profile))
    try:
        if profile.exists() and not profile.is_file():
            raise InputError(f"profile {place} is not a file: name one that holds {kind}")
        with profile.open("rb") as file:
            data = file.read(MAX_PROFILE_BYTES + 1)
        if len(data) > MAX_PROFILE_BYTES:
            raise InputError(f"profile {place} has more than {MAX_PROFILE_BYTES:,} bytes: it is not a profile")
        text = data.decode("utf-8-sig")
        values = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except InputError:
        raise
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in profile.parent.glob("*.toml"))) or "none"
        raise InputError(f"there is no profile {place}; profiles in {profile.parent}: {known}") from None
    except RecursionError:
        raise InputError(f"profile {place} is not readable {kind}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise InputError(f"profile {place} is not readable {kind}: {shortened(str(error))}") from None
    if not isinstance(values, dict):
        raise InputError(f"profile {place} holds one {kind} value, expected sections and keys")
    return values


def _check_values(value: Any, where: str = "") -> None:
    """Refuses what no file name, address or JSON can hold, before a library stumbles over it."""
    if isinstance(value, dict):
        for key, part in value.items():
            _check_values(key, f"the key {shortened(repr(key))}")
            _check_values(part, f"{where}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for part in value:
            _check_values(part, where)
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise InputError(f"{shortened(where)} is a number of {value.bit_length()} bits: expected one that counts")
    elif isinstance(value, str) and (found := _UNFIT.search(value)):
        raise InputError(
            f"{shortened(where)} holds the character {found.group()!r} (in {shortened(repr(value))}): expected text "
            "in UTF-8 without control characters"
        )
    elif isinstance(value, str) and value.startswith("~/"):
        raise InputError(f"{shortened(where)} is {shortened(value)}, and ~ is not replaced here: write the path out")


_MAX_BITS = 1024


_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters but for tab and line ends, and what is left of bytes that are not UTF-8."""


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    told = shortened(repr(override))
    if not equals or not key:
        raise InputError(
            f"override {told} has no value, expected section.key=value, for example sample.k=4 (SET is split at "
            "spaces: give a value with spaces to the command tpo with --set)"
        )
    *sections, last = key.split(".")
    if not last or not all(sections):
        raise InputError(f"override {told} has an empty name in its key, expected section.key=value")
    value = _value(text, told)
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"override {told}: {section!r} is a value and not a section")
    values[last] = value


def _value(text: str, told: str) -> Any:
    """What an override says: TOML, or else the text as it is."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.startswith(('"', "'")):
            raise InputError(
                f"override {told} begins with a quote and is not TOML ({shortened(str(error))}): close the quote, or "
                "leave quotes out"
            ) from None
        return text
    except ValueError as error:
        raise InputError(f"override {told} is not readable TOML: {shortened(str(error))}") from None
    except RecursionError:
        raise InputError(f"override {told} is not readable TOML: it is nested too deeply") from None
    return document["value"] if document.keys() == {"value"} else text


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        key, known = _place(item["loc"])
        where = shortened(".".join(map(_spelled, key))) or "the run"
        if item["type"] == "extra_forbidden":
            lines.append(f"  {where}: unknown key; known here: {', '.join(known)}{_meant(key[-1], known)}")
        else:
            told = item["type"] == "missing" or isinstance(item["input"], dict | BaseModel)
            found = "" if told else f" (found {shortened(json.dumps(item['input'], default=str))})"
            what = item["msg"].removeprefix("Value error, ")
            if "discriminator" in what:  # pydantic's word for the key by which it tells sections apart
                what = "expected a section with a key kind that says which it is"
            lines.append(f"  {where}: {shortened(what, 500)}{found}")
    return lines


def _spelled(name: str) -> str:
    """A name of a key as TOML spells it."""
    return name if re.fullmatch(r"[\w-]+", name) else json.dumps(name, ensure_ascii=False)


def _meant(name: str, known: Sequence[str]) -> str:
    """The known name that is nearest to one that is not known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _place(loc: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Where an error is, as a profile spells it, and the keys known there; pydantic's place names union members too."""
    sections: list[type[BaseModel]] = [RunConfig]
    key: list[str] = []
    for part in map(str, loc):
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        tagged = [section for section in sections if part == getattr(section.model_fields.get("kind"), "default", None)]
        if fields:
            key.append(part)
            sections = _sections_in(fields[0].annotation)
        elif tagged and len(sections) > 1:
            sections = tagged
        elif sections:
            key.append(part)
    return key, sorted({name for section in sections for name in section.model_fields})


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold, through unions and what annotates them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
