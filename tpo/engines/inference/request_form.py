"""The form of requests to a server: OpenAI's, with deviations named by settings or by the server's own refusals.

Reasoning models accept only `max_completion_tokens`, only temperature 1, or at least 16 tokens; others report at most
five log-probabilities, or require a temperature above 0. After a refusal that names such a limit, the request is
retried in that form. What would change a request's meaning (its text, its labels, whether log-probabilities are
returned) never changes automatically: `remedy` names the setting.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpo.config.base import Endpoint
from tpo.engines.inference.reply import Decoding
from tpo.records import Message

MIN_TEMPERATURE = 0.01
"""Replaces 0 for servers that require a higher temperature."""


@dataclass(frozen=True)
class RequestForm:
    """The form of a request."""

    endpoint: Endpoint
    """The endpoint with its settings."""
    limit_field: str
    """Name of the field that limits a reply's tokens."""
    min_limit: int
    """The smallest limit that the server accepts."""
    temperature: bool
    """Whether a temperature is sent."""
    top_logprobs: int
    """Number of alternatives requested at each token."""
    top_p: bool = True
    """Whether top-p is sent, if it isn't 1."""
    given_temperature: float | None = None
    """The temperature to send instead of the configured one, for a server that accepts no other."""

    @classmethod
    def of(cls, endpoint: Endpoint) -> "RequestForm":
        """The form from an endpoint's settings."""
        return cls(
            endpoint, endpoint.token_limit_field, endpoint.min_token_limit, endpoint.temperature, endpoint.top_logprobs
        )

    def body(self, model: str, chat: Sequence[Message], decoding: Decoding) -> dict[str, Any]:
        """A request's JSON."""
        body: dict[str, Any] = {"model": model, "messages": self._messages(chat)}
        temperature = decoding.temperature if self.given_temperature is None else self.given_temperature
        if self.temperature:
            body["temperature"] = temperature
        body[self.limit_field] = self.limit(decoding)
        if decoding.top_p < 1 and self.top_p:
            body["top_p"] = decoding.top_p
        if decoding.labels and self.endpoint.structured_outputs:
            body["structured_outputs"] = {"choice": list(decoding.labels)}
        if decoding.probabilities:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return body | dict(self.endpoint.extra_body)

    def limit(self, decoding: Decoding) -> int:
        """The limit of a reply's tokens."""
        return max(self.min_limit, decoding.max_new_tokens)

    def after(self, refusal: str, decoding: Decoding) -> "RequestForm | None":
        """Another form, if `refusal` names something that can be changed."""
        forms = (self._after_limit, self._after_top_p, self._after_temperature, self._after_logprobs)
        return next((form for each in forms if (form := each(refusal, decoding)) is not None), None)

    def _messages(self, chat: Sequence[Message]) -> list[Message]:
        if self.endpoint.system_role == "send" or len(chat) < 2 or chat[0]["role"] != "system":
            return list(chat)
        system, user, *rest = chat
        return [Message(role=user["role"], content=f"{system['content']}\n\n{user['content']}"), *rest]

    def _after_limit(self, refusal: str, decoding: Decoding) -> "RequestForm | None":
        if not re.search(r"tokens", refusal):
            return None
        if (minimum := _minimum(refusal)) is not None and self.limit(decoding) < minimum <= _MAX_MIN_LIMIT:
            return replace(self, min_limit=minimum)
        if self.limit_field != self.endpoint.token_limit_field:
            return None  # The other field was tried and refused, too.
        other = next(name for name in _LIMIT_FIELDS if name != self.limit_field)
        named = re.search(rf"\b{self.limit_field}\b", refusal)
        if named and _UNSUPPORTED.search(refusal) and not _TOO_MUCH.search(refusal):
            return replace(self, limit_field=other)
        return None

    def _after_temperature(self, refusal: str, decoding: Decoding) -> "RequestForm | None":
        """Above 0 if the server requires that; otherwise none, then 1."""
        if not re.search("temperature", refusal, re.I):
            return None
        if not self.temperature:
            return replace(self, temperature=True, given_temperature=1.0) if self.given_temperature is None else None
        if self.given_temperature is None and decoding.temperature == 0 and _POSITIVE.search(refusal):
            return replace(self, given_temperature=MIN_TEMPERATURE)
        if self.given_temperature == 1.0:
            return None
        return replace(self, temperature=False, given_temperature=None)

    def _after_top_p(self, refusal: str, decoding: Decoding) -> "RequestForm | None":
        return replace(self, top_p=False) if self.top_p and decoding.top_p < 1 and "top_p" in refusal else None

    def _after_logprobs(self, refusal: str, decoding: Decoding) -> "RequestForm | None":
        found = _MAXIMUM.search(refusal) if decoding.probabilities and re.search("logprobs", refusal, re.I) else None
        maximum = int(next(filter(None, found.groups()))) if found else 0
        return replace(self, top_logprobs=maximum) if 2 <= maximum < self.top_logprobs else None


def described(form: RequestForm, before: RequestForm) -> str:
    """The differences between two forms, as the settings that would choose the first from the start."""
    settings = []
    if form.limit_field != before.limit_field:
        settings.append(f'endpoint.token_limit_field = "{form.limit_field}"')
    if form.min_limit != before.min_limit:
        settings.append(f"endpoint.min_token_limit = {form.min_limit}")
    if form.given_temperature is not None:
        settings.append(f"endpoint.extra_body = {{ temperature = {form.given_temperature:g} }}")
    elif form.temperature != before.temperature:
        settings.append("endpoint.temperature = false")
    if form.top_p != before.top_p:
        settings.append("no top_p")
    if form.top_logprobs != before.top_logprobs:
        settings.append(f"endpoint.top_logprobs = {form.top_logprobs}")
    return ", ".join(settings)


def remedy(refusal: str) -> str:
    """The setting to change after a server's refusal."""
    return next(
        (text for pattern, text in _REMEDIES if re.search(pattern, refusal, re.I | re.S)),
        "change what the server objects to: endpoint.token_limit_field, min_token_limit, temperature, top_logprobs, "
        "system_role and structured_outputs set the form of requests, and endpoint.extra_body adds or replaces any "
        "field",
    )


def _minimum(refusal: str) -> int | None:
    """The minimum that a refusal names."""
    found = _MINIMUM.search(refusal)
    if found is None:
        return None
    return int(found[1]) if found[1] else int(found[2]) + 1


_LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
_MAX_MIN_LIMIT = 4096
"""A larger number isn't a minimum, but something else in the message."""
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not (?:permitted|allowed|accepted|available|valid)|"
    r"forbidden|extra|deprecated|instead|invalid|only|must|use",
    re.I,
)
_TOO_MUCH = re.compile(r"too (?:large|long|high|many|big)|greater than|exceed|larger than|context|higher", re.I)
_POSITIVE = re.compile(
    r"positive|(?:greater|larger|more|higher|bigger) than 0|> ?0|above 0|non-?zero|not be (?:0|zero)", re.I
)
_MINIMUM = re.compile(
    r"(?:>=|≥|at least|minimum[^0-9]{0,30}|(?:greater|larger|more) than or equal to|not? (?:less|lower|smaller|fewer) "
    r"than)\s*(\d{1,6})|(?:(?:greater|larger|more|higher) than|>)\s*(\d{1,6})",
    re.I,
)
_MAXIMUM = re.compile(
    r"(?:<=|≤|at most|maximum[^0-9]{0,30}|max[^0-9]{0,12}|(?:less|smaller|fewer) than or equal to|up to|"
    r"not? (?:more|greater|larger|higher) than|between \d and|\[\d, ?)\s*(\d{1,2})(?!\d)|"
    r"exceeds?[^0-9]{0,20}(\d{1,2})(?!\d)",
    re.I,
)
_REMEDIES = (
    (
        r"system.{0,30}(role|message|prompt|instruction|turn)|role.{0,30}system|roles must alternate",
        'this server accepts no system turn: set endpoint.system_role = "fold", which prepends its text to the user\'s',
    ),
    (
        r"log_?probs",
        "this server does not return these log-probabilities: lower endpoint.top_logprobs to its maximum, or set "
        'judge.mode to "verdict" or "cot", which need none',
    ),
    (r"structured_outputs|guided", "set endpoint.structured_outputs to false, or serve the model with vLLM"),
    (r"(max\w*tokens|output limit).{0,60}(reached|higher)", "raise max_new_tokens: the model spends more on reasoning"),
    (
        r"max\w*tokens",
        "set max_new_tokens to what this server allows, or endpoint.token_limit_field to its name for the limit",
    ),
)
