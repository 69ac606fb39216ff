"""What all sections of a profile share: a frozen base class with strict keys, limits on numbers, server addresses."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tpo.errors import shortened

MINIATURE = "miniature"
"""The model path that selects the seed model, or the judge, shipped with the miniature world."""


SHIPPED = Path(__file__).parents[1] / "miniature"
"""Where the miniature's models are: the seed model and the judges."""


SHIPPED_SEED_MODEL = SHIPPED / "seed_model"
"""The miniature's M_0."""
SHIPPED_MODELS = {MINIATURE: SHIPPED_SEED_MODEL, f"{MINIATURE}-native": SHIPPED / "native_model"}
"""Shipped seed models by their names: M_0, and the one that thinks natively."""


SEED = "seed"
"""The generator's model name that selects the run's own seed model, M_0."""


MAX_NUMBER = 2**31 - 1
"""Largest value of a numeric setting: the largest that every library underneath accepts."""


MAX_TOKENS = 10**15
"""Largest token count, which is higher because tokens add up over a whole run."""


class Section(BaseModel):
    """Base of all sections: frozen; unknown keys are errors, and so are numbers that JSON cannot hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        for name, value in self:
            most = MAX_TOKENS if "tokens" in name else MAX_NUMBER
            if isinstance(value, int | float) and abs(value) > most:
                raise ValueError(f"{name} is {shortened(str(value))}, expected at most {most:,}")
        return self


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The section classes that a field may hold, looking through unions and `Annotated`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def _check_address(address: str) -> str:
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise ValueError(
            "the address has a user name or key before the @, and addresses appear in errors and in config.json: "
            "leave it out; keys come from the environment"
        )
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        hint = "; an IPv6 address goes in brackets, http://[::1]:8000/v1" if address.count(":") > 2 else ""
        raise ValueError(f"{error}: {address!r} isn't an address{hint}") from error
    if port == 0:
        raise ValueError("expected an address with a host name and, if needed, a port from 1 to 65535")
    if re.search(r"[\s\x00-\x1f\x7f]", address):
        raise ValueError(f"{address!r} contains white space: remove it")
    if not host or parts.scheme.lower() not in ("http", "https"):
        raise ValueError(f"{address!r} isn't an address: expected one such as http://localhost:8000")
    return address


def _check_base_url(address: str) -> str:
    path = urlsplit(address).path.rstrip("/")
    if path.endswith(("/chat/completions", "/completions", "/chat", "/models")):
        base = re.sub(r"(?:/chat)?/completions$|/chat$|/models$", "", address.rstrip("/"))
        raise ValueError(f"{address!r} is longer than the server's base URL: shorten it to {base!r}")
    return address


Address = Annotated[str, AfterValidator(_check_address)]
"""Address of a server, without a user name or key in it."""


class Endpoint(Section):
    """An OpenAI-compatible server for chat completions."""

    base_url: Annotated[Address, AfterValidator(_check_base_url)] = Field(pattern=r"^https?://")
    """Base URL, without `/chat/completions`: for example `http://localhost:8000/v1`."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key, which is never written to a file. If unset, an empty key is sent."""
    structured_outputs: bool = False
    """Whether the server supports vLLM's `structured_outputs`, which restricts a verdict to the two labels."""
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The server's name for the limit on a reply's length. If it rejects this one and names the other, that is used."""
    min_token_limit: int = Field(1, ge=1)
    """Smallest value of that limit that the server accepts; some want at least 16 tokens."""
    temperature: bool = True
    """Whether to send a temperature; some reasoning models accept only their default."""
    top_logprobs: int = Field(20, ge=2, le=20)
    """Alternatives to request per token with `mode = "probability"`; OpenAI and vLLM return at most 20."""
    system_role: Literal["send", "fold"] = "send"
    """`fold` puts a system turn's text at the start of the user's turn, for a server or model without system turns."""
    extra_body: dict[str, Any] = {}
    """Extra fields for each request, which override ours of the same name: `{ reasoning_effort = "low" }`,
    `{ chat_template_kwargs = { enable_thinking = false } }`."""
    concurrency: int = Field(16, ge=1)
    """Maximum number of calls in flight."""
    timeout_seconds: float = Field(120.0, gt=0)
    """Maximum wait for one answer."""
    retries: int = Field(8, ge=0)
    """Times that a call is retried after 429, 5xx, a time-out or a broken connection."""
    max_total_tokens: int | None = Field(None, ge=1)
    """Tokens, read and written, after which no more calls are made; None for no limit. Earlier answers are kept."""
    max_cost: float | None = Field(None, gt=0)
    """The same limit in money, by the two prices; None for no limit."""
    input_price: float = Field(0.0, ge=0)
    """Price per million tokens read."""
    output_price: float = Field(0.0, ge=0)
    """Price per million tokens written."""

    @model_validator(mode="after")
    def _cost_has_prices(self) -> "Endpoint":
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError("max_cost is set but no price is: set input_price and output_price, per million tokens")
        return self
