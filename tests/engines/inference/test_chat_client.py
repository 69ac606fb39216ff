"""Claims about the chat client: every chat is answered once, failures are told apart, caps hold, the key is never
shown."""

import gc
import logging
import math
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.misbehaving_server import HALF_AN_ANSWER, Action, Drop, Fail, Hang, MisbehavingServer, Say, Script, Send
from tpo.config.base import Endpoint
from tpo.engines.inference.chat_client import (
    CHECK_SECONDS,
    Alternative,
    ChatClient,
    Position,
    RefusedChat,
    Spent,
    label_logprobs,
)
from tpo.engines.inference.reply import Decoding, Reply
from tpo.errors import InputError, StageError
from tpo.metrics.catalog import CALLS, REPLY_ERRORS
from tpo.records import Message
from tpo.run_context import RunContext, run_context, using

ROOT = Path(__file__).parents[3]
KEY = "sk-very-secret-0123456789"
LABELS = ("[[A]]", "[[B]]")
FREE = Decoding(64)
Answer = tuple[int, Reply | RefusedChat]


class Waits:
    """Doesn't wait, but records how long it should have."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.02)  # a server's threads notice a closed connection a moment later
    assert not left


def user(content: str) -> list[Message]:
    return [Message(role="user", content=content)]


def numbered(count: int) -> list[list[Message]]:
    return [user(f"chat {i}") for i in range(count)]


def content(request: dict[str, Any]) -> str:
    return str(request["messages"][-1]["content"])


def endpoint(server: MisbehavingServer, **settings: Any) -> Endpoint:
    return Endpoint(base_url=server.base_url, key_variable="JUDGE_KEY", **settings)


def client(
    server: MisbehavingServer, *, waits: Waits | None = None, check_seconds: float = CHECK_SECONDS, **settings: Any
) -> ChatClient:
    return ChatClient(endpoint(server, **settings), "judge", sleep=waits or Waits(), check_seconds=check_seconds)


def replies(
    chat_client: ChatClient, chats: Sequence[Sequence[Message]], decoding: Decoding = FREE
) -> dict[int, Reply | RefusedChat]:
    return dict(chat_client.ask(chats, decoding))


def stopped(answers: Iterator[Answer], *, into: list[Answer]) -> str:
    """The message of the error that ends `answers`; those before it are kept."""
    with pytest.raises(StageError) as error:
        into.extend(answers)
    return str(error.value)


def first_time(action: Action) -> Script:
    return lambda request, n: action if n == 0 else Say()


# Replies


def test_every_chat_is_answered_once_under_its_own_index():
    with MisbehavingServer(says=content) as server:
        found = list(client(server, concurrency=8).ask(numbered(50), FREE))
    assert sorted(index for index, _ in found) == list(range(50))
    assert all(isinstance(reply, Reply) and reply.text == f"chat {index}" for index, reply in found)
    assert len(server.asked) == 50


def test_replies_are_returned_as_they_arrive():
    last_came = threading.Event()

    def script(request: dict[str, Any], n: int) -> Action:
        if content(request) == "chat 0":
            last_came.wait(30)
        elif content(request) == "chat 11":
            last_came.set()
        return Say()

    with MisbehavingServer(script) as server:
        order = [index for index, _ in client(server, concurrency=4).ask(numbered(12), FREE)]
    assert order.index(0) >= 8


def test_a_reply_has_its_text_and_usage():
    with MisbehavingServer(lambda request, n: Say("It is [[B]]", usage=(123, 45))) as server:
        assert replies(client(server), [user("?")]) == {0: Reply("It is [[B]]", True, 123, 45)}


def test_a_reply_cut_by_the_token_limit_is_not_finished():
    with MisbehavingServer(lambda request, n: Say("It is", "length")) as server:
        (reply,) = replies(client(server), [user("?")]).values()
    assert isinstance(reply, Reply) and not reply.finished


def test_tokens_that_the_server_does_not_report_are_estimated_at_four_characters_each():
    with MisbehavingServer(lambda request, n: Say("x" * 10, usage=None)) as server:
        (reply,) = replies(client(server), [[Message(role="system", content="y" * 21), *user("z" * 20)]]).values()
    assert isinstance(reply, Reply) and (reply.input_tokens, reply.output_tokens) == (11, 3)


def test_no_chats_need_no_server():
    with MisbehavingServer() as server:
        pass
    assert replies(client(server), []) == {}


# Requests


def test_replies_are_greedy_and_unconstrained_unless_labels_are_requested():
    with MisbehavingServer() as server:
        replies(client(server, structured_outputs=True), [user("?")], Decoding(7))
    expected = {"model": "judge", "messages": user("?"), "temperature": 0, "max_tokens": 7}
    assert server.asked[0].request == expected


@pytest.mark.parametrize("held", [True, False])
def test_labels_constrain_the_reply_if_the_server_supports_structured_outputs(held: bool):
    with MisbehavingServer() as server:
        replies(client(server, structured_outputs=held), [user("?")], Decoding(7, LABELS))
    assert server.asked[0].request.get("structured_outputs") == ({"choice": list(LABELS)} if held else None)
    assert "logprobs" not in server.asked[0].request


def test_probabilities_come_from_the_log_probs_of_the_reply():
    logprobs = [
        {"token": "[[", "logprob": 0.0, "top_logprobs": [{"token": "[[", "logprob": 0.0}]},
        {
            "token": "B",
            "logprob": -0.25,
            "top_logprobs": [{"token": "B", "logprob": -0.25}, {"token": "A", "logprob": -1.5}],
        },
        {"token": "]]", "logprob": 0.0, "top_logprobs": []},
    ]
    with MisbehavingServer(lambda request, n: Say("[[B]]", logprobs=logprobs)) as server:
        (reply,) = replies(client(server), [user("?")], Decoding(7, LABELS, probabilities=True)).values()
    assert isinstance(reply, Reply) and reply.label_logprobs == (-1.5, -0.25)
    assert (server.asked[0].request["logprobs"], server.asked[0].request["top_logprobs"]) == (True, 20)


def test_a_server_without_log_probs_gives_no_probabilities():
    with MisbehavingServer() as server:
        (reply,) = replies(client(server), [user("?")], Decoding(7, LABELS, probabilities=True)).values()
    assert isinstance(reply, Reply) and reply.label_logprobs is None


# Concurrency


@pytest.mark.parametrize("concurrency", [1, 4])
def test_no_more_calls_than_allowed_are_under_way(concurrency: int):
    with MisbehavingServer(lambda request, n: Say(seconds=0.1)) as server:
        replies(client(server, concurrency=concurrency), numbered(12))
    assert server.most_at_once == concurrency


def test_a_slow_consumer_holds_the_calls_back():
    with MisbehavingServer() as server:
        answers = client(server, concurrency=3).ask(numbered(100_000), FREE)
        next(answers)
        time.sleep(0.3)
        assert len(server.asked) <= 1 + 3
        answers.close()


def test_a_consumer_that_stops_early_cancels_the_calls_under_way():
    with MisbehavingServer(lambda request, n: Say() if content(request) == "chat 0" else Hang()) as server:
        started = time.monotonic()
        for index, _ in client(server, concurrency=4).ask(numbered(100), FREE):
            assert index == 0
            break
        assert "chat client" not in [thread.name for thread in threading.enumerate()]
        assert time.monotonic() - started < 5
        assert len(server.asked) <= 1 + 4


def test_an_error_in_the_consumer_cancels_the_calls_under_way():
    def take(server: MisbehavingServer) -> None:
        for index, _ in client(server, concurrency=4).ask(numbered(100), FREE):
            index / 0

    with MisbehavingServer(lambda request, n: Say(seconds=0.05)) as server:
        with pytest.raises(ZeroDivisionError):
            take(server)
        assert len(server.asked) <= 1 + 4


def test_an_answer_that_is_never_consumed_does_not_keep_the_process_alive():
    code = """
        import sys
        from tpo.config.base import Endpoint
        from tpo.engines.inference.chat_client import ChatClient
        from tpo.engines.inference.reply import Decoding
        chats = [[{"role": "user", "content": str(i)}] for i in range(9)]
        answers = ChatClient(Endpoint(base_url=sys.argv[1]), "judge").ask(chats, Decoding(1))
        print(next(answers)[0])
    """
    with MisbehavingServer(lambda request, n: Say() if content(request) == "0" else Hang()) as server:
        command = [sys.executable, "-c", textwrap.dedent(code), server.base_url]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "0", "")


def test_an_answer_that_is_collected_in_the_clients_own_thread_ends_it():
    taken, forgotten = threading.Event(), threading.Event()

    def script(request: dict[str, Any], n: int) -> Action:
        if content(request) == "chat 0":
            return Say()
        taken.wait(30)  # otherwise the client's thread may wait before it has returned the first answer
        return Fail(503)

    async def collect(seconds: float) -> None:
        forgotten.wait(30)
        gc.collect()

    with MisbehavingServer(script) as server:
        answers = ChatClient(endpoint(server), "judge", sleep=collect).ask(numbered(2), FREE)
        next(answers)
        taken.set()
        cycle: list[object] = [answers]
        cycle.append(cycle)
        del answers, cycle
        forgotten.set()


# Failures

PASSING: dict[str, Action] = {
    "429": Fail(429),
    "429 with a time": Fail(429, headers={"Retry-After": "1"}),
    "408": Fail(408),
    "409": Fail(409),
    "500": Fail(500),
    "502": Fail(502),
    "503": Fail(503, headers={"Retry-After": "nonsense"}),
    "no answer in time": Hang(),
    "no answer at all": Drop(),
    "half an answer": Drop(HALF_AN_ANSWER),
    "half a JSON": Send(b'{"choices": [{"message": {"content": "[[A'),
    "no choices": Send(b'{"choices": []}'),
    "an error with status 200": Send(b'{"error": {"message": "overloaded"}}'),
    "a web page": Send(b"<html>Welcome</html>"),
}


def error_of(name: str) -> str:
    """How the metrics call one of them."""
    statuses = {"408": "client", "409": "client", "425": "client", "429": "rate_limit", "no answer in time": "timeout"}
    broken = dict.fromkeys(("no answer at all", "half an answer"), "connection")
    known = statuses | broken
    kinds = {kind for text, kind in known.items() if name.startswith(text)}
    return kinds.pop() if kinds else "server" if name.startswith("5") else "no_completion"


@pytest.mark.parametrize("name", PASSING)
def test_temporary_failures_are_retried_and_counted(name: str):
    waits = Waits()
    with using(RunContext()), MisbehavingServer(first_time(PASSING[name])) as server:
        found = replies(
            client(server, waits=waits, timeout_seconds=2 if name == "no answer in time" else 60), numbered(3)
        )
        counted = run_context().metrics.snapshot()
    assert {index: isinstance(reply, Reply) for index, reply in found.items()} == {0: True, 1: True, 2: True}
    assert len(server.asked) == 6 and len(waits.seconds) == 3
    assert {error: count for (_, error), count in counted[REPLY_ERRORS].items() if count} == {error_of(name): 3}
    assert CALLS not in counted


@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_persists_stops_the_stage_after_all_retries(name: str):
    with MisbehavingServer(lambda request, n: PASSING[name]) as server:
        chat_client = client(server, timeout_seconds=0.2 if name == "no answer in time" else 60, retries=2)
        with pytest.raises(StageError, match=r"'judge' at http://127.0.0.1:\d+/v1 did not answer in 3 tries") as error:
            replies(chat_client, [user("?")])
    assert len(server.asked) == 3
    assert "then rerun" in str(error.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_permanent_failure_stops_the_stage_at_once(status: int):
    waits = Waits()
    with MisbehavingServer(lambda request, n: Fail(status, "never")) as server:
        with pytest.raises(StageError, match=f"1 try; the last error: {status}: never"):
            replies(client(server, waits=waits), [user("?")])
        assert len(server.asked) == 1 and not waits.seconds


def test_a_server_that_dies_under_way_stops_the_stage():
    with MisbehavingServer() as server:
        answers = client(server, concurrency=1, retries=2).ask(numbered(50), FREE)
        next(answers)
        server.stop()
        with pytest.raises(
            StageError, match=r"3 tries; the last error: the connection failed \(\w+: .*start the server"
        ):
            list(answers)


@pytest.mark.parametrize(
    "refusal",
    [
        Fail(400, "This model's maximum context length is 512 tokens. However, your prompt contains 513."),
        Fail(400, "too much", "context_length_exceeded"),
        Fail(400, "the prompt is too long: 9000 tokens"),
        Fail(400, "held back", "content_filter"),
        Fail(413),
    ],
)
def test_a_chat_that_the_server_rejects_is_refused_and_the_others_are_answered(refusal: Fail):
    with MisbehavingServer(lambda request, n: refusal if content(request) == "chat 1" else Say()) as server:
        found = replies(client(server), numbered(3))
    assert found[1] == RefusedChat(refusal.message)
    assert all(isinstance(found[i], Reply) for i in (0, 2))
    assert len(server.asked) == 3


def test_a_reply_limit_above_the_models_is_not_the_chats_fault():
    says = "max_tokens=600 cannot be greater than max_model_len=512. Please request fewer output tokens."
    with MisbehavingServer(lambda request, n: Fail(400, says)) as server, pytest.raises(StageError, match=says):
        replies(client(server), numbered(2))


# Waiting


def test_waits_are_random_below_a_bound_that_doubles():
    runs = []
    with MisbehavingServer(lambda request, n: Fail(503)) as server:
        for _ in range(5):
            runs.append(Waits())
            with pytest.raises(StageError):
                replies(client(server, waits=runs[-1], retries=9), [user("?")])
    for waits in runs:
        bounds = [min(60, 0.5 * 2**i) for i in range(9)]
        assert all(0 <= wait <= bound for wait, bound in zip(waits.seconds, bounds, strict=True))
    assert len({waits.seconds[8] for waits in runs}) == 5


def test_a_server_that_names_a_time_is_left_alone_until_then():
    with MisbehavingServer(first_time(Fail(429, headers={"Retry-After": "0.4"}))) as server:
        list(ChatClient(endpoint(server), "judge").ask([user("?")], FREE))
    assert 0.4 <= server.asked[1].at - server.asked[0].at < 5


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7, 7.5),
        ("0", 0, 0.5),
        ("-3", 0, 0.5),
        ("nan", 0, 0.5),
        ("soon", 0, 0.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0.5),
    ],
)
def test_a_time_to_wait_is_seconds_or_a_date_that_may_be_past(header: str, least: float, most: float):
    assert least <= waited(header) <= most


def test_a_date_to_wait_for_is_waited_for():
    assert 200 <= waited(format_datetime(datetime.now(UTC) + timedelta(seconds=300), usegmt=True)) <= 300.5


def waited(header: str) -> float:
    """Seconds that a client waits, by its own account, for a server that sends `Retry-After`."""
    waits = Waits()
    with MisbehavingServer(first_time(Fail(429, headers={"Retry-After": header}))) as server:
        replies(client(server, waits=waits), [user("?")])
    return waits.seconds[0]


@pytest.mark.parametrize("header", ["3600", "1e400"])
def test_a_server_that_asks_for_a_long_wait_has_failed(header: str):
    waits = Waits()
    with MisbehavingServer(first_time(Fail(429, headers={"Retry-After": header}))) as server:
        says = stopped(client(server, waits=waits).ask([user("?")], FREE), into=[])
    assert "1 try" in says and f"requests a wait of {float(header):.0f} s" in says
    assert not waits.seconds


def test_after_a_permanent_failure_calls_under_way_are_answered_and_none_start():
    def script(request: dict[str, Any], n: int) -> Action:
        return Fail(400) if content(request) == content_of_first else Say(seconds=0.5)

    chats, found = numbered(20), list[Answer]()
    content_of_first = str(chats[0][0]["content"])
    with MisbehavingServer(script) as server:
        stopped(client(server, concurrency=4).ask(chats, FREE), into=found)
        asked = len(server.asked)
    assert asked == 4
    assert sorted(index for index, _ in found) == [1, 2, 3]


def test_an_unanswered_call_is_not_awaited_after_another_has_failed():
    def script(request: dict[str, Any], n: int) -> Action:
        return Fail(401) if content(request) == content_of_first else Say(seconds=30)

    chats, found = numbered(2), list[Answer]()
    content_of_first, started = str(chats[0][0]["content"]), time.monotonic()
    with MisbehavingServer(script) as server:
        stopped(client(server, concurrency=2, timeout_seconds=1.0).ask(chats, FREE), into=found)
        assert time.monotonic() - started < 10
    assert not found


# Caps


def test_at_a_cap_no_call_starts_and_those_under_way_are_answered():
    spent, found = Spent(), list[Answer]()
    with MisbehavingServer(lambda request, n: Say(usage=(10, 5))) as server:
        chat_client = client(server, concurrency=4, max_total_tokens=60)
        says = stopped(chat_client.ask(numbered(20), FREE, spent=spent), into=found)
    assert len(found) == len(server.asked) == 4 + 3
    assert spent == Spent(70, 35)
    assert "max_total_tokens = 60 is reached (70 tokens read and 35 written) with 13 calls left" in says
    assert "raise that limit" in says


def test_what_was_spent_before_counts():
    with MisbehavingServer() as server:
        answers = client(server, max_total_tokens=100).ask([user("?")], FREE, spent=Spent(60, 40))
        with pytest.raises(StageError, match="60 tokens read and 40 written"):
            next(answers)
    assert not server.asked


def test_money_is_capped_by_both_prices():
    prices: dict[str, Any] = {"input_price": 2.0, "output_price": 10.0, "max_cost": 0.00035}
    found = list[Answer]()
    with MisbehavingServer(lambda request, n: Say(usage=(100, 10))) as server:
        says = stopped(client(server, concurrency=1, **prices).ask(numbered(5), FREE), into=found)
    assert len(server.asked) == len(found) == 2
    assert "max_cost = 0.00035 is reached (200 tokens read and 20 written cost 0.0006)" in says


def test_a_cap_that_the_last_reply_reaches_is_no_error():
    with MisbehavingServer() as server:
        assert len(replies(client(server, concurrency=1, max_total_tokens=30), numbered(2))) == 2


def test_after_a_cap_is_raised_the_stage_resumes():
    spent, chats, found = Spent(), numbered(6), list[Answer]()
    with MisbehavingServer() as server:
        stopped(client(server, concurrency=1, max_total_tokens=30).ask(chats, FREE, spent=spent), into=found)
        rest = client(server, concurrency=1, max_total_tokens=90).ask(chats[len(found) :], FREE, spent=spent)
        assert (len(found), len(list(rest))) == (2, 4)
    assert len(server.asked) == 6 and spent == Spent(60, 30)


# The key


def test_the_key_is_read_when_a_call_is_made(monkeypatch: pytest.MonkeyPatch):
    with MisbehavingServer() as server:
        chat_client = client(server)
        for key in ("one", "two\n"):
            monkeypatch.setenv("JUDGE_KEY", key)
            replies(chat_client, [user("?")])
    assert [request.authorization for request in server.asked] == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize("unset", [True, False])
def test_an_endpoint_without_a_key_never_gets_another_servers(monkeypatch: pytest.MonkeyPatch, unset: bool):
    monkeypatch.setenv("OPENAI_API_KEY", "another server's")
    monkeypatch.delenv("JUDGE_KEY") if unset else monkeypatch.setenv("JUDGE_KEY", "")
    with MisbehavingServer() as server:
        replies(client(server), [user("?")])
    assert server.asked[0].authorization == "Bearer EMPTY"


@pytest.mark.parametrize(
    "quoting",
    [
        Fail(401, f"Incorrect API key provided: {KEY}."),
        Fail(500, f"could not pass {KEY} on"),
        Fail(400, "x" * 380 + KEY),
        Send(f"<html>{KEY}</html>".encode()),
        Drop(HALF_AN_ANSWER),
    ],
)
def test_the_key_is_shown_nowhere(quoting: Action, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with MisbehavingServer(lambda request, n: quoting) as server:
        chat_client = client(server, retries=1)
        errors: list[BaseException] = []
        for call in (lambda: replies(chat_client, [user("?")]), chat_client.check):
            with pytest.raises((StageError, InputError)) as error:
                call()
            errors.append(error.value)
    assert server.asked[0].authorization == f"Bearer {KEY}"
    assert not [error for raised in errors for error in chain(raised) if KEY[:12] in f"{error} {error!r}"]
    assert KEY[:12] not in caplog.text + repr(chat_client) + str(vars(chat_client))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_a_refused_chat_does_not_quote_the_key():
    with MisbehavingServer(lambda request, n: Fail(413, f"too large for {KEY}")) as server:
        assert replies(client(server), [user("?")]) == {0: RefusedChat("too large for ***")}


@pytest.mark.parametrize("key", ["two words", "schlüssel", "two\nlines"])
def test_an_impossible_key_is_not_sent(monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("JUDGE_KEY", key)
    with MisbehavingServer() as server:
        for call in (lambda: replies(client(server), [user("?")]), client(server).check):
            with pytest.raises(InputError, match="JUDGE_KEY contains") as error:
                call()
            assert key not in str(error.value)
    assert not server.asked


# The check


def test_a_server_that_answers_passes_the_check():
    with MisbehavingServer(key=KEY, model="judge") as server:
        client(server).check()
    assert server.asked[0].request["max_tokens"] == 1


def problem(server: MisbehavingServer, **settings: Any) -> str:
    started = time.monotonic()
    with pytest.raises(InputError) as error:
        client(server, **settings).check()
    assert time.monotonic() - started < 10
    assert server.base_url in str(error.value) and "'judge'" in str(error.value)
    return str(error.value)


def test_a_check_names_the_server_that_is_down():
    with MisbehavingServer() as server:
        pass
    assert "start the server, or correct endpoint.base_url" in problem(server)


def test_a_check_names_the_variable_of_a_wrong_key():
    with MisbehavingServer(key="another") as server:
        assert "401: " in (says := problem(server)) and "JUDGE_KEY: set it to a key that this server accepts" in says


def test_a_check_names_the_variable_of_a_missing_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JUDGE_KEY")
    with MisbehavingServer(key=KEY) as server:
        assert "environment variable JUDGE_KEY: it is not set" in problem(server)


def test_a_check_names_the_missing_model():
    with MisbehavingServer(model="another") as server:
        assert "404: The model `judge` does not exist" in (says := problem(server)) and "name a model" in says


def test_a_check_does_not_wait_for_a_server_that_hangs():
    assert CHECK_SECONDS < 10
    with MisbehavingServer(lambda request, n: Hang()) as server:
        assert "no answer within 1 s" in problem(server, check_seconds=1.0)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (Fail(400, "unknown field"), "400: unknown field"),
        (Fail(429, "quota"), "429: quota"),
        (Send(b"<html>"), "the answer is not a chat completion: '<html>'"),
        (Fail(413, "too much"), "too much"),
    ],
)
def test_a_check_quotes_the_server(action: Action, says: str):
    with MisbehavingServer(lambda request, n: action) as server:
        assert says in problem(server)
    assert (len(server.asked) > 1) == (says == "429: quota")


def test_a_check_notices_a_server_that_ignores_structured_outputs():
    with MisbehavingServer(says=lambda request: "Hello! How") as server:
        assert "wrote 'Hello! How' although structured_outputs" in problem(server, structured_outputs=True)
    with MisbehavingServer(says=lambda request: str(request["structured_outputs"]["choice"][0])) as server:
        client(server, structured_outputs=True).check()


# Probabilities of labels

LOGPROBS = st.floats(-8, -0.01)


@st.composite
def pairs_of_labels(draw: st.DrawFn) -> tuple[str, str]:
    """Two texts that differ in the first character after their common beginning."""
    shared = draw(st.text("[(<", max_size=3))
    first, second = draw(st.permutations("ABC"))[:2]
    return tuple(shared + letter + draw(st.text("])>", max_size=3)) for letter in (first, second))  # type: ignore[return-value]


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    """`text` in pieces, as some tokenizer might split it."""
    places = sorted(draw(st.sets(st.integers(1, len(text) - 1)))) if len(text) > 1 else []
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def shared_length(labels: Sequence[str]) -> int:
    return next(i for i, (a, b) in enumerate(zip(*labels, strict=False)) if a != b)


@given(data=st.data(), labels=pairs_of_labels(), chosen=LOGPROBS, other=LOGPROBS, first=st.booleans())
def test_log_probs_do_not_depend_on_how_the_labels_are_cut(
    data: st.DataObject, labels: tuple[str, str], chosen: float, other: float, first: bool
):
    reply, rival = labels if first else labels[::-1]
    tokens = data.draw(cut(reply))
    noise = st.lists(st.builds(Alternative, token=st.text("xyz[( ", min_size=1), logprob=LOGPROBS), max_size=3)
    split = shared_length(labels)
    positions, at = [], 0
    for token in tokens:
        alternatives = data.draw(noise)
        if at <= split < at + len(token):
            end = data.draw(st.integers(split + 1, len(rival)))
            alternatives += [Alternative(token=rival[at:end], logprob=other), Alternative(token=token, logprob=chosen)]
        elif at + len(token) <= split:  # a longer token, less likely than the chosen one, decides nothing yet
            alternatives.append(Alternative(token=rival[at:], logprob=-3.0))
        positions.append(Position(token=token, logprob=chosen, top_logprobs=data.draw(st.permutations(alternatives))))
        at += len(token)
    space = [Position(token=" \n"[i:], logprob=-1.0) for i in range(data.draw(st.integers(0, 2)))]
    rest = [Position(token="!", logprob=-1.0)]
    expected = (chosen, other) if first else (other, chosen)
    assert label_logprobs(space + positions + rest, labels) == pytest.approx(expected)
    assert label_logprobs(space + positions + rest, labels[::-1]) == pytest.approx(expected[::-1])


def position(token: str, logprob: float, **alternatives: float) -> Position:
    others = [Alternative(token=text, logprob=value) for text, value in alternatives.items()]
    return Position(token=token, logprob=logprob, top_logprobs=[Alternative(token=token, logprob=logprob), *others])


@given(share=st.floats(0.01, 0.99))
def test_tokens_that_begin_the_same_label_add_up(share: float):
    a = {"A": math.log(0.4 * share), "A]": math.log(0.4 * (1 - share))}
    found = label_logprobs([position("[[", -0.1), position("B]]", math.log(0.5), **a)], LABELS)
    assert found == pytest.approx((math.log(0.4), math.log(0.5)))


def test_a_token_that_continues_after_a_label_counts_for_it():
    assert label_logprobs([position("[[A]]\n", -0.2, **{"[[B]].": -2.0})], LABELS) == (-0.2, -2.0)


def test_a_label_that_the_server_does_not_list_has_no_probability():
    assert label_logprobs([position("[[", -0.1), position("A", -0.2, C=-4.0)], LABELS) == (-0.2, -math.inf)
    assert label_logprobs([position("[[A]]", -0.2, **{"[[B]]": -9999.0})], LABELS) == (-0.2, -math.inf)


def test_a_chosen_token_counts_even_if_it_is_not_among_the_alternatives():
    unlisted = Position(token="A", logprob=-5.0, top_logprobs=[Alternative(token="B", logprob=-1.0)])
    assert label_logprobs([position("[[", -0.1), unlisted], LABELS) == (-5.0, -1.0)


def test_a_reply_without_a_label_has_probabilities_only_if_all_labels_are_listed():
    assert label_logprobs([position("[[", -0.1), position("C", -0.5, A=-2.0, B=-3.0)], LABELS) == (-2.0, -3.0)
    assert label_logprobs([position("[[", -0.1), position("C", -0.5, A=-2.0)], LABELS) is None


@pytest.mark.parametrize("tokens", [[], ["The"], ["[[", "The"], ["[["], [" ", "\n"], ["[", "A]]"]])
def test_a_reply_without_a_label_has_no_probabilities(tokens: list[str]):
    assert label_logprobs([position(token, -0.5) for token in tokens], LABELS) is None


@pytest.mark.parametrize("labels", [("yes", "yes"), ("A", "A+"), ("AA", "AB", "B"), ("one",)])
def test_labels_that_one_token_cannot_tell_apart_are_an_error(labels: tuple[str, ...]):
    with pytest.raises(ValueError, match="differ in the first character"):
        label_logprobs([], labels)
