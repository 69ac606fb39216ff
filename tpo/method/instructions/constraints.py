"""The verifiable instructions of a prompt: their JSON, its validation, and how many of them a response follows.

A prompt's constraints are a JSON list of objects with `id` and `kwargs`, the columns `instruction_id_list` and `kwargs`
of IFEval (2311.07911) in one text. Strict verdicts are on the response as it is; loose ones accept any of eight
versions of it (§3), which forgive an opening line, a closing line and Markdown's asterisks.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpo.method.instructions.checks import INSTRUCTION_TYPES

MAX_CONSTRAINTS = 50
"""Maximum number of instructions per prompt."""


class ConstraintError(ValueError):
    """A prompt's constraints are invalid; says why and what was expected."""


@dataclass(frozen=True)
class Constraint:
    """One verifiable instruction with its arguments."""

    id: str
    """Its type, such as `keywords:existence`."""
    kwargs: Mapping[str, Any]
    """Its arguments by name."""

    def followed_by(self, response: str) -> bool:
        """Whether a response, as it is, follows the instruction; a blank one never does."""
        return bool(response.strip()) and INSTRUCTION_TYPES[self.id].check(response, **self.kwargs)


def parse_constraints(text: str) -> tuple[Constraint, ...]:
    """The constraints in a prompt's JSON; raises `ConstraintError` if it is anything else."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"the constraints are not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and row.keys() == {"id", "kwargs"} for row in rows):
        raise ConstraintError("the constraints are not a list of objects with id and kwargs")
    return _checked(rows)


def write_constraints(ids: Any, kwargs: Any) -> str | None:
    """A prompt's JSON from IFEval's two columns, or None if there are no instructions.

    Args:
        ids: A list of ids, or that list as JSON text, or None.
        kwargs: The arguments of each id, as an object or as JSON text; the whole list may be JSON text. Null arguments
            are ignored, since in some tables every row has every argument. None if no instruction has any.

    Raises `ConstraintError` for an unknown id and for arguments that the instruction doesn't accept.
    """
    ids = _from_json(ids, "the instruction ids")
    kwargs = _from_json(kwargs, "the kwargs")
    if ids is None or ids == []:
        return None
    if not isinstance(ids, list):
        raise ConstraintError(f"the instruction ids are {_short(ids)}, expected a list of ids")
    kwargs = [None] * len(ids) if kwargs is None else kwargs
    if not isinstance(kwargs, list) or len(kwargs) != len(ids):
        raise ConstraintError(f"the kwargs are {_short(kwargs)}, expected a list of {len(ids)} objects, one per id")
    rows = [{"id": each, "kwargs": _present(values)} for each, values in zip(ids, kwargs, strict=True)]
    _checked(rows)
    return json.dumps(rows, ensure_ascii=False)


def strict_verdicts(constraints: Sequence[Constraint], response: str) -> list[bool]:
    """Whether a response, as it is, follows each of the constraints."""
    return [constraint.followed_by(response) for constraint in constraints]


def loose_verdicts(constraints: Sequence[Constraint], response: str) -> list[bool]:
    """Whether any of the eight versions of a response follows each of the constraints."""
    versions = loose_versions(response)
    return [any(constraint.followed_by(version) for version in versions) for constraint in constraints]


def loose_versions(response: str) -> list[str]:
    """A response as it is, without its first line, its last, and both; then each of these without asterisks."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(version.replace("*", "") for version in cut)]))


@dataclass(frozen=True)
class Accuracy:
    """IFEval's four numbers over a set of responses, each from 0 to 1."""

    prompt_strict: float
    """Share of prompts with all instructions followed."""
    instruction_strict: float
    """Share of instructions followed."""
    prompt_loose: float
    """`prompt_strict` with loose verdicts."""
    instruction_loose: float
    """`instruction_strict` with loose verdicts."""


def measure_accuracy(responses: Iterable[tuple[Sequence[Constraint], str]]) -> Accuracy:
    """The four numbers over responses, each paired with its prompt's constraints; raises ValueError if none has any."""
    pairs = [(constraints, response) for constraints, response in responses if constraints]
    if not pairs:
        raise ValueError("there is no response with constraints to measure")
    strict = [strict_verdicts(constraints, response) for constraints, response in pairs]
    loose = [loose_verdicts(constraints, response) for constraints, response in pairs]
    return Accuracy(prompt_level(strict), instruction_level(strict), prompt_level(loose), instruction_level(loose))


def prompt_level(verdicts: Sequence[Sequence[bool]]) -> float:
    """Share of prompts whose verdicts are all true."""
    return sum(map(all, verdicts)) / len(verdicts)


def instruction_level(verdicts: Sequence[Sequence[bool]]) -> float:
    """Share of true verdicts over all prompts together."""
    return sum(map(sum, verdicts)) / sum(map(len, verdicts))


def _checked(rows: Sequence[Mapping[str, Any]]) -> tuple[Constraint, ...]:
    if len(rows) > MAX_CONSTRAINTS:
        raise ConstraintError(f"there are {len(rows)} instructions, expected at most {MAX_CONSTRAINTS}")
    return tuple(_constraint(row["id"], row["kwargs"]) for row in rows)


def _constraint(type_id: Any, kwargs: Any) -> Constraint:
    if not isinstance(type_id, str) or type_id not in INSTRUCTION_TYPES:
        raise ConstraintError(
            f"the instruction id {_short(type_id)} is unknown, expected one of {', '.join(INSTRUCTION_TYPES)}"
        )
    arguments = INSTRUCTION_TYPES[type_id].arguments
    needed = ", ".join(arguments) or "none"
    if not isinstance(kwargs, dict):
        raise ConstraintError(f"the arguments of {type_id} are {_short(kwargs)}, expected an object with {needed}")
    if kwargs.keys() != arguments.keys():
        found = ", ".join(map(str, kwargs)) or "none"
        raise ConstraintError(f"{type_id} has the arguments {found[:200]}, expected {needed}")
    for name, argument in arguments.items():
        if not argument.accepts(kwargs[name]):
            raise ConstraintError(f"{name} of {type_id} is {_short(kwargs[name])}, expected {argument.expected}")
    if kwargs.get("nth_paragraph", 0) > kwargs.get("num_paragraphs", MAX_CONSTRAINTS**4):
        raise ConstraintError(
            f"nth_paragraph of {type_id} is {kwargs['nth_paragraph']}, expected up to num_paragraphs, "
            f"{kwargs['num_paragraphs']}"
        )
    return Constraint(type_id, kwargs)


def _present(kwargs: Any) -> Any:
    """The non-null arguments, with whole numbers that a table stores as floats turned back into integers."""
    kwargs = _from_json(kwargs, "the kwargs")
    if kwargs is None:
        return {}
    if not isinstance(kwargs, dict):
        return kwargs
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in kwargs.items()
        if value is not None and value == value
    }


def _from_json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return None if value != value else value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"{what} are {_short(value)}, expected a list, or one as JSON text") from error


def _short(value: Any) -> str:
    return repr(value)[:80]
