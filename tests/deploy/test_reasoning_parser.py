"""Claims about the reasoning parser, called as vLLM's own chat endpoint calls it."""

import random
from typing import Any

import pytest

from prompts.thought import VARIANTS, ThoughtPrompt
from tests.thoughts import GREEK, any_output, chunks_of, marked
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.models.chat import ChatEncoder

ROOT = SHIPPED_SEED_MODEL.parents[2]
PROMPTS = [pytest.param(prompt, id=name) for name, prompt in VARIANTS.items()]


@pytest.fixture(scope="module")
def parsers() -> dict[str, Any]:
    """vLLM's parser for each variant, loaded as `--reasoning-parser-plugin` loads it."""
    from vllm.parser import ParserManager
    from vllm.reasoning import ReasoningParserManager

    ReasoningParserManager.import_reasoning_parser(str(ROOT / "deploy" / "reasoning_parser.py"))
    return {name: ParserManager.get_parser(reasoning_parser_name=f"tpo_{name}") for name in VARIANTS}


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder(SHIPPED_SEED_MODEL)


def a_request(**fields: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest(messages=[{"role": "user", "content": "Why?"}], **fields)


def streamed(parser: Any, chunks: list[str], request: Any, prompt_ids: list[int]) -> tuple[str, str]:
    """Thought and response as a client joins them from vLLM's stream."""
    thought, response = "", ""
    for i, chunk in enumerate(chunks):
        over = i == len(chunks) - 1
        delta = parser.parse_delta(chunk, [i], request, prompt_ids, finished=over)
        if delta is not None:
            thought += delta.reasoning or ""
            response += delta.content or ""
    return thought, response


@pytest.mark.parametrize("prompt", PROMPTS)
def test_no_character_of_a_thought_is_content_in_a_thousand_chunkings_of_a_hundred_outputs(
    parsers: dict[str, Any], encoder: ChatEncoder, prompt: ThoughtPrompt
):
    rng, request = random.Random(prompt.variant), a_request()
    prompt_ids = encoder.encode(prompt.render("Why?"))  # quotes the markers
    tokenizer = encoder.tokenizer
    for case in [any_output(prompt, rng) for _ in range(100)]:
        thought, response, _ = parsers[prompt.variant](tokenizer).parse(case.output, request)
        assert (response or "") == case.response and not marked(prompt, case.response)
        assert not set(case.response) & set(GREEK)
        for _ in range(10):
            parser = parsers[prompt.variant](tokenizer)
            found = streamed(parser, chunks_of(case.output, rng), request, prompt_ids)
            assert found[1] == case.response
            assert (thought or "").startswith(found[0])


@pytest.mark.parametrize(("allowed", "fields"), [("1", {}), ("0", {"include_reasoning": True})])
def test_a_thought_is_hidden_unless_the_operator_allows_it_and_the_request_asks(
    parsers: dict[str, Any], encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch, allowed: str, fields: dict[str, Any]
):
    monkeypatch.setenv("TPO_ALLOW_THOUGHTS", allowed)
    parser = parsers["specific"](encoder.tokenizer)
    request = parser.adjust_request(a_request(**fields))
    assert not request.include_reasoning
    assert streamed(parser, ["think", " <", "R> so"], request, [1]) == ("", "so")


def test_a_thought_is_reasoning_if_operator_and_request_want_it(
    parsers: dict[str, Any], encoder: ChatEncoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TPO_ALLOW_THOUGHTS", "1")
    parser = parsers["specific"](encoder.tokenizer)
    request = parser.adjust_request(a_request(include_reasoning=True))
    assert streamed(parser, ["think", " <", "R> so"], request, [1]) == ("think", "so")


def test_requests_for_constrained_output_are_refused(parsers: dict[str, Any], encoder: ChatEncoder):
    parser = parsers["generic"](encoder.tokenizer)
    parser.adjust_request(a_request(response_format={"type": "text"}))
    with pytest.raises(ValueError, match="not supported"):
        parser.adjust_request(a_request(response_format={"type": "json_object"}))
