"""Tokens that a request must write next, whatever the model would: a thought's budget, a calculator's results.

The pure core: given everything that a request has written so far, `Forced.next_token` is the token that it writes next,
or None if the model decides. vLLM asks before it samples each token, in its own process, through
`tpo.engines.inference.forced_tokens`. A forced token is sampled like any other, from a distribution in which nothing
else is possible, so seeds, log-probs and stopping stay vLLM's.

What is forced depends on a request's tokens alone: a request that vLLM preempts and resumes is asked about from its
beginning.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from tpo.method import calculator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROCESSOR = "tpo.engines.inference.forced_tokens:ForcedTokens"
"""The class that vLLM loads."""
ARGUMENT = "tpo_forcing"
"""The key of our rules among a request's extra arguments."""


class Forcer(Protocol):
    """Decides for one request."""

    def next_token(self, output_ids: Sequence[int]) -> int | None:
        """The token after `output_ids`, everything that the request has written; None if the model decides."""
        ...


@dataclass(frozen=True)
class ThoughtBudget:
    """Ends a thought after a number of tokens: the response marker is written then, unless it is already there.

    `marker_ids` and `forced_ids` are for native thoughts, which end in tokens; without them the marker is text.
    """

    max_tokens: int
    """Maximum number of tokens before the response marker; those that open the thought count."""
    marker: str
    """The marker that begins the response."""
    marker_ids: tuple[int, ...] = ()
    """Its tokens, if only they count."""
    forced_ids: tuple[int, ...] = ()
    """What is written to end the thought, if that is more than the marker on a line of its own."""

    def forcer(self, tokenizer: "PreTrainedTokenizerBase") -> Forcer:
        """Its decisions for one request."""
        return _EndsThought(self, tokenizer)


@dataclass(frozen=True)
class CalculatorRule:
    """Writes the value after the `=` of an annotation (DPO-ST, 2407.18248), computed by `tpo.method.calculator`."""

    style: calculator.Style
    """The syntax of annotations."""

    def forcer(self, tokenizer: "PreTrainedTokenizerBase") -> Forcer:
        """Its decisions for one request."""
        plain = _plain(tokenizer)
        return calculator.Calculator(plain, self.style, equals=plain.equals)


Rule = ThoughtBudget | CalculatorRule
"""The kinds of rules; a new one is a class here and an entry in `_RULES`."""
_RULES: Mapping[str, type[Rule]] = {"thought_budget": ThoughtBudget, "calculator": CalculatorRule}


def as_argument(rules: Sequence[Rule]) -> str:
    """Rules as JSON, the form in which a request carries them to vLLM's process: its server takes no nested values."""
    names = {kind: name for name, kind in _RULES.items()}
    return json.dumps([{"rule": names[type(rule)], **asdict(rule)} for rule in rules])


def read_rules(argument: str) -> list[Rule]:
    """The rules that a request carries; raises `ValueError` if it carries something else."""
    try:
        found = json.loads(argument)
        return [_read_rule(values) for values in found]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{ARGUMENT} holds {argument!r}, which are not rules of ours: {error}") from error


def _read_rule(values: Mapping[str, Any]) -> Rule:
    rule: Callable[..., Rule] = _RULES[values["rule"]]
    return rule(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "rule"})


def forcers_of(argument: str, tokenizer: "PreTrainedTokenizerBase") -> list[Forcer]:
    """The decisions of a request's rules, in the order in which they are asked."""
    return [rule.forcer(tokenizer) for rule in read_rules(argument)]


class Forced:
    """The decisions for one request, of all its rules together."""

    def __init__(self, argument: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._forcers = forcers_of(argument, tokenizer)

    def next_token(self, output_ids: Sequence[int]) -> int | None:
        """The token after `output_ids`, by the first rule that has one; None if the model decides."""
        return next((token for each in self._forcers if (token := each.next_token(output_ids)) is not None), None)


class _EndsThought:
    """A thought's budget for one request.

    The marker stands on a line of its own. Where the budget ends in the middle of it, only the rest is written.
    """

    def __init__(self, budget: ThoughtBudget, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._budget = budget
        self._tokenizer = tokenizer
        self._forced = list(budget.forced_ids) or tokenizer.encode(f"\n{budget.marker}", add_special_tokens=False)
        self._begun: int | None = None
        """How many tokens of the marker are already there when the budget ends; all of them if the response has
        begun."""

    def next_token(self, output_ids: Sequence[int]) -> int | None:
        """As `Forcer` has it."""
        if len(output_ids) < self._budget.max_tokens:
            return None
        if self._begun is None:
            self._begun = self._written(list(output_ids[: self._budget.max_tokens]))
        place = len(output_ids) - self._budget.max_tokens + self._begun
        return self._forced[place] if place < len(self._forced) else None

    def _written(self, thought_ids: list[int]) -> int:
        whole, marker = len(self._forced), list(self._budget.marker_ids)
        if marker:
            if any(thought_ids[i : i + len(marker)] == marker for i in range(len(thought_ids))):
                return whole
        elif self._budget.marker in self._tokenizer.decode(thought_ids, skip_special_tokens=True):
            return whole
        longest = min(whole, len(thought_ids))
        return next((n for n in range(longest, 0, -1) if thought_ids[-n:] == self._forced[:n]), 0)


class _Plain:
    """A tokenizer as the calculator uses it: text and tokens, with nothing added or normalized."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self.equals: dict[int, bool] = {}
        """Tokens that contain an `=`; filled by all requests of a process, each token checked once."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without a begin or end token."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, spaces as they are."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


@lru_cache(maxsize=4)
def _plain(tokenizer: "PreTrainedTokenizerBase") -> _Plain:
    return _Plain(tokenizer)
