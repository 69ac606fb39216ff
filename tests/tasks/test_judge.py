"""Claims about the judge stage: judgments are kept, asked for once, and not trained on if the judge looks unsound."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.handles import JudgedSamples, training_spec, validation_spec
from tasks.judge import judge
from tasks.spending import api_tokens
from tests.misbehaving_server import Action, Fail, MisbehavingServer, Say
from tests.rows import a_config, a_prompt, a_sample
from tpo.config.run import RunConfig
from tpo.errors import StageError
from tpo.records import Artifact, Judgment, Prompt, Sample, Score
from tpo.storage.store import Stage, read_manifest, read_rows

KEY = "sk-canary-of-a-key"
CANARY = "kanarienvogel"
PROMPTS = [a_prompt(f"p{i}", instruction=f"Question {i}?") for i in range(6)]
SAMPLES = [
    a_sample(prompt.prompt_id, k, thought=CANARY, response="x" * (k + 1)) for prompt in PROMPTS for k in range(3)
]
CALLS = 6 * 6


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


def made(root: Path, name: str, record: type, rows: list[Any]) -> Artifact:
    stage = Stage(root, name, record, inputs={}, config={})
    stage.begin()
    stage.write_shard(0, rows)
    return stage.commit(1)


def config_for(server: MisbehavingServer, folder: Path, **changes: Any) -> RunConfig:
    endpoint = {"base_url": server.base_url, "key_variable": "JUDGE_KEY", "retries": 0, "concurrency": 2}
    endpoint |= changes.pop("endpoint", {})
    judging = {"kind": "pairwise", "model": "m", "endpoint": endpoint}
    return a_config(folder, judge=judging, judge_engine={"shard_prompts": 4}, **changes)


def judged(config: RunConfig, *, samples: list[Sample] = SAMPLES, iteration: int = 1) -> JudgedSamples:
    prompts, outputs = (
        made(config.root.parent, "prompts", Prompt, PROMPTS),
        made(config.root.parent, "samples", Sample, samples),
    )
    return judge.fn(config, training_spec(config, iteration), outputs, prompts)


def longer(request: dict[str, Any]) -> str:
    """The reply of a judge that prefers the longer response."""
    shown = request["messages"][-1]["content"].split("\n")
    first, second = (shown[shown.index(f"[The Start of Assistant {name}'s Answer]") + 1] for name in "AB")
    return "[[A]]" if len(first) > len(second) else "[[B]]"


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_server_judges_and_its_health_is_recorded(tmp_path: Path):
    with MisbehavingServer(says=longer, key=KEY, model="m") as server:
        config = config_for(server, tmp_path)
        answers = judged(config)
        scores = read_rows(answers.scores, Score)
        assert max(scores[:3], key=lambda score: score.value or 0.0).index == 2
        manifest = read_manifest(answers.scores.path)
        assert manifest is not None
        health = manifest.facts["health"]
        assert (health["comparisons"], health["swap_agreement"], health["first_rate"]) == (CALLS, 1.0, 0.5)
        assert health["length_correlation"] > 0.9
        assert api_tokens(config.root).input_tokens == CALLS * 10
        assert len(server.asked) == CALLS
        assert judged(config) == answers
        assert len(server.asked) == CALLS
        assert not any(CANARY in json.dumps(received.request) for received in server.asked)
        assert KEY.encode() not in everything_below(tmp_path)


@pytest.mark.parametrize("calls", [0, 1, 7, 27, CALLS - 1])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (64, 1), (1, 64)])
def test_a_judge_whose_server_dies_resumes_without_asking_again(tmp_path: Path, calls: int, before: int, after: int):
    """Also if it then asks about fewer shards at once, or about more."""
    answered: list[int] = []

    def dies(request: dict[str, Any], n: int) -> Action:
        if len(answered) >= calls:
            return Fail(500)
        answered.append(n)
        return Say()

    with MisbehavingServer(dies, says=longer, key=KEY) as server:
        config = config_for(server, tmp_path, endpoint={"concurrency": before})
        with pytest.raises(StageError, match="500"):
            judged(config)
        assert api_tokens(config.root).input_tokens == calls * 10
    with MisbehavingServer(says=longer, key=KEY) as server:
        answers = judged(config_for(server, tmp_path, endpoint={"concurrency": after}))
        assert len(server.asked) == CALLS - calls
    judgments = read_rows(Artifact(answers.scores.path.with_name("judgments"), 0, ""), Judgment)
    assert len({(j.prompt_id, j.index, j.other_index) for j in judgments}) == len(judgments) == CALLS
    assert api_tokens(config.root).input_tokens == CALLS * 10
    assert not list(config.root.rglob("journal-*"))


def test_a_cap_covers_the_whole_run_and_a_higher_one_resumes_it(tmp_path: Path):
    with MisbehavingServer(says=longer, key=KEY) as server:
        capped = config_for(server, tmp_path, endpoint={"concurrency": 1, "max_total_tokens": 15 * 10})
        with pytest.raises(StageError, match=r"max_total_tokens.*left"):
            judged(capped)
        assert len(server.asked) == 10
        with pytest.raises(StageError, match="max_total_tokens"):
            judged(capped)
        assert len(server.asked) == 10
        judged(config_for(server, tmp_path, endpoint={"max_total_tokens": 15 * CALLS}))
        assert len(server.asked) == CALLS
        with pytest.raises(StageError, match="max_total_tokens"):
            judged(config_for(server, tmp_path, endpoint={"max_total_tokens": 15 * CALLS}), iteration=2)


def test_an_unreliable_judge_stops_the_run_without_losing_its_judgments(tmp_path: Path):
    def says(request: dict[str, Any]) -> str:
        decided = any(f"Question {i}?" in request["messages"][-1]["content"] for i in (1, 4))
        return longer(request) if decided else "I cannot decide."

    with MisbehavingServer(says=says, key=KEY) as server:
        config = config_for(server, tmp_path)
        with pytest.raises(StageError, match=r"iter_1/scores.*health.max_unparsable"):
            judged(config)
        assert len(server.asked) == CALLS
        limits = {"max_unscored": 1.0, "max_unparsable": 1.0, "max_first_rate": 1.0, "min_swap_kappa": -1.0}
        answers = judged(config_for(server, tmp_path, health={**limits, "max_equal": 1.0}))
        assert len(server.asked) == CALLS
        scores = read_rows(answers.scores, Score)
        assert {s.prompt_id for s in scores if s.unscored == "no_verdict"} == {"p0", "p2", "p3", "p5"}
        assert {s.prompt_id for s in scores if s.value is not None} == {"p1", "p4"}


def test_an_evaluation_judges_health_is_measured_and_stops_nothing(tmp_path: Path):
    with MisbehavingServer(says=lambda request: "I cannot decide.", key=KEY) as server:
        config = config_for(server, tmp_path)
        single = [sample for sample in SAMPLES if sample.index == 0]
        others = [a_sample(p.prompt_id, response="another") for p in PROMPTS]
        prompts, outputs = made(tmp_path, "prompts", Prompt, PROMPTS), made(tmp_path, "samples", Sample, single)
        baseline = made(tmp_path, "baseline", Sample, others)
        answers = judge.fn(config, validation_spec(config, 1, 1), outputs, prompts, baseline)
        assert [s.unscored for s in read_rows(answers.scores, Score)] == ["no_verdict"] * 6
        assert len(server.asked) == 12
