"""Claims about what a client may ask for: nothing that could show a thought is accepted."""

import json
from typing import Any

import pytest

from deploy.serving.request import IGNORED, ChatRequest, Refused, read_request
from prompts.thought import VARIANTS

GENERIC, SYSTEM, DIRECT = VARIANTS["generic"], VARIANTS["system"], VARIANTS["direct"]
QUESTION = {"role": "user", "content": "Why?"}


def request(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    return read_request(json.dumps({"messages": list(messages) or [QUESTION], **fields}).encode())


def refusal(body: bytes) -> Refused:
    with pytest.raises(Refused) as found:
        read_request(body)
    return found.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", True),
        ("top_logprobs", 5),
        ("n", 2),
        ("echo", True),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "auto"),
        ("logit_bias", {"7": 100}),
        ("response_format", {"type": "json_object"}),
        ("structured_outputs", {"choice": ["a"]}),
        ("prompt_logprobs", 1),
        ("return_token_ids", True),
        ("return_prompt_text", True),
        ("continue_final_message", True),
        ("chat_template", "{{ messages }}"),
        ("chat_template_kwargs", {"x": 1}),
        ("stop_token_ids", [1]),
        ("bad_words", ["<R>"]),
        ("min_tokens", 5),
        ("repetition_penalty", 2.0),
        ("kv_transfer_params", {"x": 1}),
        ("a_field_of_tomorrow", "x"),
    ],
)
def test_a_field_that_is_not_listed_is_refused_by_name(field: str, value: Any):
    found = refusal(json.dumps({"messages": [QUESTION], field: value}).encode())
    assert (found.status, found.error["param"]) == (400, field) and repr(field) in str(found)


def test_values_that_ask_for_nothing_are_accepted():
    nothing: dict[str, Any] = {"n": 1, "logprobs": False, "tools": [], "tool_choice": "none", "echo": False}
    nothing |= {"response_format": {"type": "text"}, "logit_bias": {}, "seed": None, "functions": None}
    assert request(**nothing, **dict.fromkeys(IGNORED, "x")) == request()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": 5}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": "Why?"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "content"),
    ],
)
def test_an_invalid_value_is_refused_with_its_place(fields: dict[str, Any], complaint: str):
    found = refusal(json.dumps({"messages": [QUESTION], **fields}).encode())
    assert found.status == 400 and complaint in str(found)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b'{"messages": NaN}'])
def test_a_body_that_is_not_a_request_is_refused(body: bytes):
    assert refusal(body).status == 400


def test_the_last_user_turn_becomes_the_thought_prompt_and_earlier_turns_stay():
    turns: list[dict[str, Any]] = [QUESTION, {"role": "assistant", "content": "So.", "reasoning": "Hm."}]
    chat = request(*turns, {"role": "user", "content": [{"type": "text", "text": "And?"}]}).chat(GENERIC)
    assert chat == [QUESTION, {"role": "assistant", "content": "So."}, *GENERIC.render("And?")]


def test_a_single_turn_is_prompted_as_in_training():
    for prompt in VARIANTS.values():
        assert request().chat(prompt) == prompt.render("Why?")


def test_a_clients_system_turn_follows_the_prompts_own_in_one_turn():
    brief = {"role": "developer", "content": "Be brief."}
    ours, user = SYSTEM.render("Why?")
    assert request(brief, QUESTION).chat(SYSTEM) == [
        {"role": "system", "content": f"{ours['content']}\n\nBe brief."},
        user,
    ]
    assert request(brief, QUESTION).chat(DIRECT) == [{"role": "system", "content": "Be brief."}, QUESTION]


def test_a_client_cannot_prefill_the_reply():
    with pytest.raises(Refused, match="the last message has role 'assistant', expected 'user'"):
        request(QUESTION, {"role": "assistant", "content": "Here is my response:"}).chat(GENERIC)
