"""A server of a reward model on loopback, in vLLM's protocols and our own, that can be made to fail."""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Json = dict[str, Any]
Score = Callable[[str], float | None]


class RewardHttp:
    """The server; it runs within a `with`.

    Args:
        score: The score of a response's text.
        fails: The status and message to answer with instead, given the body and the number of earlier requests; None to
            answer.
        outputs: The model's outputs for a score.
        key: The required key.
        of_chat: The score of a whole chat, in our own protocol; None for that of the response.
    """

    def __init__(
        self,
        score: Score = lambda text: float(len(text)),
        *,
        fails: Callable[[Json, int], tuple[int, str] | None] = lambda body, n: None,
        outputs: Callable[[float | None], list[float | None]] = lambda score: [score],
        key: str | None = None,
        of_chat: Callable[[list[Json]], float | None] | None = None,
    ) -> None:
        self.asked: list[tuple[str, Json]] = []
        self._score, self._fails, self._outputs, self._key = score, fails, outputs, key
        self._of_chat = of_chat or (lambda chat: self._score(chat[-1]["content"]))
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def answer(self, path: str, body: Json, authorization: str | None) -> tuple[int, Json]:
        """Status and body of the answer."""
        number = len(self.asked)
        self.asked.append((path, body))
        if self._key is not None and authorization != f"Bearer {self._key}":
            return 401, {"error": {"message": f"wrong key: {authorization}"}}
        if (failure := self._fails(body, number)) is not None:
            return failure[0], {"error": {"message": failure[1]}}
        if path == "/reward":
            return 200, {"scores": [self._of_chat(item["messages"]) for item in body["items"]]}
        if path == "/score":
            scores = [self._score(text) for text in body["text_2"]]
            return 200, _data([{"index": i, "score": score} for i, score in enumerate(scores)][::-1])
        field = {"/classify": "probs", "/pooling": "data"}.get(path)
        if field is None:
            return 404, {"detail": "Not Found"}
        score = self._score(body["messages"][-1]["content"])
        return 200, _data([{"index": 0, field: self._outputs(score)}])


def _data(data: list[Json]) -> Json:
    return {"data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}


def _handler(server: RewardHttp) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = server.answer(self.path, body, self.headers["Authorization"])
            sent = json.dumps(answer).encode()
            self.send_response(status)
            headers: Mapping[str, str] = {"Content-Type": "application/json", "Content-Length": str(len(sent))}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class calls it so
            pass

    return Handler
