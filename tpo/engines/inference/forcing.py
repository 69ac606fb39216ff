"""Forced tokens: what a request must write next, to keep a thought within its budget or insert a calculator's result.

The pure core: given a request's output so far, `Forced.next_token` is the next token, or None if the model decides.
vLLM calls it before it samples each token, in its own process, through `tpo.engines.inference.forced_tokens`. A forced
token is sampled like any other, from a distribution with no other token, so seeds, log-probs and stopping stay vLLM's.

What is forced depends on a request's tokens alone, so that vLLM can preempt and resume it.
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
"""The key of the rules among a request's extra arguments."""


class Forcer(Protocol):
    """Forces tokens of one request."""

    def next_token(self, output_ids: Sequence[int]) -> int | None:
        """The token after `output_ids`, the request's whole output so far; None if the model decides."""
        ...


@dataclass(frozen=True)
class ThoughtBudget:
    """Ends a thought after a number of tokens by writing the response marker, unless it is already there.

    `marker_ids` and `forced_ids` are for native thoughts, which end with special tokens; without them the marker is
    text.
    """

    max_tokens: int
    """Maximum number of tokens before the response marker, including those that open the thought."""
    marker: str
    """The marker that begins the response."""
    marker_ids: tuple[int, ...] = ()
    """Its tokens, if the same text in other tokens doesn't count."""
    forced_ids: tuple[int, ...] = ()
    """The tokens that end the thought, if not just the marker on its own line."""

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
    """Rules as the JSON text that a request carries to vLLM's process: its server takes no nested values."""
    names = {kind: name for name, kind in _RULES.items()}
    return json.dumps([{"rule": names[type(rule)], **asdict(rule)} for rule in rules])


def read_rules(argument: str) -> list[Rule]:
    """The rules that a request carries; raises `ValueError` if it carries something else."""
    try:
        found = json.loads(argument)
        return [_read_rule(values) for values in found]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{ARGUMENT} is {argument!r}, expected rules as JSON: {error}") from error


def _read_rule(values: Mapping[str, Any]) -> Rule:
    rule: Callable[..., Rule] = _RULES[values["rule"]]
    return rule(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "rule"})


def forcers_of(argument: str, tokenizer: "PreTrainedTokenizerBase") -> list[Forcer]:
    """The forcers of a request's rules, in order of precedence."""
    return [rule.forcer(tokenizer) for rule in read_rules(argument)]


class Forced:
    """Forces tokens of one request by all its rules."""

    def __init__(self, argument: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._forcers = forcers_of(argument, tokenizer)

    def next_token(self, output_ids: Sequence[int]) -> int | None:
        """The token after `output_ids`, from the first rule that forces one; None if the model decides."""
        return next((token for each in self._forcers if (token := each.next_token(output_ids)) is not None), None)


class _EndsThought:
    """Enforces a thought's budget for one request.

    The marker is on its own line. If the budget ends in the middle of it, only the rest is written.
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
