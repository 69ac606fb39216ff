"""Claims about a training's speed: operations are counted as they are done, the reference's pass included."""

from collections.abc import Iterator

import pytest

from tasks.training import _Speed
from tpo.planning.model_flops import TrainingLoad

LOAD = TrainingLoad(step_tokens=100, step_flops=3e12, reference_flops=6e12, peak=1e12)


def speed_of(
    load: TrainingLoad, times: Iterator[float]
) -> tuple[_Speed, list[tuple[float, float | None]], list[float]]:
    shown, tokens = list[tuple[float, float | None]](), list[float]()
    return _Speed(load, lambda *each: shown.append(each), tokens.append, clock=lambda: next(times)), shown, tokens


def test_the_reference_counts_once_its_pass_is_over_and_time_counts_from_the_first_sign_of_life():
    speed, shown, tokens = speed_of(LOAD, iter([50.0, 55.0, 60.0, 70.0, 70.5]))
    for steps, begun in ((0, False), (0, False), (0, True), (2, True), (0, True)):
        speed.reach(steps, begun=begun)
    assert shown == [(0, None), (6e12, pytest.approx(0.6)), (6e12, pytest.approx(0.6))]
    assert tokens == [0, 200]


def test_without_a_known_peak_operations_are_counted_and_there_is_no_mfu():
    speed, shown, _ = speed_of(TrainingLoad(100, 3e12), iter([0.0, 2.0]))
    speed.reach(0, begun=True)
    speed.reach(1, begun=True)
    assert shown == [(0, None), (3e12, None)]


def test_without_a_known_shape_operations_are_absent_and_tokens_count():
    speed, shown, tokens = speed_of(TrainingLoad(100), iter([0.0, 2.0]))
    speed.reach(0, begun=True)
    speed.reach(1, begun=True)
    assert (shown, tokens) == ([], [0, 100])
