"""Calls of each tournament, and the share of the true quality gap that its chosen pair captures.

Prints two tables, in under a minute on one idle core. Run with `python -m tests.benchmarks.bench_tournament`.

Groups have 8 responses with qualities q ~ N(0, σ). The judge, shown m first and n second, has the logit q_m - q_n +
bias + noise, with noise N(0, 1) drawn anew in every call; a soft result is its probability, a hard verdict its sign.
(Other noise doesn't reproduce the earlier prototype, 0.967 and 0.924 for all pairs and hard verdicts at σ 2 and 1: a
pair's own noise gives 0.960 and 0.900, an extra bias 0.972 and 0.948.) Captured is the mean of q[chosen] - q[rejected]
divided by the mean of max q - min q, with the pair chosen by Bradley-Terry (ridge 0.1). The standard error is the
ratio's; all designs see the same groups, so their differences are more precise.

The designs were tuned on other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks import measure
from tpo.method.ratings import bradley_terry, soft_battle_matrix
from tpo.method.tournament import FOR_HARD_VERDICTS, Adaptive, AllPairs, Pair, Results, Tournament

SIZE = 8
SEED = 20_261
UPPER = np.triu(np.ones((SIZE, SIZE)), 1)


@dataclass(frozen=True)
class Judge:
    """The judge's errors, all in nats."""

    name: str
    bias: float = 0.5
    """Bias in favor of the response shown first."""
    noise: float = 1.0
    """Standard deviation of the noise, which is new in every call."""
    own_mind: float = 0.0
    """Standard deviation of the judge's own opinion of a pair, in either order."""
    pair_bias: float = 0.0
    """Standard deviation of the bias from pair to pair."""


@dataclass(frozen=True)
class Swiss:
    """Rounds, in both orders, between neighbors by rating that haven't met yet."""

    rounds: int = 3

    def next_round(self, k: int, results: Results) -> list[Pair]:
        """As in `Tournament`."""
        return self.next_rounds(k, [results])[0]

    def next_rounds(self, k: int, groups: Sequence[Results]) -> list[list[Pair]]:
        """As in `Tournament`."""
        standing = np.argsort(-_ratings(as_matrices(groups)), axis=1, kind="stable").tolist()
        return [
            sorted(_both_orders(order, results)) if len(results) < k * self.rounds else []
            for order, results in zip(standing, groups, strict=True)
        ]


class Groups(NamedTuple):
    """Responses, and the judge's results for them."""

    quality: NDArray[np.float64]
    """Shape (G, K)."""
    logits: NDArray[np.float64]
    """Shape (G, K, K)."""


class Played(NamedTuple):
    """A tournament of every group."""

    gaps: NDArray[np.float64]
    """Shape (G,): true quality of the chosen minus that of the rejected."""
    calls: NDArray[np.int64]
    """Shape (G,)."""
    rounds: NDArray[np.int64]
    """Shape (G,)."""


def as_matrices(groups: Sequence[Results]) -> NDArray[np.float64]:
    """Results by group as (G, K, K), NaN for none."""
    matrices = np.full((len(groups), SIZE, SIZE), np.nan)
    for group, results in enumerate(groups):
        for pair, outcome in results.items():
            matrices[(group, *pair)] = np.nan if outcome is None else outcome
    return matrices


def _ratings(results: NDArray[np.float64]) -> NDArray[np.float64]:
    return bradley_terry(soft_battle_matrix(results))


def _both_orders(standing: list[int], results: Results) -> list[Pair]:
    return [order for m, n in _neighbours(standing, results) or [] for order in ((m, n), (n, m))]


def _neighbours(standing: list[int], results: Results) -> list[Pair] | None:
    """All responses in pairs that haven't met yet, as close in rating as possible; None if that is impossible."""
    if not standing:
        return []
    first, *others = standing
    for other in others:
        if (first, other) not in results:
            rest = _neighbours([index for index in others if index != other], results)
            if rest is not None:
                return [(first, other), *rest]
    return None


def draw(judge: Judge, spread: float, groups: int) -> Groups:
    """The groups, the same for every design."""
    random = np.random.default_rng([SEED, int(10 * spread)])
    quality = random.normal(0, spread, (groups, SIZE))
    noise, mind, bias = random.normal(size=(3, groups, SIZE, SIZE))
    mind, bias = mind * UPPER, bias * UPPER
    logits = quality[:, :, None] - quality[:, None, :] + judge.bias + judge.noise * noise
    logits += judge.own_mind * (mind - np.swapaxes(mind, 1, 2)) + judge.pair_bias * (bias + np.swapaxes(bias, 1, 2))
    return Groups(quality, logits)


def play(design: Tournament, groups: Groups, *, soft: bool) -> Played:
    """Plays all groups in step, round by round, then takes the pair of each."""
    says = (np.tanh(groups.logits / 2) if soft else np.sign(groups.logits)).tolist()
    results: list[dict[Pair, float | None]] = [{} for _ in says]
    rounds = np.zeros(len(says), dtype=np.int64)
    active = list(range(len(says)))
    while active:
        matches = design.next_rounds(SIZE, [results[group] for group in active])
        for group, pairs in zip(active, matches, strict=True):
            results[group].update({(m, n): says[group][m][n] for m, n in pairs})
        active = [group for group, pairs in zip(active, matches, strict=True) if pairs]
        rounds[active] += 1
    ratings, at = _ratings(as_matrices(results)), np.arange(len(says))
    gaps = groups.quality[at, ratings.argmax(axis=1)] - groups.quality[at, ratings.argmin(axis=1)]
    return Played(gaps, np.array([len(result) for result in results]), rounds)


def share(gaps: NDArray[np.float64], ranges: NDArray[np.float64]) -> str:
    """Ratio of means with its standard error (delta method)."""
    ratio = gaps.mean() / ranges.mean()
    error = (gaps - ratio * ranges).std(ddof=1) / np.sqrt(len(gaps)) / ranges.mean()
    return f"{ratio:6.3f} ± {error:.4f}"


def report(
    judge: Judge, spread: float, groups: int, designs: Sequence[tuple[str, Tournament, bool]]
) -> dict[str, tuple[float, float]]:
    """Prints one table; the other designs are compared with the first. Returns the mean calls and the captured share of
    each."""
    drawn = draw(judge, spread, groups)
    ranges = np.ptp(drawn.quality, axis=1)
    print(f"\n{judge.name}, σ = {spread:g}, {groups} groups")
    print(f"{'':32s} {'calls':>6s} {'5-95 %':>7s} {'rounds':>11s}  {'captured':>15s}  {'minus the first':>15s}")
    reference: NDArray[np.float64] | None = None
    found = {}
    for name, design, soft in designs:
        played = play(design, drawn, soft=soft)
        reference = played.gaps if reference is None else reference
        low, high = np.quantile(played.calls, [0.05, 0.95])
        rounds = f"{played.rounds.mean():.1f} (≤ {played.rounds.max()})"
        print(
            f"{name:32s} {played.calls.mean():6.2f} {low:4.0f}-{high:<2.0f} {rounds:>12s}  "
            f"{share(played.gaps, ranges)}  {share(played.gaps - reference, ranges)}",
            flush=True,
        )
        found[name] = float(played.calls.mean()), float(played.gaps.mean() / ranges.mean())
    return found


def main() -> None:
    """Plays every design against the judge it is tuned for, and the adaptive ones against harder judges."""
    chosen = measure.options(__doc__, threads=1)
    designs: list[tuple[str, Tournament, bool]] = [
        ("all pairs, hard", AllPairs(), False),
        ("all pairs, soft", AllPairs(), True),
        ("Swiss, 3 rounds, soft", Swiss(), True),
        ("adaptive, soft", Adaptive(), True),
        ("adaptive for hard verdicts, hard", FOR_HARD_VERDICTS, False),
    ]
    found = [report(Judge("the judge"), spread, 4000, designs) for spread in (2.0, 1.0)]
    contested = [designs[0], designs[3], ("adaptive, soft, lone_weight 0.3", Adaptive(lone_weight=0.3), True)]
    for judge in (
        Judge("bias 1.5", bias=1.5),
        Judge("bias 3", bias=3),
        Judge("bias 0.5 ± 1.5 from pair to pair", pair_bias=1.5),
        Judge("its own opinion of each pair, no noise", noise=0, own_mind=1),
    ):
        report(judge, 1.0, 2000, contested)
    shares = [each["adaptive, soft"][0] / each["all pairs, hard"][0] for each in found]
    assert all(each["adaptive, soft"][1] >= each["all pairs, hard"][1] for each in found), "it captures less"
    what, peer = "judge calls a prompt at all pairs' captured gap, K = 8", "all pairs in both orders, hard verdicts"
    limit = f"the noise of a call; {found[0]['adaptive, soft'][0]:.1f} and {found[1]['adaptive, soft'][0]:.1f} calls"
    row = measure.Row(6, what, peer, "≤ 0.286 (16/56)", float(np.mean(shares)), min(shares), max(shares), limit)
    measure.report(row, as_json=chosen.json)


if __name__ == "__main__":
    main()
