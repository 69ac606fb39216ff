"""Claims about Arena-Hard's score: both releases' rules, and style control."""

import numpy as np
import pytest

from tpo.method.arena_hard import Game, Style, style_features, style_of
from tpo.method.stats import arena_hard_score

GAMES: list[Game] = [("B>A", "A>>B"), ("A>B", "B>A"), ("A=B", "A>B"), ("A>>B", None), ("B>>A", "A=B")]
"""Wins and losses of the model with ties halved: 1+3 | 0+0 | ½+1 | 0·3 | 3+½."""


def test_the_old_rule_is_the_share_of_weighted_games_and_drops_a_game_without_verdict():
    found = arena_hard_score(GAMES, "old")
    assert found.score == pytest.approx(
        100 * (1 + 3 + 0 + 0 + 0.5 + 1 + 0 + 3 + 0.5) / (1 + 3 + 1 + 1 + 1 + 1 + 3 + 3 + 1)
    )
    assert (found.prompts, found.dropped) == (5, 1)
    assert found.low < found.score < found.high


def test_the_old_score_is_that_of_the_bradley_terry_fit():
    """Base 10, scale 400, baseline at 1000: with one opponent the fit's expected share is the observed one."""
    share = arena_hard_score(GAMES, "old").score / 100
    elo = 1000 + 400 * np.log10(share / (1 - share))
    assert 100 / (1 + 10 ** ((1000 - elo) / 400)) == pytest.approx(100 * share)


def test_the_current_rule_drops_the_whole_prompt_and_reports_the_mean_of_the_bootstrap():
    found = arena_hard_score(GAMES, "current", rounds=20_000)
    assert found.score == pytest.approx(100 * 9 / 12, abs=0.5)
    assert (found.prompts, found.dropped) == (4, 1)


def test_only_the_current_rule_knows_the_reversed_labels():
    assert arena_hard_score([("A<B", "B<<A")], "current").score == 100
    with pytest.raises(ValueError, match="none of 1 prompts"):
        arena_hard_score([("A<B", "B<<A")], "old")


def test_the_intervals_are_the_releases_own():
    games: list[Game] = [("B>A", "A>B"), ("A>B", "B>A")] * 100
    old, current = (arena_hard_score(games, rule, rounds=4000) for rule in ("old", "current"))
    assert (old.high - old.low) / (current.high - current.low) == pytest.approx(1.96 / 1.645, rel=0.08)


def test_a_models_length_is_controlled_for():
    draws = np.random.default_rng(0)
    styles, games = [], list[Game]()
    for _ in range(400):
        ours, theirs = (int(n) for n in draws.integers(100, 900, 2))
        styles.append(tuple(Style(n, {"h1": 0}, {"ordered": 0}, {"**": 0}) for n in (ours + 300, theirs)))
        wins = draws.random() < 1 / (1 + np.exp(-4 * (ours + 300 - theirs) / (ours + 300 + theirs)))
        games.append(("B>A", "A>B") if wins else ("A>B", "B>A"))
    plain = arena_hard_score(games, "current")
    controlled = arena_hard_score(games, "current", style=[(one, other) for one, other in styles])
    assert plain.score > 65
    # Features are standardized, as in the original: level is the mean difference in style, not none.
    assert abs(controlled.score - plain.score) < 15 and controlled.low < controlled.score < controlled.high


def test_counts_of_style_leave_fenced_code_out():
    text = "# One\n## Two\n1. a\n2. b\n- c\n**bold** and __too__\n```\n# not\n- not\n**not**\n```\n"
    found = style_of(text, 12)
    assert (found.headers["h1"], found.headers["h2"], found.lists) == (1, 1, {"ordered": 2, "unordered": 1})
    assert found.bold == {"**": 1, "__": 1} and found.tokens == 12


def test_style_features_are_the_standardized_relative_differences():
    long, short = style_of("# A\n\nwords **b**", 200), style_of("words", 100)
    found = style_features([(long, short), (short, long), (short, short)], np.array([0, 1, 2, 2]))
    raw = np.array([1 / 3, -1 / 3, 0, 0])
    assert found[:, 0] == pytest.approx((raw - raw.mean()) / raw.std(ddof=1))
    assert (found[:, 2] == 0).all()  # no lists anywhere


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rule": "new"}, "expected one of old, current"),
        ({"rule": "old", "style": []}, "that of the current rule"),
        ({"rule": "current", "style": []}, "0 styles and 5 prompts"),
        ({"games": [], "rule": "old"}, "none of 0 prompts"),
    ],
)
def test_what_cannot_be_scored_is_refused(options: dict[str, object], says: str):
    with pytest.raises(ValueError, match=says):
        arena_hard_score(**{"games": GAMES, **options})  # type: ignore[arg-type]
