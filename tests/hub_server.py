"""A model hub on loopback: the requests of `huggingface_hub` for downloads, and the hub's refusals.

Repositories have branches of commits; the hub redirects to another path for large files, as to a content network. Every
request is recorded.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 20_000
"""Size in bytes from which a file is stored separately, as with git LFS."""
GOOD_TOKEN = "hf_good"


@dataclass
class Repository:
    """A repository on the hub: files by path, by commit, and the commits of its branches."""

    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    """The files of each commit."""
    branches: dict[str, str] = field(default_factory=dict)
    """The commit of each branch or tag."""
    gated: bool = False
    """Whether its files need a token."""

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Moves a branch to a new commit with these files; returns it."""
        name = hashlib.sha1(f"{len(self.commits)} {branch} {sorted(files)}".encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        return name


@dataclass
class Hub:
    """What the server serves, its faults, and the requests that it got."""

    address: str = ""
    """Its address."""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """Repositories by `models/org/name` or `datasets/org/name`, as the API has them."""
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""
    ranges: list[str] = field(default_factory=list)
    """The ranges requested."""
    cut: dict[str, int] = field(default_factory=dict)
    """Number of bytes after which the connection breaks, once, by file name."""
    altered: dict[str, bytes] = field(default_factory=dict)
    """Content sent in place of a file's, by its name."""
    names: dict[str, str] = field(default_factory=dict)
    """Names redirected to the current ones, as the hub does for another case and after a rename."""
    stall: tuple[str, threading.Event, threading.Event] | None = None
    """A file whose download stops halfway, the event set then, and the event that it waits for."""
    failing: bool = False
    """Whether it answers everything with 503."""

    def repository(self, name: str, files: Mapping[str, bytes] | None = None, *, gated: bool = False) -> Repository:
        """A new repository, with files on `main`."""
        found = self.repositories[name] = Repository(gated=gated)
        if files is not None:
            found.commit(files)
        return found


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub)) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def git_sha1(data: bytes) -> str:
    """Git's hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: Hub, *connection: Any) -> None:
        self.hub = hub
        super().__init__(*connection)

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.failing:
            return self.refuse(503, "")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != GOOD_TOKEN:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if path.startswith("cdn/"):
            return self.content(path.split("/", 2)[1], unquote(path.split("/", 2)[2]))
        api, path = path.startswith("api/"), path.removeprefix("api/")
        if not api and not path.startswith("datasets/"):
            path = f"models/{path}"
        kind, org, name, *rest = path.split("/")
        key = f"{kind}/{org}/{name}"
        if (today := self.hub.names.get(key)) is not None:
            return self.redirect("/" + self.path.strip("/").replace(f"{org}/{name}", today, 1))
        if (found := self.hub.repositories.get(key)) is None:
            return self.refuse(401, "RepoNotFound")
        if rest == ["refs"]:
            return self.json({"branches": self.named(found.branches), "tags": [], "converts": []})
        if not rest or rest[0] not in ("revision", "tree", "resolve"):
            rest = ["revision", "main"]
        revision = unquote(rest[1])
        commit = found.branches.get(revision, revision)
        if commit not in found.commits:
            return self.refuse(404, "RevisionNotFound")
        if rest[0] == "resolve":
            return self.resolve(found, commit, unquote("/".join(rest[2:])))
        files = found.commits[commit]
        if rest[0] == "tree":
            return self.json([self.entry(path, data) for path, data in sorted(files.items())])
        about = {"id": f"{org}/{name}", "sha": commit, "siblings": [{"rfilename": path} for path in files]}
        return self.json(about)

    def named(self, branches: Mapping[str, str]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in branches.items()
            if not name.startswith("refs/")
        ]

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
        if len(data) >= LARGE:
            oid = hashlib.sha256(data).hexdigest()
            found |= {"lfs": {"oid": oid, "size": len(data), "pointerSize": 130}, "oid": git_sha1(oid.encode())}
        return found

    def resolve(self, found: Repository, commit: str, path: str) -> None:
        if found.gated and not self.headers.get("Authorization"):
            return self.refuse(403, "GatedRepo")
        if path not in found.commits[commit]:
            return self.refuse(404, "EntryNotFound", commit=commit)
        data = found.commits[commit][path]
        if len(data) >= LARGE:
            sha256 = hashlib.sha256(data).hexdigest()
            headers = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"', "X-Repo-Commit": commit}
            # Under another name of this machine, since the client handles redirects within a hub's host by itself.
            elsewhere = self.hub.address.replace("127.0.0.1", "localhost")
            return self.redirect(f"{elsewhere}/cdn/{sha256}/{path}?signature=secret", headers)
        return self.send(self.altered(path, data), {"ETag": f'"{git_sha1(data)}"', "X-Repo-Commit": commit})

    def content(self, sha256: str, path: str) -> None:
        """A large file, or the part that the client lacks."""
        stored = [data for repository in self.hub.repositories.values() for files in repository.commits.values()
                  for data in files.values() if len(data) >= LARGE]  # fmt: skip
        data = self.altered(path, next(data for data in stored if hashlib.sha256(data).hexdigest() == sha256))
        headers = {"Accept-Ranges": "bytes"}
        if (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) is not None:
            start = int(asked.group(1))
            self.hub.ranges.append(f"{path} {start}")
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.send(data[start:], headers, 206)
        if self.command == "GET" and (most := self.hub.cut.pop(path.rpartition("/")[2], None)) is not None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:most])
            self.close_connection = True
            return None
        if self.command == "GET" and self.hub.stall is not None and path.endswith(self.hub.stall[0]):
            return self.stalled(data, *self.hub.stall[1:])
        return self.send(data, headers)

    def stalled(self, data: bytes, reached: threading.Event, resume: threading.Event) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        reached.set()
        resume.wait(60)
        self.close_connection = True

    def altered(self, path: str, data: bytes) -> bytes:
        return self.hub.altered.get(path.rpartition("/")[2], data) if self.command == "GET" else data

    def json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, data: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def redirect(self, place: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(307)
        for name, value in {**(headers or {}), "Location": place, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def refuse(self, status: int, code: str, message: str = "", commit: str = "") -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
