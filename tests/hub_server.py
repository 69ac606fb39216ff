"""A model hub on loopback: what `huggingface_hub` asks for when it downloads a repository, and its refusals."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


@contextmanager
def serving(repositories: Mapping[str, Mapping[str, bytes]], *, gated: frozenset[str] = frozenset()) -> Iterator[str]:
    """The hub's address while it serves `repositories`: by name, the files of each."""

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).removeprefix("/api/models").strip("/")
            name = next((name for name in repositories if path.startswith(name)), None)
            if name is None:
                return self.refuse(404, "RepoNotFound")
            if name in gated:
                return self.refuse(403, "GatedRepo")
            files, rest = repositories[name], path.removeprefix(name).strip("/").split("/", 2)
            if rest[0] == "resolve":
                return self.give(files[rest[2]]) if rest[2] in files else self.refuse(404, "EntryNotFound")
            if rest[1:2] not in ([COMMIT], ["main"]):
                return self.refuse(404, "RevisionNotFound")
            if rest[0] == "tree":
                entries = [
                    {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for path, data in files.items()
                ]
                return self.give(json.dumps(entries).encode())
            about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
            return self.give(json.dumps(about).encode())

        def give(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
