"""Claims about the seeds of samples; tests/end_to_end tests what engines do with them."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tpo.engines.inference.sampler import request_seed


@given(st.lists(st.one_of(st.integers(), st.text())))
def test_a_seed_is_the_same_for_the_same_request_and_fits_31_bits(parts: list[object]):
    assert request_seed(*parts) == request_seed(*parts)
    assert 0 <= request_seed(*parts) < 2**31


def test_run_seed_purpose_and_prompt_each_change_the_seed():
    requests = itertools.product((0, 1), ("train", "evaluate"), ("a", "b"))
    assert len({request_seed(*parts) for parts in requests}) == 8


def test_parts_do_not_run_into_each_other():
    assert request_seed("ab", "c") != request_seed("a", "bc")
    assert request_seed(1, 11) != request_seed(11, 1)


def test_seeds_of_many_prompts_differ():
    seeds = sorted(request_seed(0, "train", i) for i in range(5000))
    assert len(set(seeds)) > 4990
