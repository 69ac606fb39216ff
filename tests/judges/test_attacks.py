"""Claims about the suite of attacks on judges."""

from judges.attacks import KINDS, attacks_on, drawn, own
from judges.verifier import Verifier
from prompts.rubric import load_rubric_prompt, read_score
from prompts.verdict import PROMPTS, parse_verdict
from tpo.config.judges import EnsembleJudge, EnsembleMember, PairwiseJudge, RubricJudge, VerifierJudge

PAIRWISE = attacks_on(PairwiseJudge())


def test_every_kind_has_variants_with_names_of_their_own():
    assert PAIRWISE.keys() == KINDS.keys()
    for kind, attacks in PAIRWISE.items():
        assert len(attacks) >= 3
        assert len({attack.variant for attack in attacks}) == len(attacks)
        assert {attack.kind for attack in attacks} == {kind}


def test_constant_responses_ignore_the_prompt_and_all_others_keep_the_response():
    for kind, attacks in PAIRWISE.items():
        for attack in attacks:
            one, other = attack.rewrite("Why is the sky blue?", "It is not."), attack.rewrite("Who?", "Nobody came.")
            if kind in ("null_model", "master_key"):
                assert one == other
            else:
                assert "It is not" in one and "Nobody came" in other and one != "It is not."


def test_each_pair_meets_one_variant_of_every_kind_and_pairs_meet_all_variants():
    assert [attack.kind for attack in drawn(PAIRWISE, "a")] == list(KINDS)
    assert [a.variant for a in drawn(PAIRWISE, "a")] == [a.variant for a in drawn(PAIRWISE, "a")]
    seen = {(a.kind, a.variant) for i in range(400) for a in drawn(PAIRWISE, str(i))}
    assert seen == {(a.kind, a.variant) for attacks in PAIRWISE.values() for a in attacks}


def test_a_comparing_judge_is_attacked_in_the_format_that_its_replies_are_read_by():
    assert any(parse_verdict(text, finished=True) for text in own(PairwiseJudge()))
    assert own(VerifierJudge()) == ()


def test_a_grading_judge_and_an_ensembles_members_are_attacked_in_their_own_formats():
    rubric, additive = RubricJudge(), RubricJudge(template="additive")
    assert read_score(own(rubric)[0], rubric, finished=True) == 10
    assert read_score(own(additive)[1], additive, finished=True) == 5
    members = tuple(EnsembleMember(name=j.kind, judge=j, unit=1.0) for j in (PairwiseJudge(), rubric))
    assert {*own(rubric), *own(PairwiseJudge())} == {*own(EnsembleJudge(members=members))}
    prompt = load_rubric_prompt(rubric)
    frame = prompt.render("Why?", "")[1]["content"]
    for attacks in attacks_on(rubric).values():
        for attack in attacks:
            shown = prompt.render("Why?", attack.rewrite("Why?", "So."))[1]["content"]
            for part in ("[[Score:", "[The End of the Response]", "[The Start of the Response]"):
                assert shown.count(part) == frame.count(part), attack.variant


def test_no_attack_reaches_a_verdict_prompt_as_a_part_of_it():
    frame = PROMPTS["cot"].render("Why?", "", "")[1]["content"]
    for attacks in PAIRWISE.values():
        for attack in attacks:
            shown = PROMPTS["cot"].render("Why?", attack.rewrite("Why?", "So."), "")[1]["content"]
            for part in ("[[A]]", "[[B]]", "[The Start of Assistant B's Answer]", "[The End of Assistant A's Answer]"):
                assert shown.count(part) == frame.count(part), attack.variant


def test_the_verifier_finds_no_answer_in_a_constant_response():
    verifier = Verifier(VerifierJudge())
    for kind in ("null_model", "master_key"):
        for attack in PAIRWISE[kind]:
            assert not verifier.equal(verifier.answer(attack.rewrite("2 + 2?", "5")), "4")
