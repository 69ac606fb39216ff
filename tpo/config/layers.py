"""The values of several files and overrides, merged, with a record of where each came from."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tpo.errors import InputError


class Layers:
    """The values of a profile; later ones win.

    A section is merged key by key; lists and other values are replaced, and so is a section whose `kind` changes, since
    its other keys belong to the old kind.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self._origins: dict[tuple[str, ...], str] = {}

    def lay(self, values: Mapping[str, Any], origin: str, *, depth: int | None = None) -> None:
        """Adds a layer: values from `origin` that override the earlier ones.

        Values `depth` levels down are replaced rather than merged; None merges all the way. Raises `InputError` if an
        override, which has a depth, treats a value as if it were a section.
        """
        self._lay(self.values, values, origin, depth, ())

    def origin(self, key: Sequence[str]) -> str | None:
        """Where the value at `key`, or the section around it, came from; None if no layer has it."""
        found = (self._origins.get(tuple(key[:length])) for length in range(len(key), 0, -1))
        return next((origin for origin in found if origin is not None), None)

    def mentioned(self, section: Sequence[str], message: str) -> dict[str, str]:
        """The settings named in a message about a section, with their origins; only those that a layer sets."""
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
        """Whether `key` holds a value rather than a section."""
        found: Any = self.values
        for name in key:
            if not isinstance(found, dict) or name not in found:
                return False
            found = found[name]
        return not isinstance(found, dict)


def _changes_kind(old: Any, new: Mapping[str, Any]) -> bool:
    return isinstance(old, dict) and "kind" in old and new.get("kind", old["kind"]) != old["kind"]
