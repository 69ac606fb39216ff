"""Which rows a worker takes, step by step: the same global batches in the same order, however many workers there are.

In: how many rows there are, how many make a step, and which of how many workers asks. Out: that worker's shares.

The libraries' own way deals batches out to workers and fills the last ones up with rows of the beginning, so that
what a step learns from depends on how many workers there are. Here a step's rows are fixed first, the last and
smaller batch of an epoch included, and then cut into equal shares, a round of all workers at a time. Where shares
cannot be equal, each row still counts the same: a share says how many rows and output tokens the whole batch has,
and what a worker computes is divided by those. A worker for whom a batch is too small computes a row that does not
count, because the others wait for it.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Share:
    """What one worker computes at once, as a part of a global batch."""

    indices: tuple[int, ...]
    """The rows; never empty."""
    counts: bool
    """Whether they count: not where the worker only keeps the others company."""
    batch_rows: int
    """Pairs in the global batch."""
    batch_tokens: int
    """Tokens of their first outputs: the chosen ones, or those to imitate."""


@dataclass(frozen=True)
class Layout:
    """How an epoch's rows are laid out over steps, rounds and workers."""

    rows: int
    """Pairs an epoch."""
    batch_size: int
    """Pairs a step; the last step of an epoch takes what is left."""
    micro_batch_size: int
    """Pairs a worker computes at once; that times `workers` divides `batch_size`."""
    workers: int
    """Workers that share a step."""

    @property
    def rounds(self) -> int:
        """Times a step that all workers compute a share."""
        return self._rounds(self.batch_size)

    @property
    def rounds_an_epoch(self) -> int:
        """The same for all steps of an epoch together."""
        full, rest = divmod(self.rows, self.batch_size)
        return full * self.rounds + self._rounds(rest)

    def shares(self, order: Sequence[int], tokens: Sequence[int], worker: int) -> Iterator[Share]:
        """One worker's shares of an epoch, `rounds_an_epoch` of them.

        `order` is a permutation of the rows, `tokens` how long their first outputs are.
        """
        for begin in range(0, self.rows, self.batch_size):
            batch = order[begin : begin + self.batch_size]
            in_batch = sum(tokens[i] for i in batch)
            parts = _cut(batch, self._rounds(len(batch)) * self.workers)
            for part in parts[worker :: self.workers]:
                yield Share(tuple(part or batch[:1]), bool(part), len(batch), in_batch)

    def _rounds(self, rows: int) -> int:
        return math.ceil(rows / (self.micro_batch_size * self.workers))


def _cut(batch: Sequence[int], parts: int) -> list[Sequence[int]]:
    """A batch in its order, in parts whose sizes differ by one at most."""
    ends = [len(batch) * i // parts for i in range(parts + 1)]
    return [batch[begin:end] for begin, end in itertools.pairwise(ends)]


def epoch_order(rows: int, *, seed: int, epoch: int) -> list[int]:
    """The rows in the order of an epoch, counted from 0: that of accelerate's `SeedableRandomSampler`."""
    order: list[int] = torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    return order


class ShareSampler:
    """One worker's shares of the epoch that is set, as a batch sampler of batches of one share."""

    def __init__(self, layout: Layout, tokens: Sequence[int], *, seed: int, worker: int) -> None:
        self._layout = layout
        self._tokens = tokens
        self._seed = seed
        self._worker = worker
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration that of an epoch, counted from 0."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[Share]]:
        order = epoch_order(self._layout.rows, seed=self._seed, epoch=self._epoch)
        for share in self._layout.shares(order, self._tokens, self._worker):
            yield [share]

    def __len__(self) -> int:
        return self._layout.rounds_an_epoch


class ShareLoader(DataLoader[Any]):
    """Loads the shares of a `ShareSampler`; a data set gives a share's inputs for `dataset[share]`.

    transformers sets the epoch on what it iterates, and on the batch sampler within where it skips the shares that
    were done before a training was stopped.
    """

    def __init__(self, dataset: Dataset[Any], sampler: ShareSampler) -> None:
        super().__init__(dataset, batch_sampler=sampler, collate_fn=_only)
        self._shares = sampler

    def set_epoch(self, epoch: int) -> None:
        """Makes the next iteration that of an epoch, counted from 0."""
        self._shares.set_epoch(epoch)


def _only(found: list[Any]) -> Any:
    (inputs,) = found
    return inputs
