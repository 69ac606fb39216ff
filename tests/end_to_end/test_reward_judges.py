"""Reward-model judges in Ray actors: the order of scores, dead scorers, and models that don't load."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from judges.armorm import ArmoRMScorer, load_armorm_reader
from judges.base import Group, Response
from judges.reward_model import RewardModel
from tests.judges.tiny_models import armorm_folder, reward_folder
from tpo.config.judges import ArmoRMJudge, RewardModelJudge
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.engines import Engines, open_engines
from tpo.engines.inference.reward_reader import Scorer
from tpo.errors import StageError

pytestmark = [pytest.mark.drawn(1), pytest.mark.end_to_end, pytest.mark.timeout(900)]

ENGINE = JudgeEngineConfig(count=2, shard_prompts=8)
GROUPS = [
    Group(f"p{i}", f"Say {i}.", None, tuple(Response(k, f"{i} and " * (1 + i * k % 5)) for k in range(3)))
    for i in range(12)
]


@pytest.fixture(autouse=True)
def engines() -> Iterator[Engines]:
    """Scorers not shared with other tests."""
    with open_engines() as engines:
        yield engines


def test_a_dead_scorer_is_replaced_and_its_prompts_are_scored_again(tmp_path: Path, engines: Engines):
    import ray

    folder = armorm_folder(tmp_path / "armorm")
    config = ArmoRMJudge(model=str(folder))
    here = Scorer(load_armorm_reader, folder, ENGINE)
    expected = [
        judgment.outcome
        for judgments in ArmoRMScorer(config, ENGINE, ClusterConfig(), scorer=here).judge(GROUPS)
        for judgment in judgments
    ]
    judge = ArmoRMScorer(config, ENGINE, ClusterConfig())
    pool = engines.scorer_pool(load_armorm_reader, folder, ENGINE, ClusterConfig())
    judgments = judge.judge(GROUPS)
    found = [judgment.outcome for judgment in next(judgments)]
    before = list(pool.actor_pool.actors)
    assert len(before) == 2
    ray.kill(before[0])
    found += [judgment.outcome for of_group in judgments for judgment in of_group]
    assert found == pytest.approx(expected, abs=1e-5)
    again = [judgment.outcome for of_group in judge.judge(GROUPS) for judgment in of_group]
    assert again == pytest.approx(expected, abs=1e-5)
    assert pool.actor_pool.actors[0] != before[0] and pool.actor_pool.actors[1] == before[1]


def test_a_model_that_does_not_load_says_so_after_two_scorers(tmp_path: Path):
    folder = reward_folder(tmp_path / "reward")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    judge = RewardModel(RewardModelJudge(model=str(folder)), JudgeEngineConfig(), ClusterConfig())
    with pytest.raises(
        StageError, match=r"(?s)no scorer of .*reward could be started: .*lacks tensors.*model.norm.weight"
    ):
        list(judge.judge(GROUPS[:1]))
