"""Arena-Hard's score: the share of games against one baseline that a model wins, in percent (2406.11939).

Each prompt has two games: in the first the baseline is assistant A, in the second the model is. A strong verdict counts
three times, a tie as half a win. The old rule (v0.1, the one that TPO's table used) drops a game without a verdict and
reports Bradley-Terry's score, which equals the share if every model meets the baseline alone; the current rule (v2)
drops a prompt with such a game and reports the mean of the bootstrap.

Style control (current rule) adds four measures of style to the regression: relative length and relative density of
headers, lists and bold text. The leaderboard fits their coefficients over all its models; here there is one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rule = Literal["old", "current"]
Game: TypeAlias = tuple[str | None, str | None]
"""The verdicts of a prompt's two games; None if one has none."""

STRONG_WEIGHT: Final = 3
_ROUNDS: Final = 100
_SPANS: Final[Mapping[str, tuple[float, float]]] = {"old": (2.5, 97.5), "current": (5.0, 95.0)}
_OLD: Final[Mapping[str, tuple[float, int]]] = {
    "A>>B": (1.0, STRONG_WEIGHT), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, STRONG_WEIGHT)
}  # fmt: skip
"""A's result and its weight by verdict."""
_CURRENT: Final[Mapping[str, tuple[float, int]]] = {
    **_OLD,
    "B=A": (0.5, 1), "A<<B": (0.0, STRONG_WEIGHT), "A<B": (0.0, 1), "B<A": (1.0, 1), "B<<A": (1.0, STRONG_WEIGHT)
}  # fmt: skip

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ArenaScore:
    """A model's score against the baseline."""

    score: float
    """The score in percent."""
    low: float
    """Lower end of the interval: 2.5 % (old rule) or 5 % (current rule) of the bootstrap."""
    high: float
    """Upper end of the interval: 97.5 % or 95 %."""
    prompts: int
    """Prompts that count."""
    dropped: int
    """Games (old rule) or prompts (current rule) that were dropped for want of a verdict."""


@dataclass(frozen=True)
class Style:
    """What style control knows of a response."""

    tokens: int
    """Its length."""
    headers: Mapping[str, int]
    """Headers by level, `h1` to `h6`."""
    lists: Mapping[str, int]
    """List items, `ordered` and `unordered`."""
    bold: Mapping[str, int]
    """Bold passages, `**` and `__`."""


def arena_hard_score(
    games: Sequence[Game],
    rule: Rule,
    *,
    style: Sequence[tuple[Style, Style]] | None = None,
    rounds: int = _ROUNDS,
    seed: int = 0,
) -> ArenaScore:
    """The score over all games.

    Args:
        games: Each prompt's two verdicts, such as `("B>A", "A>>B")`; in the first game the baseline is A.
        rule: Which release's arithmetic; an unknown verdict counts as none.
        style: The style of the model's and of the baseline's response to each prompt, to control for it.
        rounds: Bootstrap samples.
        seed: Random seed of the bootstrap.

    Raises ValueError without a game that counts, for an unknown rule, and for style control with the old rule.
    """
    if rule not in _SPANS:
        raise ValueError(f"rule is {rule!r}, expected one of {', '.join(_SPANS)}")
    if style is not None and rule == "old":
        raise ValueError('style is given and rule is "old": style control is that of the current rule')
    if style is not None and len(style) != len(games):
        raise ValueError(f"there are {len(style)} styles and {len(games)} prompts, expected one for each")
    results = [_results(game, rule) for game in games]
    kept = [i for i, found in enumerate(results) if found]
    outcomes = np.array([outcome for i in kept for outcome in results[i]])
    if not outcomes.size:
        raise ValueError(f"none of {len(games)} prompts has a game with a verdict: look at the judge's replies")
    given = sum(verdict is not None and verdict in _known(rule) for game in games for verdict in game)
    dropped = 2 * len(games) - given if rule == "old" else len(games) - len(kept)
    draws = np.random.default_rng(seed).integers(outcomes.size, size=(rounds, outcomes.size))
    if style is None:
        shares = outcomes[draws].mean(axis=1)
        score = outcomes.mean() if rule == "old" else shares.mean()
    else:
        owners = np.repeat(np.arange(len(kept)), [len(results[i]) for i in kept])
        features = style_features([style[i] for i in kept], owners)
        shares = np.array([_level(features[drawn], outcomes[drawn]) for drawn in draws])
        score = np.median(shares)
    low, high = np.percentile(shares, _SPANS[rule])
    return ArenaScore(100 * float(score), 100 * float(low), 100 * float(high), len(kept), dropped)


def _known(rule: Rule) -> Mapping[str, tuple[float, int]]:
    return _OLD if rule == "old" else _CURRENT


def _results(game: Game, rule: Rule) -> list[float]:
    """The model's results in a prompt's games, a strong verdict three times."""
    known = _known(rule)
    first, second = (None if verdict is None else known.get(verdict) for verdict in game)
    if rule == "current" and (first is None or second is None):
        return []
    found = []
    if first is not None:
        found += [1 - first[0]] * first[1]
    if second is not None:
        found += [second[0]] * second[1]
    return found


def style_of(response: str, tokens: int) -> Style:
    """A response's style; fenced code is left out of the counts."""
    text = re.sub(r"```([^`]*)```", "", response)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text, re.MULTILINE))

    return Style(
        tokens=tokens,
        headers={f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        lists={"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        bold={"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    )


def style_features(pairs: Sequence[tuple[Style, Style]], owners: ArrayLike) -> _Floats:
    """Differences in style (games, 4), standardized over games: model's and baseline's length, headers, lists, bold.

    `owners` names the pair of each game. A measure that is the same in all games is 0.
    """
    model, baseline = (np.array([_counts(pair[side]) for pair in pairs], dtype=np.float64) for side in (0, 1))
    total = model[:, :1] + baseline[:, :1]
    length = np.divide(model[:, :1] - baseline[:, :1], total, out=np.zeros_like(total), where=total > 0)
    ours, theirs = (side[:, 1:] / (side[:, :1] + 1) for side in (model, baseline))
    features = np.hstack([length, (ours - theirs) / (ours + theirs + 1)])[np.asarray(owners)]
    if len(features) < 2:
        return np.zeros_like(features)
    spread = features.std(axis=0, ddof=1)
    return np.asarray((features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0))


def _counts(style: Style) -> tuple[int, int, int, int]:
    return style.tokens, sum(style.headers.values()), sum(style.lists.values()), sum(style.bold.values())


def _level(features: _Floats, outcomes: _Floats) -> float:
    """Probability of a win at equal style, by a logistic regression that is almost without a penalty: games that one
    measure separates have no finite fit."""
    design = np.hstack([np.ones((len(features), 1)), features])
    penalty = 1e-6 * np.eye(design.shape[1])
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        predicted = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (outcomes - predicted) - penalty @ weights
        curvature = (design * (predicted * (1 - predicted))[:, None]).T @ design + penalty
        step = np.linalg.solve(curvature, gradient)
        weights += step * min(1.0, 5.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + np.exp(-np.clip(weights[0], -700, 700))))
