"""Claims about comparisons turned into ratings: which are made, which are kept, and what they result in."""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from judges.askers import ResponsePair
from judges.base import BASELINE, Group, Response
from judges.pairwise import Pairwise
from tpo.config.judges import PairwiseJudge
from tpo.engines.inference.chat_client import RefusedChat
from tpo.engines.inference.reply import Reply
from tpo.method.ratings import bradley_terry
from tpo.records import Judgment, Score
from tpo.storage.journal import Journal

Says = Callable[[ResponsePair], Reply | RefusedChat]


class Scripted:
    """An asker that answers at once, by a rule, the last question first, and can be made to fail."""

    def __init__(self, says: Says, breaks_after: int | None = None) -> None:
        self.asked: list[ResponsePair] = []
        self._says = says
        self._breaks_after = breaks_after

    def ask(self, comparisons: Sequence[ResponsePair]) -> Iterator[tuple[int, Reply | RefusedChat]]:
        for i in reversed(range(len(comparisons))):
            if len(self.asked) == self._breaks_after:
                raise ConnectionError("the server is gone")
            self.asked.append(comparisons[i])
            yield i, self._says(comparisons[i])


def says(text: str, *, finished: bool = True, logprobs: tuple[float, ...] | None = None) -> Reply:
    return Reply(text, finished, 10, 2, label_logprobs=logprobs)


def longer(comparison: ResponsePair) -> Reply:
    return says("[[A]]" if len(comparison.first) >= len(comparison.second) else "[[B]]")


def group_of(*texts: str, baseline: str | None = None) -> Group:
    against = None if baseline is None else Response(BASELINE, baseline)
    return Group("p", "Which?", None, tuple(Response(i, text) for i, text in enumerate(texts)), against)


def judged(rule: Says, group: Group, **settings: object) -> tuple[list[Judgment], list[Score]]:
    judge = Pairwise(PairwiseJudge.model_validate(settings), Scripted(rule))
    (judgments,) = judge.judge([group])
    return judgments, judge.score(group, judgments)


def values(scores: Sequence[Score]) -> list[float | None]:
    return [score.value for score in scores]


def test_every_ordered_pair_is_compared_once_with_only_the_question():
    asker = Scripted(longer)
    list(Pairwise(PairwiseJudge(), asker).judge([group_of(*"abcdefgh")]))
    assert len(asker.asked) == 56
    assert {(c.first, c.second) for c in asker.asked} == set(itertools.permutations("abcdefgh", 2))
    assert {c.instruction for c in asker.asked} == {"Which?"}


def test_ratings_are_bradley_terrys_of_the_wins_over_both_orders():
    judgments, scores = judged(longer, group_of("aa", "a", "aaa"))
    assert [(j.index, j.other_index, j.outcome) for j in judgments] == [
        (0, 1, 1.0), (0, 2, -1.0), (1, 0, -1.0), (1, 2, -1.0), (2, 0, 1.0), (2, 1, 1.0),
    ]  # fmt: skip
    expected = bradley_terry([[0, 2, 0], [0, 0, 0], [2, 2, 0]], 0.1)
    assert values(scores) == pytest.approx(expected.tolist())
    assert [score.response_chars for score in scores] == [2, 1, 3]


def test_a_judge_that_always_prefers_the_first_rates_all_equally():
    judgments, scores = judged(lambda comparison: says("[[A]]"), group_of("a", "b", "c"))
    assert {j.outcome for j in judgments} == {1.0}
    assert values(scores) == pytest.approx([0, 0, 0], abs=1e-9)


def test_equal_texts_enter_once_and_share_their_rating():
    judgments, scores = judged(longer, group_of("aa", "a", "aa", "a"))
    assert [(j.index, j.other_index) for j in judgments] == [(0, 1), (1, 0)]
    assert scores[0].value == scores[2].value
    assert scores[1].value == scores[3].value
    assert scores[0].value is not None and scores[0].value > 0


def test_identical_texts_are_tied_without_a_comparison():
    judgments, scores = judged(longer, group_of("a", "a", "a"))
    assert judgments == []
    assert values(scores) == [0, 0, 0]


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (says("so [[A]]"), 1.0),
        (says("so [[B]]"), -1.0),
        (says("[[C]]"), 0.0),
        (says("[[A]] or [[B]]"), None),
        (says("neither"), None),
        (says("so [[A]]", finished=False), None),
        (RefusedChat("too_long"), None),
    ],
)
def test_judgments_are_kept_with_their_outcome(reply: Reply | RefusedChat, outcome: float | None):
    judgments, _ = judged(lambda comparison: reply, group_of("a", "b"))
    assert [j.outcome for j in judgments] == [outcome, outcome]
    detail = json.loads(judgments[0].detail)
    assert detail.get("text", detail.get("reason")) == getattr(reply, "text", None) or detail["reason"] == "too_long"


def test_a_response_without_a_single_verdict_is_unscored_and_not_in_the_middle():
    def rule(comparison: ResponsePair) -> Reply:
        return says("hm") if "broken" in (comparison.first, comparison.second) else longer(comparison)

    _, scores = judged(rule, group_of("aa", "a", "broken"))
    assert [score.unscored for score in scores] == [None, None, "no_verdict"]
    assert scores[2].value is None
    assert values(scores)[:2] == pytest.approx(bradley_terry([[0, 2], [0, 0]], 0.1).tolist())


def test_a_tie_is_a_verdict_that_adds_nothing():
    _, scores = judged(lambda comparison: says("[[C]]"), group_of("a", "b"))
    assert values(scores) == [0, 0]


def test_a_response_that_is_too_long_is_not_shown():
    asker = Scripted(longer)
    judge = Pairwise(PairwiseJudge(max_response_chars=5), asker)
    group = group_of("aa", "a", "a" * 6)
    (judgments,) = judge.judge([group])
    assert len(asker.asked) == 2
    assert [score.unscored for score in judge.score(group, judgments)] == [None, None, "too_long"]


def test_if_every_response_is_too_long_nothing_is_asked_or_scored():
    judgments, scores = judged(longer, group_of("aaa", "bbb"), max_response_chars=2)
    assert judgments == []
    assert [score.unscored for score in scores] == ["too_long", "too_long"]


def test_probabilities_give_soft_results():
    third = (math.log(0.3), math.log(0.1))  # 0.75 for the first among the two

    judgments, scores = judged(lambda comparison: says("[[A]]", logprobs=third), group_of("a", "b"), mode="probability")
    assert [j.outcome for j in judgments] == pytest.approx([0.5, 0.5])
    assert values(scores) == pytest.approx([0, 0], abs=1e-9)

    def sure(comparison: ResponsePair) -> Reply:
        return says("", logprobs=(0.0, -math.inf) if comparison.first == "a" else (-math.inf, 0.0))

    _, scores = judged(sure, group_of("a", "b"), mode="probability")
    assert values(scores) == pytest.approx(bradley_terry([[0, 2], [0, 0]], 0.1).tolist())


@pytest.mark.parametrize("logprobs", [None, (-math.inf, -math.inf)])
def test_without_probabilities_there_is_no_soft_result(logprobs: tuple[float, ...] | None):
    judgments, scores = judged(
        lambda comparison: says("[[A]]", logprobs=logprobs), group_of("a", "b"), mode="probability"
    )
    assert [j.outcome for j in judgments] == [None, None]
    assert [score.unscored for score in scores] == ["no_verdict", "no_verdict"]


@pytest.mark.parametrize(
    ("response", "value"), [("aaa", 1.0), ("a", 0.0), ("bb", 0.5), ("aa", 0.5)]
)  # the last is the baseline's own text
def test_against_a_baseline_both_orders_count_and_a_contradiction_is_a_half(response: str, value: float):
    judgments, (score,) = judged(longer, group_of(response, baseline="aa"))
    assert score.value == value
    assert len(judgments) == (0 if response == "aa" else 2)


def test_against_a_baseline_a_single_order_gives_no_score():
    def rule(comparison: ResponsePair) -> Reply:
        return says("[[A]]" if comparison.first == "b" else "hm")

    _, (score,) = judged(rule, group_of("b", baseline="aa"))
    assert (score.value, score.unscored) == (None, "no_verdict")


@pytest.mark.parametrize("tournament", ["all_pairs", "adaptive"])
def test_an_interrupted_judge_resumes_without_asking_again(tmp_path: Path, tournament: str):
    config = PairwiseJudge.model_validate({"tournament": tournament})
    group = group_of(*("a" * n for n in range(1, 9)))
    whole = Scripted(longer)
    (expected,) = Pairwise(config, whole).judge([group])
    for breaks_after in (0, 1, 7, len(whole.asked) - 1):
        path = tmp_path / f"journal-{breaks_after:05d}.jsonl"
        first, second = Scripted(longer, breaks_after), Scripted(longer)
        with Journal(path) as journal, pytest.raises(ConnectionError):
            list(Pairwise(config, first).judge([group], journal))
        with Journal(path) as journal:
            (judgments,) = Pairwise(config, second).judge([group], journal)
        assert judgments == expected
        assert len(first.asked) + len(second.asked) == len(whole.asked)
        assert not set(map(repr, first.asked)) & set(map(repr, second.asked))


def test_soft_results_and_refusals_survive_the_journal(tmp_path: Path):
    def rule(comparison: ResponsePair) -> Reply | RefusedChat:
        return RefusedChat("too_long") if comparison.first == "a" else says("", logprobs=(-math.inf, -0.5))

    config, group = PairwiseJudge(mode="probability"), group_of("a", "b")
    with Journal(tmp_path / "j.jsonl") as journal:
        (before,) = Pairwise(config, Scripted(rule)).judge([group], journal)
    with Journal(tmp_path / "j.jsonl") as journal:
        (after,) = Pairwise(config, asker := Scripted(rule)).judge([group], journal)
    assert not asker.asked
    assert [(j.outcome, j.detail) for j in after] == [(j.outcome, j.detail) for j in before]
    assert [j.outcome for j in after] == [None, -1.0]


def test_groups_of_one_round_are_asked_together():
    asker = Scripted(longer)
    groups = [Group(f"p{i}", f"Question {i}?", None, group_of("a", "aa").responses) for i in range(5)]
    judgments = list(Pairwise(PairwiseJudge(), asker).judge(groups))
    assert [len(each) for each in judgments] == [2] * 5
    assert [each[0].prompt_id for each in judgments] == [f"p{i}" for i in range(5)]


def test_the_best_of_a_hidden_quality_is_rated_best():
    rng = np.random.default_rng(0)
    quality = {f"answer {i}": float(q) for i, q in enumerate(rng.normal(size=8))}

    def rule(comparison: ResponsePair) -> Reply:
        logit = quality[comparison.first] - quality[comparison.second]
        return says("", logprobs=(-math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))))

    for tournament in ("all_pairs", "adaptive"):
        _, scores = judged(rule, group_of(*quality), mode="probability", tournament=tournament)
        best = max(scores, key=lambda score: -math.inf if score.value is None else score.value)
        assert best.index == max(range(8), key=lambda i: quality[f"answer {i}"])
