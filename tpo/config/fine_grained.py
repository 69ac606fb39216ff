"""Fine-grained evaluation: which kinds of instruction gain (2410.10630, §3.4)."""

import unicodedata
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from tpo.config.base import Endpoint, Section
from tpo.config.hub import ModelPlace, local_path

CATEGORIES = (
    *("General Knowledge", "Reasoning and Problem-Solving", "Mathematics", "Coding", "Language and Translation"),
    *("Creative Writing", "Editing and Rewriting", "Summarization and Extraction", "Research and Analysis"),
    *("Science and Technology", "Health and Wellness", "Marketing and Sales", "Business and Finance"),
    *("Law and Politics", "History and Culture", "Education", "Travel and Geography", "Food and Cooking"),
    *("Advice and Relationships", "Other"),
)
"""Our categories: as many as the paper sorts UltraFeedback's instructions into, with those that its abstract names."""
MAX_COMPLEXITY = 5
"""Complexities are rated from 1 to this."""
UNKNOWN = "unknown"
"""What pages call a category or a complexity that isn't known."""
_MAX_CATEGORY_CHARS = 60


class FineGrainedConfig(Section):
    """Win rates over M_0 answering directly by category of instruction and by complexity (2410.10630, §3.4). What
    prompts bring in `category_column` and `difficulty_column` is used as it is; a model rates the rest."""

    model: ModelPlace | None = None
    """The rater: a folder with safetensors, config and tokenizer, or `hf://org/name@revision` on the model hub, which
    runs on judges' engines (`[judge_engine]`); with an endpoint, the model's name on that server. None to rate nothing:
    only what prompts bring is used."""
    endpoint: Endpoint | None = None
    """A server to use instead of the run's own engines."""
    categories: tuple[str, ...] = CATEGORIES
    """The categories that the rater chooses from. The default is our own list of 20, as many as the paper has, with
    those that its abstract names."""
    min_prompts: int = Field(10, ge=1)
    """Number of prompts below which a category or complexity is shown, but never called ahead or behind."""
    max_new_tokens: int = Field(256, ge=8)
    """Maximum length of a rater's reply. A model that reasons before it answers needs more."""
    max_tokens: int = Field(8192, ge=64)
    """Maximum length of chat plus reply, or the model's context if that is less; a longer instruction isn't rated, and
    counted as unknown, never truncated. A server has its own limit."""
    system_template: Path | None = None
    """A text file that replaces the shipped system turn."""
    user_template: Path | None = None
    """A Jinja file that replaces the shipped user turn; it contains `categories` and `instruction`, in this order."""

    @property
    def folder(self) -> Path | None:
        """The rater's folder; None if there is no rater or it is on a server."""
        return None if self.model is None or self.endpoint is not None else local_path(self.model)

    @property
    def server(self) -> str:
        """The rater and its server, human-readable; empty without an endpoint."""
        return f"{self.model} at {self.endpoint.base_url}" if self.endpoint is not None else ""

    @property
    def rater(self) -> str | None:
        """The rater, human-readable; None if there is none."""
        return self.server or self.model

    @model_validator(mode="after")
    def _endpoint_has_model(self) -> Self:
        if self.endpoint is not None and self.model is None:
            raise ValueError("endpoint is set but model isn't: give the model's name on that server")
        return self

    @model_validator(mode="after")
    def _categories_are_names(self) -> Self:
        if len(self.categories) < 2:
            raise ValueError(f"categories has {len(self.categories)}, expected two or more to choose from")
        for name in self.categories:
            if not _is_name(name):
                raise ValueError(
                    f"categories has {name!r}, expected a name of 1 to {_MAX_CATEGORY_CHARS} characters in one line, "
                    f'without brackets, and another than "{UNKNOWN}"'
                )
        keys = [category_key(name) for name in self.categories]
        if twice := [name for name, key in zip(self.categories, keys, strict=True) if keys.count(key) > 1]:
            raise ValueError(f"categories has {twice[0]!r} and {twice[1]!r}: leave one of them out")
        return self


def category_key(name: str) -> str:
    """A category's name without regard to case and white space: names with equal keys are one category."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _is_name(name: str) -> bool:
    printed = name.isprintable() and not any(char in name for char in "[]<>{}")
    return printed and 0 < len(name.strip()) <= _MAX_CATEGORY_CHARS and category_key(name) != UNKNOWN
