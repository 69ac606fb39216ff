"""Reads a profile: TOML and overrides in, a `RunConfig` out, or one error that lists every fault with its remedy.

Old names are translated in each file and each override separately (`tpo.config.renamed`), before they are merged
(`tpo.config.layers`), so that an old name in one of them and the new name in another are the same setting.
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
"""Maximum size of a profile."""


def load_config(profile: Path, overrides: Sequence[str] = (), *, note: Note = say) -> RunConfig:
    """The run that a profile describes, with overrides of the form `section.key=value` applied in order.

    A profile is TOML, or a run's `config.json`. It may name another in `base`, by a path relative to its own folder,
    whose values apply unless it sets them itself.
    An override's value is read as TOML if it is valid TOML (`4`, `0.1`, `true`, `["a"]`) and as text otherwise. Paths
    in the profile are relative to the current folder. `note` receives a line for each old name that a user wrote; a
    run's `config.json` is read silently. Raises `InputError` naming the key, what was found, where, and what was
    expected.
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
    """A profile and those that it is based on, with their values; the profile itself comes last."""
    found = [(profile, _read_profile(profile))]
    while (base := found[0][1].pop("base", None)) is not None:
        path = found[0][0]
        if not isinstance(base, str) or not base.endswith(".toml"):
            raise InputError(
                f"profile {path}: base is {shortened(repr(base))}, expected the path of a profile from this folder, "
                'such as "base/thinkpo.toml"'
            )
        if any((path.parent / base).resolve() == other.resolve() for other, _ in found):
            raise InputError(f'profile {path}: base is "{base}", which is based on this one: remove one of the two')
        found.insert(0, (path.parent / base, _read_profile(path.parent / base)))
    if len(found) > 1 and "name" not in found[-1][1]:
        raise InputError(f"profile {profile} has a base but no name, so it would get the base's name: give it its own")
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
        raise InputError(f"profile {place} is a single {kind} value, expected sections and keys")
    return values


def _check_values(value: Any, where: str = "") -> None:
    """Rejects values that can't be in a file name, an address or JSON, before a library fails on them."""
    if isinstance(value, dict):
        for key, part in value.items():
            _check_values(key, f"the key {shortened(repr(key))}")
            _check_values(part, f"{where}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for part in value:
            _check_values(part, where)
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise InputError(f"{shortened(where)} is a number of {value.bit_length()} bits: expected a smaller one")
    elif isinstance(value, str) and (found := _UNFIT.search(value)):
        raise InputError(
            f"{shortened(where)} contains the character {found.group()!r} (in {shortened(repr(value))}): expected text "
            "in UTF-8 without control characters"
        )
    elif isinstance(value, str) and value.startswith("~/"):
        raise InputError(f"{shortened(where)} is {shortened(value)}, but ~ isn't expanded here: write the path out")


_MAX_BITS = 1024


_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters except tab and line ends, and surrogates, as Python decodes bytes that aren't UTF-8."""


def _apply(layers: Layers, override: str, note: Note) -> None:
    """Adds an override as a layer that replaces existing values."""
    key, equals, text = override.partition("=")
    what = f"override {shortened(repr(override))}"
    if not equals or not key:
        raise InputError(
            f"{what} has no value, expected section.key=value, for example sample.k=4 (SET is split at "
            "spaces: pass a value with spaces to the tpo command with --set)"
        )
    names = key.split(".")
    if not all(names):
        raise InputError(f"{what} has an empty name in its key, expected section.key=value")
    value = _value(text, what)
    for name in reversed(names):
        value = {name: value}
    # [sft] is now one level deeper; [thinkpo] and [self_train] share [recipe] with it, so keys are replaced one by one.
    deeper = names[0] == "sft" or (len(names) == 1 and names[0] in RECIPES)
    origin = f"override of {shortened(key)}"  # without its value, which may be a secret in the wrong place
    layers.lay(translated(value, lambda line: note(f"{what}: {line}")), origin, depth=len(names) + deeper)


def _value(text: str, what: str) -> Any:
    """An override's value: TOML if it parses, else the text itself."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.startswith(('"', "'")):
            raise InputError(
                f"{what} begins with a quote and is not TOML ({shortened(str(error))}): close the quote, or "
                "leave quotes out"
            ) from None
        return text
    except ValueError as error:
        raise InputError(f"{what} is not readable TOML: {shortened(str(error))}") from None
    except RecursionError:
        raise InputError(f"{what} is not readable TOML: it is nested too deeply") from None
    return document["value"] if document.keys() == {"value"} else text


def _explain(error: ValidationError, layers: Layers, profile: str) -> list[str]:
    """A line for each fault: the key, what was expected and found, and its origin unless that is the profile."""
    lines = []
    for item in error.errors():
        key, known = _place(item["loc"])
        where = shortened(".".join(map(_spelled, key))) or "the run"
        if item["type"] == "extra_forbidden":
            fault = f"unknown key; known here: {', '.join(known)}{_meant(key[-1], known)}"
            lines.append(f"  {where}: {fault}{_from(layers, profile, key, '')}")
        else:
            is_clear = item["type"] == "missing" or isinstance(item["input"], dict | BaseModel)
            found = "" if is_clear else f" (found {shortened(json.dumps(item['input'], default=str))})"
            what = item["msg"].removeprefix("Value error, ")
            if "discriminator" in what:  # pydantic's word for the key that selects a section's type
                what = "expected a section whose key kind selects its type"
            lines.append(f"  {where}: {shortened(what, 500)}{found}{_from(layers, profile, key, what)}")
    return lines


def _from(layers: Layers, profile: str, key: Sequence[str], message: str) -> str:
    """The origin of the setting at fault, in parentheses; empty for the profile itself."""
    origin = layers.origin(key)
    if origin is not None and origin != profile and not layers.mentioned(key, message):
        return f" ({origin})"
    others = {name: origin for name, origin in layers.mentioned(key, message).items() if origin != profile}
    return "".join(f" ({name} from {origin})" for name, origin in others.items())


def _spelled(name: str) -> str:
    """A key's name in TOML's spelling."""
    return name if re.fullmatch(r"[\w-]+", name) else json.dumps(name, ensure_ascii=False)


def _meant(name: str, known: Sequence[str]) -> str:
    """A suggestion: the known name closest to an unknown one, if any is close."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _place(loc: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """An error's location as a profile spells it, and the keys known there; pydantic's `loc` has union members too."""
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
