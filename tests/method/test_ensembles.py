"""Claims about several judges' scores as one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo.method.ensembles import VETO_STEP, combined, disagreement, lead, standardized

numbers = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))
tables = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.lists(numbers, min_size=k, max_size=k), min_size=1, max_size=4)
)


@given(table=tables, scale=st.floats(0.1, 50), shift=numbers)
def test_a_judges_unit_and_zero_do_not_matter(table: list[list[float]], scale: float, shift: float):
    other = np.asarray(table)
    spread = np.ptp(other, axis=1)
    if np.all((spread == 0) | (spread > 1e-2)):
        other = other * scale + shift
        assert standardized(other) == pytest.approx(standardized(table), abs=1e-5)


def test_a_judge_without_spread_adds_nothing():
    z = standardized([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    assert z[1].tolist() == [0, 0, 0]
    assert combined(z, [1, 1], "mean") == pytest.approx(z[0] / 2)


def test_the_mean_is_weighted_and_the_worst_is_not():
    z = np.array([[1.0, -1.0], [-0.5, 0.5]])
    assert combined(z, [3, 1], "mean") == pytest.approx([0.625, -0.625])
    assert combined(z, [3, 1], "worst").tolist() == [-0.5, -1.0]


def test_a_vetoed_response_comes_after_all_others():
    z = np.array([[1.0, 0.0, -1.0]])
    assert combined(z, [1], "veto", [True, False, False]).tolist() == [-1 - VETO_STEP, 0, -1]
    assert combined(z, [1], "veto", [True, True, True]).tolist() == [-2, -2, -2]
    assert combined(z, [1], "veto", [False] * 3).tolist() == [1, 0, -1]


def test_disagreement_is_the_spread_of_the_judges_about_a_response():
    assert disagreement([[1.0, 0.0], [-1.0, 0.0]]).tolist() == [1.0, 0.0]
    assert disagreement([[1.0, 0.0]]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("scores", "texts", "ahead"),
    [
        ([3.0, 1.0, 1.0], "abc", 3 / np.sqrt(2)),
        ([3.0, 3.0, 0.0], "aab", 3 / np.sqrt(2)),
        ([2.0, 2.0], "ab", 0.0),
        ([2.0, 2.0], "aa", None),
        ([2.0], "a", None),
        ([], "", None),
    ],
)
def test_the_lead_is_over_the_best_other_text(scores: list[float], texts: str, ahead: float | None):
    found = lead(scores, texts)
    assert found == (None if ahead is None else pytest.approx(ahead))
