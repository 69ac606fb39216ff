"""The registry of judges: a new judge is a file, a config class in the union, and a case here."""

from collections.abc import Callable

from judges.armorm import ArmoRMScorer
from judges.askers import EngineAsker, ResponsePair, ServerAsker
from judges.base import Judge
from judges.ensemble import Ensemble
from judges.journaled import Asker
from judges.pairwise import Pairwise
from judges.reward_model import RewardModel
from judges.reward_server import RewardAsker, RewardServer
from judges.rubric import build_rubric
from judges.verifier import Verifier
from prompts.verdict import load_verdict_prompt
from tpo.config.judges import (
    ArmoRMJudge,
    EnsembleJudge,
    JudgeConfig,
    PairwiseJudge,
    RewardModelJudge,
    RewardServerJudge,
    RubricJudge,
    ServedJudge,
    SingleJudge,
    VerifierJudge,
    members_of,
)
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.inference.reply import TokenCount


def build_judge(
    judge: JudgeConfig,
    engine: JudgeEngineConfig,
    cluster: ClusterConfig,
    spent: TokenCount,
    spent_at: Callable[[str], TokenCount] | None = None,
) -> Judge:
    """The judge for a config; its engines start with its first call.

    `spent` is the usage of the run's judging so far, which an endpoint's limits count. Of an ensemble's members it is
    `spent_at` their servers, if that is given.
    """
    match judge:
        case EnsembleJudge():
            return Ensemble(
                judge,
                [build_judge(each, engine, cluster, _spent_by(each, spent_at) or spent) for each in members_of(judge)],
            )
        case VerifierJudge():
            return Verifier(judge)
        case RewardModelJudge():
            return RewardModel(judge, engine, cluster)
        case ArmoRMJudge():
            return ArmoRMScorer(judge, engine, cluster)
        case PairwiseJudge():
            return Pairwise(judge, _asker(judge, engine, cluster, spent))
        case RubricJudge():
            return build_rubric(judge, engine, cluster, spent)
        case RewardServerJudge():
            return RewardServer(judge, RewardAsker(judge, spent))


def _spent_by(judge: SingleJudge, spent_at: Callable[[str], TokenCount] | None) -> TokenCount | None:
    return spent_at(judge.server) if spent_at is not None and isinstance(judge, ServedJudge) else None


def _asker(
    judge: PairwiseJudge, engine: JudgeEngineConfig, cluster: ClusterConfig, spent: TokenCount
) -> Asker[ResponsePair]:
    prompt = load_verdict_prompt(judge)
    if judge.endpoint is None:
        return EngineAsker(judge, prompt, engine, cluster)
    return ServerAsker(judge, judge.endpoint, prompt, spent)
