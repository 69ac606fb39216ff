"""Replies in the format of OpenAI's API, whole or as a stream of chunks.

They are written field by field. An extra object, `tpo`, in the reply or its last chunk holds what OpenAI's API has no
fields for: `tries`, `discarded_tokens` and `format_error`; OpenAI's own clients pass it through. A thought is sent in
one piece just before the response: until then the output might be discarded, and what has been sent can't be taken
back.
"""

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.serving.reading import Reading


@dataclass(frozen=True)
class Reply:
    """A reply to one chat, finished or in progress."""

    reading: Reading
    """What may be shown of it."""
    prompt_tokens: int
    """Tokens of the prompt."""
    tokens: int
    """Tokens written, including the thought's."""
    thought_tokens: int
    """Tokens written up to the end of the response marker, and any others in the same chunk."""
    tries: int = 1
    """Number of outputs sampled, including this one."""
    discarded_tokens: int = 0
    """Tokens of earlier outputs, which broke the format; if one was stopped early, those that had arrived."""


class ReplyWriter:
    """Writes one reply of the model `name`, with its thought if `thoughts`."""

    def __init__(self, name: str, *, thoughts: bool) -> None:
        self._thoughts = thoughts
        self._head = {"id": f"chatcmpl-{secrets.token_hex(16)}", "created": int(time.time()), "model": name}

    def whole(self, reply: Reply) -> dict[str, Any]:
        """The chat completion."""
        reading = reply.reading
        message: dict[str, Any] = {"role": "assistant", "content": reading.response, "refusal": None}
        if self._thoughts:
            message["reasoning"] = reading.thought
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reading.finish_reason}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(reply),
            "tpo": _beyond(reply),
        }

    async def chunks(self, replies: AsyncIterator[Reply], *, usage: bool) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of the chat completion, with `usage` in an extra one if asked for."""
        sent, opened, thought_due = "", False, self._thoughts
        async for reply in replies:
            reading = reply.reading
            if not opened:
                opened = True
                yield self._chunk({"role": "assistant", "content": ""})
            delta = dict[str, Any]()
            if thought_due and (reading.response or reading.finish_reason):
                thought_due = False
                delta["reasoning"] = reading.thought
            if len(reading.response) > len(sent):
                delta["content"] = reading.response[len(sent) :]
                sent = reading.response
            if reading.finish_reason is not None:
                yield {**self._chunk(delta, reading.finish_reason), "tpo": _beyond(reply)}
            elif delta:
                yield self._chunk(delta)
        if usage:
            yield {**self._chunk({}), "choices": [], "usage": _usage(reply)}

    def _chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}


def _usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.tokens,
        "total_tokens": reply.prompt_tokens + reply.tokens,
        "completion_tokens_details": {"reasoning_tokens": reply.thought_tokens},
    }


def _beyond(reply: Reply) -> dict[str, Any]:
    return {
        "tries": reply.tries,
        "discarded_tokens": reply.discarded_tokens,
        "format_error": reply.reading.format_error,
    }
