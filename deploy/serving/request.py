"""Chat requests: the fields that are served, and why others are refused.

Fields are on an allow-list; any other field that asks for something is refused by name. Of vLLM's hundred or so fields,
a dozen would show thoughts (log-probs, token ids, echo), others would break the format (constrained output, a bias
against a marker's tokens), and the next version will have more.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompts.thought import ThoughtPrompt
from tpo.records import Message

IGNORED = frozenset(
    ("metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user")
)
"""Fields that OpenAI's clients send and that have no effect here."""
_ASKS_NOTHING: dict[str, object] = {"n": 1, "tool_choice": "none", "response_format": {"type": "text"}}
"""Values of other fields that ask for nothing, besides null, false, 0 and empty ones."""


class Refused(Exception):
    """A refusal of a request; the client receives `status` and `error`."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": None}


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def message(self) -> Message:
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return Message(role=role, content=self.content)
        return Message(role=role, content="\n".join(part.text for part in self.content))


class _StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """A chat request, with OpenAI's field names; None leaves a field to the server."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    messages: list[_Turn] = Field(min_length=1)
    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    include_reasoning: bool = False

    @property
    def most_tokens(self) -> int | None:
        """Maximum length of the output, including the thought."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts at which a response ends; they count only in responses, not in thoughts."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, given))

    def chat(self, prompt: ThoughtPrompt) -> list[Message]:
        """The chat that the model sees: the last user turn becomes the thought prompt, earlier turns stay as they are.

        Raises `Refused` if the last turn isn't the user's.
        """
        *earlier, last = (turn.message() for turn in self.messages)
        if last["role"] != "user":
            raise Refused(400, f"the last message has role {last['role']!r}, expected 'user'", "messages")
        return prompt.render(last["content"], earlier)


def read_request(body: bytes) -> ChatRequest:
    """Reads a request. Raises `Refused` for malformed requests and unsupported options."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise Refused(400, "the body is not a JSON object")
    given = {field: value for field, value in values.items() if value is not None}
    for field, value in given.items():
        known = field in ChatRequest.model_fields or field in IGNORED
        if not known and value and _ASKS_NOTHING.get(field) != value:
            raise Refused(
                400,
                f"{field!r} is not supported: the server shows responses but never thoughts, and accepts only "
                f"{', '.join(ChatRequest.model_fields)}",
                field,
            )
    try:
        return ChatRequest.model_validate({k: v for k, v in given.items() if k in ChatRequest.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(400, f"{place}: {first['msg']}", place) from error
