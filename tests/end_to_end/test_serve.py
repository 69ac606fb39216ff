"""Claims about `make serve`, with OpenAI's own client against the real server on the shipped seed model."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from prompts.thought import VARIANTS
from tests.end_to_end.server import KEY, Served, serving
from tests.thoughts import marked

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
GENERIC = VARIANTS["generic"]
QUESTION = [{"role": "user", "content": "What is 3 plus 4?"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The seed model, thoughts allowed."""
    log = tmp_path_factory.mktemp("serve") / "log"
    with serving("miniature", "--allow-thoughts", log=log) as server:
        yield server
        # Thoughts aren't logged either.
        assert not marked(GENERIC, log.read_text())


def ask(served: Served, **fields: Any) -> Any:
    return served.client.chat.completions.create(**{"model": "tpo", "messages": QUESTION, **fields})


def test_an_ordinary_client_gets_only_the_response(served: Served):
    reply = ask(served)
    (choice,) = reply.choices
    assert choice.message.content and choice.finish_reason == "stop"
    assert not marked(GENERIC, reply.model_dump_json())
    assert not hasattr(choice.message, "reasoning")
    assert 0 < reply.usage.completion_tokens_details.reasoning_tokens < reply.usage.completion_tokens
    assert reply.tpo["format_error"] is None and reply.tpo["tries"] >= 1


def test_a_streamed_reply_equals_the_whole_one(served: Served):
    for seed in range(5):
        whole = ask(served, seed=seed)
        chunks = list(ask(served, seed=seed, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-2].tpo["tries"] == whole.tpo["tries"]


def test_a_thought_is_shown_on_request_if_the_operator_allows_it(served: Served):
    reply = ask(served, seed=3, extra_body={"include_reasoning": True})
    message = reply.choices[0].message
    assert message.reasoning and message.reasoning not in message.content
    chunks = list(ask(served, seed=3, stream=True, extra_body={"include_reasoning": True}))
    thoughts = [thought for chunk in chunks if (thought := getattr(chunk.choices[0].delta, "reasoning", None))]
    assert thoughts == [message.reasoning]
    assert ask(served, seed=3).choices[0].message.content == message.content


def test_malformed_outputs_are_resampled_then_withheld_and_flagged(served: Served):
    wild = [ask(served, seed=seed, temperature=1.3) for seed in range(12)]
    assert any(reply.tpo["tries"] > 1 for reply in wild)
    assert not any(marked(GENERIC, reply.model_dump_json()) for reply in wild)
    cut = ask(served, max_tokens=3)
    assert cut.tpo == {"tries": 8, "discarded_tokens": 7 * 3, "format_error": "cut_by_length"}
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("", "length")
    assert cut.usage.completion_tokens == cut.usage.completion_tokens_details.reasoning_tokens == 3
    *_, last = ask(served, max_tokens=3, stream=True)
    assert last.tpo == cut.tpo and last.choices[0].finish_reason == "length"


def test_a_seed_fixes_the_reply_even_if_it_is_resampled(served: Served):
    first, second = ([ask(served, seed=seed, temperature=1.3) for seed in range(6)] for _ in range(2))
    assert [reply.choices[0] for reply in first] == [reply.choices[0] for reply in second]
    assert [reply.tpo["tries"] for reply in first] == [reply.tpo["tries"] for reply in second]


def test_earlier_turns_and_a_system_turn_are_accepted(served: Served):
    turns = [{"role": "system", "content": "Be brief."}, *QUESTION, {"role": "assistant", "content": "It is 7."}]
    parts = [{"type": "text", "text": "Say hello."}]
    reply = ask(served, messages=[*turns, {"role": "user", "content": parts}], seed=1)
    assert reply.usage.prompt_tokens > ask(served, seed=1).usage.prompt_tokens


def test_a_stop_text_ends_the_response_and_not_the_thought(served: Served):
    whole = ask(served, seed=3, extra_body={"include_reasoning": True}).choices[0].message
    assert "user" in whole.reasoning and "answer" in whole.content
    cut = ask(served, seed=3, stop=["user", "answer"]).choices[0]
    assert cut.message.content == whole.content.partition("answer")[0].rstrip() and cut.finish_reason == "stop"


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": True},
        {"n": 2},
        {"logit_bias": {"5": 100}},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"extra_body": {"prompt_logprobs": 1}},
        {"extra_body": {"return_token_ids": True}},
        {"extra_body": {"echo": True}},
        {"extra_body": {"chat_template": "{{ messages }}"}},
        {"temperature": -1},
        {"messages": []},
        {"messages": [*QUESTION, {"role": "assistant", "content": "Here is my response:"}]},
        {"messages": [{"role": "user", "content": "hello " * 600}]},
    ],
)
def test_unsupported_requests_are_refused_with_status_400(served: Served, fields: dict[str, Any]):
    with pytest.raises(openai.BadRequestError):
        ask(served, **fields)


def test_every_other_route_to_the_model_is_closed(served: Served):
    client = served.client
    for call in (
        lambda: client.completions.create(model="tpo", prompt="Hello"),
        lambda: client.responses.create(model="tpo", input="Hello"),
        lambda: client.embeddings.create(model="tpo", input="Hello"),
        lambda: client.post("/tokenize", body={"prompt": "Hello"}, cast_to=object),
        lambda: ask(served, model="other"),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    assert [model.id for model in client.models.list()] == ["tpo"]


def test_without_the_key_only_the_health_check_is_answered(served: Served):
    stranger = openai.OpenAI(base_url=f"{served.url}/v1", api_key="sk-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model="tpo", messages=[{"role": "user", "content": "Hello"}])
    assert {path: served.status(path) for path in ("/health", "/metrics", "/v1/models", "/docs")} == {
        "/health": 200,
        "/metrics": 401,
        "/v1/models": 401,
        "/docs": 401,
    }
    assert KEY not in Path(f"/proc/{served.process.pid}/cmdline").read_text()


def test_two_hundred_concurrent_clients_are_answered_while_others_disconnect(served: Served):
    async def crowd() -> list[Any]:
        client: Any = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0, timeout=300)

        async def whole(i: int) -> Any:
            messages = [{"role": "user", "content": f"What is {i} plus 4?"}]
            return await client.chat.completions.create(model="tpo", messages=messages)

        async def streamed(i: int) -> str:
            messages = [{"role": "user", "content": f"What is {i} plus 5?"}]
            stream = await client.chat.completions.create(model="tpo", messages=messages, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def leaving(i: int) -> None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(streamed(i) if i % 2 else whole(i), timeout=0.05 * i)

        leavers = [asyncio.create_task(leaving(i)) for i in range(40)]
        answered = await asyncio.gather(*map(whole, range(100)), *map(streamed, range(100)))
        await asyncio.gather(*leavers)
        return answered

    answered = asyncio.run(crowd())
    assert len(answered) == 200
    texts = [found if isinstance(found, str) else found.choices[0].message.content for found in answered]
    assert not any(marked(GENERIC, str(found)) for found in answered)
    # With 5 % broken outputs and eight tries, almost none is withheld.
    assert texts.count("") <= 2


def test_the_engine_stops_if_the_client_disconnects_during_a_thought(served: Served):
    fields = {"temperature": 0.2, "frequency_penalty": -2, "seed": 1}  # repeats itself forever
    alone = ask(served, **fields)
    full = alone.usage.completion_tokens + alone.tpo["discarded_tokens"]
    assert full > 500, "too few to tell a reply that was stopped from a whole one"
    body = json.dumps({"messages": QUESTION, **fields}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    before = served.count("generation_tokens_total")
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall("\r\n".join(lines).encode() + body)
            time.sleep(0.02)
    last = -1.0
    while last != (now := served.count("generation_tokens_total")):
        last = now
        time.sleep(1)
    assert now - before < 20 * full / 2
    assert served.count("num_requests_running") == 0 and ask(served, seed=0).choices[0].message.content
