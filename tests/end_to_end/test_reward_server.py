"""A reward model behind vLLM's own server: its scores in all three protocols are those of transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from judges.base import Group, Response
from judges.reward_server import RewardAsker, RewardServer
from tests.models.test_chat import like_llama3
from tests.vllm_server import VllmServer
from tpo.config.judges import RewardProtocol, RewardServerJudge
from tpo.engines.inference.reply import TokenCount
from tpo.models.chat import ChatEncoder
from tpo.records import Message, read_turns, write_turns

pytestmark = [
    pytest.mark.slow,
    pytest.mark.story("a reward model behind a server", 90),
    pytest.mark.end_to_end,
    pytest.mark.timeout(900),
]
KEY, CONTEXT = "sk-reward", 256
HISTORY = write_turns([Message(role="user", content="Hi."), Message(role="assistant", content="Hello, what is it?")])
GROUPS = [
    Group("a", "Say one.", None, (Response(0, "one"), Response(1, "One, two and three. " * 3), Response(2, "?"))),
    Group("b", "And now?", None, (Response(0, "Now, that is it."), Response(1, "No <|eot_id|> end.")), history=HISTORY),
    Group("c", "Say much.", None, (Response(0, "much " * 2 * CONTEXT), Response(1, "little"))),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama for sequence classification in float32, with one output."""
    torch.manual_seed(3)
    folder, tokenizer = tmp_path_factory.mktemp("reward"), like_llama3()
    config = LlamaConfig(
        hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=2048, initializer_range=0.3, vocab_size=len(tokenizer), num_labels=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of vLLM's server for it."""
    log = tmp_path_factory.mktemp("server") / "log"
    longest = ("--runner", "pooling", "--max-model-len", str(CONTEXT), "--max-num-batched-tokens", "8192")
    with VllmServer(folder, "rm", log, *longest, key=KEY) as server:
        yield server.address


@pytest.mark.parametrize("protocol", ["vllm_classify", "vllm_pooling", "vllm_score"])
def test_scores_are_those_of_transformers_and_what_is_too_long_is_refused(
    address: str, folder: Path, protocol: RewardProtocol, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REWARD_KEY", KEY)
    endpoint = {"base_url": address, "key_variable": "REWARD_KEY", "concurrency": 4, "retries": 1}
    config = RewardServerJudge.model_validate({"model": "rm", "protocol": protocol, "endpoint": endpoint})
    asker = RewardAsker(config, TokenCount())
    assert list(asker.check()) == []
    spent = list[TokenCount]()
    judge = RewardServer(config, asker)
    found = list(judge.judge(GROUPS, spend=spent.append))
    scores = [score for group, rows in zip(GROUPS, found, strict=True) for score in judge.score(group, rows)]
    assert [score.unscored for score in scores] == [None] * 5 + ["refused", None]
    expected = _by_transformers(folder, protocol)
    for score, value in zip(scores, expected, strict=True):
        assert score.value is None or score.value == pytest.approx(value, abs=1e-3)
    assert max(abs(value) for value in expected) > 1, "an activation would keep them between 0 and 1"
    assert sum(tokens.input_tokens for tokens in spent) > 20


def _by_transformers(folder: Path, protocol: RewardProtocol) -> list[float]:
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    encoder = ChatEncoder(folder, generation_prompt=False)
    found = []
    for group in GROUPS:
        for response in group.responses:
            text = response.text.replace("<|eot_id|>", "< |eot_id|>")
            turns = [*read_turns(group.history), Message(role="user", content=group.instruction)]
            if protocol == "vllm_score":
                question = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
                ids = encoder.tokenizer(group.instruction if len(turns) == 1 else question, text)["input_ids"]
            else:
                ids = encoder.encode([*turns, Message(role="assistant", content=text)])
            with torch.no_grad():
                found.append(float(model(torch.tensor([ids])).logits[0, 0]))
    return found
