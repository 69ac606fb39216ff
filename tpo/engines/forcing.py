"""Tokens that a request must write next, whatever the model would: a budget for its thought, a calculator's results.

In: what a request has written so far. Out: the token that it writes next, or None where the model decides.

vLLM asks, before it samples each token, in its own process (`ForcedTokens`). A forced token is sampled like any other,
from a distribution in which nothing else is possible: seeds, log-probs and stopping stay vLLM's. A request that vLLM
puts off and takes up again is asked about from its beginning, so what is forced depends on its tokens alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from tpo.method import calculator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROCESSOR = "tpo.engines.forced_tokens:ForcedTokens"
"""What vLLM is told to load."""
ARGUMENT = "tpo_forcing"
"""The name of our rules among a request's extra arguments."""


class Forcer(Protocol):
    """Decides for one request."""

    def next_token(self, output_ids: Sequence[int]) -> int | None:
        """The token after `output_ids`, all that the request has written; None where the model decides."""
        ...


@dataclass(frozen=True)
class ThoughtBudget:
    """A thought ends after so many tokens: the response's marker is written then, unless it stands there already."""

    max_tokens: int
    """Most tokens before the response's marker; those of the thought's marker count."""
    marker: str
    """The marker that begins the response."""

    def forcer(self, tokenizer: "PreTrainedTokenizerBase") -> Forcer:
        """Its decisions for one request."""
        return _EndsThought(self, tokenizer)


@dataclass(frozen=True)
class Calculator:
    """What follows the `=` of an annotation is its value (DPO-ST, 2407.18248): `tpo.method.calculator` says what."""

    style: calculator.Style
    """How annotations are written."""

    def forcer(self, tokenizer: "PreTrainedTokenizerBase") -> Forcer:
        """Its decisions for one request."""
        plain = _plain(tokenizer)
        return calculator.Calculator(plain, self.style, equals=plain.equals)


Rule = ThoughtBudget | Calculator
"""What can be forced; a new kind is a class here and in `_RULES`."""
_RULES: Mapping[str, type[Rule]] = {"thought_budget": ThoughtBudget, "calculator": Calculator}


def as_argument(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """Rules in the form in which a request carries them to vLLM's process."""
    names = {kind: name for name, kind in _RULES.items()}
    return [{"rule": names[type(rule)], **asdict(rule)} for rule in rules]


def forcers_of(argument: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase") -> list[Forcer]:
    """The decisions of a request's rules, the first that has one first."""
    rules = [_RULES[values["rule"]](**{k: v for k, v in values.items() if k != "rule"}) for values in argument]
    return [rule.forcer(tokenizer) for rule in rules]


class _EndsThought:
    """A thought's budget for one request.

    The marker stands on a line of its own. Where the budget ends in the middle of it, only the rest is written.
    """

    def __init__(self, budget: ThoughtBudget, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._budget = budget
        self._tokenizer = tokenizer
        self._forced = tokenizer.encode(f"\n{budget.marker}", add_special_tokens=False)
        self._begun: int | None = None
        """How many tokens of the marker stand at the budget's end; all of them where the response has begun."""

    def next_token(self, output_ids: Sequence[int]) -> int | None:
        """As `Forcer` has it."""
        if len(output_ids) < self._budget.max_tokens:
            return None
        if self._begun is None:
            self._begun = self._written(list(output_ids[: self._budget.max_tokens]))
        place = len(output_ids) - self._budget.max_tokens + self._begun
        return self._forced[place] if place < len(self._forced) else None

    def _written(self, thought_ids: list[int]) -> int:
        whole = len(self._forced)
        if self._budget.marker in self._tokenizer.decode(thought_ids, skip_special_tokens=True):
            return whole
        longest = min(whole, len(thought_ids))
        return next((n for n in range(longest, 0, -1) if thought_ids[-n:] == self._forced[:n]), 0)


class _Plain:
    """A tokenizer as the calculator knows it: text and tokens, nothing added and nothing tidied."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self.equals: dict[int, bool] = {}
        """Which tokens have an `=`: filled by all requests of a process, each token looked at once."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a begin or end token."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, spaces as they are."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


@lru_cache(maxsize=4)
def _plain(tokenizer: "PreTrainedTokenizerBase") -> _Plain:
    return _Plain(tokenizer)
