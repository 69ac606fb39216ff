"""The layer in front of vLLM's server that adds the thought prompt and lets only responses out.

vLLM starts it around its own app, through `--middleware`, with a `ServeConfig` in the environment. It answers
`/v1/chat/completions` in OpenAI's format, `/v1/models`, `/health` and `/metrics`; every other path is 404.

It imports nothing from vLLM and calls it like any client, through `/v1/completions`, so a new version of vLLM changes
little here. It sends token ids, made as for sampling, because the chat endpoint would interpret control tokens in a
user's text. It receives raw text, which `prompts/thought.py` splits, and writes the client's answer field by field, so
that nothing of vLLM's answer gets through unintended.
"""

import asyncio
import hmac
import json
import os
import time
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from deploy.serving.completion import App, Receive, Scope, Send, complete
from deploy.serving.reading import read
from deploy.serving.reply import Reply, ReplyWriter
from deploy.serving.request import ChatRequest, Refused, read_request
from prompts.thought import load_prompt
from tpo.config.serve import KEY, SETTINGS, ServeConfig
from tpo.console import say
from tpo.engines.inference.forcing import ARGUMENT
from tpo.engines.inference.sampler import later_seed
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder

MAX_BODY_BYTES = 2**24
"""Maximum size of a request's body."""
_PASSED_ON = [("GET", "/health"), ("GET", "/metrics"), ("GET", "/metrics/")]


class ResponsesOnly:
    """vLLM's app behind a layer that shows responses and hides thoughts."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._config = ServeConfig.model_validate_json(os.environ[SETTINGS])
        self._key = os.environ.get(KEY)
        self._encoder = ChatEncoder(self._config.model)
        self._prompt = load_prompt(self._config.prompt)
        if not self._config.native_thoughts:
            self._prompt = self._prompt.without_native_thoughts(self._encoder.thinking.unwanted)
        self._encoder.encode(self._prompt.render("Say hello."))  # what can't work is known before a client comes
        self._encoding = ThreadPoolExecutor(1)
        self._started = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes on what concerns the whole app."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._telling(send))
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                await self._answer(scope, receive, send)
            except Refused as refused:
                await _send_json(send, refused.status, {"error": refused.error})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = (scope["method"], scope["path"])
        if way != ("GET", "/health") and not self._may_ask(scope):
            raise Refused(401, "missing or invalid API key: send this server's as a bearer token")
        if way in _PASSED_ON:
            await self._app(scope, receive, send)
        elif way == ("GET", "/v1/models"):
            model = {"id": self._config.name, "object": "model", "created": self._started, "owned_by": "tpo"}
            await _send_json(send, 200, {"object": "list", "data": [model]})
        elif way == ("POST", "/v1/chat/completions"):
            request = read_request(await _body(scope, receive))
            await _unless_gone(receive, self._chat(scope, request, send))
        else:
            raise Refused(404, f"{' '.join(way)} is not served (it could show thoughts): use POST /v1/chat/completions")

    def _may_ask(self, scope: Scope) -> bool:
        if not self._key:
            return True
        shown = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(shown, b"Bearer " + self._key.encode())

    async def _chat(self, scope: Scope, request: ChatRequest, send: Send) -> None:
        thoughts = self._config.allow_thoughts and request.include_reasoning
        writer = ReplyWriter(self._config.name, thoughts=thoughts)
        async with aclosing(self._replies(scope, request, await self._encode(request))) as replies:
            if request.stream:
                await _send_events(send, writer.chunks(replies, usage=request.stream_options.include_usage))
                return
            async for reply in replies:
                last = reply
        await _send_json(send, 200, writer.whole(last))

    async def _encode(self, request: ChatRequest) -> list[int]:
        """The prompt's token ids, as for sampling; in a single thread, since the encoder isn't thread-safe."""
        if request.model not in (None, self._config.name):
            raise Refused(404, f"model {request.model!r} is not served, expected {self._config.name!r}", "model")
        chat, loop = request.chat(self._prompt), asyncio.get_running_loop()
        try:
            ids = await loop.run_in_executor(self._encoding, self._encoder.encode, chat)
        except InputError as error:
            raise Refused(400, str(error), "messages") from error
        if len(ids) >= self._config.context_tokens:
            raise Refused(
                400,
                f"the chat has {len(ids)} tokens including the thought prompt, which leaves no room for a reply in the "
                f"model's context of {self._config.context_tokens}: shorten it",
                "messages",
            )
        return ids

    async def _replies(self, scope: Scope, request: ChatRequest, ids: list[int]) -> AsyncGenerator[Reply, None]:
        """The reply as it grows; the last one is finished.

        An output that breaks the format is sampled again, unless part of it has been shown, or it was decoded greedily
        and would only be repeated.
        """
        body = self._completion(request, ids)
        tries = self._config.max_attempts if body["temperature"] > 0 else 1
        shown, discarded = False, 0
        for attempt in range(1, tries + 1):
            if request.seed is not None:
                body["seed"] = later_seed(request.seed, attempt)
            async with aclosing(self._output(scope, request, body)) as outputs:
                async for output in outputs:
                    over = output.reading.finish_reason is not None
                    if over and not output.reading.is_reply and not shown and attempt < tries:
                        discarded += output.tokens
                        break
                    shown = shown or (request.stream and bool(output.reading.response))
                    yield replace(output, tries=attempt, discarded_tokens=discarded)
                    if over:
                        return

    async def _output(self, scope: Scope, request: ChatRequest, body: dict[str, Any]) -> AsyncGenerator[Reply, None]:
        """One output as it grows; the last one is finished."""
        text, thought_tokens, responds = "", 0, False
        async with aclosing(complete(self._app, scope, body)) as chunks:
            async for chunk in chunks:
                text += chunk.text
                reading = read(self._prompt, text, chunk.ended, request.stops)
                if self._prompt.response_marker is not None and not responds:
                    thought_tokens = chunk.tokens
                responds = reading.responds
                yield Reply(reading, len(body["prompt"]), chunk.tokens, thought_tokens)
                if reading.finish_reason is not None:
                    return

    def _completion(self, request: ChatRequest, ids: list[int]) -> dict[str, Any]:
        """The request to vLLM, without its seed."""
        config = self._config
        room = config.context_tokens - len(ids)
        defaults: dict[str, Any] = {"temperature": config.temperature, "top_p": config.top_p}
        if config.forced:
            defaults["vllm_xargs"] = {ARGUMENT: config.forced}
        return {
            "model": config.name,
            "prompt": ids,
            "max_tokens": min(request.most_tokens or room, room),
            **(defaults | request.model_dump(include=_SAMPLING, exclude_none=True)),
        }

    def _telling(self, send: Send) -> Send:
        """Wraps `send` to announce when the server is ready."""

        async def tell(event: Any) -> None:
            await send(event)
            if event["type"] == "lifespan.startup.complete":
                config = self._config
                thoughts = "shown on request" if config.allow_thoughts else "never shown"
                say(f"{config.model} is served as {config.name!r} at {config.url}/v1; thoughts are {thoughts}")

        return tell


_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty"}


async def _body(scope: Scope, receive: Receive) -> bytes:
    """Reads a body that is declared as JSON: browsers let another site's page send that only after a CORS preflight."""
    kind = dict(scope["headers"]).get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Refused(415, f"the content type is {kind.decode('latin-1')!r}, expected 'application/json'")
    body, more = bytearray(), True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, f"the request has more than {MAX_BODY_BYTES} bytes: shorten it")
    return bytes(body)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Does the work unless the client leaves: then it is cancelled at once, which frees the engine for others."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(work), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _send_json(send: Send, status: int, value: Any) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_events(send: Send, chunks: AsyncGenerator[Any, None]) -> None:
    """Sends chunks as server-sent events. Raises a refusal before the first one, which can still set the status."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    begun = False
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                if not begun:
                    begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send(_event(json.dumps(chunk)))
            await send(_event("[DONE]"))
        except Refused as refused:
            if not begun:
                raise
            await send(_event(json.dumps({"error": refused.error})))
    await send({"type": "http.response.body", "body": b""})


def _event(data: str) -> dict[str, Any]:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}
