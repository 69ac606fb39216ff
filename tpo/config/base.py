"""What all sections of a profile share: a frozen base with strict keys, limits of numbers, and addresses."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tpo.errors import shortened

MINIATURE = "miniature"
"""The model path that stands for the seed model, or the judge, shipped with the miniature world."""


SHIPPED = Path(__file__).parents[1] / "miniature"
"""Where the miniature's models are: the seed model and the judges."""


SHIPPED_SEED_MODEL = SHIPPED / "seed_model"
"""The miniature's M_0."""


SEED = "seed"
"""The generator's model that stands for the run's own seed model, M_0."""


MAX_NUMBER = 2**31 - 1
"""The largest number that a setting may have: the largest that all libraries below take."""


MAX_TOKENS = 10**15
"""The same for counts of tokens, which add up over a whole run."""


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
    """The sections that a field may hold, through unions and what annotates them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def _check_address(address: str) -> str:
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise ValueError(
            "the address holds a name or key before an @, and addresses are shown in errors and kept in config.json: "
            "leave it out, keys come from the environment"
        )
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        hint = "; an IPv6 address stands in brackets, http://[::1]:8000/v1" if address.count(":") > 2 else ""
        raise ValueError(f"{error}: {address!r} is no address{hint}") from error
    if port == 0:
        raise ValueError("expected an address with the name of a machine and, if need be, a port from 1 to 65535")
    if re.search(r"[\s\x00-\x1f\x7f]", address):
        raise ValueError(f"{address!r} holds white space: leave it out")
    if not host or parts.scheme.lower() not in ("http", "https"):
        raise ValueError(f"{address!r} is no address: expected one such as http://localhost:8000")
    return address


def _check_base_url(address: str) -> str:
    path = urlsplit(address).path.rstrip("/")
    if path.endswith(("/chat/completions", "/completions", "/chat", "/models")):
        base = re.sub(r"(?:/chat)?/completions$|/chat$|/models$", "", address.rstrip("/"))
        raise ValueError(f"{address!r} goes on beyond the server's base: leave it at {base!r}")
    return address


Address = Annotated[str, AfterValidator(_check_address)]
"""Address of a server, without the name or key that an address can hold."""


class Endpoint(Section):
    """An OpenAI-compatible server of chat completions."""

    base_url: Annotated[Address, AfterValidator(_check_base_url)] = Field(pattern=r"^https?://")
    """Address up to and without `/chat/completions`, for example `http://localhost:8000/v1`."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself stands in no file. Unset, an empty key is sent."""
    structured_outputs: bool = False
    """Whether the server takes vLLM's `structured_outputs`, which holds a verdict to the two labels."""
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the longest reply. A server that refuses a form and names another one is asked in that."""
    min_token_limit: int = Field(1, ge=1)
    """Smallest longest reply that the server takes; some want at least 16 tokens."""
    temperature: bool = True
    """Whether a temperature is sent; some reasoning models take none but their own."""
    top_logprobs: int = Field(20, ge=2, le=20)
    """Alternatives to ask for at each token, with `mode = "probability"`; 20 is the most that OpenAI and vLLM give."""
    system_role: Literal["send", "fold"] = "send"
    """`fold` puts the text of a system turn before the user's, for a server or model without system turns."""
    extra_body: dict[str, Any] = {}
    """Further fields of each request, in place of ours where they have the same name: `{ reasoning_effort = "low" }`,
    `{ chat_template_kwargs = { enable_thinking = false } }`."""
    concurrency: int = Field(16, ge=1)
    """Calls under way at once."""
    timeout_seconds: float = Field(120.0, gt=0)
    """Longest wait for one answer."""
    retries: int = Field(8, ge=0)
    """Times that a call is made again after 429, 5xx, a time-out or a broken connection."""
    max_total_tokens: int | None = Field(None, ge=1)
    """Tokens, in and out, after which whoever asks stops; None for no limit. What was said until then is kept."""
    max_cost: float | None = Field(None, gt=0)
    """The same in money, by the two prices; None for no limit."""
    input_price: float = Field(0.0, ge=0)
    """Price of a million tokens read."""
    output_price: float = Field(0.0, ge=0)
    """Price of a million tokens written."""

    @model_validator(mode="after")
    def _cost_has_prices(self) -> "Endpoint":
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError("max_cost is set and no price is: set input_price and output_price, per million tokens")
        return self
