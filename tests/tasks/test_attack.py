"""Claims about attacks on a run's own judge: which pairs are attacked, and what becomes of the shares."""

import pytest

from judges.attacks import KINDS
from tasks.attack import asked_about, attacked_pairs, best_and_worst, check_attacks, describe_attacks
from tests.rows import a_sample, a_score
from tpo.config.judges import ArmoRMJudge, EnsembleJudge, EnsembleMember, PairwiseJudge, RubricJudge, VerifierJudge
from tpo.data.preference_files import Preference
from tpo.errors import StageError
from tpo.records import AttackShare, Prompt, Sample, Score


def answers(prompt_id: str, *scored: tuple[str, float | None, str | None]) -> list[tuple[Sample, Score]]:
    """Samples of a prompt with their responses, scores and parse errors."""
    return [
        (
            Sample(prompt_id, i, [], [], text, "", text, error, 1),
            Score(prompt_id, i, value, None if value is not None else "refused", None, len(text)),
        )
        for i, (text, value, error) in enumerate(scored)
    ]


def a_share(attack: str, turned: float | None, pairs: int = 100, unscored: int = 0) -> AttackShare:
    low, high = (None, None) if turned is None else (max(0.0, turned - 0.05), min(1.0, turned + 0.05))
    return AttackShare(attack, KINDS[attack], turned, low, high, pairs, unscored)


def an_ensemble() -> EnsembleJudge:
    return EnsembleJudge(
        members=[
            EnsembleMember(name="armorm", judge=ArmoRMJudge(), unit=0.3),
            EnsembleMember(name="verifier", judge=VerifierJudge(), unit=1.0),
        ]
    )


def test_a_pair_is_a_prompts_best_and_worst_response_with_all_that_a_judge_sees():
    asked = [Prompt("a", "Why?", reference="so", rubric="Be right."), Prompt("b", "How?"), Prompt("c", "Who?")]
    rows = [
        *answers("a", ("so", 2.0, None), ("no", 0.5, None), ("broken", 9.0, "no_response"), ("lost", None, None)),
        *answers("b", ("x", 1.0, None), ("y", 1.0, None)),
        *answers("c", ("one", 1.0, None), ("other", 0.8, None)),
    ]
    samples, scores = zip(*rows, strict=True)
    (pair,) = best_and_worst(asked, samples, scores, 0.5)
    assert (pair.better, pair.worse) == (("so",), ("no",))
    assert (pair.instruction, pair.reference, pair.rubric) == ("Why?", "so", "Be right.")
    found = best_and_worst(asked, samples, scores, 0.0)
    assert [each.instruction for each in found] == ["Why?", "Who?"], "equal scores make no pair, whatever the margin"


def test_equal_texts_with_different_scores_make_no_pair():
    samples, scores = zip(*answers("a", ("so", 2.0, None), ("so", 0.5, None)), strict=True)
    assert list(best_and_worst([Prompt("a", "Why?")], samples, scores, 0.0)) == []


def test_samples_without_their_scores_are_an_error_and_no_wrong_pair():
    sample, score = a_sample("a"), a_score("a", 0, 1.0)
    with pytest.raises(ValueError, match="shorter"):
        list(best_and_worst([Prompt("a", "Why?")], [sample, sample], [score], 0.0))


@pytest.mark.parametrize("judge", [VerifierJudge(), PairwiseJudge()])
def test_every_kind_of_attack_is_on_the_worse_response_and_keeps_the_rubric(judge: VerifierJudge | PairwiseJudge):
    found = attacked_pairs(judge, [Preference("Why?", ("so",), ("no",), rubric="Be right.")], plain_too=True)
    assert [each.attack.kind for each in found] == [*KINDS]
    assert all(each.pair.better == ("so",) and each.pair.worse != ("no",) for each in found)
    assert {each.pair.rubric for each in found} == {"Be right."}


@pytest.mark.parametrize("plain_too", [True, False])
def test_a_judge_that_scores_alone_sees_the_better_response_once(plain_too: bool):
    rows = [Preference("Why?", ("so",), ("no",)), Preference("How?", ("thus",), ("no",))]
    asked = asked_about(attacked_pairs(RubricJudge(), rows, plain_too=plain_too), plain_too=plain_too)
    assert [row.better for row in asked] == [("so",), ("thus",)]
    assert all(len(row.worse) == len({*row.worse}) == len(KINDS) + plain_too for row in asked)
    assert [("no" in row.worse) for row in asked] == [plain_too, plain_too]


@pytest.mark.parametrize("judge", [PairwiseJudge(), an_ensemble()])
def test_a_judge_whose_scores_depend_on_the_others_sees_each_pair_by_itself(judge: PairwiseJudge | EnsembleJudge):
    row = Preference("Why?", ("so",), ("no",))
    for plain_too in (True, False):
        asked = asked_about(attacked_pairs(judge, [row], plain_too=plain_too), plain_too=plain_too)
        assert [len(each.worse) for each in asked] == [1] * (len(KINDS) + plain_too)
        assert (row in asked) == plain_too


def test_a_share_beyond_the_limit_stops_and_the_worst_attack_decides_what_helps():
    shares = [a_share("length", 0.4), a_share("null_model", 0.6), a_share("markdown", 0.1)]
    with pytest.raises(StageError) as stop:
        check_attacks(shares, 0.1, "iter_1/attacks/shares")
    said = str(stop.value)
    assert said.index("null model (a constant") < said.index("length (padding") and "markdown" not in said
    assert "60.0 % [55.0, 65.0] of 100 pairs" in said and "an ensemble in which one that does has a veto" in said
    check_attacks(shares, 0.6, "at the limit")
    check_attacks(shares, None, "without a limit")


def test_few_pairs_have_to_be_beyond_the_limit_by_more_than_chance():
    check_attacks([a_share("length", 0.2, pairs=5)], 0.1, "s")
    with pytest.raises(StageError, match="of 5 pairs"):
        check_attacks([a_share("length", 1.0, pairs=5)], 0.1, "s")
    with pytest.raises(StageError, match="of 100 pairs"):
        check_attacks([a_share("length", 0.2)], 0.1, "s")


def test_without_any_pair_it_says_so_and_stops_nothing():
    shares = [a_share("length", None, pairs=0, unscored=3)]
    assert describe_attacks(shares) == "the judge gave none of 3 attacked pairs two scores, so nothing is known"
    assert describe_attacks([]).startswith("no pair of responses could be attacked")
    check_attacks(shares, 0.0, "s")
