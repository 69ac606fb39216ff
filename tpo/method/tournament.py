"""Tournaments: which comparisons of one group's responses to request from a pairwise judge, and when to stop.

`AllPairs` is the paper's design, K(K - 1) calls for K responses (2410.10630); `Adaptive` makes about 2K.

Only the best and the worst response become a pair, so `Adaptive` only makes calls that may still change those two, and
compares a pair in the second order, which cancels position bias, only if that may change them, too. With soft results
it captures as much as all pairs do with hard ones. It captures less if the bias differs between pairs by more than
about 1 nat, unless a smaller `lone_weight` buys the second orders, and if the judge has a fixed opinion of each pair,
since it averages over fewer of them. tests/benchmarks/bench_tournament.py has figures.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tpo.method.ratings import bradley_terry, soft_battle_matrix

Pair: TypeAlias = tuple[int, int]
"""Indices (m, n) of two responses of the group, m shown first."""

Results: TypeAlias = Mapping[Pair, float | None]
"""By ordered pair (m, n): 1 if the first shown wins, -1 if the second does, 0 for a tie, or 2p - 1 for a judge that
gives the first probability p; None if no verdict could be read, which counts as asked."""

NODES: Final = np.polynomial.hermite_e.hermegauss(15)[0]
WEIGHTS: Final = np.polynomial.hermite_e.hermegauss(15)[1] / np.sqrt(2 * np.pi)
"""Quadrature for the mean over a standard normal variable."""
GAIN_DECIMALS: Final = 9
"""Gains that agree to this many decimals are equal, so that rounding doesn't choose between them."""
CUBES_AT_ONCE: Final = 500_000
"""Maximum groups computed at once, times K^3; bounds an array of `next_rounds` at 30 MB."""


class Tournament(Protocol):
    """A tournament design: chooses the next comparisons."""

    def next_round(self, k: int, results: Results) -> list[Pair]:
        """Ordered pairs to ask next, sorted, so that those with the same first response are adjacent; empty when done.

        A pure function: given the results of whole rounds, it returns the same rounds again. An interrupted judge thus
        replays from the start and only requests what is missing. Never returns a pair that has a result.

        Raises ValueError for fewer than 2 responses, and for a result of no ordered pair or outside [-1, 1].
        """
        ...

    def next_rounds(self, k: int, groups: Sequence[Results]) -> list[list[Pair]]:
        """`next_round` of many groups of k responses each, much faster than one at a time."""
        ...


@dataclass(frozen=True)
class AllPairs:
    """Every ordered pair in one round (2410.10630: 8·7 = 56 calls)."""

    def next_round(self, k: int, results: Results) -> list[Pair]:
        """See `Tournament`."""
        return self.next_rounds(k, [results])[0]

    def next_rounds(self, k: int, groups: Sequence[Results]) -> list[list[Pair]]:
        """See `Tournament`."""
        return [[pair for pair in np.ndindex(k, k) if _is_open(pair, asked)] for asked in _read(k, groups).asked]


@dataclass(frozen=True)
class Adaptive:
    """Opens with a ring, then makes calls expected to widen the gap from best to worst, until little gain is left.

    In the ring 0-1, 1-2, …, (K-1)-0 each response is shown first once and second once. After it the ratings are taken
    as normal around Bradley-Terry's, with the curvature of its likelihood as precision. A call's gain is the expected
    growth of max - min of the mean ratings (the knowledge gradient of 10.1287/ijoc.1080.0314, for both ends at once):
    zero for settled pairs and those in the middle. A round has the calls of largest gain, no response twice.
    The defaults are tuned for soft results at K = 8; FOR_HARD_VERDICTS is for hard ones.
    """

    min_gain: float = 0.03
    """Minimum expected gain of a call, in nats; 0 asks until the budget is spent. Larger groups need less: with 0.01
    (and 4 calls per response) 16 responses capture as much as all 240 hard verdicts."""
    evidence: float = 4.0
    """Number of hard games that one result is worth: 4 at p near 1/2 for a logit with a standard deviation of 1."""
    ridge: float = 0.1
    """As in `bradley_terry`: the prior standard deviation of the ratings is 1/sqrt(evidence·ridge) = 1.6 nats."""
    lone_weight: float = 0.7
    """Weight of a result while its pair's other order has none, above 0 and at most 1. The smaller, the more second
    orders are asked: 0.3 for a judge known to favor a position."""
    round_share: float = 0.25
    """Calls in a round after the ring, as a share of K, at least one: a larger share saves rounds and costs calls."""
    calls_per_response: int = 3
    """Budget: at most K times this many calls, the ring's K included."""

    def __post_init__(self) -> None:
        """Raises ValueError for meaningless settings."""
        for name in ("evidence", "ridge", "round_share"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0: see Adaptive's defaults")
        if not 0 <= self.min_gain < np.inf:
            raise ValueError(f"min_gain is {self.min_gain}; expected nats, 0 or more: 0.03 is tested")
        if not 0 < self.lone_weight <= 1:
            raise ValueError(f"lone_weight is {self.lone_weight}; expected a number above 0, at most 1: 0.7 is tested")
        if self.calls_per_response < 1:
            raise ValueError(
                f"calls_per_response is {self.calls_per_response}; expected at least 1, for the ring: 3 is tested"
            )

    def next_round(self, k: int, results: Results) -> list[Pair]:
        """See `Tournament`."""
        return self.next_rounds(k, [results])[0]

    def next_rounds(self, k: int, groups: Sequence[Results]) -> list[list[Pair]]:
        """See `Tournament`."""
        rounds = []
        at_once = max(1, CUBES_AT_ONCE // max(1, k**3))
        for start in range(0, len(groups), at_once):
            known = _read(k, groups[start : start + at_once])
            gains = self._gains(known.outcomes).tolist()
            rounds += [sorted(self._round(*group)) for group in zip(known.asked, gains, strict=True)]
        return rounds

    def _round(self, asked: NDArray[np.bool_], gains: list[float]) -> Iterator[Pair]:
        """The next calls of one group: the rest of the ring, then open orders of the pairs (m < n) with the largest
        gains."""
        k = len(asked)
        ring = [(m, (m + 1) % k) for m in range(k)]
        if not all(asked[pair] for pair in ring):
            yield from (pair for pair in ring if not asked[pair])
            return
        left = min(max(1, int(k * self.round_share)), k * self.calls_per_response - int(asked.sum()))
        pairs, shown = _unordered(k), set[int]()
        for at in sorted(range(len(pairs)), key=lambda at: -gains[at]):  # stable: ties in reading order
            m, n = pairs[at]
            if left <= 0 or gains[at] < self.min_gain:
                return
            if m in shown or n in shown or (asked[m, n] and asked[n, m]):
                continue
            yield _in_order(m, n, asked)
            shown |= {m, n}
            left -= 1

    def _gains(self, outcomes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Expected growth of max - min of the mean ratings, in nats, from one more result of each pair; (G, pairs)."""
        first, second = np.triu_indices(outcomes.shape[-1], 1)
        belief, results = self._belief(outcomes), _count(outcomes)[:, first, second]
        growth = np.array([self.lone_weight, 2 - self.lone_weight, 0.0])[results]
        information = self.evidence * growth * _variance(belief.mean)[:, first, second]
        direction = belief.covariance[:, :, first] - belief.covariance[:, :, second]
        at = np.arange(len(first))
        scatter = direction[:, first, at] - direction[:, second, at]
        shift = direction * np.sqrt(information / (1 + information * scatter))[:, None, :]
        ahead = belief.mean[:, :, None, None] + shift[..., None] * NODES
        gains = (ahead.max(axis=1) - ahead.min(axis=1)) @ WEIGHTS - np.ptp(belief.mean, axis=1)[:, None]
        return np.asarray(np.round(gains, GAIN_DECIMALS))

    def _belief(self, outcomes: NDArray[np.float64]) -> "_Belief":
        """Ratings given the results so far, a lone order at its weight."""
        wins = soft_battle_matrix(outcomes) * np.where(_count(outcomes) == 1, self.lone_weight, 1.0)
        mean = bradley_terry(wins, self.ridge)
        pull = (wins + np.swapaxes(wins, 1, 2)) * _variance(mean)
        own = pull.sum(axis=2) + self.ridge
        precision = self.evidence * (own[:, :, None] * np.eye(own.shape[1]) - pull)
        return _Belief(mean, np.linalg.inv(precision))


FOR_HARD_VERDICTS: Final = Adaptive(min_gain=0.01, evidence=0.5, ridge=0.3, calls_per_response=7)
"""For verdicts 1, -1 and 0: each says less, so it takes about half the calls of all pairs to come close to them."""


class _Known(NamedTuple):
    """Results of G groups so far."""

    outcomes: NDArray[np.float64]
    """Shape (G, K, K); NaN for no result."""
    asked: NDArray[np.bool_]
    """Shape (G, K, K)."""


class _Belief(NamedTuple):
    """Normal belief about the ratings of G groups."""

    mean: NDArray[np.float64]
    """Shape (G, K), nats."""
    covariance: NDArray[np.float64]
    """Shape (G, K, K)."""


def _read(k: int, groups: Sequence[Results]) -> _Known:
    """Validates results and returns them as arrays."""
    if k < 2:
        raise ValueError(f"a group of {k} responses; expected at least 2: a lone response has nothing to be judged by")
    known = _Known(np.full((len(groups), k, k), np.nan), np.zeros((len(groups), k, k), dtype=np.bool_))
    for group, results in enumerate(groups):
        for (m, n), outcome in results.items():
            if not (0 <= m < k and 0 <= n < k and m != n):
                raise ValueError(f"a result of pair {(m, n)}; expected two different indices from 0 to {k - 1}")
            if outcome is not None and not -1 <= outcome <= 1:
                raise ValueError(
                    f"the result of pair {(m, n)} is {outcome}; expected a number from -1 to 1, or None for no "
                    "result: give 2p - 1 for a probability p that the first wins"
                )
            known.asked[group, m, n] = True
            known.outcomes[group, m, n] = np.nan if outcome is None else outcome
    return known


def _is_open(pair: Pair, asked: NDArray[np.bool_]) -> bool:
    return pair[0] != pair[1] and not asked[pair]


def _unordered(k: int) -> list[Pair]:
    """Pairs m < n in the order of np.triu_indices."""
    return [(m, n) for m in range(k) for n in range(m + 1, k)]


def _in_order(m: int, n: int, asked: NDArray[np.bool_]) -> Pair:
    """The open order; if both are, shows first the response that has been first less often relative to second."""
    if asked[m, n] or asked[n, m]:
        return (n, m) if asked[m, n] else (m, n)
    lead = asked.sum(axis=1) - asked.sum(axis=0)
    return (m, n) if lead[m] <= lead[n] else (n, m)


def _count(outcomes: NDArray[np.float64]) -> NDArray[np.int64]:
    """Results of each pair over both orders, 0, 1 or 2; shape (G, K, K)."""
    given = (~np.isnan(outcomes)).astype(np.int64)
    return np.asarray(given + np.swapaxes(given, 1, 2))


def _variance(ratings: NDArray[np.float64]) -> NDArray[np.float64]:
    """p(1 - p) of each game, p = sigmoid(ε_m - ε_n); shape (G, K, K)."""
    tail = np.exp(-np.abs(ratings[:, :, None] - ratings[:, None, :]))
    return np.asarray(tail / (1 + tail) ** 2)
