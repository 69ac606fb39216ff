"""The newer kinds of judges on the samples of a real run: their engines and servers, scores, agreement and bookings."""

import random
from pathlib import Path
from typing import Any

import pytest

from flows.recipes import PROFILES
from judges.base import Group, Response
from judges.verifier import Verifier
from tests.end_to_end.conftest import SMALL
from tests.end_to_end.test_iterate import artifact
from tests.end_to_end.test_judges import health_of, judge_training
from tests.misbehaving_server import MisbehavingServer
from tests.reward_http import RewardHttp
from tpo.config.base import SHIPPED
from tpo.config.judges import VerifierJudge
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.errors import StageError
from tpo.records import Prompt, Score
from tpo.storage.ledger import read_ledger
from tpo.storage.store import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end, pytest.mark.timeout(900)]
EVALUATOR = str(SHIPPED / "evaluator")


def config_for(folder: Path, judge: dict[str, Any], *settings: str) -> RunConfig:
    config = load_config(PROFILES / "laptop.toml", [*SMALL, f'folder="{folder}"', "name=judged", *settings])
    return RunConfig.model_validate(config.model_dump(mode="json") | {"judge": judge})


def right(references: dict[str, str], shown: str, response: str) -> bool:
    """Whether a response gives the reference of the instruction that is shown before it, by the exact verifier."""
    asked = max((asked for asked in references if asked.strip() in shown), key=len)
    group = Group("p", asked, references[asked], (Response(0, response),))
    ((judgment,),) = Verifier(VerifierJudge()).judge([group])
    return judgment.outcome == 1


@pytest.fixture(scope="module")
def references(small_run: Path) -> dict[str, str]:
    return {
        prompt.instruction: prompt.reference or ""
        for prompt in read_rows(artifact(small_run / "iter_1/prompts"), Prompt)
    }


def test_a_rubric_and_a_reward_model_behind_servers_agree_with_the_references(
    small_run: Path, tmp_path: Path, references: dict[str, str]
):
    def grade(request: dict[str, Any]) -> str:
        shown = request["messages"][1]["content"]
        response = shown.partition("[The Start of the Response]\n")[2].partition("\n[The End of the Response]")[0]
        score = 8 if right(references, shown, response) else 2
        return f"It is so. [[Score: {score + random.Random(shown).choice((-1, 0, 1))}]]"

    def value(chat: list[dict[str, Any]]) -> float:
        return float(right(references, chat[0]["content"], chat[-1]["content"]))

    with MisbehavingServer(says=grade) as server, RewardHttp(of_chat=value) as rewards:
        where = {"base_url": server.base_url, "key_variable": "NO_KEY"}
        judge = {"kind": "rubric", "model": "m", "endpoint": where}
        graded = judge_training(config_for(tmp_path / "a", judge), small_run)
        where = {"base_url": f"{rewards.address}/reward", "key_variable": "NO_KEY"}
        judge = {"kind": "reward_server", "model": "m", "protocol": "json", "endpoint": where}
        rewarded = judge_training(config_for(tmp_path / "b", judge), small_run)
        assert len(rewards.asked) < len(server.asked)
    for answers in (graded, rewarded):
        assert health_of(answers)["reference_agreement"] > 0.9
        assert health_of(answers)["reference_pairs"] > 20


@pytest.mark.parametrize(("settings", "least"), [({}, 0.85), ({"expected_score": True}, 0.55)])
def test_the_shipped_grader_grades_on_our_own_engine(
    small_run: Path, tmp_path: Path, settings: dict[str, Any], least: float
):
    answers = judge_training(config_for(tmp_path, {"kind": "rubric", **settings}), small_run)
    health = health_of(answers)
    assert health["reference_agreement"] > least and health["unread"] == 0
    values = {score.value for score in read_rows(answers.scores, Score) if score.value is not None}
    assert (len(values) > 12) == bool(settings), "an expectation has finer steps than grades"


def test_a_cheap_judge_leaves_close_prompts_to_an_expensive_one(small_run: Path, tmp_path: Path):
    members = [
        {"name": "cheap", "judge": {"kind": "armorm"}, "unit": 1.0},
        {"name": "duel", "judge": {"kind": "pairwise", "mode": "verdict"}, "unit": 1.0, "weight": 2.0},
    ]
    ensemble = {"kind": "ensemble", "members": members, "escalate_below": 1.0}
    config = config_for(tmp_path, ensemble, "health.min_swap_kappa=-1", "health.max_first_rate=1")
    answers = judge_training(config, small_run)
    health = health_of(answers)
    assert 0 < health["escalated"] < health["escalatable"]
    assert health["reference_agreement"] > 0.55 and health["members"]["duel"]["comparisons"] > 0
    asked = {score.prompt_id: len(score.member_scores or ()) for score in read_rows(answers.scores, Score)}
    assert {1, 2} <= {*asked.values()}
    parameters = {entry.parameters for entry in read_ledger(config.root)}
    assert len(parameters) == 2, "each member's work is booked with its own model"
    assert judge_training(config, small_run) == answers


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"expected_score": True}, "had less than 50% of its probability on scores"),
        ({"samples": 2, "temperature": 1.0, "max_new_tokens": 24}, r"(had no score of the form|was cut by length)"),
    ],
)
def test_our_own_engine_is_asked_and_a_model_that_gives_no_scores_is_stopped(
    small_run: Path, tmp_path: Path, settings: dict[str, Any], cause: str
):
    """The shipped evaluator writes verdicts, whatever it is asked; its context takes short prompts only."""
    (tmp_path / "system.txt").write_text("Score from {{ lowest }} to {{ highest }}.")
    (tmp_path / "user.jinja").write_text("[R]\n{{ rubric }}\n[Q]\n{{ instruction }}\n[S]\n{{ response }}\n[E]")
    templates = {"system_template": tmp_path / "system.txt", "user_template": tmp_path / "user.jinja"}
    judge = {"kind": "rubric", "model": EVALUATOR, "rubric": "Good?", **templates, **settings}
    config = config_for(tmp_path, judge)
    with pytest.raises(StageError, match=rf"0 scores that can be read in its first \d+ answers.*{cause}"):
        judge_training(config, small_run)
    assert not list(config.root.rglob("*.parquet"))
    entries = read_ledger(config.root)
    assert sum(entry.answers for entry in entries) >= 32 and sum(entry.tokens_in for entry in entries) > 0
