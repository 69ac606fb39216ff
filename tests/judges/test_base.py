"""Claims about what judges see; they hold for every judge that a profile can name."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from judges.armorm import ArmoRMScorer
from judges.askers import ResponsePair
from judges.base import Judge, groups_of
from judges.ensemble import Ensemble
from judges.pairwise import Pairwise
from judges.registry import build_judge
from judges.reward_model import RewardModel
from judges.reward_server import ReadResponses, RewardServer
from judges.rubric import GradedResponse, Rubric
from judges.verifier import Verifier
from prompts.thought import VARIANTS
from tasks.judge import make_scores
from tasks.sample import make_samples
from tests.judges.tiny_models import armorm_folder, reward_folder
from tests.rows import a_prompt, a_sample
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.judges import (
    ArmoRMJudge,
    EnsembleJudge,
    JudgeConfig,
    PairwiseJudge,
    RewardModelJudge,
    RewardServerJudge,
    RubricJudge,
    VerifierJudge,
)
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.config.run import RunConfig
from tpo.engines.inference.reply import Reply, TokenCount
from tpo.engines.inference.reward_reader import Chat, Values
from tpo.engines.inference.sampler import Output, Request
from tpo.models.chat import ChatEncoder
from tpo.records import Sample

CANARY = "kanarienvogel"
ENGINE, CLUSTER = JudgeEngineConfig(), ClusterConfig()


class Ears:
    """Replaces a judge's model and records everything that reaches it."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def ask(self, comparisons: Sequence[ResponsePair | GradedResponse]) -> Iterator[tuple[int, Reply]]:
        self.heard += comparisons
        return ((i, Reply("[[A]]", True, 1, 1)) for i in range(len(comparisons)))

    def score(self, groups: Iterable[Sequence[Chat]]) -> Iterator[list[Values]]:
        for group in groups:
            self.heard += [self.tokenizer.decode(chat.token_ids) for chat in group]
            yield [[0.5] * 39 for _ in group]

    def listen(self, kind: str, folder: Path) -> Judge:
        """The judge of a kind, with this recorder as its model."""
        match kind:
            case "verifier":
                return Verifier(VerifierJudge())
            case "pairwise":
                return Pairwise(PairwiseJudge(), self)
            case "ensemble":
                members = [{"name": kind, "judge": {"kind": kind}, "unit": 1.0} for kind in ("verifier", "pairwise")]
                judges = [self.listen("verifier", folder), self.listen("pairwise", folder)]
                return Ensemble(EnsembleJudge.model_validate({"members": members}), judges)
            case "reward_server":
                config = {"model": "m", "endpoint": {"base_url": "http://one"}}
                return RewardServer(RewardServerJudge.model_validate(config), Reads(self))
            case "rubric":
                return Rubric(RubricJudge(model="m"), self)
            case "armorm":
                self.tokenizer = ChatEncoder(armorm_folder(folder)).tokenizer
                return ArmoRMScorer(ArmoRMJudge(model=str(folder)), ENGINE, CLUSTER, scorer=self)
            case "reward_model":
                self.tokenizer = ChatEncoder(reward_folder(folder)).tokenizer
                return RewardModel(RewardModelJudge(model=str(folder)), ENGINE, CLUSTER, scorer=self)
        raise AssertionError(f"no ears for judge {kind}: teach them to listen to it")


class Reads:
    """Replaces a reward model's server, and passes on what reaches it."""

    def __init__(self, ears: Ears) -> None:
        self._ears = ears

    def ask(self, questions: Sequence[ReadResponses]) -> Iterator[tuple[int, Reply]]:
        self._ears.heard += questions
        return ((i, Reply(str([0.5] * len(each.responses)), True, 1, 0)) for i, each in enumerate(questions))


def kinds_in(annotation: Any) -> Iterator[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation.model_fields["kind"].default
    for part in get_args(annotation):
        yield from kinds_in(part)


KINDS = list(kinds_in(JudgeConfig))


def sampled(*outputs: str) -> list[Sample]:
    made = [[Output([7], text, True, 1) for text in outputs]]
    return make_samples([a_prompt(reference="yes")], [Request([1], 0)], made, VARIANTS["specific"], no_decoder)


def no_decoder(ids: Sequence[int]) -> str:
    raise AssertionError("markers are text")


def test_every_judge_a_profile_can_name_can_be_built(tmp_path: Path):
    assert set(KINDS) == {"verifier", "reward_model", "armorm", "pairwise", "rubric", "reward_server", "ensemble"}
    folders = {"reward_model": reward_folder(tmp_path / "r"), "armorm": armorm_folder(tmp_path / "a")}
    folders["rubric"] = SHIPPED_SEED_MODEL
    two = [{"name": kind, "judge": {"kind": kind}, "unit": 1.0} for kind in ("verifier", "pairwise")]
    for kind in KINDS:
        model: dict[str, Any] = {"model": str(folders[kind])} if kind in folders else {}
        model |= {"members": two} if kind == "ensemble" else {}
        model |= {"model": "m", "endpoint": {"base_url": "http://one"}} if kind == "reward_server" else {}
        config = RunConfig.model_validate({"judge": {"kind": kind, **model}})
        assert build_judge(config.judge, ENGINE, CLUSTER, TokenCount()) is not None


@pytest.mark.parametrize("with_errors", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_thought_reaches_no_judge(tmp_path: Path, kind: str, with_errors: bool):
    samples = sampled(f"{CANARY} <R> yes", f"{CANARY}{CANARY}\n<R>no")
    assert all(CANARY in sample.thought for sample in samples)
    ears = Ears()
    judge = ears.listen(kind, tmp_path)
    prompts = [a_prompt(reference="yes")]
    for baseline in ((), samples[:1]):
        groups = groups_of(prompts, samples, with_errors=with_errors, baseline=baseline)
        judgments = [judgment for of_group in judge.judge(groups) for judgment in of_group]
        scores = make_scores(samples, groups, judgments, judge)
        assert CANARY not in repr((groups, judgments, scores, ears.heard))
        assert [score.index for score in scores] == [0, 1]
    assert ears.heard or kind == "verifier"
    assert kind == "verifier" or "yes" in repr(ears.heard)


def test_the_thought_of_a_malformed_output_reaches_no_judge_that_trains():
    samples = sampled(f"{CANARY} and no marker", f"{CANARY} <R> a <R> b", "hm <R> yes")
    assert CANARY not in repr(groups_of([a_prompt()], samples, with_errors=False))


def test_malformed_outputs_are_left_out_of_training_groups_and_kept_in_evaluation():
    samples = [a_sample("p", 1), a_sample("p", 0, parse_error="cut_by_length"), a_sample("q", 0, parse_error="x")]
    prompts = [a_prompt("q"), a_prompt("p"), a_prompt("not asked")]
    seen = {flag: groups_of(prompts, samples, with_errors=flag) for flag in (False, True)}
    assert [(g.prompt_id, [r.index for r in g.responses]) for g in seen[False]] == [("p", [1])]
    assert [(g.prompt_id, [r.index for r in g.responses]) for g in seen[True]] == [("q", [0]), ("p", [0, 1])]


def test_a_sample_that_was_not_judged_is_unscored_by_its_parse_error():
    samples = [a_sample(index=0), a_sample(index=1, parse_error="empty_response")]
    judge = Verifier(VerifierJudge())
    groups = groups_of([a_prompt(reference="yes")], samples, with_errors=False)
    judgments = [judgment for of_group in judge.judge(groups) for judgment in of_group]
    scored, unscored = make_scores(samples, groups, judgments, judge)
    assert (scored.value, scored.unscored) == (1.0, None)
    assert (unscored.value, unscored.unscored) == (None, "parse_error: empty_response")
