"""Claims about how scored samples become preference pairs."""

import dataclasses
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.candidates import ScoredGroup, group_candidates
from tasks.handles import JudgedSamples
from tasks.pair import PairChoice, PairChoices, describe, make_pairs
from tasks.pair import pair as pair_stage
from tests.rows import a_config, a_sample, a_score, stored
from tpo.config.judges import (
    ArmoRMJudge,
    JudgeConfig,
    PairConfig,
    PairwiseJudge,
    RewardModelJudge,
    VerifierJudge,
    least_margin,
)
from tpo.errors import StageError

BROKEN = "broken"
UNSCORED = "unscored"
Kind = float | str | tuple[float, int]
"""A candidate: its score, its score and length, or its error."""
WITH_ERROR: list[Kind] = [1.0, 0.0, BROKEN]

pytestmark = pytest.mark.filterwarnings("ignore:at rho 0.5")

a_candidate = st.one_of(
    st.just(BROKEN),
    st.just(UNSCORED),
    st.tuples(st.sampled_from([0.0, 0.4, 1.0, 1.3]), st.integers(0, 60)),
)
some_groups = st.lists(st.lists(a_candidate, min_size=1, max_size=6), max_size=25)


def groups_of(*prompts: Sequence[Kind]) -> list[ScoredGroup]:
    samples, scores = [], []
    for p, candidates in enumerate(prompts):
        for i, kind in enumerate(candidates):
            value, chars = kind if isinstance(kind, tuple) else (kind, 4)
            name = f"p{p}"
            samples.append(a_sample(name, i, response="." * chars, parse_error="x" if value == BROKEN else None))
            scores.append(a_score(name, i, value if isinstance(value, float) else None, chars=chars))
    return group_candidates(samples, scores)


def paired(*prompts: Sequence[Kind], max_tokens: int = 10_000, seed: int = 0, **config: object) -> PairChoices:
    settings = PairConfig.model_validate({"rho": 0.0, **config})
    margin = least_margin(settings, VerifierJudge())
    return make_pairs(groups_of(*prompts), settings, min_margin=margin, max_tokens=max_tokens, seed=seed)


def indices(pairs: Sequence[PairChoice]) -> list[tuple[int, int]]:
    return [(pair.chosen_index, pair.rejected_index) for pair in pairs]


def test_the_best_is_chosen_and_the_worst_rejected():
    made = paired([0.5, 1.0, 0.0])
    assert indices(made.pairs) == [(1, 2)]
    assert (made.pairs[0].kind, made.pairs[0].chosen_score, made.pairs[0].rejected_score) == ("regular", 1.0, 0.0)
    assert made.pairs[0].margin == pytest.approx(2.449490)  # (1 − 0) / std of (0.5, 1, 0)


def test_with_a_penalty_the_shorter_thought_of_equally_good_outputs_is_chosen():
    samples = [a_sample("p", i, thought="." * chars, response=f"Yes {i}.") for i, chars in enumerate((60, 10, 50, 30))]
    groups = group_candidates(samples, [a_score("p", i, value) for i, value in enumerate((1.0, 1.0, 0.0, 0.0))])
    settings = {"min_margin": 0.5, "max_tokens": 10_000, "seed": 0}
    for penalty, expected in ((0.0, (0, 2)), (0.3, (1, 2))):
        config = PairConfig(rho=0.0, thought_penalty=penalty)
        assert indices(make_pairs(groups, config, **settings).pairs) == [expected], penalty  # type: ignore[arg-type]


def test_a_pair_holds_the_full_outputs_as_sampled_thoughts_included():
    (pair,) = paired([1.0, 0.0]).with_tokens(groups_of([1.0, 0.0]))
    chosen, rejected = (a_sample("p0", i, response="....") for i in (0, 1))
    assert pair.prompt_token_ids == chosen.prompt_token_ids
    assert pair.chosen_token_ids == chosen.output_token_ids
    assert pair.rejected_token_ids == rejected.output_token_ids
    assert bytes(pair.chosen_token_ids).startswith(chosen.thought.encode())


def test_indices_are_those_of_all_samples_not_of_the_remaining_ones():
    (pair,) = paired([BROKEN, UNSCORED, 1.0, 0.0], max_error_pair_ratio=0).pairs
    assert (pair.chosen_index, pair.rejected_index) == (2, 3)


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([1.0, 1.0, 1.0], "small_margin"),
        ([1.0, 0.6], "small_margin"),
        ([BROKEN, BROKEN], "all_malformed"),
        ([UNSCORED, UNSCORED], "unscored"),
        ([UNSCORED, BROKEN], "unscored"),
        ([1.0, BROKEN], "single_candidate"),
        ([1.0, UNSCORED], "single_candidate"),
    ],
)
def test_a_prompt_without_a_pair_is_dropped_and_counted_by_reason(candidates: Sequence[Kind], reason: str):
    made = paired(candidates)
    assert (made.pairs, made.account.dropped) == ([], {reason: 1})


CUT, UNMARKED = "cut_by_length", "missing_response_marker"
Outcome = tuple[float | str, str | None]
"""A sample's score, or why it has none; and its parse error."""
GOOD: list[Outcome] = [(1.0, None), (0.0, None)]


def stop(tmp_path: Path, *prompts: Sequence[Outcome], **changes: object) -> str:
    """The stage's message when it stops the run."""
    samples, scores = [], []
    for p, outcomes in enumerate(prompts):
        for i, (value, error) in enumerate(outcomes):
            samples.append(a_sample(f"p{p}", i, response="x" * (2 + p + 10 * i), parse_error=error))
            scored = isinstance(value, float) and error is None
            unscored = None if scored else str(value)
            scores.append(a_score(f"p{p}", i, float(value) if scored else None, unscored=unscored))
    answers = JudgedSamples(stored(tmp_path, "samples", samples), stored(tmp_path, "scores", scores))
    with pytest.raises(StageError) as stopped:
        pair_stage.fn(a_config(tmp_path, **changes), 1, answers)
    assert re.search(r"what was sampled and scored is in .*samples and .*scores", str(stopped.value))
    return str(stopped.value)


@pytest.mark.parametrize(
    ("prompts", "changes", "pattern"),
    [
        (
            [[("x", UNMARKED)] * 2] * 2 + [[(1.0, None)] * 2],
            {},
            r"^iteration 1: 0 pairs from 3 prompts \(2 all_malformed, 1 small_margin\): 4 of 6 outputs do not follow "
            r"the format \(4 missing_response_marker\): set sample.max_thought_tokens, which writes .*, or raise "
            r"sample.max_attempts \(1\), or try another prompt.variant or template",
        ),
        (
            [[("x", UNMARKED), ("x", UNMARKED)]],
            {"sample": {"k": 2, "max_thought_tokens": 9}},
            r"\(2 missing_response_marker\): raise sample.max_attempts",
        ),
        (
            [[("x", UNMARKED), ("x", UNMARKED)]],
            {"prompt": {"variant": "direct"}},
            r"\(2 missing_response_marker\): raise sample.max_attempts",
        ),
        (
            [[("x", CUT), (1.0, None)]] * 2 + [[("x", CUT)] * 2],
            {"sample": {"k": 2, "max_new_tokens": 70}},
            r"4 of 6 outputs were cut after 70 tokens, and those that ended have 18.5 tokens at the median and 19 at "
            r"most: raise sample.max_new_tokens \(70\), or set sample.max_thought_tokens, so that the response begins",
        ),
        (
            [[("x", CUT), ("x", CUT)]],
            {"sample": {"k": 2, "max_thought_tokens": 50}},
            r"none ended by itself: raise sample.max_new_tokens \(96\), or lower sample.max_thought_tokens \(50\)",
        ),
        (
            [[("no_verdict", None), (1.0, None)], [("no_verdict", None), ("too_long", None)]],
            {},
            r"the judge scored too few responses \(unscored: 2 no_verdict, 1 too_long\): look at its replies",
        ),
        (
            [[(1.0, None), (0.7, None)], [(1.0, None), (0.8, None)]],
            {},
            r"a prompt's raw scores lie 0.25 apart at the median: lower pair.min_margin \(0.5\)",
        ),
        (
            [[(1.0, None), (1.0, None)], [(0.0, None), (0.0, None)]],
            {},
            r"all responses are right, or all are wrong: choose prompts .*, or raise sample.k \(2\)",
        ),
        (
            [[(3.0, None), (3.0, None)]],
            {"judge": {"kind": "armorm", "model": "m"}},
            r"the responses to most prompts get equal scores: look whether they differ",
        ),
    ],
)
def test_the_remedy_fits_the_reason_that_most_prompts_share(
    tmp_path: Path, prompts: list[list[Outcome]], changes: dict[str, object], pattern: str
):
    message = stop(tmp_path, *prompts, **changes)
    assert re.search(pattern, message), message
    assert ("min_margin" in message) == ("min_margin" in pattern)


def test_a_run_stops_if_too_few_of_its_prompts_give_a_pair(tmp_path: Path):
    broken: list[Outcome] = [("x", UNMARKED)] * 2
    prompts = [GOOD, *[broken] * 15]
    message = stop(tmp_path / "stops", *prompts, pair={"max_error_pair_ratio": 0})
    assert re.match(
        r"iteration 1: only 1 of 16 prompts gave a pair \(6.2%, and health.min_pairs asks for 10.0%; 15 all_malformed\)"
        r": 30 of 32 outputs do not follow the format .* To train on so few all the same, lower health.min_pairs$",
        message,
    )


@pytest.mark.parametrize(("paired", "least"), [(2, 0.1), (1, 0.05), (1, 0.0)])
def test_a_run_continues_with_the_minimum_number_of_pairs(tmp_path: Path, paired: int, least: float):
    scored = {f"p{p}": (1.0, 0.0) if p < paired else (1.0, 1.0) for p in range(16)}
    samples = [a_sample(name, i) for name in scored for i in range(2)]
    scores = [a_score(name, i, values[i]) for name, values in scored.items() for i in range(2)]
    answers = JudgedSamples(stored(tmp_path, "samples", samples), stored(tmp_path, "scores", scores))
    assert pair_stage.fn(a_config(tmp_path, health={"min_pairs": least}), 1, answers).rows == paired


def test_a_tied_group_yields_no_pair_even_without_a_margin():
    assert paired([1.0, 1.0], min_margin=0).account.dropped == {"tie": 1}


@pytest.mark.parametrize(
    ("judge", "margin"),
    [
        (VerifierJudge(), 0.5),
        (VerifierJudge(match="instructions"), 1 / 50),
        (PairwiseJudge(), 0.5),
        (ArmoRMJudge(), 0.0),
        (RewardModelJudge(model="m"), 0.0),
    ],
)
def test_the_margin_suits_the_judge_unless_it_is_set(judge: JudgeConfig, margin: float):
    assert least_margin(PairConfig(), judge) == margin
    assert least_margin(PairConfig(min_margin=0.3), judge) == 0.3


@pytest.mark.parametrize(("scores", "pairs"), [([1 / 3, 2 / 3], 1), ([0.98, 1.0], 1), ([0.5, 0.5 + 1e-6], 0)])
def test_satisfying_one_more_instruction_makes_a_pair(scores: list[float], pairs: int):
    margin = least_margin(PairConfig(), VerifierJudge(match="instructions"))
    assert len(paired(scores, min_margin=margin).pairs) == pairs


def test_identical_outputs_yield_no_pair():
    samples = [dataclasses.replace(a_sample(index=i), output="same") for i in range(2)]
    groups = group_candidates(samples, [a_score(index=0, value=1.0), a_score(index=1, value=0.0)])
    assert make_pairs(groups, PairConfig(), min_margin=0.5, max_tokens=999, seed=0).account.dropped == {"tie": 1}


def test_the_margin_applies_to_raw_scores_before_length_control():
    assert len(paired([(1.0, 1), (0.4, 900)], min_margin=0.6, rho=0.5).pairs) == 1
    assert paired([(1.0, 1), (0.5, 900)], min_margin=0.6, rho=0.5).account.dropped == {"small_margin": 1}


def test_automatic_length_control_keeps_chosen_no_longer_than_rejected():
    liked_for_length = [(1.0 + length / 100, length) for length in (10, 20, 90)] + [(0.0, 15)]
    group = [*liked_for_length, (0.1, 60)]
    made = paired(*[group] * 5, rho="auto")
    lengths = [kind[1] for kind in group]
    chosen, rejected = (sum(lengths[pair[side]] for pair in indices(made.pairs)) for side in (0, 1))
    assert made.rho > 0
    assert chosen <= rejected


def test_error_pairs_replace_regular_ones_up_to_their_share():
    made = paired(*[[*WITH_ERROR, BROKEN]] * 20)
    borrowed = [pair for pair in made.pairs if pair.kind == "error_rejected"]
    assert (len(made.pairs), len(borrowed)) == (20, 2)
    for pair in borrowed:
        assert (pair.chosen_index, pair.rejected_index) == (0, 2)  # the first erroneous output
        assert (pair.rejected_score, pair.margin) == (None, None)


def test_errors_are_added_from_other_prompts_once_the_regular_pairs_are_used_up():
    regular: list[Kind] = [1.0, 0.0]
    single: list[Kind] = [1.0, BROKEN]
    made = paired(*[regular] * 19, *[single] * 3)
    assert (len(made.pairs), made.account.dropped) == (21, {"single_candidate": 1})


def test_the_share_of_errors_is_of_the_pairs_that_fit():
    long: list[Kind] = [(1.0, 90), (0.0, 90)]
    made = paired(*[WITH_ERROR] * 10, *[long] * 10, max_tokens=40)
    assert (describe(made)["regular"], describe(made)["error_rejected"]) == (9, 1)
    assert made.account.dropped == {"too_long": 10}


def test_no_error_is_used_if_their_share_is_0():
    assert {pair.kind for pair in paired(*[WITH_ERROR] * 30, max_error_pair_ratio=0).pairs} == {"regular"}


def test_the_prompts_whose_errors_are_added_depend_on_the_seed():
    def lenders(seed: int) -> set[str]:
        made = paired(*[WITH_ERROR] * 30, seed=seed)
        return {pair.prompt_id for pair in made.pairs if pair.kind == "error_rejected"}

    assert lenders(0) == lenders(0)
    assert any(lenders(0) != lenders(seed) for seed in range(1, 5))


def test_a_pair_over_the_token_limit_is_dropped_and_counted():
    longest = 2 + len(a_sample("p0", 0, response="....").output_token_ids)
    assert len(paired([1.0, 0.0], max_tokens=longest).pairs) == 1
    assert paired([1.0, 0.0], max_tokens=longest - 1).account.dropped == {"too_long": 1}


@given(
    some_groups, st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from(["auto", 0.0, 0.5]), st.sampled_from([9, 40, 9999])
)
def test_every_prompt_is_a_pair_or_counted_and_errors_keep_their_share(
    prompts: list[list[Kind]], share: float, rho: object, max_tokens: int
):
    made = paired(*prompts, max_error_pair_ratio=share, rho=rho, max_tokens=max_tokens)
    errors = sum(pair.kind == "error_rejected" for pair in made.pairs)
    assert made.account.rows_in == len(prompts)
    assert made.account.rows_out == len(made.pairs) == len({pair.prompt_id for pair in made.pairs})
    assert errors <= share * len(made.pairs) + 1e-9
    for pair in made.pairs:
        candidates = prompts[int(pair.prompt_id[1:])]
        assert isinstance(candidates[pair.chosen_index], tuple)
        assert (candidates[pair.rejected_index] == BROKEN) == (pair.kind == "error_rejected")
        assert pair.chosen_index != pair.rejected_index


@given(some_groups, st.randoms(use_true_random=False))
def test_the_order_of_prompts_changes_no_pair(prompts: list[list[Kind]], rng: random.Random):
    groups = groups_of(*prompts)
    shuffled = rng.sample(groups, len(groups))
    first, second = (make_pairs(g, PairConfig(), min_margin=0.5, max_tokens=9999, seed=3) for g in (groups, shuffled))
    assert sorted(first.pairs, key=lambda pair: pair.prompt_id) == sorted(second.pairs, key=lambda p: p.prompt_id)
    assert [pair.prompt_id for pair in second.pairs] == [
        g.prompt_id for g in shuffled if g.prompt_id in {p.prompt_id for p in first.pairs}
    ]


def test_the_report_counts_kinds_separately():
    facts = describe(paired(*[WITH_ERROR] * 10))
    assert (facts["regular"], facts["error_rejected"]) == (9, 1)
    assert facts["mean_margin"] == pytest.approx(2.0)
