"""A model hub on loopback that accepts uploads: the requests of `huggingface_hub` to fill a repository."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """The hub's content."""

    url: str = ""
    token: str = "hf_written"
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: int = 0


@contextmanager
def taking_uploads() -> Iterator[Hub]:
    """A running hub; repositories are named `models/org/name` and `datasets/org/name`."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, value: object, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_PUT(self) -> None:
            data, oid = self.body(), self.path.rpartition("/")[2]
            assert hashlib.sha256(data).hexdigest() == oid
            hub.blobs[oid] = data
            hub.uploads += 1
            self.answer({})

        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            files = hub.files.get("/".join(parts[1:4]), {})
            if "tree" in parts:
                return self.answer([{"type": "file", "path": p, "size": len(d), "oid": "0"} for p, d in files.items()])
            return self.answer(
                {"id": "/".join(parts[2:4]), "sha": "0" * 40, "siblings": [{"rfilename": p} for p in files]}
            )

        def do_POST(self) -> None:
            data = self.body()
            path = unquote(urlsplit(self.path).path).strip("/")
            if path == "api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.answer({"error": "Invalid username or password."}, 401)
            if path == "api/repos/create":
                return self.create(json.loads(data))
            if path.endswith(".git/info/lfs/objects/batch"):
                return self.batch(json.loads(data))
            _, kind, org, name, what, *_ = path.split("/")
            if what == "preupload":
                return self.answer(
                    {
                        "files": [
                            {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False}
                            for f in json.loads(data)["files"]
                        ]
                    }
                )
            self.commit(f"{kind}/{org}/{name}", [json.loads(line) for line in data.splitlines()])
            return None

        def create(self, request: dict[str, str]) -> None:
            name = f"{request['type']}s/{request['organization']}/{request['name']}"
            if name in hub.files:
                return self.answer({"error": "You already created this repo", "url": f"{hub.url}/{name}"}, 409)
            hub.files[name] = {}
            hub.private[name] = request.get("visibility") == "private"
            self.answer({"url": f"{hub.url}/{name.removeprefix('models/')}"})
            return None

        def batch(self, request: dict[str, list[dict[str, object]]]) -> None:
            objects = [
                {**one}
                if str(one["oid"]) in hub.blobs
                else {**one, "actions": {"upload": {"href": f"{hub.url}/put/{one['oid']}"}}}
                for one in request["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})

        def commit(self, name: str, lines: list[dict[str, dict[str, str]]]) -> None:
            files = hub.files[name]
            for line in lines:
                value = line["value"]
                if str(line["key"]) == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif str(line["key"]) == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
                elif str(line["key"]) == "deletedFile":
                    del files[value["path"]]
            hub.commits.append(name)
            self.answer({"commitUrl": f"{hub.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40})

    def mode(path: str) -> str:
        return "lfs" if path.endswith((".safetensors", ".parquet")) else "regular"

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
