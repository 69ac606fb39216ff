"""Claims about reward models behind servers: what is asked in each protocol, and what becomes of the answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from judges.base import Group, Response
from judges.reward_server import RewardAsker, RewardServer
from tests.reward_http import Json, RewardHttp
from tpo.config.judges import RewardServerJudge, judge_name
from tpo.engines.inference.reply import TokenCount
from tpo.errors import InputError, StageError
from tpo.records import Judgment, Message, Score, write_turns
from tpo.storage.journal import Journal

PROTOCOLS = ("vllm_classify", "vllm_pooling", "vllm_score", "json")


def config(server: RewardHttp, protocol: str = "json", **settings: Any) -> RewardServerJudge:
    endpoint = {"key_variable": "NO_KEY", "retries": 2, "concurrency": 4, **settings.pop("endpoint", {})}
    address = server.address + ("/reward" if protocol == "json" else "")
    values = {"model": "rm", "protocol": protocol, "endpoint": {"base_url": address, **endpoint}, **settings}
    return RewardServerJudge.model_validate(values)


def built(judge: RewardServerJudge, spent: TokenCount | None = None) -> RewardServer:
    return RewardServer(judge, RewardAsker(judge, spent or TokenCount()))


def group_of(*texts: str, prompt_id: str = "p", history: str | None = None) -> Group:
    responses = tuple(Response(i, text) for i, text in enumerate(texts))
    return Group(prompt_id, "Which?", None, responses, history=history)


def judged(judge: RewardServerJudge, *groups: Group) -> tuple[list[Judgment], list[Score]]:
    made = built(judge)
    found = list(made.judge(groups))
    scores = [score for group, rows in zip(groups, found, strict=True) for score in made.score(group, rows)]
    return [row for rows in found for row in rows], scores


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_gives_the_scores_in_order_and_reads_equal_texts_once(protocol: str):
    with RewardHttp() as server:
        judgments, scores = judged(config(server, protocol), group_of("a", "ccc", "bb", "a"))
    assert [score.value for score in scores] == [1.0, 3.0, 2.0, 1.0]
    assert [judgment.index for judgment in judgments] == [0, 1, 2]
    requests = {"json": 1, "vllm_score": 1}.get(protocol, 3)
    assert len(server.asked) == requests


TURNS = [Message(role="user", content="Hi"), Message(role="assistant", content="Hello <|im_end|>")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_conversation_is_sent_without_control_tokens_and_raw_outputs_are_wanted(protocol: str):
    with RewardHttp() as server:
        judged(config(server, protocol), group_of("yes", history=write_turns(TURNS)))
    path, body = server.asked[0]
    assert body["model"] == "rm" and "<|im_end|>" not in json.dumps(body)
    if protocol == "vllm_score":
        assert body["text_1"] == "user: Hi\n\nassistant: Hello < |im_end|>\n\nuser: Which?"
    else:
        chat = body["items"][0]["messages"] if protocol == "json" else body["messages"]
        assert [(turn["role"], turn["content"][:6]) for turn in chat] == [
            ("user", "Hi"), ("assistant", "Hello "), ("user", "Which?"), ("assistant", "yes"),
        ]  # fmt: skip
    assert protocol == "json" or body["use_activation"] is False
    assert path == {"json": "/reward"}.get(protocol, protocol.replace("vllm_", "/"))


def test_vllms_paths_are_not_below_v1():
    with RewardHttp() as server:
        judge = config(server, "vllm_classify", endpoint={"base_url": f"{server.address}/v1"})
        assert judged(judge, group_of("a"))[1][0].value == 1.0


def test_responses_are_sent_in_batches():
    with RewardHttp() as server:
        _, scores = judged(config(server, items_per_request=3), group_of(*"abcdefgh"), group_of("i", prompt_id="q"))
    assert sorted(len(body["items"]) for _, body in server.asked) == [1, 2, 3, 3]
    assert len(scores) == 9 and all(score.value == 1.0 for score in scores)


@pytest.mark.parametrize(
    ("settings", "outputs", "value"),
    [({"label": 1}, [0.25, 0.75], 0.75), ({}, [0.5], 0.5), ({"label": 0}, [0.5], 0.5)],
)
def test_the_output_that_is_the_score_is_chosen(settings: dict[str, Any], outputs: list[float], value: float):
    with RewardHttp(outputs=lambda score: [*outputs]) as server:
        for protocol in ("vllm_classify", "vllm_pooling"):
            assert judged(config(server, protocol, **settings), group_of("a"))[1][0].value == value


@pytest.mark.parametrize(
    ("settings", "fault"),
    [({}, r"has 2 outputs: set judge\.label"), ({"label": 2}, "judge.label is 2, and the model has 2 outputs")],
)
def test_a_model_with_several_outputs_needs_a_label(settings: dict[str, Any], fault: str):
    with RewardHttp(outputs=lambda score: [0.25, 0.75]) as server:
        with pytest.raises(InputError, match=fault):
            list(RewardAsker(config(server, "vllm_classify", **settings), TokenCount()).check())
        with pytest.raises(StageError, match=fault):
            judged(config(server, "vllm_classify", **settings), group_of("a"))


def test_a_refused_response_does_not_take_others_of_its_request_along():
    def fails(body: Json, n: int) -> tuple[int, str] | None:
        long = any("long" in item["messages"][-1]["content"] for item in body["items"])
        return (400, "This model's maximum context length is 512 tokens") if long else None

    with RewardHttp(fails=fails) as server:
        judgments, scores = judged(config(server), group_of("a", "long", "bb"))
    assert [score.value for score in scores] == [1.0, None, 2.0]
    assert scores[1].unscored == "refused" and len(server.asked) == 4
    assert "maximum context length" in json.loads(judgments[1].detail)["reason"]


def test_a_response_without_a_finite_number_is_unscored():
    with RewardHttp(lambda text: {"null": None, "nan": float("nan")}.get(text, 1.0)) as server:
        _, scores = judged(config(server), group_of("a", "null", "nan"))
    assert [(score.value, score.unscored) for score in scores] == [(1.0, None), (None, "no_score"), (None, "no_score")]


def test_a_response_that_is_too_long_is_not_sent():
    with RewardHttp() as server:
        _, scores = judged(config(server, max_response_chars=2), group_of("a", "ccc"))
    assert [score.unscored for score in scores] == [None, "too_long"]
    assert len(server.asked[0][1]["items"]) == 1


def test_transient_errors_are_retried_and_others_stop_the_stage_with_a_remedy():
    with RewardHttp(fails=lambda body, n: (503, "busy") if n == 0 else None) as server:
        assert judged(config(server), group_of("a"))[1][0].value == 1.0
        assert len(server.asked) == 2
    with (
        RewardHttp(fails=lambda body, n: (422, "Field required: input")) as server,
        pytest.raises(StageError, match=r"422.*check that judge\.protocol is what the server speaks"),
    ):
        judged(config(server), group_of("a"))


def test_an_answer_that_is_not_in_the_protocol_stops_the_stage():
    with (
        RewardHttp(outputs=lambda score: []) as server,
        pytest.raises(InputError, match=r"not what vllm_classify returns.*judge\.protocol"),
    ):
        list(RewardAsker(config(server, "vllm_classify", endpoint={"retries": 0}), TokenCount()).check())


def test_a_path_that_is_not_there_is_named_before_work():
    with RewardHttp() as server:
        asker = RewardAsker(config(server, endpoint={"base_url": f"{server.address}/elsewhere"}), TokenCount())
        with pytest.raises(InputError, match=r"404.*correct endpoint\.base_url and judge\.protocol"):
            list(asker.check())


def test_the_key_comes_from_the_environment_and_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    with RewardHttp(key="sk-right") as server:
        judge = config(server, endpoint={"key_variable": "REWARD_KEY"})
        monkeypatch.setenv("REWARD_KEY", "sk-wrong")
        with pytest.raises(InputError, match="REWARD_KEY") as error:
            list(RewardAsker(judge, TokenCount()).check())
        assert "sk-wrong" not in str(error.value)
        monkeypatch.setenv("REWARD_KEY", "sk-right")
        assert list(RewardAsker(judge, TokenCount()).check()) == []


def test_tokens_are_counted_and_limited_and_nothing_is_asked_twice(tmp_path: Path):
    groups = [group_of("a", prompt_id=f"p{i}") for i in range(20)]
    path, spent = tmp_path / "journal.jsonl", list[TokenCount]()
    with RewardHttp() as server:
        limited = config(server, "vllm_classify", endpoint={"max_total_tokens": 40})
        with Journal(path) as journal, pytest.raises(StageError, match="max_total_tokens = 40 is reached"):
            list(built(limited).judge(groups, journal, spent.append))
        assert spent == [TokenCount(7, 0)] * len(server.asked) and 6 <= len(server.asked) <= 10
        with Journal(path) as journal:
            list(built(config(server, "vllm_classify")).judge(groups, journal))
        assert len(server.asked) == 20


def test_a_judge_is_named_by_its_server():
    with RewardHttp() as server:
        assert judge_name(config(server)) == f"reward_server (rm at {server.address}/reward)"
