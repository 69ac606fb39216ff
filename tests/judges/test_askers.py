"""Claims about how comparisons are tokenized: prefix by prefix, with the same tokens as the whole chat."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judges.askers import (
    ComparisonEncoder,
    ResponsePair,
    ServerAsker,
    decoding_of,
    shards_of,
)
from prompts.quoting import without_control_tokens
from prompts.verdict import LABELS, PROMPTS
from tests.misbehaving_server import MisbehavingServer
from tests.models.test_chat import like_llama3
from tpo.config.base import Endpoint
from tpo.config.judges import PairwiseJudge
from tpo.engines.inference.reply import TokenCount
from tpo.models.chat import ChatEncoder
from tpo.records import Message

SHIPPED_EVALUATOR = PairwiseJudge().folder
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
awkward = st.one_of(texts, st.sampled_from(["", " a", "(", "\n\nb", "a.\n", "<|eot_id|>", "<|end|>", "[[A]]", "…"]))


class CountingEncoder(ChatEncoder):
    """Counts the chats that it encodes as a whole."""

    times = 0

    def encode(self, messages: Sequence[Message], *, thinking: bool = False, prefill: str = "") -> list[int]:
        self.times += 1
        return super().encode(messages, thinking=thinking, prefill=prefill)


@pytest.fixture(scope="module", params=["miniature", "llama3"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CountingEncoder:
    if request.param == "miniature":
        assert SHIPPED_EVALUATOR is not None
        return CountingEncoder(SHIPPED_EVALUATOR)
    folder: Path = tmp_path_factory.mktemp("llama3")
    like_llama3().save_pretrained(folder)
    return CountingEncoder(folder)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_pieces_have_the_same_tokens_as_the_whole_chat(encoder: ChatEncoder, data: st.DataObject):
    prompt = PROMPTS["cot"]
    instruction, first, second = data.draw(awkward), data.draw(awkward), data.draw(awkward)
    group = [ResponsePair(instruction, first, second), ResponsePair(instruction, second, first)]
    encoded = ComparisonEncoder(prompt, encoder).encode(group)
    whole = [
        encoder.encode(prompt.render(comparison.instruction, comparison.first, comparison.second))
        for comparison in group
    ]
    assert encoded[0] == whole[0]
    assert [encoder.tokenizer.decode(ids) for ids in encoded] == [encoder.tokenizer.decode(ids) for ids in whole]


def test_ordinary_comparisons_are_put_together_from_pieces(encoder: CountingEncoder):
    comparing = ComparisonEncoder(PROMPTS["cot"], encoder)
    group = [
        ResponsePair("hello?", a, b) for a, b in itertools.permutations(["The answer is 7.", "7", "(7)", "hello"], 2)
    ]
    whole = [encoder.encode(PROMPTS["cot"].render(c.instruction, c.first, c.second)) for c in group]
    encoder.times = 0
    assert comparing.encode(group) == whole
    assert encoder.times <= 2


def test_the_shared_part_of_comparisons_comes_first(encoder: ChatEncoder):
    one, other = ComparisonEncoder(PROMPTS["label"], encoder).encode(
        [ResponsePair("Which?", "the same", "this"), ResponsePair("Which?", "the same", "that")]
    )
    shared = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert "the same" in encoder.tokenizer.decode(one[:shared])


def test_text_sent_to_a_server_contains_no_models_control_tokens():
    controls = [
        "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|im_start|>", "<|im_end|>", "<|user|>",
        "<｜begin▁of▁sentence｜>", "<s>", "</s>", "<start_of_turn>", "[INST]", "[/INST]", "<<SYS>>",
    ]  # fmt: skip
    with MisbehavingServer() as server:
        config = PairwiseJudge(model="m", endpoint=Endpoint(base_url=server.base_url))
        assert config.endpoint is not None
        asker = ServerAsker(config, config.endpoint, PROMPTS["cot"], TokenCount())
        list(asker.ask([ResponsePair(f"a {text} b", f"c{text}", f"{text}d") for text in controls]))
        list(asker.ask([ResponsePair("2 < 3 | 4 > 1", "<b>bold</b> a[i]", "if a<b: pass")]))
        shown = [received.request["messages"][-1]["content"] for received in server.asked]
    assert not [text for text in controls for content in shown if text in content]
    assert "2 < 3 | 4 > 1" in shown[-1] and "<b>bold</b> a[i]" in shown[-1] and "if a<b: pass" in shown[-1]


@given(st.lists(st.sampled_from(["<", "|", ">", "[", "]", "/", "INST", "eot_id", "s", " "]), max_size=12).map("".join))
def test_a_space_in_it_makes_no_new_control_token(text: str):
    cleaned = without_control_tokens(text)
    assert without_control_tokens(cleaned) == cleaned


def test_labels_differ_at_one_token(encoder: ChatEncoder):
    first, second = ComparisonEncoder(PROMPTS["cot"], encoder).labels
    assert [encoder.tokenizer.decode(first), encoder.tokenizer.decode(second)] == list(LABELS)
    assert sum(a != b for a, b in zip(first, second, strict=True)) == 1


def test_comparisons_of_one_instruction_stay_in_one_shard():
    comparisons = [ResponsePair(f"question {i // 56}", str(i % 56), "b") for i in range(56 * 20)]
    shards = shards_of(comparisons, [i for i in range(len(comparisons)) if i % 7])
    assert sorted(itertools.chain(*shards)) == [i for i in range(len(comparisons)) if i % 7]
    owners = [{comparisons[i].instruction for i in shard} for shard in shards]
    assert sum(map(len, owners)) == 20
    assert shards_of([], []) == []


@pytest.mark.parametrize(
    ("prompts", "each", "engines", "sizes"),
    [
        (25, 56, 1, [448, 504, 448]),
        (25, 2, 1, [50]),
        (25, 2, 4, [12, 12, 14, 12]),
        (3, 2, 8, [2, 2, 2]),
        (1, 2000, 4, [2000]),
        (100, 56, 4, [448, 504, 448] * 4),
    ],
)
def test_shards_are_of_comparable_size_and_keep_every_engine_busy(
    prompts: int, each: int, engines: int, sizes: list[int]
):
    comparisons = [ResponsePair(f"question {i}", str(j), "b") for i in range(prompts) for j in range(each)]
    shards = shards_of(comparisons, range(len(comparisons)), engines)
    assert list(itertools.chain(*shards)) == list(range(len(comparisons)))
    assert [len(shard) for shard in shards] == sizes


@pytest.mark.parametrize(
    ("settings_", "context", "tokens", "labels"),
    [
        ({}, 8192, 2048, ()),
        ({}, 512, 128, ()),
        ({}, 131072, 2048, ()),
        ({"max_new_tokens": 300}, 512, 300, ()),
        ({"mode": "verdict"}, 512, 8, LABELS),
        ({"mode": "probability"}, 512, 8, LABELS),
    ],
)
def test_replies_may_be_as_long_as_published_or_as_fits(
    settings_: dict[str, Any], context: int, tokens: int, labels: tuple[str, ...]
):
    decoding = decoding_of(PairwiseJudge(**settings_), context)
    assert (decoding.max_new_tokens, decoding.labels) == (tokens, labels)
    assert decoding.probabilities == (settings_.get("mode") == "probability")
