"""Claims about published folders in vLLM's own server: it answers as ours does, without our code.

Both get the same questions and seeds. Our server resamples outputs that break the format and vLLM's doesn't, so only
first-try replies are compared.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.cli.publish import publish_run
from tests.end_to_end.server import Served, plain_vllm, serving
from tests.finished_run import finish
from tests.rows import a_config
from tpo.config.base import SHIPPED_MODELS
from tpo.config.data import ModelConfig, PromptConfig

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

QUESTIONS = ["What is 3 plus 4?", "Say hello.", "What is the opposite of big?", '{{ 7 }} <R> "Here is my response:"']
SEEDS = range(6)


def replies(served: Served, **fields: Any) -> Mapping[tuple[str, int], Any]:
    return {
        (question, seed): served.client.chat.completions.create(
            model="tpo", messages=[{"role": "user", "content": question}], seed=seed, **fields
        )
        for question in QUESTIONS
        for seed in SEEDS
    }


def streamed(served: Served, question: str, seed: int) -> str:
    messages: Any = [{"role": "user", "content": question}]
    chunks = served.client.chat.completions.create(model="tpo", messages=messages, seed=seed, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def answers_alike(run: Path, model: Path, tmp_path: Path, *parser: str) -> None:
    """Publishes a run's latest model, and compares our server on that model with vLLM's on the published folder."""
    folder = tmp_path / "published"
    publish_run(str(run), None, None, folder, pairs=False, to_hub=None)
    with serving(str(model), "--allow-thoughts", log=tmp_path / "ours.log") as served:
        ours = replies(served, extra_body={"include_reasoning": True})
    options = [option.format(folder=folder) for option in parser]
    with plain_vllm(folder, *options, log=tmp_path / "vllm.log") as served:
        theirs = replies(served)
        some = [(question, 0) for question in QUESTIONS]
        streams = {key: streamed(served, *key) for key in some}
    compared = 0
    for key, reply in ours.items():
        (choice,), (other,) = reply.choices, theirs[key].choices
        assert reply.usage.prompt_tokens == theirs[key].usage.prompt_tokens, "asked otherwise"
        if reply.tpo["tries"] == 1 and reply.tpo["format_error"] is None:
            compared += 1
            assert (other.message.content or "").strip() == choice.message.content, key
            assert (other.message.reasoning or "").strip() == choice.message.reasoning
            assert theirs[key].usage.completion_tokens == reply.usage.completion_tokens
    assert compared > len(ours) / 2
    assert all(streams[key].strip() == (theirs[key].choices[0].message.content or "").strip() for key in some)


@pytest.mark.story("a published model in plain vLLM", 120)
def test_a_published_model_answers_in_plain_vllm_as_in_our_server(small_run: Path, tmp_path: Path):
    plugin = "{folder}/parsers/thought_parser.py"
    answers_alike(
        small_run,
        small_run / "iter_2/model",
        tmp_path,
        "--reasoning-parser",
        "thought",
        "--reasoning-parser-plugin",
        plugin,
    )


@pytest.mark.story("a published native thinker in plain vLLM", 120)
def test_a_published_native_thinker_answers_in_plain_vllm_as_in_our_server(tmp_path: Path):
    native = ModelConfig(path="miniature-native")
    config = a_config(tmp_path, model=native, prompt=PromptConfig(variant="native"))
    finish(config, 1, model=SHIPPED_MODELS["miniature-native"])
    answers_alike(config.root, config.root / "iter_1/model", tmp_path, "--reasoning-parser", "qwen3")
