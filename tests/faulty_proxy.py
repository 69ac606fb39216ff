"""A loopback proxy in front of an S3 server that does to requests what networks and busy servers do.

A script says what happens to each request; every request is recorded.
"""

import http.client
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Asked:
    """A request."""

    method: str
    """Such as `PUT`."""
    path: str
    """Path and query."""
    count: int
    """Number of earlier requests with this method and path."""
    conditional: bool
    """Whether it is conditional."""


@dataclass(frozen=True)
class Fault:
    """What happens to a request; by default nothing."""

    status: int = 0
    """Answer with this status, without passing the request on."""
    code: str = "SlowDown"
    """S3's error code for that status."""
    seconds: float = 0.0
    """Pass the request on after this many seconds."""
    cut_request: bool = False
    """Cut the connection in the middle of the request; the server doesn't see it."""
    cut_reply: bool = False
    """Cut the connection in the middle of the reply's content."""
    lose_reply: bool = False
    """Let the server act, and cut the connection before it can reply."""
    damage_reply: bool = False
    """Change a byte of the reply's content."""
    ignore_conditions: bool = False
    """Act like a server without conditional requests: perform the request even if its condition fails."""


Script = Callable[[Asked], Fault | None]


def weather(seed: int, share: float, seconds: float) -> Script:
    """A script that gives a share of all requests some fault; no request is hit three times in a row."""
    dice, lock = random.Random(seed), threading.Lock()
    kinds = [
        Fault(status=503),
        Fault(status=500, code="InternalError"),
        Fault(seconds=seconds),
        Fault(cut_request=True),
        Fault(cut_reply=True),
        Fault(lose_reply=True),
    ]
    struck: dict[tuple[str, str], int] = {}

    def script(request: Asked) -> Fault | None:
        key = (request.method, request.path)
        with lock:
            if struck.get(key, 0) < 2 and dice.random() < share:
                struck[key] = struck.get(key, 0) + 1
                return dice.choice(kinds)
            struck[key] = 0
        return None

    return script


class FaultyProxy:
    """Passes requests on to a server, or does what the script says; `script` may be changed at any time."""

    def __init__(self, server: str, script: Script = lambda request: None) -> None:
        self.script = script
        self.asked: list[Asked] = []
        """Every request so far."""
        self.struck = 0
        """How many of them were given a fault."""
        upstream = urlsplit(server).netloc
        proxy = self
        lock = threading.Lock()

        class Handler(_Handler):
            to = upstream

            def fault(self) -> Fault:
                with lock:
                    before = sum((earlier.method, earlier.path) == (self.command, self.path) for earlier in proxy.asked)
                    conditional = any(self.headers[name] for name in _CONDITIONS)
                    request = Asked(self.command, self.path, before, conditional)
                    proxy.asked.append(request)
                fault = proxy.script(request)
                proxy.struck += fault is not None
                return fault or Fault()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        """Its address."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


_CONDITIONS = ("If-None-Match", "If-Match")
_OF_A_HOP = ("connection", "transfer-encoding", "expect", "content-length")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    to = ""

    def fault(self) -> Fault:
        raise NotImplementedError

    def _pass_on(self) -> None:
        fault = self.fault()
        body = self._body(half=fault.cut_request)
        if fault.cut_request:
            self._cut()
            return
        time.sleep(fault.seconds)
        if fault.status:
            text = f"<Error><Code>{fault.code}</Code><Message>so it is written</Message></Error>".encode()
            self._reply(fault.status, [("Content-Type", "application/xml")], text, fault)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_A_HOP}
        upstream = http.client.HTTPConnection(self.to, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            reply = upstream.getresponse()
            content = reply.read()
        finally:
            upstream.close()
        if fault.lose_reply:
            self._cut()
        elif fault.ignore_conditions and reply.status == 412:
            self._reply(200, [("ETag", f'"{"0" * 32}"')], b"", fault)
        else:
            self._reply(reply.status, reply.getheaders(), content, fault, length=reply.getheader("Content-Length"))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _body(self, *, half: bool) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        length = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(length // 2 if half else length)

    def _reply(
        self, status: int, headers: list[tuple[str, str]], content: bytes, fault: Fault, length: str | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _OF_A_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.damage_reply and content and status == 200 and self.command == "GET" and "list-type" not in self.path:
            content = bytes([content[0] ^ 1]) + content[1:]
        self.wfile.write(content[: len(content) // 2] if fault.cut_reply else content)
        if fault.cut_reply:
            self._cut()

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Logs nothing."""
