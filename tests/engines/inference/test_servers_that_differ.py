"""Claims about servers that differ from OpenAI's: the client adapts to the form that they ask for, or names the setting
to change."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.misbehaving_server import Action, Fail, MisbehavingServer, Say
from tpo.config.base import Endpoint
from tpo.engines.inference.chat_client import MAX_FORMS, ChatClient, _is_loopback
from tpo.engines.inference.reply import Decoding, Reply, without_thinking
from tpo.errors import InputError, StageError
from tpo.records import Message
from tpo.run_context import RunContext, using

LABELS = ("[[A]]", "[[B]]")
VERDICT = Decoding(8, LABELS)
PROBABILITY = Decoding(8, LABELS, probabilities=True)
FREE = Decoding(64, temperature=0.6, top_p=0.9)
CHAT = [Message(role="system", content="You are a judge."), Message(role="user", content="Which is better?")]
Request = dict[str, Any]
LOGPROBS = [
    {"token": "[[", "logprob": 0.0, "top_logprobs": []},
    {"token": "A", "logprob": -0.25, "top_logprobs": [{"token": "B", "logprob": -1.5}]},
]


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    with using(RunContext()):
        yield


async def no_wait(seconds: float) -> None:
    pass


def client(server: MisbehavingServer, **settings: Any) -> ChatClient:
    endpoint = Endpoint(base_url=server.base_url, key_variable="NO_KEY", **settings)
    return ChatClient(endpoint, "judge", sleep=no_wait)


def refuses(wrong: Callable[[Request], bool], fail: Fail) -> Callable[[Request, int], Action]:
    return lambda request, n: fail if wrong(request) else Say("[[A]]", logprobs=LOGPROBS)


def limit(request: Request) -> int:
    return int(request.get("max_tokens") or request["max_completion_tokens"])


FORMS: list[tuple[Decoding, Callable[[Request], bool], Fail, dict[str, Any]]] = [
    (
        VERDICT,
        lambda request: "max_tokens" in request,
        Fail(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
        ),
        {"token_limit_field": "max_completion_tokens"},
    ),
    (
        VERDICT,
        lambda request: "max_tokens" in request,
        Fail(
            422, "[{'type': 'extra_forbidden', 'loc': ['body', 'max_tokens'], 'msg': 'Extra inputs are not permitted'}]"
        ),
        {"token_limit_field": "max_completion_tokens"},
    ),
    (
        VERDICT,
        lambda request: request.get("temperature", 1) != 1,
        Fail(
            400,
            "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) is supported.",
        ),
        {"temperature": False},
    ),
    (
        FREE,
        lambda request: "temperature" in request or "top_p" in request,
        Fail(400, "Unsupported parameters: 'temperature' and 'top_p' are not supported with this model."),
        {},
    ),
    (
        VERDICT,
        lambda request: request.get("temperature") != 1,
        Fail(400, "invalid temperature: only 1 is allowed for this model"),
        {"extra_body": {"temperature": 1}},
    ),
    (
        VERDICT,
        lambda request: request.get("temperature") == 0,
        Fail(422, "Input validation error: `temperature` must be strictly positive"),
        {"extra_body": {"temperature": 0.01}},
    ),
    (
        VERDICT,
        lambda request: limit(request) < 16,
        Fail(
            400, "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 8 instead."
        ),
        {"min_token_limit": 16},
    ),
    (
        VERDICT,
        lambda request: limit(request) < 16,
        Fail(400, "max_tokens must be at least 16"),
        {"min_token_limit": 16},
    ),
    (VERDICT, lambda request: limit(request) < 16, Fail(400, "max_tokens must be > 15"), {"min_token_limit": 16}),
    (
        PROBABILITY,
        lambda request: request.get("top_logprobs", 0) > 5,
        Fail(400, "Invalid value for 'top_logprobs': must be less than or equal to 5."),
        {"top_logprobs": 5},
    ),
    (
        PROBABILITY,
        lambda request: request.get("top_logprobs", 0) > 5,
        Fail(400, "Requested sample logprobs of 20, which is greater than max allowed: 5"),
        {"top_logprobs": 5},
    ),
    (
        VERDICT,
        lambda request: "max_tokens" in request or "temperature" in request or limit(request) < 16,
        Fail(400, "unsupported: max_tokens, temperature; max_completion_tokens must be at least 16"),
        {"token_limit_field": "max_completion_tokens", "temperature": False, "min_token_limit": 16},
    ),
]


@pytest.mark.parametrize(("decoding", "wrong", "fail", "settings"), FORMS)
def test_a_server_is_asked_in_the_form_that_it_names_which_is_remembered(
    decoding: Decoding, wrong: Callable[[Request], bool], fail: Fail, settings: dict[str, Any]
):
    with MisbehavingServer(refuses(wrong, fail)) as server:
        client(server).check(CHAT, decoding)
        before = len(server.asked)
        replies = dict(client(server).ask([CHAT] * 5, decoding))
        assert all(isinstance(reply, Reply) and reply.text == "[[A]]" for reply in replies.values())
        assert len(replies) == 5 and len(server.asked) == before + 5


@pytest.mark.parametrize(("decoding", "wrong", "fail", "settings"), [form for form in FORMS if form[3]])
def test_settings_choose_the_form_before_the_server_does(
    decoding: Decoding, wrong: Callable[[Request], bool], fail: Fail, settings: dict[str, Any]
):
    with MisbehavingServer(refuses(wrong, fail)) as server:
        client(server, **settings).check(CHAT, decoding)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("System role not supported", 'endpoint.system_role = "fold"'),
        ("Conversation roles must alternate user/assistant/user/assistant/...", 'endpoint.system_role = "fold"'),
        ("This model does not support logprobs", 'judge.mode to "verdict" or "cot"'),
        ("Unrecognized request argument supplied: structured_outputs", "endpoint.structured_outputs to false"),
        ("max_tokens is too large: 2048. This model supports at most 1024 completion tokens", "set max_new_tokens"),
        ("Could not finish the message because max_tokens was reached, try higher", "raise max_new_tokens"),
        ("unknown field 'model_name'", "endpoint.extra_body"),
    ],
)
def test_a_permanent_refusal_names_the_setting_that_helps(message: str, says: str):
    with MisbehavingServer(lambda request, n: Fail(400, message)) as server:
        with pytest.raises(InputError, match=re.escape(says)):
            client(server).check(CHAT, PROBABILITY)
        with pytest.raises(StageError, match=re.escape(says)):
            list(client(server).ask([CHAT], PROBABILITY))


def test_a_server_that_refuses_every_form_is_given_up():
    with MisbehavingServer(
        lambda request, n: Fail(400, "bad max_tokens, max_completion_tokens, temperature")
    ) as server:
        with pytest.raises(StageError, match="1 try"):
            list(client(server).ask([CHAT], FREE))
        assert len(server.asked) <= 2 + MAX_FORMS


def test_a_system_turn_can_be_folded_into_the_users():
    refusal = refuses(lambda request: request["messages"][0]["role"] == "system", Fail(400, "no system role"))
    with MisbehavingServer(refusal) as server:
        client(server, system_role="fold").check(CHAT, VERDICT)
    assert server.asked[0].request["messages"] == [{"role": "user", "content": "You are a judge.\n\nWhich is better?"}]


def test_extra_fields_are_sent_unchanged():
    with MisbehavingServer() as server:
        client(server, extra_body={"reasoning_effort": "low", "top_k": 1}).check(CHAT, VERDICT)
    assert server.asked[0].request.items() >= {"reasoning_effort": "low", "top_k": 1, "max_tokens": 8}.items()


@pytest.mark.parametrize("reason", ["stop", "eos_token", "stop_sequence", "eos", "end_turn", "STOP", None])
def test_every_finish_reason_but_a_cut_is_an_end(reason: Any):
    assert reply_of(Say("[[A]]", reason)).finished


@pytest.mark.parametrize(
    "reason", ["length", "content_filter", "tool_calls", "function_call", "max_tokens", "MAX_TOKENS", "model_length"]
)
def test_a_cut_reply_has_not_ended(reason: str):
    reply = reply_of(Say("[[A]]", reason))
    assert (reply.finished, reply.ended_by) == (False, reason.lower())


def test_a_reply_without_a_finish_reason_is_cut_if_it_is_as_long_as_allowed():
    assert not reply_of(Say("so it is", None, usage=(10, 8))).finished  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_separate_reasoning_is_recorded_and_not_part_of_the_text(name: str):
    reply = reply_of(Say("", "length", usage=None, message={"content": None, name: "x" * 40}))
    assert (reply.text, reply.finished, reply.reasoning_chars, reply.output_tokens) == ("", False, 40, 10)


def test_content_in_parts_is_read():
    assert (
        reply_of(Say(message={"content": [{"type": "text", "text": "[["}, {"type": "text", "text": "A]]"}]})).text
        == "[[A]]"
    )


def reply_of(say: Say) -> Reply:
    with MisbehavingServer(lambda request, n: say) as server:
        return client(server).check(CHAT, VERDICT)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>[[A]] or [[B]]?</think>\n\n[[B]]", "[[B]]"),
        ("\n<think>\nhm\n</think>[[B]]", "[[B]]"),
        ("hm, [[A]]?</think>[[B]]", "[[B]]"),
        ("<think>they wrote </think>, so [[A]]?</think>[[B]]", "[[B]]"),
        ("[THINK]hm[/THINK]so [[B]]", "so [[B]]"),
        ("<think>hm, [[A]]", ""),
        ("so <think> is a tag, [[B]]", "so <think> is a tag, [[B]]"),
        ("[[B]]", "[[B]]"),
    ],
)
def test_thinking_at_the_front_is_cut(text: str, left: str):
    assert without_thinking(text) == left


@pytest.mark.parametrize("action", [Fail(429, "slow down"), Fail(503), Fail(429, headers={"Retry-After": "2"})])
def test_a_temporary_refusal_does_not_fail_the_check(action: Fail):
    with MisbehavingServer(lambda request, n: action if n == 0 else Say()) as server:
        client(server).check(CHAT, VERDICT)
        assert len(server.asked) == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_loopback_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch, host: str):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with MisbehavingServer() as server:
        url = server.base_url.replace("127.0.0.1", host)
        endpoint = Endpoint(base_url=url, key_variable="NO_KEY", retries=0)
        ChatClient(endpoint, "judge").check()
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.8.9.1/v1", True),
        ("http://LOCALHOST:8000", True),
        ("http://judge.localhost/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://0.0.0.0:8000/v1", True),
        ("http://10.0.0.1:8000/v1", False),
        ("https://api.openai.com/v1", False),
        ("http://127.0.0.1.example.org/v1", False),
    ],
)
def test_loopback_is_this_machine_alone(url: str, ours: bool):
    assert _is_loopback(url) is ours


def test_a_slash_at_the_end_of_an_address_makes_no_difference():
    with MisbehavingServer() as server:
        ChatClient(Endpoint(base_url=server.base_url + "/", key_variable="NO_KEY"), "judge").check()


def test_an_address_without_its_path_is_refused_with_what_most_end_in():
    with MisbehavingServer() as server:
        endpoint = Endpoint(base_url=server.base_url.removesuffix("/v1"), key_variable="NO_KEY")
        with pytest.raises(InputError, match=r"404.*most end in /v1"):
            ChatClient(endpoint, "judge").check()


def test_a_host_name_that_does_not_resolve_is_named():
    endpoint = Endpoint(base_url="http://no-such-host.invalid:8000/v1", key_variable="NO_KEY")
    with pytest.raises(InputError, match=r"the host name in endpoint\.base_url cannot be resolved"):
        ChatClient(endpoint, "judge").check()
