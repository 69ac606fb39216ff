"""Serves the sample browser of a run on this machine alone, from the run folder as it is at each request.

Only names that the browser itself has made are served, never a path from a request. A page of another site can't read
them: such a request is refused by its Host or Origin header, and response headers forbid the browser to share anything.
"""

import gzip
import http.server
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flows.browser.export import FOLDER, assets
from flows.browser.site import Site
from tpo.errors import InputError, TpoError
from tpo.report.summary import REPORT

ADDRESS = "127.0.0.1"
PORT = 8090
_HOSTS = ("127.0.0.1", "localhost")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_PACKED = 1024
"""Bytes from which assets are sent compressed; data are compressed already."""


class SampleServer(http.server.ThreadingHTTPServer):
    """The server of one run's browser."""

    daemon_threads = True

    def __init__(self, site: Site, port: int = PORT) -> None:
        """Raises `InputError` if the port is taken; port 0 takes a free one."""
        self.site = site
        self.assets: Mapping[str, bytes] = assets()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise InputError(
                f"{ADDRESS} port {port} cannot be listened on ({error.strerror}): choose another --port, or end what "
                "listens there"
            ) from error

    def handle_error(self, *details: Any) -> None:
        """Ignores a browser that has closed its connection."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(*details)

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{ADDRESS}:{self.server_port}/{FOLDER}/index.html"

    def find(self, path: str) -> bytes | None:
        """What a path names, or None."""
        inside = path.removeprefix(f"/{FOLDER}/")
        if path == f"/{REPORT}":
            return _read(self.site.root / REPORT)
        if inside == path:
            return None
        if inside in self.assets:
            return self.assets[inside]
        if not (inside.startswith("data/") and inside.endswith(".js")):
            return None
        name = inside.removeprefix("data/").removesuffix(".js")
        return self.site.now() if name == "run" else self.site.file(name)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


class _Handler(http.server.BaseHTTPRequestHandler):
    server: SampleServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tpo", ""
    timeout = 60

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if (fault := self._refused()) is not None:
            self._send(403, fault.encode(), "text/plain")
        elif path in ("/", f"/{FOLDER}", f"/{FOLDER}/"):
            self._send(302, b"", "text/plain", {"Location": f"/{FOLDER}/index.html"})
        else:
            self._answer(path)

    do_HEAD = do_GET

    def _answer(self, path: str) -> None:
        try:
            data = self.server.find(path)
        except (TpoError, OSError) as error:
            self._send(503, f"{error}: try again".encode(errors="replace"), "text/plain")
            return
        if data is None:
            self._send(404, b"there is no such file", "text/plain")
            return
        self._send(200, data, _KINDS.get(Path(path).suffix, "text/plain"), self._caching(path))

    def _refused(self) -> str | None:
        """Why a request isn't answered: a name that was pointed at this machine, or a page of another site."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in _HOSTS:
            return f"open http://{ADDRESS}:{self.server.server_port}/"
        if self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            link = self.headers.get("Sec-Fetch-Mode") == "navigate" and self.headers.get("Sec-Fetch-Dest") == "document"
            return None if link else "this is for its own page only"
        return None

    def _caching(self, path: str) -> dict[str, str]:
        unchanging = path.startswith(f"/{FOLDER}/data/") and not path.endswith("/run.js")
        return {"Cache-Control": "private, max-age=31536000, immutable" if unchanging else "no-cache"}

    def _send(self, status: int, data: bytes, kind: str, more: Mapping[str, str] | None = None) -> None:
        headers = dict(more or {})
        accepted = "gzip" in self.headers.get("Accept-Encoding", "")
        if accepted and len(data) > _PACKED and not self.path.startswith(f"/{FOLDER}/data/"):
            data, headers["Content-Encoding"] = gzip.compress(data, 3), "gzip"
        headers |= {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(data)),
            "Content-Security-Policy": _REPORT_POLICY if self.path.startswith(f"/{REPORT}") else _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Says nothing."""
