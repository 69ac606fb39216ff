"""Claims about judges that give no verdict: the check or the first answers reveal them, with the cause and the
setting."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from judges.askers import ServerAsker
from judges.base import Group, Response
from judges.pairwise import Pairwise
from judges.unreadable import FIRST_ANSWERS, TOO_LONG, FirstAnswers, cause_of
from prompts.verdict import load_verdict_prompt
from tests.misbehaving_server import Action, Fail, MisbehavingServer, Say
from tpo.config.base import Endpoint
from tpo.config.judges import PairwiseJudge
from tpo.engines.inference.chat_client import RefusedChat
from tpo.engines.inference.reply import Reply, TokenCount
from tpo.errors import InputError, StageError
from tpo.storage.journal import Journal, read_journal

REASONED = Say("", "length", (10, 2048), message={"content": None, "reasoning_content": "Let me see. [[A]] or [[B]]?"})
CUT = Say("So far so", "length", (10, 2048))
BOTH = Say("[[A]] and [[B]]")
FILTERED = Say("", "content_filter")
LOGPROBS = [{"token": "[[A]]", "logprob": -0.25, "top_logprobs": [{"token": "[[B]]", "logprob": -1.5}]}]
GROUPS = [Group(f"p{i}", f"Question {i}?", None, tuple(Response(j, "a" * j) for j in range(1, 9))) for i in range(5)]


def config_of(server: MisbehavingServer, *, mode: str = "cot", **endpoint: Any) -> PairwiseJudge:
    where = Endpoint(base_url=server.base_url, key_variable="NO_KEY", **{"retries": 2, "concurrency": 4, **endpoint})
    return PairwiseJudge.model_validate({"model": "m", "mode": mode, "endpoint": where.model_dump()})


def asker_of(config: PairwiseJudge) -> ServerAsker:
    assert config.endpoint is not None
    return ServerAsker(config, config.endpoint, load_verdict_prompt(config), TokenCount())


def judge_of(server: MisbehavingServer, **settings: Any) -> Pairwise:
    config = config_of(server, **settings)
    return Pairwise(config, asker_of(config))


UNREADABLE: list[tuple[Action, str, str, str]] = [
    (
        REASONED,
        "cot",
        "cut by length while the judge was still reasoning",
        "raise judge.max_new_tokens, or have it reason",
    ),
    (Say("<think>Well", "length"), "cot", "still reasoning", "enable_thinking = false"),
    (Say("", "length", message={"content": None}), "cot", "with empty content", "raise judge.max_new_tokens"),
    (Say("", message={"content": None, "reasoning": "hm"}), "cot", "reasoning alone, with empty content", "extra_body"),
    (CUT, "cot", "cut by length after 2048 tokens", "raise judge.max_new_tokens"),
    (BOTH, "cot", "named both labels", "judge.system_template"),
    (Say("I like it"), "cot", "named neither [[A]] nor [[B]]", "endpoint.structured_outputs"),
    (Say(""), "cot", "was empty", "chat template"),
    (FILTERED, "cot", "content filter", "max_response_chars"),
    (Say("", "tool_calls"), "cot", "a tool call", "without tools"),
    (Fail(413, "prompt of 5123 tokens"), "cot", "refused by the server (prompt of N tokens)", "max_response_chars"),
    (Say("[[A]]"), "probability", "without log-probabilities", 'judge.mode to "verdict" or "cot"'),
    (Say("It is"), "probability", "did not begin with a label", "endpoint.structured_outputs"),
]


@pytest.mark.parametrize(("action", "mode", "cause", "remedy"), UNREADABLE)
def test_a_judge_without_verdicts_is_not_asked_further_and_the_cause_is_named(
    action: Action, mode: str, cause: str, remedy: str
):
    with MisbehavingServer(lambda request, n: action) as server:
        with pytest.raises(StageError) as error:
            list(judge_of(server, mode=mode).judge(GROUPS))
        assert len(server.asked) <= FIRST_ANSWERS + 2 * 4
    assert f"0 verdicts that can be read in its first {FIRST_ANSWERS}" in str(error.value)
    assert cause in str(error.value) and remedy in str(error.value)


def test_answers_without_a_verdict_are_asked_for_again_when_the_setting_is_changed(tmp_path: Path):
    def script(request: dict[str, Any], n: int) -> Action:
        return Say("[[A]]") if "reasoning_effort" in request or "Question 4" in str(request["messages"]) else REASONED

    path = tmp_path / "journal-00000.jsonl"
    with MisbehavingServer(script) as server:
        with Journal(path) as journal, pytest.raises(StageError):
            list(judge_of(server).judge(GROUPS, journal))
        kept = read_journal(path).answers
        assert all("[[A]]" in json.dumps(answer) for answer in kept.values())
        with Journal(path) as journal:
            by_group = list(judge_of(server, extra_body={"reasoning_effort": "low"}).judge(GROUPS, journal))
    assert [len(each) for each in by_group] == [56] * 5
    assert all(judgment.outcome == 1 for each in by_group for judgment in each)


@pytest.mark.parametrize("readable", [0.15, 0.5])
def test_a_judge_that_gives_some_verdicts_is_left_to_the_limits_of_health(readable: float):
    first = FirstAnswers(partial(cause_of, config=PairwiseJudge()), "the judge", "verdict")
    for i in range(400):
        first.see(Reply("[[A]]" if int((i + 1) * readable) > int(i * readable) else "hm", True, 1, 1))
        first.check()


def test_comparisons_that_were_never_asked_say_nothing_about_the_judge():
    first = FirstAnswers(partial(cause_of, config=PairwiseJudge()), "the judge", "verdict")
    for _ in range(100):
        first.see(RefusedChat(TOO_LONG))
        first.check()


@pytest.mark.parametrize("reason", ["eos_token", "stop_sequence", "end_turn"])
def test_verdicts_count_under_any_name_of_an_ordinary_end(reason: str):
    with MisbehavingServer(lambda request, n: Say("so [[A]]", reason)) as server:
        (judgments,) = judge_of(server).judge(GROUPS[:1])
    assert {judgment.outcome for judgment in judgments} == {1.0}


def test_labels_inside_a_thinking_block_are_not_a_verdict():
    text = "<think>Is it [[A]]? Or [[B]]? [[A]] is short.</think>\n\nMy final verdict is: [[B]]"
    with MisbehavingServer(says=lambda request: text) as server:
        (judgments,) = judge_of(server).judge(GROUPS[:1])
    assert {judgment.outcome for judgment in judgments} == {-1.0}


# The check


def check(server: MisbehavingServer, **settings: Any) -> list[str]:
    return list(asker_of(config_of(server, **settings)).check())


@pytest.mark.parametrize("mode", ["cot", "verdict", "probability"])
def test_the_check_asks_exactly_as_the_judge_will(mode: str):
    with MisbehavingServer(lambda request, n: Say("[[A]]", logprobs=LOGPROBS)) as server:
        assert check(server, mode=mode, structured_outputs=mode != "cot") == []
        list(judge_of(server, mode=mode, structured_outputs=mode != "cot").judge(GROUPS[:1]))
    checked, *judged = [received.request for received in server.asked]
    assert checked.keys() == judged[0].keys()
    assert [message["role"] for message in checked["messages"]] == ["system", "user"]
    assert checked | {"messages": None} == judged[0] | {"messages": None}


@pytest.mark.parametrize(
    ("action", "mode", "says"),
    [
        (REASONED, "cot", "still reasoning"),
        (Say("[[A]]"), "probability", "without log-probabilities"),
        (Fail(400, "System role not supported"), "cot", 'endpoint.system_role = "fold"'),
        (Fail(400, "logprobs are not supported"), "probability", 'judge.mode to "verdict" or "cot"'),
        (Say(""), "cot", "was empty"),
    ],
)
def test_the_check_refuses_faults_that_every_comparison_would_meet(action: Action, mode: str, says: str):
    with MisbehavingServer(lambda request, n: action) as server, pytest.raises(InputError) as error:
        check(server, mode=mode)
    assert says in str(error.value)


@pytest.mark.parametrize("action", [BOTH, CUT, Say("I like it")])
def test_the_check_reports_an_unreadable_verdict(action: Action):
    with MisbehavingServer(lambda request, n: action) as server:
        (line,) = check(server)
    assert "its reply to a plain comparison" in line


def test_a_server_without_log_probs_serves_a_judge_that_needs_none():
    def script(request: dict[str, Any], n: int) -> Action:
        return Fail(400, "logprobs is not supported") if "logprobs" in request else Say("[[A]]")

    with MisbehavingServer(script) as server:
        assert check(server, mode="verdict") == check(server, mode="cot") == []


def test_five_log_probs_are_enough():
    def script(request: dict[str, Any], n: int) -> Action:
        if request["top_logprobs"] > 5:
            return Fail(400, "top_logprobs must be between 0 and 5")
        return Say("[[A]]", logprobs=LOGPROBS)

    with MisbehavingServer(script) as server:
        assert check(server, mode="probability") == []
        (judgments,) = judge_of(server, mode="probability").judge(GROUPS[:1])
    assert all(judgment.outcome is not None and judgment.outcome > 0 for judgment in judgments)
