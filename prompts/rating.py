"""Rating prompts: show a model one instruction, and read which category it belongs to and how complex it is.

What is read are two labels, `[[Category: …]]` and `[[Complexity: …]]`. A reply with several different ones of a kind, a
category that isn't in the list, or a number that isn't a complexity, says nothing about it: unknown, never a middle
value. The instruction is the user's, so it could hold labels and headings of its own; those are defused before it is
shown, as a judge's responses are (`prompts.quoting`).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from prompts import quoting
from prompts.quoting import LIKE_HEADINGS, Forgeries, check_fences, shown_conversation, taken_apart
from prompts.template import read_template, shipped_template
from tpo.config.fine_grained import MAX_COMPLEXITY, FineGrainedConfig, category_key
from tpo.engines.inference.reply import without_thinking
from tpo.errors import InputError
from tpo.records import Message

SLOTS = ("categories", "instruction")
"""The slots of a user template, in this order."""
BEGINNINGS = ("[[Category:", "[[Complexity:")
"""What the labels begin with."""


class Unread(StrEnum):
    """Why a reply doesn't say a category or a complexity."""

    CUT_BY_LENGTH = "cut_by_length"
    """The token limit, or a filter, ended it: a label so far may be a quotation."""
    EMPTY = "empty"
    """It has no text, or reasoning alone."""
    NO_LABEL = "no_label"
    """The label isn't there."""
    SEVERAL = "several"
    """It has labels that contradict each other."""
    NOT_LISTED = "not_listed"
    """It names a category that isn't in the list, or a number that isn't a complexity."""


@dataclass(frozen=True)
class ReadRating:
    """What a reply says."""

    category: str | Unread
    """One of the categories, as the list has it."""
    complexity: int | Unread
    """From 1 to `MAX_COMPLEXITY`."""


@dataclass(frozen=True)
class RatingPrompt:
    """One way to ask for a rating."""

    system_template: str
    """The system turn, used verbatim."""
    user_template: str
    """The user turn: text with `{{ categories }}` and `{{ instruction }}`, in this order, and nothing else of
    Jinja's."""
    categories: tuple[str, ...]
    """The categories to choose from."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the templates and categories: equal fingerprints prompt and parse alike."""
        return hashlib.sha256(repr((self.system_template, self.user_template, self.categories)).encode()).hexdigest()

    def render(self, instruction: str, earlier: Sequence[Message] = ()) -> list[Message]:
        """The chat messages that ask about an instruction after the turns `earlier`, sanitized."""
        head, tail = self._pieces
        shown = (
            shown_conversation(instruction, earlier, lambda text: quoting.defused(text, self._forgeries_in_chat))
            if earlier
            else quoting.defused(instruction, self._forgeries)
        )
        user = f"{head}{shown}{tail}"
        return [Message(role="system", content=self.system_template), Message(role="user", content=user)]

    def read(self, text: str, *, finished: bool) -> ReadRating:
        """What a reply says; `finished` is False if the token limit cut it."""
        if not finished:
            return ReadRating(Unread.CUT_BY_LENGTH, Unread.CUT_BY_LENGTH)
        text = without_thinking(text)
        if not text.strip():
            return ReadRating(Unread.EMPTY, Unread.EMPTY)
        return ReadRating(self._read_category(text), _read_complexity(text))

    def prose(self) -> list[str]:
        """The constant pieces of text, in order: system turn, then the user turn around the instruction."""
        return [self.system_template, *self._pieces]

    def _read_category(self, text: str) -> str | Unread:
        named = {category_key(found) for found in _CATEGORY.findall(text)}
        if len(named) != 1:
            return Unread.SEVERAL if named else Unread.NO_LABEL
        return next((name for name in self.categories if category_key(name) in named), Unread.NOT_LISTED)

    @cached_property
    def _pieces(self) -> tuple[str, str]:
        before, between, after = taken_apart(self.user_template, SLOTS)
        listed = "\n".join(f"- {name.strip()}" for name in self.categories)
        return f"{before}{listed}{between}", after

    @cached_property
    def _forgeries(self) -> Forgeries:
        forgeries = Forgeries.of(self._pieces, BEGINNINGS)
        check_fences(SLOTS[1:], self._pieces, forgeries)
        return forgeries

    @cached_property
    def _forgeries_in_chat(self) -> Forgeries:
        return Forgeries.of([*self._pieces, *LIKE_HEADINGS], BEGINNINGS)


def load_rating_prompt(config: FineGrainedConfig) -> RatingPrompt:
    """The prompt for a config, with its template files checked.

    Raises `InputError` if a template is missing, if the user turn isn't text with both slots, each once, in order and
    the instruction fenced by words in brackets, or if neither turn mentions the labels.
    """
    system, user = config.system_template, config.user_template
    prompt = RatingPrompt(
        read_template(system, "rating").strip() if system else SHIPPED.system_template,
        read_template(user, "rating") if user else SHIPPED.user_template,
        config.categories,
    )
    try:
        prompt.render("")
    except InputError as error:
        raise InputError(f"rating template {user}: {error}") from error
    unsaid = [label for label in BEGINNINGS if not any(label in piece for piece in prompt.prose())]
    if unsaid:
        raise InputError(
            f"the rating templates never mention {' and '.join(unsaid)}, from which ratings are read: tell the rater "
            f"to finish with {' … ]] '.join(BEGINNINGS)} … ]]"
        )
    return prompt


def _read_complexity(text: str) -> int | Unread:
    named = {found.strip() for found in _COMPLEXITY.findall(text)}
    if len(named) != 1:
        return Unread.SEVERAL if named else Unread.NO_LABEL
    return _COMPLEXITIES.get(named.pop(), Unread.NOT_LISTED)


_CATEGORY = re.compile(r"\[\[\s*category\s*:([^][\n]*)\]\]", re.I)
_COMPLEXITY = re.compile(r"\[\[\s*complexity\s*:([^][\n]*)\]\]", re.I)
_COMPLEXITIES: Mapping[str, int | Unread] = {str(number): number for number in range(1, MAX_COMPLEXITY + 1)}
SHIPPED = RatingPrompt(
    shipped_template("rating.system").strip(), shipped_template("rating.user"), FineGrainedConfig().categories
)
"""The shipped prompt, with the default categories."""
