"""Values of several files and overrides laid over each other, with the memory of where each is from."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tpo.errors import InputError


class Layers:
    """The values of a profile; later ones win.

    A section is merged key by key, lists and other values are replaced, and so is a section whose `kind` changes, since
    its other keys belong to the kind that it had.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._origins: dict[tuple[str, ...], str] = {}

    def lay(self, values: Mapping[str, Any], origin: str, *, depth: int | None = None) -> None:
        """Lays values from `origin` over those that are there.

        What lies `depth` levels down is replaced and not merged; None merges all the way. Raises `InputError` if an
        override, which has a depth, goes into a value as if it were a section.
        """
        self._lay(self.values, values, origin, depth, ())

    def origin(self, key: Sequence[str]) -> str | None:
        """Where the value at `key` is from, or the section that it is in; None if no layer has it."""
        found = (self._origins.get(tuple(key[:length])) for length in range(len(key), 0, -1))
        return next((origin for origin in found if origin is not None), None)

    def mentioned(self, section: Sequence[str], message: str) -> dict[str, str]:
        """The settings that a message about a section names, and where they are from; those that a layer has."""
        found = {}
        for name in re.findall(r"[a-z]\w*(?:\.\w+)*", message):
            key = (*section, *name.split("."))
            if len(key) > 1 and (origin := self.origin(key)) is not None and self._is_value(key):
                found[name] = origin
        return found

    def _lay(
        self, below: dict[str, Any], new: Mapping[str, Any], origin: str, depth: int | None, place: tuple[str, ...]
    ) -> None:
        for name, value in new.items():
            key, there = (*place, name), below.get(name)
            merges = isinstance(value, dict) and depth != 1 and not _changes_kind(there, value)
            if not merges or (depth is None and not isinstance(there, dict)):
                below[name] = value
                self._forget(key)
                self._origins[key] = origin
            elif isinstance(there, dict) or name not in below:
                self._lay(below.setdefault(name, {}), value, origin, None if depth is None else depth - 1, key)
            else:
                raise InputError(f"{origin}: {name!r} is a value and not a section")

    def _forget(self, key: tuple[str, ...]) -> None:
        for deeper in [each for each in self._origins if each[: len(key)] == key]:
            del self._origins[deeper]

    def _is_value(self, key: Sequence[str]) -> bool:
        """Whether there is a value at `key`, and not a section."""
        found: Any = self.values
        for name in key:
            if not isinstance(found, dict) or name not in found:
                return False
            found = found[name]
        return not isinstance(found, dict)


def _changes_kind(old: Any, new: Mapping[str, Any]) -> bool:
    return isinstance(old, dict) and "kind" in old and new.get("kind", old["kind"]) != old["kind"]
