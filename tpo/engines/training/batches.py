"""The assignment of rows to workers: the same global batches in the same order, however many workers there are.

Libraries deal batches out to workers and fill the last ones up with rows from the beginning, so a step's data depends
on the number of workers. Here a step's rows are fixed first, including the smaller last batch of an epoch, and then cut
into equal micro-batches, one round of all workers at a time. If they can't be equal, each row still counts the same: a
micro-batch knows the number of rows and output tokens in the global batch, and what a worker computes is divided by
those. A worker without rows in a round computes a row that doesn't count, to keep in step with the others.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch: the part of a global batch that one worker computes at once."""

    indices: tuple[int, ...]
    """The rows; never empty."""
    counts: bool
    """False if this micro-batch is padding that keeps the workers in step."""
    batch_rows: int
    """Pairs in the global batch."""
    batch_tokens: int
    """Tokens of its first outputs: the chosen ones, or those to imitate."""


@dataclass(frozen=True)
class BatchLayout:
    """The division of an epoch's rows into steps, rounds and workers."""

    rows: int
    """Rows per epoch."""
    batch_size: int
    """Rows per step; the last step of an epoch takes the rest."""
    micro_batch_size: int
    """Rows that a worker computes at once; `workers` times this divides `batch_size`."""
    workers: int
    """Workers that share a step."""

    @property
    def rounds(self) -> int:
        """Rounds per step; in each, every worker computes a micro-batch."""
        return self._rounds(self.batch_size)

    @property
    def rounds_an_epoch(self) -> int:
        """Rounds per epoch."""
        full, rest = divmod(self.rows, self.batch_size)
        return full * self.rounds + self._rounds(rest)

    def shares(self, order: Sequence[int], tokens: Sequence[int], worker: int) -> Iterator[MicroBatch]:
        """One worker's shares of an epoch, `rounds_an_epoch` of them.

        `order` is a permutation of the rows, `tokens` how long their first outputs are.
        """
        for begin in range(0, self.rows, self.batch_size):
            batch = order[begin : begin + self.batch_size]
            in_batch = sum(tokens[i] for i in batch)
            parts = _cut(batch, self._rounds(len(batch)) * self.workers)
            for part in parts[worker :: self.workers]:
                yield MicroBatch(tuple(part or batch[:1]), bool(part), len(batch), in_batch)

    def _rounds(self, rows: int) -> int:
        return math.ceil(rows / (self.micro_batch_size * self.workers))


def _cut(batch: Sequence[int], parts: int) -> list[Sequence[int]]:
    """A batch in its order, in parts whose sizes differ by at most one."""
    ends = [len(batch) * i // parts for i in range(parts + 1)]
    return [batch[begin:end] for begin, end in itertools.pairwise(ends)]


def epoch_order(rows: int, *, seed: int, epoch: int) -> list[int]:
    """The order of rows in an epoch, counted from 0: that of accelerate's `SeedableRandomSampler`."""
    order: list[int] = torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    return order


class ShareSampler:
    """One worker's micro-batches of the current epoch, as a batch sampler."""

    def __init__(self, layout: BatchLayout, tokens: Sequence[int], *, seed: int, worker: int) -> None:
        self._layout = layout
        self._tokens = tokens
        self._seed = seed
        self._worker = worker
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, counted from 0, for the next iteration."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        order = epoch_order(self._layout.rows, seed=self._seed, epoch=self._epoch)
        for share in self._layout.shares(order, self._tokens, self._worker):
            yield [share]

    def __len__(self) -> int:
        return self._layout.rounds_an_epoch


class ShareLoader(DataLoader[Any]):
    """Loads the micro-batches of a `ShareSampler`; a dataset returns a micro-batch's inputs for `dataset[share]`.

    transformers sets the epoch on the loader, and on the batch sampler within when it skips the micro-batches done
    before a training was stopped.
    """

    def __init__(self, dataset: Dataset[Any], sampler: ShareSampler) -> None:
        super().__init__(dataset, batch_sampler=sampler, collate_fn=_only)
        self._shares = sampler

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, counted from 0, for the next iteration."""
        self._shares.set_epoch(epoch)


def _only(found: list[Any]) -> Any:
    (inputs,) = found
    return inputs
