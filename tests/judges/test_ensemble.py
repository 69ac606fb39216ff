"""Claims about several judges as one: who is asked, how their scores are combined, and what is kept of them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from judges.base import BASELINE, Group, Judge, Response, Spend, uncounted
from judges.ensemble import Ensemble, member_of
from judges.health import describe_health, measure_health, pooled
from judges.pairwise import Pairwise
from judges.rubric import Rubric
from judges.verifier import Verifier
from tasks.candidates import ScoredGroup, ScoredSample, pair_indices
from tests.judges.test_pairwise import Scripted as ScriptedVerdicts
from tests.judges.test_pairwise import longer
from tests.judges.test_rubric import Scripted as ScriptedGrades
from tests.judges.test_rubric import by_length
from tests.rows import a_sample
from tpo.config.hub import addresses_in
from tpo.config.judges import (
    EnsembleJudge,
    EnsembleMember,
    PairConfig,
    PairwiseJudge,
    RubricJudge,
    VerifierJudge,
    compares,
    judge_name,
    least_margin,
    members_of,
    pairs_need_agreement,
)
from tpo.engines.inference.reply import TokenCount
from tpo.records import JudgeHealth, Judgment, Score, members_agree
from tpo.storage.journal import Journal


class Fixed:
    """A judge whose scores are given by text; None for a text that it can't score."""

    def __init__(self, scores: dict[str, float | None]) -> None:
        self.asked: list[Group] = []
        self._scores = scores

    def judge(
        self, groups: Sequence[Group], journal: Journal | None = None, spend: Spend = uncounted
    ) -> Iterator[list[Judgment]]:
        for group in groups:
            self.asked.append(group)
            for _ in group.responses:
                spend(TokenCount(1, 1))
            yield [
                Judgment(group.prompt_id, response.index, None, self._scores[response.text], json.dumps({"x": 1}))
                for response in group.responses
            ]

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        by_index = {judgment.index: judgment.outcome for judgment in judgments}
        return [
            Score(
                group.prompt_id, r.index, by_index[r.index], None if by_index[r.index] is not None else "odd", None, 1
            )
            for r in group.responses
        ]


def config(**settings: Any) -> EnsembleJudge:
    members = settings.pop("members", [{}, {}])
    own = [{"name": "abc"[i], "judge": {"kind": "verifier"}, "unit": 1.0, **member} for i, member in enumerate(members)]
    return EnsembleJudge.model_validate({"members": own, **settings})


def group_of(*texts: str, prompt_id: str = "p", baseline: str | None = None) -> Group:
    against = None if baseline is None else Response(BASELINE, baseline)
    return Group(prompt_id, "Which?", "x", tuple(Response(i, text) for i, text in enumerate(texts)), against)


def judged(ensemble: Ensemble, group: Group) -> list[Score]:
    (judgments,) = ensemble.judge([group])
    return ensemble.score(group, judgments)


def values(scores: Sequence[Score]) -> list[float | None]:
    return [score.value for score in scores]


A: dict[str, float | None] = {"x": 10.0, "y": 20.0, "z": 60.0}
B: dict[str, float | None] = {"x": 3.0, "y": 1.0, "z": 2.0}


def z(row: dict[str, float | None]) -> Any:
    table = np.array([row[text] for text in "xyz"], dtype=np.float64)
    return (table - table.mean()) / table.std()


def test_scores_are_the_weighted_mean_within_the_prompt_and_keep_each_members():
    scores = judged(Ensemble(config(members=[{"weight": 3.0}, {}]), [Fixed(A), Fixed(B)]), group_of(*"xyz"))
    assert values(scores) == pytest.approx(((3 * z(A) + z(B)) / 4).tolist())
    for i, score in enumerate(scores):
        assert score.member_scores == pytest.approx([z(A)[i], z(B)[i]])
        assert score.disagreement == pytest.approx(abs(z(A)[i] - z(B)[i]) / 2)


def test_the_worst_members_score_counts():
    scores = judged(Ensemble(config(combine="worst"), [Fixed(A), Fixed(B)]), group_of(*"xyz"))
    assert values(scores) == pytest.approx(np.minimum(z(A), z(B)).tolist())


def test_a_veto_puts_a_response_last():
    ensemble = Ensemble(config(combine="veto", members=[{}, {"veto_below": 2.0}]), [Fixed(A), Fixed(B)])
    x, y, last = judged(ensemble, group_of(*"xyz"))
    mean = (z(A) + z(B)) / 2
    assert x.value == pytest.approx(mean[0]) and last.value == pytest.approx(mean[2])
    assert y.value == pytest.approx(mean.min() - 1)


def test_a_response_that_a_member_did_not_score_is_unscored_with_its_reason():
    scores = judged(Ensemble(config(), [Fixed(A), Fixed(B | {"y": None})]), group_of(*"xyz"))
    assert [score.unscored for score in scores] == [None, "b: odd", None]
    assert (scores[1].value, scores[1].member_scores, scores[1].disagreement) == (None, None, None)
    assert values(scores)[::2] == [pytest.approx(0), pytest.approx(0)], "-1 and 1 among the two that both scored"


def test_nothing_is_scored_if_a_member_scores_nothing():
    scores = judged(Ensemble(config(), [Fixed(A), Fixed(dict.fromkeys("xyz"))]), group_of(*"xyz"))
    assert {score.unscored for score in scores} == {"b: odd"}


# One response


def test_a_single_response_gets_the_mean_of_the_members_points():
    ensemble = Ensemble(
        config(combine="worst", members=[{"weight": 3.0, "unit": 20.0}, {"unit": 2.0}]), [Fixed(A), Fixed(B)]
    )
    (score,) = judged(ensemble, group_of("z"))
    assert score.value == pytest.approx((3 * 60 / 20 + 2 / 2) / 4)
    assert score.member_scores == [3.0, 1.0]


def test_members_that_compare_are_left_out_of_single_responses_unless_all_do():
    mixed = config(members=[{}, {"judge": {"kind": "pairwise"}}])
    asker = ScriptedVerdicts(longer)
    ensemble = Ensemble(mixed, [Fixed(A), Pairwise(PairwiseJudge(), asker)])
    (score,) = judged(ensemble, group_of("z"))
    assert (score.value, asker.asked) == (60.0, [])
    assert not compares(mixed)
    both = config(members=[{"judge": {"kind": "pairwise"}, "unit": 9.0}, {"judge": {"kind": "pairwise"}}])
    ensemble = Ensemble(both, [Pairwise(PairwiseJudge(), ScriptedVerdicts(longer)) for _ in range(2)])
    assert compares(both)
    (score,) = judged(ensemble, group_of("longer", baseline="short"))
    assert score.value == 1.0


# Escalation


@pytest.mark.parametrize(("below", "asked"), [(2.8, False), (2.9, True)])
def test_the_others_are_asked_about_close_prompts_only(below: float, asked: bool):
    """Of 0, 0, 0, 0, 0, 0 and 9, the last leads by 2.86 standard deviations."""
    cheap: dict[str, float | None] = {"g": 9.0}
    cheap.update(dict.fromkeys("abcdef", 0.0))
    other = Fixed({text: float(i) for i, text in enumerate("abcdefg")})
    ensemble = Ensemble(config(escalate_below=below), [Fixed(cheap), other])
    scores = judged(ensemble, group_of(*"abcdefg"))
    assert bool(other.asked) is asked
    assert {len(score.member_scores or ()) for score in scores} == {2 if asked else 1}
    assert (values(scores)[-1] or 0) > 1


def test_a_prompt_with_one_text_is_not_escalated_and_a_single_response_is_read_by_all():
    other = Fixed(B)
    ensemble = Ensemble(config(escalate_below=9.0), [Fixed(A), other])
    judged(ensemble, group_of(*"xxx"))
    assert other.asked == []
    (score,) = judged(ensemble, group_of("x"))
    assert score.member_scores == [10.0, 3.0]


# Journals and meters


def test_members_with_equal_keys_share_a_journal_and_are_asked_once(tmp_path: Path):
    def made() -> tuple[Ensemble, list[Any]]:
        askers: list[Any] = [ScriptedGrades(by_length), ScriptedVerdicts(longer)]
        judges: list[Judge] = [Rubric(RubricJudge(model="m"), askers[0]), Pairwise(PairwiseJudge(), askers[1])]
        rubric = {"kind": "rubric", "model": "m"}
        return Ensemble(config(members=[{"judge": rubric}, {"judge": {"kind": "pairwise"}}]), judges), askers

    group = group_of("a", "bb", "ccc")
    with Journal(tmp_path / "journal.jsonl") as journal:
        ensemble, askers = made()
        first = list(ensemble.judge([group], journal))
        assert [len(asker.asked) for asker in askers] == [3, 6]
    with Journal(tmp_path / "journal.jsonl") as journal:
        ensemble, askers = made()
        assert list(ensemble.judge([group], journal)) == first
        assert [len(asker.asked) for asker in askers] == [0, 0]
    assert [member_of(judgment) for judgment in first[0]] == ["a"] * 3 + ["b"] * 6
    assert values(ensemble.score(group, first[0])) == sorted(values(ensemble.score(group, first[0])), key=float)  # type: ignore[arg-type]


def test_each_members_work_is_booked_by_itself():
    booked: dict[str, list[TokenCount]] = {"a": [], "b": []}

    def open_meter(member: EnsembleMember, groups: Sequence[Group]) -> AbstractContextManager[Spend]:
        return nullcontext(booked[member.name].append)

    ensemble = Ensemble(config(), [Fixed(A), Fixed(B)])
    ensemble.book_with(open_meter)
    spent: list[TokenCount] = []
    list(ensemble.judge([group_of(*"xyz")], spend=spent.append))
    assert [len(found) for found in booked.values()] == [3, 3] and spent == []


# Pairs


def test_a_pair_needs_all_members_if_they_have_to_agree():
    ensemble = Ensemble(config(agreement="all", members=[{"weight": 2.0}, {}]), [Fixed(A), Fixed(B)])
    for texts, made in (("xz", False), ("yz", True)):
        scores = judged(ensemble, group_of(*texts))
        valid = [ScoredSample(a_sample("p", i, response=texts[i]), score) for i, score in enumerate(scores)]
        group = ScoredGroup("p", valid, [], [])
        assert not isinstance(pair_indices(group, group.controlled(0.0, 0.0), 0.0), str)
        found = pair_indices(group, group.controlled(0.0, 0.0), 0.0, all_agree=True)
        assert isinstance(found, tuple) is made and (made or found == "members_disagree")
    assert pairs_need_agreement(config(agreement="all")) and not pairs_need_agreement(config())
    assert not pairs_need_agreement(VerifierJudge())


def test_members_agree_only_if_each_prefers_the_better_one():
    def score(*members: float) -> Score:
        return Score("p", 0, 0.0, None, None, 1, list(members))

    assert members_agree(score(1, 2), score(0, 1))
    assert not members_agree(score(1, 1), score(0, 1))
    assert members_agree(score(1), score(0)), "only the first was asked"


# Health


def test_health_has_each_members_own_and_how_far_they_agree():
    groups = [group_of("x", "y", "z"), group_of("x", "y", prompt_id="q"), group_of("x", prompt_id="r")]
    right: dict[str, float | None] = {"x": 2.0, "y": 1.0, "z": 0.0}
    wrong: dict[str, float | None] = {"x": 0.0, "y": 1.0, "z": 2.0}
    found = {}
    for name, other in (("agree", right), ("oppose", wrong)):
        ensemble = Ensemble(config(members=[{"weight": 2.0}, {}]), [Fixed(right), Fixed(other)])
        judgments = [judgment for of_group in ensemble.judge(groups) for judgment in of_group]
        by_prompt = {g.prompt_id: [j for j in judgments if j.prompt_id == g.prompt_id] for g in groups}
        scores = [score for group in groups for score in ensemble.score(group, by_prompt[group.prompt_id])]
        found[name] = measure_health(groups, judgments, scores, VerifierJudge(), ensemble)
    assert found["agree"].agreeing_pairs == 1.0 and found["oppose"].agreeing_pairs == 0.0
    assert found["oppose"].judged_pairs == 4 and (found["oppose"].disagreement or 0) > 0.5
    agrees = {name: JudgeHealth(**values).reference_agreement for name, values in found["oppose"].members.items()}
    assert agrees == {"a": 1.0, "b": 0.0} and found["oppose"].reference_agreement == 1.0
    both = pooled([found["agree"], found["oppose"]], [])
    assert both.agreeing_pairs == 0.5 and JudgeHealth(**both.members["b"]).reference_agreement == 0.5
    assert json.loads(json.dumps(asdict(both)))["members"].keys() == {"a", "b"}
    said = describe_health(found["oppose"])
    assert "members agree 0.0%" in said and "b: 6 scored, agrees with references 0.0%" in said


# Settings


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"members": [{}]}, "at least 2"),
        ({"members": [{"name": "a"}, {"name": "a"}]}, "members has a more than once"),
        ({"members": [{"veto_below": 1.0}, {}]}, 'set combine to "veto"'),
        ({"combine": "veto"}, "no member has veto_below"),
        (
            {"combine": "veto", "escalate_below": 1.0, "members": [{}, {"veto_below": 1.0}]},
            "b, which has a veto, would be asked about close prompts only",
        ),
        ({"members": [{}, {"judge": {"kind": "ensemble"}}]}, "ensemble"),
        ({"members": [{}, {"unit": 0}]}, "greater than 0"),
        ({"members": [{}, {"name": "a b"}]}, "pattern"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], fault: str):
    with pytest.raises(ValueError, match=fault):
        config(**settings)


def test_members_on_the_hub_are_found():
    judge = {"kind": "armorm", "model": "hf://org/rm@main"}
    ensemble = config(members=[{"judge": judge}, {"judge": judge | {"model": "hf://org/other@main"}}])
    assert [*addresses_in(ensemble)] == [
        ("members[0].judge.model", "hf://org/rm@main"),
        ("members[1].judge.model", "hf://org/other@main"),
    ]


def test_an_ensemble_is_named_by_its_members_and_makes_pairs_of_any_spread():
    ensemble = config(combine="worst")
    assert judge_name(ensemble) == "ensemble (worst of a, b)"
    assert members_of(ensemble) == (VerifierJudge(), VerifierJudge()) and members_of(VerifierJudge()) == (
        VerifierJudge(),
    )
    assert least_margin(PairConfig(), ensemble) == 0
    assert isinstance(Ensemble(ensemble, [Verifier(VerifierJudge())] * 2), Ensemble)
