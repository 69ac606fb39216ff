"""An OpenAI-compatible server on loopback that misbehaves on script, for tests of clients.

The script decides what to do with a request, given how often the same chat has come before. Answers go over real
sockets; requests are recorded with their times and concurrency.
"""

import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Json = dict[str, Any]


@dataclass(frozen=True)
class Say:
    """Answers as a model does."""

    text: str | None = None
    """The reply; None for the server's default."""
    finish_reason: str = "stop"
    """Why the reply ends."""
    usage: tuple[int, int] | None = (10, 5)
    """Tokens read and written, or None if the server doesn't report them."""
    logprobs: list[Json] | None = None
    """Tokens of the reply with their log-probs, in the server's own form."""
    seconds: float = 0.0
    """Seconds that the model takes."""
    message: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the message that extend or replace the usual ones: `{"content": None, "reasoning": "Well"}`."""


@dataclass(frozen=True)
class Fail:
    """Answers with an error."""

    status: int
    """HTTP status."""
    message: str = "so it is written"
    """The error's message."""
    code: str | None = None
    """The error's code."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of the answer."""


@dataclass(frozen=True)
class Send:
    """Answers 200 with an arbitrary body."""

    body: bytes
    """The body."""


@dataclass(frozen=True)
class Hang:
    """Says nothing for a while, then closes the connection."""

    seconds: float = 60.0
    """Maximum seconds; stopping the server ends the wait."""


@dataclass(frozen=True)
class Drop:
    """Closes the connection in the middle of the answer."""

    sent: bytes = b""
    """What is sent before that."""


Action = Say | Fail | Send | Hang | Drop
Script = Callable[[Json, int], Action]

HALF_AN_ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{"choices": [{"me'


@dataclass(frozen=True)
class Asked:
    """A request as received."""

    request: Json
    """Its body."""
    authorization: str | None
    """Its key, including `Bearer`."""
    at: float
    """When it arrived, in seconds of the monotonic clock."""


class MisbehavingServer:
    """The server; it runs within a `with`.

    Args:
        script: What to do with a request; called with its body and with how many requests had the same messages.
        says: The text of a reply if the script names none.
        key: The required key, or None to accept everyone.
        model: The only known model, or None to know every model.
    """

    def __init__(
        self,
        script: Script = lambda request, n: Say(),
        *,
        says: Callable[[Json], str] = lambda request: "[[A]]",
        key: str | None = None,
        model: str | None = None,
    ) -> None:
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._script, self._says, self._key, self._model = script, says, key, model
        self._tries: Counter[str] = Counter()
        self._under_way = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _handler(self))

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="misbehaving server")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops it as a kill does: connections break, and nothing listens anymore."""
        if not self._closed.is_set():
            self._closed.set()
            self._http.shutdown()
            self._http.server_close()
            self._http.break_connections()
            self._thread.join()

    @property
    def base_url(self) -> str:
        """Its address; nothing listens there once it is stopped."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def answer(self, request: Json, authorization: str | None) -> tuple[bytes, bool]:
        """After the scripted time: the bytes to send, and whether to close the connection after them."""
        with self._lock:
            self.asked.append(Asked(request, authorization, time.monotonic()))
            chat = json.dumps(request["messages"])
            n, self._tries[chat] = self._tries[chat], self._tries[chat] + 1
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        action = self._refusal(request, authorization) or self._script(request, n)
        if isinstance(action, Say):
            self._closed.wait(action.seconds)
        with self._lock:
            self._under_way -= 1  # before the answer is sent, since the client may ask again immediately
        match action:
            case Say():
                return _http(200, json.dumps(self._completion(action, request)).encode()), False
            case Fail(status, message, code, headers):
                error = {"error": {"message": message, "type": "error", "code": code}}
                return _http(status, json.dumps(error).encode(), headers), False
            case Send(body):
                return _http(200, body), False
            case Hang(seconds):
                self._closed.wait(seconds)
                return b"", True
            case Drop(sent):
                return sent, True

    def _refusal(self, request: Json, authorization: str | None) -> Fail | None:
        if self._key is not None and authorization != f"Bearer {self._key}":
            return Fail(401, f"Incorrect API key provided: {authorization}", "invalid_api_key")
        if self._model is not None and request["model"] != self._model:
            return Fail(404, f"The model `{request['model']}` does not exist.", "model_not_found")
        return None

    def _completion(self, say: Say, request: Json) -> Json:
        text = self._says(request) if say.text is None else say.text
        choice: Json = {
            "index": 0,
            "message": {"role": "assistant", "content": text} | dict(say.message),
            "finish_reason": say.finish_reason,
        }
        if say.logprobs is not None:
            choice["logprobs"] = {"content": say.logprobs}
        completion: Json = {"id": "chat", "object": "chat.completion", "created": 0, "model": request["model"]}
        completion["choices"] = [choice]
        if say.usage is not None:
            read, written = say.usage
            completion["usage"] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return completion


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._connections: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _handler(server: MisbehavingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/chat/completions":
                answer, self.close_connection = server.answer(request, self.headers["Authorization"])
            else:
                answer = _http(404, b"nothing here")
            try:
                self.wfile.write(answer)
            except OSError:
                self.close_connection = True  # the client did not wait

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class calls it so
            pass

    return Handler


def _http(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} so", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
