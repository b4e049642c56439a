import statistics

import numpy as np
import pytest

from lanewise.measure.expert_load import summarise


def test_a_window_without_steps_has_no_load() -> None:
    assert summarise([]) is None


def test_picks_are_summed_and_spread_is_of_the_real_experts() -> None:
    first = np.array([[4, 0, 2, 2], [1, 1, 1, 5]])
    second = np.array([[0, 4, 2, 2], [3, 0, 0, 5]])
    load = summarise([first, second])
    assert load is not None
    assert load.expert_picks == ((4, 4, 4), (4, 1, 1))
    assert load.expert_picks_cv == pytest.approx((0.0, statistics.pstdev([4, 1, 1]) / 2))
    steps = ([4, 0, 2], [1, 1, 1], [0, 4, 2], [3, 0, 0])
    expected = statistics.mean(statistics.pstdev(s) / statistics.mean(s) for s in steps)
    assert load.step_cv == pytest.approx(expected)
    assert load.null_ratio == 14 / 32


def test_null_picks_alone_have_no_spread() -> None:
    load = summarise([np.array([[0, 0, 7]])])
    assert load is not None
    assert (load.step_cv, load.expert_picks_cv, load.null_ratio) == (0.0, (0.0,), 1.0)
