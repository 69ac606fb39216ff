"""Completions from vLLM's app in the same process, as streams of chunks.

A completion is aborted if the caller stops reading before its end. The app sees only the connection and the API key of
the client's request: no other header, no query.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from deploy.serving.reading import Ended
from deploy.serving.request import Refused

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Coroutine[Any, Any, Event]]
Send = Callable[[Event], Coroutine[Any, Any, None]]
App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

_PATH = "/v1/completions"
_SECONDS_TO_ABORT = 5.0


@dataclass(frozen=True)
class Chunk:
    """A part of a completion."""

    text: str
    """Its text."""
    token_ids: tuple[int, ...]
    """Its tokens."""
    tokens: int
    """Tokens written so far, including these."""
    ended: Ended | None
    """Why the completion has ended; None if it hasn't."""


async def complete(app: App, scope: Scope, body: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
    """The chunks of a completion; the last one has `ended`.

    Raises `Refused`: with vLLM's message if it refuses the request, with a generic one if it fails.
    """
    events = asyncio.Queue[Event | None]()
    gone = asyncio.Event()
    task = asyncio.create_task(app(_inner(scope), _receiver(body, gone), events.put))
    task.add_done_callback(lambda _: events.put_nowait(None))
    status, rest = 500, b""
    try:
        while (event := await events.get()) is not None:
            status = event.get("status", status)
            rest += event.get("body", b"")
            if status == 200:
                *lines, rest = rest.split(b"\n\n")
                for line in lines:
                    if (chunk := _chunk(line)) is not None:
                        yield chunk
                        if chunk.ended is not None:
                            return
        raise _refusal(status, rest)
    finally:
        # vLLM notices that the client has left, and aborts the request in the engine itself.
        gone.set()
        await asyncio.wait({task}, timeout=_SECONDS_TO_ABORT)
        task.cancel()


def _inner(scope: Scope) -> Scope:
    headers = [(b"content-type", b"application/json")]
    headers += [(name, value) for name, value in scope["headers"] if name == b"authorization"]
    where = {"path": _PATH, "raw_path": _PATH.encode(), "query_string": b"", "method": "POST"}
    return {**scope, **where, "headers": headers}


def _receiver(body: Mapping[str, Any], gone: asyncio.Event) -> Receive:
    usage = {"include_usage": True, "continuous_usage_stats": True}
    whole = {**body, "stream": True, "return_token_ids": True, "stream_options": usage}
    events = [{"type": "http.request", "body": json.dumps(whole).encode(), "more_body": False}]

    async def receive() -> Event:
        if events:
            return events.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


def _chunk(line: bytes) -> Chunk | None:
    """The chunk in a server-sent event; None if the event has no text."""
    if not line.startswith(b"data: {"):
        return None
    data = json.loads(line.removeprefix(b"data: "))
    if "error" in data:
        raise _refusal(500, b"")
    if not data["choices"]:
        return None
    (choice,) = data["choices"]
    ended = choice.get("finish_reason")
    if ended not in (None, "stop", "length"):
        raise _refusal(500, b"")
    return Chunk(choice["text"], tuple(choice.get("token_ids") or ()), data["usage"]["completion_tokens"], ended)


def _refusal(status: int, body: bytes) -> Refused:
    if 400 <= status < 500:
        error = json.loads(body)["error"]
        return Refused(status, error["message"], error.get("param"))
    return Refused(500 if status == 200 else status, "the engine failed to answer: see the server's log")
