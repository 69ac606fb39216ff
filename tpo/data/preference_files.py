"""Files of preferences, to measure judges on: which of several responses to a prompt are better.

Three shapes, recognized by their columns: RewardBench's (`prompt`, `chosen`, `rejected`), RewardBench 2's (the same,
with lists of texts: one right response among four, or several equally right ones) and HelpSteer's (`response1`,
`response2`, `overall_preference`; or a `response` per row, with its `helpfulness`). A response may be a text or a chat
that ends with it. Rows that express no preference are left out and counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tpo.data.conversations import Conversation, Unusable, encodable, read_conversation
from tpo.data.prompt_files import read_table
from tpo.errors import InputError
from tpo.method.instructions import write_constraints

Shape: TypeAlias = Literal["pairs", "best_of_n", "two_responses", "rated_responses"]
PLACE = "DATA"
"""The variable that names the file."""
TIES = "Ties"
"""RewardBench 2's subset of prompts with several equally right responses."""
_PROMPTS = ("prompt", "instruction", "question", "context", "input")
_SUBSETS = ("subset", "category", "domain")
_TWO = (("response1", "response2"), ("response_1", "response_2"))
_STRENGTHS = ("overall_preference", "preference_strength")
_REFERENCES = ("reference", "answer")
_WANTED = (
    *_PROMPTS, *_SUBSETS, *_REFERENCES, "chosen", "rejected", *_TWO[0], *_TWO[1], *_STRENGTHS, "response",
    "helpfulness", "id", "instruction_id_list", "kwargs",
)  # fmt: skip


@dataclass(frozen=True)
class Preference:
    """A prompt with responses of which some are better than the others."""

    instruction: str
    """The instruction, or the last user turn of a conversation."""
    better: tuple[str, ...]
    """The better responses, equally good; at least one."""
    worse: tuple[str, ...]
    """The worse responses; at least one."""
    history: str | None = None
    """The turns before the instruction, in the form of `Prompt.history`."""
    subset: str | None = None
    """The part of the file that the row belongs to, if it names one."""
    reference: str | None = None
    """The right answer, if the file has one."""
    constraints: str | None = None
    """Verifiable instructions, in the form of `Prompt.constraints`, if the file has them."""
    name: str | None = None
    """The row's own id, which connects RewardBench 2's ties (`ref:7`, `tied:7`)."""
    rubric: str | None = None
    """The prompt's own rubric, as `Prompt.rubric`; files of preferences have none."""

    @property
    def key(self) -> str:
        """First 16 hex digits of the SHA-256 of the texts."""
        texts = [self.instruction, self.history, self.better, self.worse]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    @property
    def counts_ties(self) -> bool:
        """Whether RewardBench 2's own score for ties applies to it."""
        return self.subset == TIES and self.name is not None and self.name.partition(":")[0] in ("ref", "tied")


@dataclass(frozen=True)
class PreferenceRows:
    """What a file of preferences holds."""

    shape: Shape
    """How the file writes them."""
    rows: Sequence[Preference]
    """The preferences, each once, in the file's order."""
    left_out: Mapping[str, int]
    """Rows that express no preference or repeat one, by reason."""


def read_preferences(path: Path, *, limit: int | None = None) -> PreferenceRows:
    """The preferences in a file, the first `limit` of them.

    Raises `InputError` if the file can't be read, has the columns of none of the shapes, has a damaged row, or
    expresses no preference.
    """
    table = read_table(path, _WANTED, PLACE)
    rows = [dict(zip(_WANTED, values, strict=True)) for values in table.rows]
    columns = {name for name in _WANTED if name in table.columns}
    shape = _shape_of(path, columns, rows, table.columns)
    if shape == "rated_responses":
        rows = _best_and_worst(path, rows, columns)
    found, left_out = dict[str, Preference](), Counter[str]()
    for number, row in enumerate(rows, 1):
        try:
            read = _READ[shape](row, columns)
        except ValueError as error:
            raise InputError(f"{path}, row {number}: {error}") from error
        if isinstance(read, str):
            left_out[read] += 1
        elif (useless := _why_useless(read)) is not None:
            left_out[useless] += 1
        elif read.key in found:
            left_out["repeated"] += 1
        elif limit is not None and len(found) == limit:
            left_out["beyond_limit"] += 1
        else:
            found[read.key] = read
    if not found:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "no rows"
        raise InputError(f"{path} expresses no preference ({why})")
    return PreferenceRows(shape, list(found.values()), dict(sorted(left_out.items())))


def _shape_of(path: Path, columns: set[str], rows: Sequence[Mapping[str, Any]], all_columns: Sequence[str]) -> Shape:
    if columns >= {"chosen", "rejected"}:
        first = next((row["chosen"] for row in rows if row["chosen"]), None)
        return "best_of_n" if isinstance(first, list) and all(isinstance(one, str) for one in first) else "pairs"
    if any(columns >= {*two} for two in _TWO) and columns & {*_STRENGTHS}:
        return "two_responses"
    if columns >= {"response", "helpfulness"}:
        return "rated_responses"
    raise InputError(
        f"{path} has the columns {', '.join(map(repr, all_columns)) or 'none'}: expected those of RewardBench (prompt, "
        "chosen, rejected), of RewardBench 2 (the same, with lists of responses) or of HelpSteer (prompt, response, "
        "helpfulness; or context, response1, response2, overall_preference)"
    )


def _best_and_worst(path: Path, rows: Sequence[dict[str, Any]], columns: set[str]) -> list[dict[str, Any]]:
    """One row for each run of rows with the same prompt: the best and the worst by helpfulness, the first if equal."""
    asked = _first(columns, _PROMPTS)
    groups = dict[str, list[dict[str, Any]]]()
    for number, row in enumerate(rows, 1):
        if isinstance(row["helpfulness"], bool) or not isinstance(row["helpfulness"], int | float | str):
            raise InputError(f"{path}, row {number}: helpfulness is {row['helpfulness']!r:.40}, expected a number")
        try:
            row["helpfulness"] = float(row["helpfulness"])
        except ValueError as error:
            raise InputError(f"{path}, row {number}: helpfulness is {row['helpfulness']!r:.40}: {error}") from error
        groups.setdefault(json.dumps(row[asked]) if asked else "", []).append(row)
    found = []
    for group in groups.values():
        best = max(group, key=lambda row: row["helpfulness"])
        worst = min(group, key=lambda row: row["helpfulness"])
        equal = best["helpfulness"] == worst["helpfulness"]
        found.append(best | {"chosen": best["response"], "rejected": None if equal else worst["response"]})
    return found


def _pair(row: Mapping[str, Any], columns: set[str]) -> "Preference | str":
    chosen, rejected = row["chosen"], row["rejected"]
    if rejected is None and "helpfulness" in columns:
        return "rated_equal"
    better, worse = _response(chosen, "chosen"), _response(rejected, "rejected")
    given = _first(columns, _PROMPTS)
    value = row[given] if given is not None else chosen
    if given is None and not isinstance(value, list):
        raise ValueError("there is no prompt, expected a column prompt, or chats in chosen and rejected")
    asked = _asked(value)
    return str(asked) if isinstance(asked, Unusable) else _preference(row, columns, asked, (better,), (worse,))


def _best_of_n(row: Mapping[str, Any], columns: set[str]) -> "Preference | str":
    given = _first(columns, _PROMPTS)
    if given is None:
        raise ValueError("there is no prompt, expected a column prompt")
    texts = {}
    for name in ("chosen", "rejected"):
        if not isinstance(row[name], list) or not all(isinstance(text, str) for text in row[name]):
            raise ValueError(f"{name} is {row[name]!r:.60}, expected a list of texts as in the rows before it")
        texts[name] = tuple(map(encodable, row[name]))
    asked = _asked(row[given])
    if isinstance(asked, Unusable):
        return str(asked)
    return _preference(row, columns, asked, texts["chosen"], texts["rejected"])


def _two_responses(row: Mapping[str, Any], columns: set[str]) -> "Preference | str":
    given, strength = _first(columns, _PROMPTS), _first(columns, _STRENGTHS)
    names = next(two for two in _TWO if columns >= {*two})
    if given is None or strength is None:
        raise ValueError("there is no prompt, expected a column context or prompt")
    value = row[strength]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{strength} is {value!r:.40}, expected a number, below 0 if the first response is better")
    if value == 0 or value != value:
        return "no_preference"
    first, second = (_response(row[name], name) for name in names)
    asked = _asked(row[given])
    if isinstance(asked, Unusable):
        return str(asked)
    better, worse = (first, second) if value < 0 else (second, first)
    return _preference(row, columns, asked, (better,), (worse,))


_READ: Mapping[Shape, Callable[[Mapping[str, Any], set[str]], "Preference | str"]] = {
    "pairs": _pair,
    "best_of_n": _best_of_n,
    "two_responses": _two_responses,
    "rated_responses": _pair,
}


def _preference(
    row: Mapping[str, Any], columns: set[str], asked: Conversation, better: tuple[str, ...], worse: tuple[str, ...]
) -> Preference:
    subset, reference = _first(columns, _SUBSETS), _first(columns, _REFERENCES)
    found = Preference(asked.instruction, better, worse, asked.history)
    return replace(
        found,
        subset=_plain(row[subset]) if subset else None,
        reference=_plain(row[reference]) if reference else None,
        constraints=write_constraints(row["instruction_id_list"], row["kwargs"]),
        name=_plain(row["id"]),
    )


def _why_useless(found: Preference) -> str | None:
    if not found.better or not found.worse:
        return "no_other_response"
    if not found.instruction.strip():
        return "no_prompt"
    return "same_text" if {*found.better} & {*found.worse} else None


def _asked(value: Any) -> Conversation | Unusable:
    if isinstance(value, str):
        return Conversation(encodable(value), None)
    if isinstance(value, list):
        return read_conversation(value)
    raise ValueError(f"the prompt is {value!r:.60}, expected text, or a list of turns")


def _response(value: Any, name: str) -> str:
    """The text of a response, or of the last turn of a chat that ends with it."""
    if isinstance(value, str):
        return encodable(value)
    turns = value if isinstance(value, list) else [value]
    last = turns[-1] if turns else None
    text = next((last[key] for key in ("content", "value") if isinstance(last, dict) and key in last), None)
    if not isinstance(text, str):
        raise ValueError(f"{name} is {value!r:.60}, expected text, or a chat that ends with the response")
    return encodable(text)


def _plain(value: Any) -> str | None:
    return None if value is None or value == "" or value != value else encodable(str(value))


def _first(columns: set[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)
