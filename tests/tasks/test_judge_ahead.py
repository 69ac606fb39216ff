"""Claims about judging that begins while samples are still made: the same judgments, each call made once."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.handles import JudgedSamples, SamplingSpec, training_spec, validation_spec
from tasks.judge import judge
from tasks.judge_ahead import judging_ahead
from tasks.judge_stages import AHEAD
from tasks.spending import api_tokens
from tests.misbehaving_server import Action, Fail, MisbehavingServer, Say
from tests.rows import a_config, a_prompt, a_sample
from tests.tasks.test_judge import longer, made
from tpo.config.resources import BudgetConfig
from tpo.config.run import RunConfig
from tpo.records import Artifact, Judgment, Prompt, Sample, Score
from tpo.storage.ledger import read_ledger
from tpo.storage.store import Stage, complete_artifact, read_rows

SHARD, K = 3, 3
PROMPTS = [a_prompt(f"p{i}", instruction=f"Question {i}?") for i in range(12)]
CALLS = 12 * K * (K - 1)
IN_FLIGHT = 3 * 4
"""Calls that may be lost when a judge is stopped: those that the client has begun, of which four at once are sent."""


def config_for(server: MisbehavingServer, folder: Path, **judging: Any) -> RunConfig:
    endpoint = {"base_url": server.base_url, "key_variable": "NO_KEY", "retries": 0, "concurrency": 4}
    values = {"kind": "pairwise", "model": "m", "endpoint": endpoint, **judging}
    folder.mkdir(exist_ok=True)
    return a_config(folder, judge=values, judge_engine={"shard_prompts": 5})


def samples_of(number: int, text: str = "x") -> list[Sample]:
    """A shard of samples; the last of each prompt breaks the format in the last shard."""
    prompts = PROMPTS[number * SHARD : (number + 1) * SHARD]
    broken = "no_marker" if number == len(PROMPTS) // SHARD - 1 else None
    return [
        a_sample(prompt.prompt_id, k, response=text * (k + 1), parse_error=broken if k == 3 else None)
        for prompt in prompts
        for k in range(K)
    ]


def stage_of_samples(config: RunConfig) -> Stage:
    stage = Stage(config.root, "iter_1/samples", Sample, inputs={}, config={})
    stage.begin(shard_size=SHARD)
    return stage


def prompts_of(config: RunConfig) -> Artifact:
    return made(config.root.parent, "prompts", Prompt, PROMPTS)


def sampled_and_judged(
    config: RunConfig,
    *,
    ahead: bool,
    between: Callable[[int], None] = lambda number: None,
    text: str = "x",
    spec: SamplingSpec | None = None,
) -> JudgedSamples:
    """Writes samples shard by shard, with something done in between, as a run does with a judge."""
    stage, prompts, spec = stage_of_samples(config), prompts_of(config), spec or training_spec(config, 1)
    shards = range(len(PROMPTS) // SHARD)

    def write() -> None:
        for number in shards:
            if not stage.has_shard(number):
                stage.write_shard(number, samples_of(number, text))
            between(number)

    if ahead:
        with judging_ahead(config, spec, stage, prompts):
            write()
    else:
        write()
    return judge.fn(config, spec, stage.commit(len(shards)), prompts)


def judgments_of(config: RunConfig) -> list[Judgment]:
    return read_rows(complete_artifact(config.root / "iter_1/judgments"), Judgment)


def wait_for(server: MisbehavingServer, calls: int) -> None:
    until = time.monotonic() + 30
    while len(server.asked) < calls:
        assert time.monotonic() < until, f"only {len(server.asked)} calls came"
        time.sleep(0.01)


def test_judging_begins_while_samples_are_made_and_ends_the_same(tmp_path: Path):
    with MisbehavingServer(says=longer) as server:
        plain = config_for(server, tmp_path / "plain")
        expected = sampled_and_judged(plain, ahead=False)
        assert len(server.asked) == CALLS
        server.asked.clear()
        config = config_for(server, tmp_path / "ahead")
        seen = list[int]()

        def between(number: int) -> None:
            wait_for(server, (number + 1) * CALLS // 4)
            seen.append(len(server.asked))

        answers = sampled_and_judged(config, ahead=True, between=between)
        assert seen == [CALLS // 4, CALLS // 2, CALLS * 3 // 4, CALLS], "before all was sampled"
        assert len(server.asked) == CALLS
        assert read_rows(answers.scores, Score) == read_rows(expected.scores, Score)
        assert judgments_of(config) == judgments_of(plain)
        assert answers.scores.fingerprint == expected.scores.fingerprint
        assert not (config.root / "iter_1" / AHEAD).exists()
        assert api_tokens(config.root) == api_tokens(plain.root)
        assert sum(entry.prompts for entry in read_ledger(config.root)) == len(PROMPTS)


def test_what_is_left_when_sampling_ends_is_judged_by_the_stage(tmp_path: Path):
    with MisbehavingServer(says=longer) as server:
        config = config_for(server, tmp_path)
        sampled_and_judged(config, ahead=True, between=lambda number: wait_for(server, 1))
        assert len(server.asked) == CALLS
        assert sum(entry.answers for entry in read_ledger(config.root)) == CALLS


def test_a_stop_while_both_work_waits_for_one_reply_and_no_call_is_repeated(tmp_path: Path):
    many = threading.Event()

    def script(request: dict[str, Any], before: int) -> Action:
        if len(server.asked) > 20:
            many.set()
        return Say(longer(request), seconds=0.05)

    def stop(number: int) -> None:
        if number == 2:
            assert many.wait(30)
            raise KeyboardInterrupt

    with MisbehavingServer(script) as server:
        config = config_for(server, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            sampled_and_judged(config, ahead=True, between=stop)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("judging ahead")]
        assert 20 < len(server.asked) < CALLS
        sampled_and_judged(config, ahead=True)
        assert len(server.asked) <= CALLS + IN_FLIGHT
        assert len(judgments_of(config)) == CALLS


@pytest.mark.parametrize("sampled_again", [False, True])
def test_replies_of_a_shard_count_only_for_the_same_samples(tmp_path: Path, sampled_again: bool):
    """Sampling was stopped while both worked; then the samples are those, or others at the same places."""

    def stop(number: int) -> None:
        if number == 1:
            wait_for(server, 30)
            raise KeyboardInterrupt

    with MisbehavingServer(says=longer) as server:
        config = config_for(server, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            sampled_and_judged(config, ahead=True, between=stop)
        if sampled_again:
            for path in (config.root / "iter_1/samples").glob("part-*"):
                path.unlink()
        asked = len(server.asked)
        text = "other " if sampled_again else "x"
        sampled_and_judged(config, ahead=False, text=text)  # sampling needs no engine any more, so nothing is ahead
        again = CALLS if sampled_again else CALLS - asked
        assert again <= len(server.asked) - asked <= again + (0 if sampled_again else IN_FLIGHT)
        assert len(judgments_of(config)) == CALLS


def test_a_server_that_fails_stops_judging_ahead_and_not_sampling(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    failing = threading.Event()
    failing.set()

    def script(request: dict[str, Any], before: int) -> Action:
        return Fail(500, "out of order") if failing.is_set() else Say(longer(request))

    def between(number: int) -> None:
        if number == 0:
            wait_for(server, 1)
        if number == 3:
            failing.clear()

    with MisbehavingServer(script) as server:
        config = config_for(server, tmp_path)
        sampled_and_judged(config, ahead=True, between=between)
        assert len(judgments_of(config)) == CALLS
    assert "judging waits until all is sampled" in capfd.readouterr().err


@pytest.mark.parametrize("why", ["nothing to compare with", "a budget"])
def test_judging_waits_where_it_has_to(tmp_path: Path, why: str):
    with MisbehavingServer(says=longer) as server:
        config = config_for(server, tmp_path)
        spec, prompts = training_spec(config, 1), prompts_of(config)
        if why == "a budget":
            config = config.model_copy(update={"budget": BudgetConfig(hours=9.0)})
        else:
            spec = validation_spec(config, 0, 0)
        stage = stage_of_samples(config)
        with judging_ahead(config, spec, stage, prompts):
            stage.write_shard(0, samples_of(0))
            time.sleep(1.2)
        assert not server.asked
