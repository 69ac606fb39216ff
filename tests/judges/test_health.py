"""Claims about a judge's health: each figure counts what its name says, and every limit that is exceeded is named."""

import contextlib
import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from judges.base import Group, Response
from judges.health import check_health, describe_health, measure_health
from tpo.config.judges import HealthConfig, VerifierJudge
from tpo.errors import StageError
from tpo.records import JudgeHealth, Judgment, Score


def a_group(*texts: str, reference: str | None = None, prompt_id: str = "p") -> Group:
    return Group(prompt_id, "?", reference, tuple(Response(i, text) for i, text in enumerate(texts)))


def compared(m: int, n: int, outcome: float | None, *, refused: bool = False, prompt_id: str = "p") -> Judgment:
    return Judgment(prompt_id, m, n, outcome, json.dumps({"reason": "too_long"} if refused else {"text": ""}))


def scored(group: Group, *values: float | None) -> list[Score]:
    return [
        Score(group.prompt_id, r.index, value, "no_verdict" if value is None else None, None, len(r.text))
        for r, value in zip(group.responses, values, strict=True)
    ]


def health(groups: list[Group], judgments: list[Judgment], scores: list[Score]) -> JudgeHealth:
    return measure_health(groups, judgments, scores, VerifierJudge())


def test_comparisons_are_counted_by_outcome():
    group = a_group("a", "b", "c")
    judgments = [
        compared(0, 1, 1.0), compared(1, 0, -1.0), compared(0, 2, 1.0), compared(2, 0, 1.0), compared(1, 2, 0.0),
        compared(2, 1, None), compared(1, 0, None, refused=True, prompt_id="q"),
    ]  # fmt: skip
    found = health([group], judgments, scored(group, 1.0, None, 0.0))
    assert (found.comparisons, found.unparsable, found.refused, found.ties) == (7, 1, 1, 1)
    assert found.first_rate == 3 / 4
    assert found.swap_agreement == 1 / 2
    assert (found.tie_rate, found.unparsable_rate) == (1 / 7, 2 / 7)
    assert found.unscored == {"no_verdict": 1} and found.unscored_rate == 1 / 3
    assert found.score_quantiles[0] == 0.0 and found.score_quantiles[-1] == 1.0 and len(found.score_quantiles) == 11


def test_agreement_is_over_right_wrong_pairs_of_one_prompt_ties_half():
    first = a_group("yes.", "no.", "yes", reference="yes", prompt_id="p")
    second = a_group("yes", "no", reference="yes", prompt_id="q")
    unknown = a_group("yes", "no", prompt_id="r")
    scores = scored(first, 2.0, 1.0, 0.0) + scored(second, 1.0, 1.0) + scored(unknown, 0.0, 1.0)
    found = health([first, second, unknown], [], scores)
    assert found.reference_pairs == 3
    assert found.reference_agreement == (1 + 0 + 0.5) / 3


def test_agreement_is_with_the_instructions_where_the_referee_checks_them():
    no_comma = json.dumps([{"id": "punctuation:no_comma", "kwargs": {}}])
    group = dataclasses.replace(a_group("yes", "no, no", "a, b", prompt_id="p"), constraints=no_comma)
    unknown = a_group("yes", "no, no", reference="yes", prompt_id="q")
    scores = scored(group, 2.0, 1.0, 3.0) + scored(unknown, 1.0, 0.0)
    found = measure_health([group, unknown], [], scores, VerifierJudge(match="instructions"))
    assert (found.reference_agreement, found.reference_pairs) == (1 / 2, 2)
    assert health([group, unknown], [], scores).reference_pairs == 1


def test_length_correlation_is_within_prompts():
    short = a_group("a", "aa", "aaa", prompt_id="p")
    long = a_group("a" * 100, "a" * 101, "a" * 102, prompt_id="q")
    found = health([short, long], [], scored(short, 1.0, 2.0, 3.0) + scored(long, -1.0, -2.0, -3.0))
    assert found.length_correlation == pytest.approx(0)
    assert health([short], [], scored(short, 1.0, 1.0, 1.0)).length_correlation is None


def test_scores_of_unjudged_responses_are_left_out():
    group = a_group("a", "b")
    unjudged = Score("p", 7, None, "parse_error: empty_response", None, 0)
    found = health([group], [], [*scored(group, 1.0, 0.0), unjudged])
    assert (found.responses, found.unscored) == (2, {})


def test_shares_of_nothing_are_none():
    found = health([], [], [])
    assert {found.unscored_rate, found.unparsable_rate, found.tie_rate, found.first_rate, found.swap_agreement} == {
        None
    }
    assert (found.swap_kappa, found.equal_rate) == (None, None)
    check_health(found, HealthConfig(max_unscored=0, max_ties=0, min_swap_agreement=1), "scores")
    assert describe_health(found) == "0 scored"


def test_identical_responses_do_not_count_as_equal_scores():
    same, equal, apart = a_group("a", "a"), a_group("a", "b", prompt_id="q"), a_group("a", "b", prompt_id="r")
    scores = scored(same, 1.0, 1.0) + scored(equal, 2.0, 2.0) + scored(apart, 1.0, 2.0)
    found = health([same, equal, apart], [], scores)
    assert (found.equal_rate, found.scored_groups) == (0.5, 2)


@pytest.mark.parametrize(
    ("first_rate", "agreement", "kappa"),
    [(0.5, 1.0, 1.0), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0), (0.8, 0.32, 0.0), (0.5, 0.0, -1.0), (0.73, 0.54, 0.2408)],
)
def test_kappa_is_agreement_beyond_that_of_a_judge_that_follows_only_the_order(
    first_rate: float, agreement: float, kappa: float
):
    found = JudgeHealth(**SOUND | {"first_rate": first_rate, "swap_agreement": agreement})
    assert found.swap_kappa == pytest.approx(kappa, abs=1e-3)


SOUND: dict[str, Any] = {
    "responses": 100, "unscored": {}, "comparisons": 100, "unparsable": 0, "refused": 0, "ties": 0, "first_rate": 0.5,
    "swap_agreement": 0.9, "length_correlation": 0.1, "reference_agreement": 0.9, "reference_pairs": 50,
    "score_quantiles": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "limits", "message"),
    [
        ({"unscored": {"no_verdict": 21}}, {}, "health.max_unscored allows at most 0.2"),
        ({"unparsable": 11, "refused": 10}, {}, "health.max_unparsable allows at most 0.2"),
        ({"ties": 50}, {"max_ties": 0.4}, "health.max_ties"),
        ({"first_rate": 0.9}, {"max_first_rate": 0.8}, "health.max_first_rate"),
        ({"swap_agreement": 0.4}, {"min_swap_agreement": 0.5}, "health.min_swap_agreement allows at least 0.5"),
        ({"length_correlation": 0.6}, {"max_length_correlation": 0.5}, "health.max_length_correlation"),
        ({"reference_agreement": 0.4}, {"min_reference_agreement": 0.5}, "health.min_reference_agreement"),
    ],
)
def test_an_exceeded_limit_is_named_with_the_value_found(found: dict[str, Any], limits: dict[str, Any], message: str):
    check_health(JudgeHealth(**SOUND), HealthConfig(**limits), "iter_1/scores")
    with pytest.raises(StageError, match="iter_1/scores: the judge does not look sound") as error:
        check_health(JudgeHealth(**SOUND | found), HealthConfig(**limits), "iter_1/scores")
    assert message in str(error.value)


def asked_in_both_orders(pairs: int, verdict: Callable[[random.Random, int], float]) -> JudgeHealth:
    """Health of a judge whose verdict on a pair, given which response is shown first, is `verdict`."""
    draw, judgments, groups, scores = random.Random(0), [], [], []
    for p in range(pairs):
        groups.append(a_group("a", "b", prompt_id=f"{p}"))
        scores += scored(groups[-1], 1.0, 0.0)
        judgments += [
            compared(m, n, outcome, prompt_id=f"{p}") for m, n in ((0, 1), (1, 0)) if (outcome := verdict(draw, m))
        ]
    return health(groups, judgments, scores)


def biased(share: float, first: float) -> Callable[[random.Random, int], float]:
    """Prefers response 0 in this share of its verdicts; in the others, the first one with probability `first`."""

    def verdict(draw: random.Random, shown_first: int) -> float:
        if draw.random() < share:
            return 1.0 if shown_first == 0 else -1.0
        return 1.0 if draw.random() < first else -1.0

    return verdict


@pytest.mark.parametrize("pairs", [40, 200, 2000])
@pytest.mark.parametrize("first", [0.5, 0.7, 0.9, 1.0])
def test_a_judge_that_follows_only_the_order_or_a_coin_is_stopped_by_default(pairs: int, first: float):
    with pytest.raises(StageError, match="min_swap_kappa"):
        check_health(asked_in_both_orders(pairs, biased(0.0, first)), HealthConfig(), "scores")


@pytest.mark.parametrize("pairs", [3, 10, 40, 2000])
@pytest.mark.parametrize(("share", "first"), [(0.7, 0.5), (0.6, 0.9), (1.0, 0.5)])
def test_a_judge_that_favors_the_first_but_still_discriminates_passes(pairs: int, share: float, first: float):
    check_health(asked_in_both_orders(pairs, biased(share, first)), HealthConfig(), "scores")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"first_rate": 1.0, "swap_agreement": 0.0}, r"max_first_rate.*min_swap_kappa"),
        ({"swap_agreement": 0.5}, "min_swap_kappa"),
        ({"ties": 95}, "max_ties"),
        ({"equal_rate": 1.0, "scored_groups": 40}, "max_equal"),
        ({"reference_agreement": 0.5}, "min_reference_agreement"),
    ],
)
def test_judges_that_carry_no_information_are_stopped_by_default(found: dict[str, Any], message: str):
    with pytest.raises(StageError, match=message):
        check_health(JudgeHealth(**SOUND | found), HealthConfig(), "scores")


def test_judges_like_the_shipped_ones_pass_by_default():
    weak = {"first_rate": 0.7313, "swap_agreement": 0.53, "reference_agreement": 0.55, "reference_pairs": 2000}
    check_health(JudgeHealth(**SOUND | weak), HealthConfig(), "scores")


def test_a_verifier_may_find_all_responses_wrong():
    hard = JudgeHealth(**SOUND | {"equal_rate": 1.0, "scored_groups": 40})
    check_health(hard, HealthConfig(), "scores", exact=True)


@pytest.mark.parametrize(
    ("pairs", "agreement", "stops"),
    [(50, 0.49, True), (29, 0.49, False), (8, 0.4, False), (8, 0.0, True), (1, 0.0, False)],
)
def test_with_few_pairs_a_limit_must_be_exceeded_by_more_than_chance(pairs: int, agreement: float, stops: bool):
    found = JudgeHealth(**SOUND | {"swap_agreement": agreement, "swap_pairs": pairs})
    with pytest.raises(StageError) if stops else contextlib.nullcontext():
        check_health(found, HealthConfig(min_swap_agreement=0.5, min_swap_kappa=-1), "scores")


def test_every_exceeded_limit_is_named():
    with pytest.raises(StageError, match=r"max_unscored.*max_ties.*min_swap_agreement"):
        check_health(
            JudgeHealth(**SOUND | {"unscored": {"x": 90}, "ties": 9, "swap_agreement": 0.1}),
            HealthConfig(max_ties=0.01, min_swap_agreement=0.5),
            "scores",
        )
