"""Reads a profile: TOML and overrides in, a `RunConfig` out, or one error that names every fault with its remedy.

Old names are translated in each file and each override by itself (`tpo.config.renamed`), before they are laid over each
other (`tpo.config.layers`), so that an old name in one of them and the new name in another are one setting.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tpo.config.base import sections_in
from tpo.config.layers import Layers
from tpo.config.renamed import RECIPES, Note, translated
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.errors import InputError, shortened

MAX_PROFILE_BYTES = 2**20
"""Size of the largest profile that is read."""


def load_config(profile: Path, overrides: Sequence[str] = (), *, note: Note = say) -> RunConfig:
    """The run that a profile describes, with overrides of the form `section.key=value` applied in order.

    A profile is TOML, or the `config.json` that a run keeps. It may name another in `base`, by a path from its own
    folder, whose values are those that it does not set itself.
    A value is read as TOML where it is TOML (`4`, `0.1`, `true`, `["a"]`) and as text otherwise. Paths in the
    profile are relative to the current folder. `note` receives a line for each old name that a user wrote; what a run
    keeps is read silently. Raises `InputError` naming the key, what was found, where, and what was expected.
    """
    layers = Layers()
    try:
        for path, values in _with_bases(profile):
            layers.lay(translated(values, _noting(note, path)), str(path))
        for override in overrides:
            _apply(layers, override, note)
        _check_values(layers.values)
        return RunConfig.model_validate(layers.values)
    except ValidationError as error:
        faults = "\n".join(_explain(error, layers, str(profile)))
        raise InputError(f"profile {profile} is refused:\n{faults}") from None
    except RecursionError:
        raise InputError(f"profile {profile} is refused: its values, or an override, are nested too deeply") from None


def _noting(note: Note, path: Path) -> Note:
    return ignore if path.suffix == ".json" else lambda line: note(f"{path}: {line}")


def _with_bases(profile: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A profile's file and those that it is based on, with their values; the profile itself is last."""
    found = [(profile, _read_profile(profile))]
    while (base := found[0][1].pop("base", None)) is not None:
        path = found[0][0]
        if not isinstance(base, str) or not base.endswith(".toml"):
            raise InputError(
                f"profile {path}: base is {shortened(repr(base))}, expected the path of a profile from this folder, as "
                '"base/thinkpo.toml"'
            )
        if any((path.parent / base).resolve() == other.resolve() for other, _ in found):
            raise InputError(f'profile {path}: base is "{base}", which is based on this one: leave one of them out')
        found.insert(0, (path.parent / base, _read_profile(path.parent / base)))
    if len(found) > 1 and "name" not in found[-1][1]:
        raise InputError(f"profile {profile} has a base and no name, which would be the base's: give it one")
    return found


def ignore(_: str) -> None:
    """Drops a note."""


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


def _apply(layers: Layers, override: str, note: Note) -> None:
    """Puts the value of an override in the place of what is there."""
    key, equals, text = override.partition("=")
    told = f"override {shortened(repr(override))}"
    if not equals or not key:
        raise InputError(
            f"{told} has no value, expected section.key=value, for example sample.k=4 (SET is split at "
            "spaces: give a value with spaces to the command tpo with --set)"
        )
    names = key.split(".")
    if not all(names):
        raise InputError(f"{told} has an empty name in its key, expected section.key=value")
    value = _value(text, told)
    for name in reversed(names):
        value = {name: value}
    # [sft] is a level deeper now; [thinkpo] and [self_train] share [recipe] with it: keys are replaced one by one.
    deeper = names[0] == "sft" or (len(names) == 1 and names[0] in RECIPES)
    origin = f"override of {shortened(key)}"  # without its value, which may be a secret in the wrong place
    layers.lay(translated(value, lambda line: note(f"{told}: {line}")), origin, depth=len(names) + deeper)


def _value(text: str, told: str) -> Any:
    """What an override says: TOML, or else the text as it is."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.startswith(('"', "'")):
            raise InputError(
                f"{told} begins with a quote and is not TOML ({shortened(str(error))}): close the quote, or "
                "leave quotes out"
            ) from None
        return text
    except ValueError as error:
        raise InputError(f"{told} is not readable TOML: {shortened(str(error))}") from None
    except RecursionError:
        raise InputError(f"{told} is not readable TOML: it is nested too deeply") from None
    return document["value"] if document.keys() == {"value"} else text


def _explain(error: ValidationError, layers: Layers, profile: str) -> list[str]:
    """A line for each fault: the key, what was expected and found, and where it is from if not from the profile."""
    lines = []
    for item in error.errors():
        key, known = _place(item["loc"])
        where = shortened(".".join(map(_spelled, key))) or "the run"
        if item["type"] == "extra_forbidden":
            told = f"unknown key; known here: {', '.join(known)}{_meant(key[-1], known)}"
            lines.append(f"  {where}: {told}{_from(layers, profile, key, '')}")
        else:
            is_clear = item["type"] == "missing" or isinstance(item["input"], dict | BaseModel)
            found = "" if is_clear else f" (found {shortened(json.dumps(item['input'], default=str))})"
            what = item["msg"].removeprefix("Value error, ")
            if "discriminator" in what:  # pydantic's word for the key by which it tells sections apart
                what = "expected a section with a key kind that says which it is"
            lines.append(f"  {where}: {shortened(what, 500)}{found}{_from(layers, profile, key, what)}")
    return lines


def _from(layers: Layers, profile: str, key: Sequence[str], message: str) -> str:
    """Where what a fault is about is from, in brackets; empty for the profile itself."""
    origin = layers.origin(key)
    if origin is not None and origin != profile and not layers.mentioned(key, message):
        return f" ({origin})"
    others = {name: origin for name, origin in layers.mentioned(key, message).items() if origin != profile}
    return "".join(f" ({name} from {origin})" for name, origin in others.items())


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
            sections = sections_in(fields[0].annotation)
        elif tagged and len(sections) > 1:
            sections = tagged
        elif sections:
            key.append(part)
    return key, sorted({name for section in sections for name in section.model_fields})
