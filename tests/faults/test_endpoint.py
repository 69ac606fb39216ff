"""Claims about a judge's server that misbehaves: every comparison is answered once, or the rest is asked later."""

import time
from collections.abc import Callable

import pytest

from tests.misbehaving_server import HALF_AN_ANSWER, Action, Drop, Fail, Hang, MisbehavingServer, Say, Send
from tpo.config.base import Endpoint
from tpo.engines.inference.chat_client import ChatClient
from tpo.engines.inference.reply import Decoding, Reply
from tpo.errors import StageError
from tpo.records import Message

pytestmark = pytest.mark.faults
Outcome = Callable[[str, str, str], None]
CHATS = [[Message(role="user", content=f"Which is better, {i} or {i + 1}?")] for i in range(6)]
PASSING: dict[str, Action] = {
    "says 429, too many requests": Fail(429),
    "says 500": Fail(500),
    "says 503, come back later": Fail(503, headers={"Retry-After": "0"}),
    "closes the connection": Drop(),
    "closes the connection during the answer": Drop(HALF_AN_ANSWER),
    "sends an invalid answer": Send(b"<html>busy</html>"),
    "hangs": Hang(),
}


async def _no_wait(seconds: float) -> None:
    pass


def a_client(server: MisbehavingServer) -> ChatClient:
    endpoint = Endpoint(base_url=server.base_url, key_variable="NO_KEY", timeout_seconds=1.0, retries=2, concurrency=2)
    return ChatClient(endpoint, "judge", sleep=_no_wait)


@pytest.mark.parametrize("fault", PASSING)
def test_a_temporary_fault_is_retried_and_answered_once(fault: str, outcome: Outcome):
    with MisbehavingServer(lambda request, n: PASSING[fault] if n == 0 else Say()) as server:
        found = list(a_client(server).ask(CHATS, Decoding(8)))
    assert sorted(index for index, _ in found) == list(range(len(CHATS)))
    assert all(isinstance(reply, Reply) for _, reply in found)
    assert len(server.asked) == 2 * len(CHATS)
    outcome(f"a judge's server {fault}", "judge", "retried and answered once")


@pytest.mark.parametrize("fault", PASSING)
def test_a_permanent_fault_stops_the_judge_soon_and_keeps_the_answers(fault: str, outcome: Outcome):
    dead = str(CHATS[3][0]["content"])
    kept = list[tuple[int, object]]()
    started = time.monotonic()
    with MisbehavingServer(
        lambda request, n: PASSING[fault] if dead in request["messages"][0]["content"] else Say()
    ) as server:
        with pytest.raises(StageError, match=r"did not answer in .* All replies so far are saved"):
            kept.extend(a_client(server).ask(CHATS, Decoding(8)))
        assert time.monotonic() - started < 60
        before = len(server.asked)
    missing = [chat for i, chat in enumerate(CHATS) if i not in {index for index, _ in kept}]
    with MisbehavingServer() as server:
        assert len(list(a_client(server).ask(missing, Decoding(8)))) == len(missing)
        assert len(server.asked) == len(missing) < before
    outcome(f"a judge's server {fault}, permanently", "judge", "stops, says so; the next run asks for the rest")
