"""Claims about which pairs a step takes: the same for any number of workers, each pair once, with equal weights."""

import functools
from collections import Counter
from fractions import Fraction

import pytest
from accelerate.data_loader import SeedableRandomSampler, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from tpo.engines.training.batches import BatchLayout, MicroBatch, ShareLoader, ShareSampler, epoch_order

SIZES = st.tuples(st.integers(1, 80), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))


def layout(pairs: int, rounds: int, micro: int, workers: int) -> BatchLayout:
    return BatchLayout(pairs, rounds * micro * workers, micro, workers)


def steps(made: BatchLayout, order: list[int], tokens: list[int]) -> list[list[list[MicroBatch]]]:
    """The pairs that all workers take, by step and round."""
    rounds = list(zip(*(made.shares(order, tokens, worker) for worker in range(made.workers)), strict=True))
    assert len(rounds) == made.rounds_an_epoch
    return [[list(each) for each in rounds[i : i + made.rounds]] for i in range(0, len(rounds), made.rounds)]


@given(SIZES)
def test_a_step_takes_the_next_pairs_of_the_order_and_each_weighs_the_same(sizes: tuple[int, int, int, int]):
    made = layout(*sizes)
    order, tokens = epoch_order(made.rows, seed=3, epoch=1), [3 + i % 7 for i in range(made.rows)]
    found = steps(made, order, tokens)
    for i, step in enumerate(found):
        batch = order[i * made.batch_size : (i + 1) * made.batch_size]
        shares = [share for each in step for share in each]
        weights: Counter[int] = Counter()
        for share in shares:
            assert share.indices and len(share.indices) <= made.micro_batch_size
            assert (share.batch_rows, share.batch_tokens) == (len(batch), sum(tokens[j] for j in batch))
            if share.counts:
                weights.update({j: Fraction(1, share.batch_rows) for j in share.indices})
        assert weights == {j: Fraction(1, len(batch)) for j in batch}
    assert len(found) == -(-made.rows // made.batch_size)


@given(SIZES)
def test_workers_get_similar_shares_and_the_last_step_takes_the_fewest_rounds(
    sizes: tuple[int, int, int, int],
):
    made = layout(*sizes)
    for step in steps(made, list(range(made.rows)), [1] * made.rows):
        shares = [share for each in step for share in each]
        computed = [len(share.indices) * share.counts for share in shares]
        assert max(computed) - min(computed) <= 1
        assert len(step) == -(-shares[0].batch_rows // (made.micro_batch_size * made.workers))


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_the_order_of_an_epoch_is_that_of_accelerates_sampler(epoch: int):
    sampler = SeedableRandomSampler(range(37), data_seed=11)
    sampler.set_epoch(epoch)
    assert epoch_order(37, seed=11, epoch=epoch) == list(sampler)


def test_a_lone_worker_takes_whole_micro_batches_in_order():
    order = epoch_order(22, seed=0, epoch=0)
    found = [share.indices for share in BatchLayout(22, 8, 4, 1).shares(order, [1] * 22, 0)]
    assert found == [tuple(order[i:j]) for i, j in [(0, 4), (4, 8), (8, 12), (12, 16), (16, 19), (19, 22)]]


class Shares(Dataset[MicroBatch]):
    """Returns each share itself."""

    def __getitem__(self, share: MicroBatch) -> MicroBatch:
        return share


def test_a_loader_resumes_within_an_epoch_and_shuffles_the_next_one():
    make = functools.partial(ShareSampler, BatchLayout(13, 4, 2, 1), [1] * 13, seed=5, worker=0)
    loader = ShareLoader(Shares(), make())
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append(list(loader))
    assert len(loader) == len(epochs[0]) == 7 and epochs[0] != epochs[1]
    resumed = skip_first_batches(ShareLoader(Shares(), make()), 3)
    resumed.batch_sampler.batch_sampler.set_epoch(1)
    assert list(resumed) == epochs[1][3:]
