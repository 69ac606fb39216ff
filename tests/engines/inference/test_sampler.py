"""Claims about the seeds of samples and the shards that an engine holds; tests/end_to_end tests what engines do with
them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.engines.inference.sampler import MAX_SHARDS_AT_ONCE, cpus_each, request_seed, shards_at_once


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


def test_an_engine_holds_enough_shards_to_be_full_and_one_to_follow():
    engine = EngineConfig(max_num_seqs=256)
    assert shards_at_once(engine, 200, None) == 3
    assert shards_at_once(engine, 25, None) == 12
    assert shards_at_once(engine, 1, None) == MAX_SHARDS_AT_ONCE


def test_no_engine_holds_more_than_its_part_of_the_shards():
    engines = EngineConfig(max_num_seqs=256, count=4)
    assert shards_at_once(engines, 25, 8) == 2
    assert shards_at_once(engines, 25, 1) == shards_at_once(engines, 25, 0) == 1


@pytest.mark.parametrize(
    ("count", "tensor_parallel", "here", "elsewhere"), [(1, 1, 1, 1), (2, 1, 0.5, 1), (4, 2, 0.5, 2), (2, 3, 1.5, 3)]
)
def test_engines_of_one_machine_take_as_many_cpus_as_one(
    count: int, tensor_parallel: int, here: float, elsewhere: float
):
    config = EngineConfig(count=count, tensor_parallel=tensor_parallel)
    assert cpus_each(config, ClusterConfig(), 1.0) == here
    assert cpus_each(config, ClusterConfig(address="ray://head:10001"), 1.0) == elsewhere
    assert cpus_each(config, ClusterConfig(), 0.0) == 0
