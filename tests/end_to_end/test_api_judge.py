"""Claims about the chat client against a real vLLM server on the shipped seed model."""

import math
import time
from collections.abc import Iterator

import pytest

from tests.vllm_server import VllmServer
from tpo.config.base import SHIPPED_SEED_MODEL, Endpoint
from tpo.engines.inference.chat_client import ChatClient, RefusedChat
from tpo.engines.inference.reply import Decoding, Reply
from tpo.errors import InputError, StageError
from tpo.records import Message

pytestmark = [pytest.mark.story("a judge behind a server", 60), pytest.mark.end_to_end, pytest.mark.timeout(900)]

KEY = "sk-end-to-end"
LABELS = ("[[A]]", "[[B]]")
CONTEXT = 512
CHATS = [
    [Message(role="user", content=text)]
    for text in ("What is 3 plus 4?", "Say hello.", "Which is better, [[A]] or [[B]]?", "Name a colour of the sky.")
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    arguments = ["--max-model-len", str(CONTEXT), "--max-num-batched-tokens", "8192"]
    arguments += ["--no-enable-chunked-prefill", "--generation-config", "vllm"]
    log = tmp_path_factory.mktemp("server") / "log"
    with VllmServer(SHIPPED_SEED_MODEL, "judge", log, *arguments, key=KEY) as started:
        yield started


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)


def client(
    server: VllmServer, model: str = "judge", *, structured_outputs: bool = True, retries: int = 8
) -> ChatClient:
    endpoint = Endpoint(
        base_url=f"{server.address}/v1",
        key_variable="JUDGE_KEY",
        structured_outputs=structured_outputs,
        retries=retries,
        concurrency=4,
    )
    return ChatClient(endpoint, model)


def replies(client: ChatClient, decoding: Decoding) -> list[Reply]:
    found = dict(client.ask(CHATS, decoding))
    answered = [found[i] for i in range(len(CHATS))]
    assert all(isinstance(reply, Reply) for reply in answered), answered
    return [reply for reply in answered if isinstance(reply, Reply)]


def test_free_replies_are_the_models_own(server: VllmServer):
    found = replies(client(server), Decoding(40))
    assert [reply.text for reply in found] == [_by_transformers(chat, 40) for chat in CHATS]
    assert all(reply.finished and reply.input_tokens > 5 and reply.output_tokens > 1 for reply in found)


def test_a_reply_cut_by_the_limit_is_not_finished(server: VllmServer):
    assert not any(reply.finished for reply in replies(client(server), Decoding(2)))


def test_structured_outputs_limit_a_reply_to_a_label(server: VllmServer):
    found = replies(client(server), Decoding(8, LABELS))
    assert {reply.text for reply in found} <= set(LABELS)
    assert all(reply.finished and reply.label_logprobs is None for reply in found)


def test_probabilities_are_those_of_transformers(server: VllmServer):
    found = replies(client(server), Decoding(8, LABELS, probabilities=True))
    for chat, reply in zip(CHATS, found, strict=True):
        assert reply.label_logprobs is not None and all(map(math.isfinite, reply.label_logprobs))
        assert reply.label_logprobs == pytest.approx(_label_logprobs(chat), abs=1e-2)
        assert reply.text == LABELS[reply.label_logprobs.index(max(reply.label_logprobs))]


def test_a_chat_that_is_too_long_is_refused_and_the_next_one_answered(server: VllmServer):
    chats = [[Message(role="user", content="hello " * CONTEXT)], CHATS[0]]
    found = dict(client(server).ask(chats, Decoding(8)))
    assert isinstance(found[0], RefusedChat) and "maximum context length is 512" in found[0].reason
    assert isinstance(found[1], Reply)


def test_the_check_passes(server: VllmServer):
    client(server).check()
    client(server, structured_outputs=False).check()


def test_an_unknown_model_and_a_wrong_key_fail_the_check(server: VllmServer, monkeypatch: pytest.MonkeyPatch):
    started = time.monotonic()
    with pytest.raises(InputError, match=r"model 'other' at .* 404: .*name a model that is served there"):
        client(server, "other").check()
    monkeypatch.setenv("JUDGE_KEY", "sk-wrong")
    with pytest.raises(InputError, match=r"401: .*JUDGE_KEY"):
        client(server).check()
    assert time.monotonic() - started < 10


def test_a_server_that_dies_stops_the_stage_after_its_retries(server: VllmServer):
    answers = client(server, retries=2).ask(CHATS * 50, Decoding(40))
    next(answers)
    server.kill()
    with pytest.raises(StageError, match=r"did not answer in 3 tries; the last error: .*then rerun"):
        list(answers)
    with pytest.raises(InputError, match="start the server"):
        client(server).check()


def _by_transformers(chat: list[Message], max_new_tokens: int) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_SEED_MODEL)
    model = AutoModelForCausalLM.from_pretrained(SHIPPED_SEED_MODEL, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    outputs = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return str(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def _label_logprobs(chat: list[Message]) -> list[float]:
    """Log-probs of `A` and `B` after `[[`, normalized over the two, as in a reply limited to the labels."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_SEED_MODEL)
    model = AutoModelForCausalLM.from_pretrained(SHIPPED_SEED_MODEL, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    before, first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("[[", "A", "B"))
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *before]])).logits[0, -1]
    return [float(value) for value in logits[[*first, *second]].log_softmax(-1)]
