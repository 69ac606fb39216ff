"""A small run of a model that thinks natively, from the comparison with its direct baseline to a served M_1.

Results on the whole miniature are in docs/recipes/native-thinking.md; tests/prompts/test_native.py tests hostile
outputs.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import Iterate
from tests.end_to_end.server import Served, serving
from tests.end_to_end.test_iterate import artifact
from tpo.models.chat import ChatEncoder
from tpo.records import Pair, Sample
from tpo.report.comparison import read_comparison
from tpo.storage.store import read_rows

pytestmark = [pytest.mark.story("native thinking", 220), pytest.mark.end_to_end, pytest.mark.timeout(1200)]
OPENING, CLOSING = "<think>", "</think>"
QUESTION = [{"role": "user", "content": "What is 3 plus 4?"}]


@pytest.fixture(scope="module")
def run(iterate: Iterate) -> Path:
    """A run folder at M_1, next to its direct baseline's."""
    done = iterate(1, flow="compare", name="native", profile="laptop-native")
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    return Path(iterate.folder) / "native"  # type: ignore[attr-defined]


def test_judge_and_comparison_see_no_thought_and_training_does(run: Path):
    chat = ChatEncoder(run / "iter_1" / "model")
    closing = chat.tokenizer.convert_tokens_to_ids(CLOSING)
    samples = read_rows(artifact(run / "iter_1/samples"), Sample)
    assert any(sample.thought for sample in samples)
    for sample in samples:
        assert OPENING not in sample.response and CLOSING not in sample.response
        assert sample.thought not in sample.response or not sample.thought
        if sample.parse_error is None:
            at = sample.output_token_ids.index(closing)
            written = chat.decode(sample.output_token_ids[at + 1 :])
            assert written.strip() == sample.response and sample.thought
    pairs = read_rows(artifact(run / "iter_1/pairs"), Pair)
    assert pairs and all(closing in pair.chosen_token_ids for pair in pairs)


def test_the_direct_baseline_is_the_same_model_with_thinking_off(run: Path):
    direct = read_rows(artifact(run.parent / "native-direct" / "iter_1/samples"), Sample)
    assert {sample.thought for sample in direct} == {""}
    comparison = read_comparison(run / "comparison.json")
    assert all(row.thought_chars == 0 for row in comparison.direct.models)
    assert [row.model for row in comparison.thinking.models] == ["M_0 direct", "M_0", "M_1"]


def test_the_pages_show_the_thought_apart_from_the_response(run: Path):
    for page in (run / "report.html", run / "comparison.html"):
        assert CLOSING not in page.read_text().replace("&lt;", "<")


def test_a_client_of_m_1_gets_only_the_response_whole_or_streamed(run: Path, tmp_path: Path):
    with serving(str(run / "iter_1" / "model"), "--allow-thoughts", log=tmp_path / "log") as server:
        for seed in range(6):
            reply = ask(server, seed=seed)
            assert not hasattr(reply.choices[0].message, "reasoning") and CLOSING not in reply.model_dump_json()
            chunks = ask(server, seed=seed, stream=True)
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert streamed == reply.choices[0].message.content
        reply = ask(server, seed=0, extra_body={"include_reasoning": True})
        message = reply.choices[0].message
        assert message.reasoning and message.content and message.reasoning not in message.content
        assert reply.usage.completion_tokens_details.reasoning_tokens > 0
    assert CLOSING not in (tmp_path / "log").read_text()


def ask(served: Served, **fields: Any) -> Any:
    return served.client.chat.completions.create(**{"model": "tpo", "messages": QUESTION, **fields})
