"""Losses over matched seeds, against hand-computed figures and scipy's own t interval."""

import numpy as np
import pytest
from scipy import stats

from lanewise.measure.loss_curve import LossCurve
from lanewise.measure.quality import SeedRuns, quality, seconds_to
from tests.measure.test_loss_curve import falling, series


def runs(gains: list[float], *, slower: float = 1.25) -> list[SeedRuns]:
    """Seeds whose treated arm is `gain` nats better at equal steps and `slower` times as slow."""
    return [
        SeedRuns(block=n + 1, seed=n, control=falling(1.0), treated=falling(slower, gain=gain))
        for n, gain in enumerate(gains)
    ]


def test_equal_steps_is_the_gain_with_the_t_interval_of_the_seeds() -> None:
    gains = [0.3, 0.1, 0.25, 0.15]
    found = quality(runs(gains))
    assert found is not None
    assert found.equal_steps.delta == pytest.approx(-0.2)
    expected = stats.ttest_1samp([-gain for gain in gains], 0.0).confidence_interval(0.95)
    assert found.equal_steps.low == pytest.approx(expected.low)
    assert found.equal_steps.high == pytest.approx(expected.high)


def test_equal_time_charges_the_slower_arm() -> None:
    found = quality(runs([0.2, 0.2]))
    assert found is not None
    # After 40 s the treated arm has taken 32 steps instead of 40: 0.8 nats behind, 0.2 gained.
    assert found.equal_time.delta == pytest.approx(0.6)


def test_time_to_target_is_the_ratio_of_first_passages() -> None:
    found = quality(runs([0.0, 0.0]))
    assert found is not None
    assert found.time_to_target.ratio == pytest.approx(1.25)
    assert found.time_to_target.low == pytest.approx(1.25)
    assert found.time_to_target.control_reached == 2


def test_a_target_that_is_not_reached_gives_no_ratio_and_says_so() -> None:
    found = quality(runs([0.0, 0.0]), target_loss=0.0)
    assert found is not None
    target = found.time_to_target
    assert target.ratio is None
    assert (target.control_reached, target.treated_reached) == (0, 0)
    assert target.reason is not None
    assert "train for more steps" in target.reason


def test_one_seed_has_no_interval() -> None:
    found = quality(runs([0.1]))
    assert found is not None
    assert found.equal_steps.low is None
    assert found.time_to_target.high is None


def test_a_seed_that_is_repeated_counts_once() -> None:
    first, second = runs([0.1, 0.3])
    repeated = SeedRuns(block=3, seed=first.seed, control=first.control, treated=first.treated)
    assert quality([first, second, repeated]) == quality([first, second])


def test_seeds_without_a_finite_loss_are_left_out_and_none_at_all_is_none() -> None:
    broken = SeedRuns(block=9, seed=9, control=series([1.0], [None]), treated=falling(1.0))
    assert quality([broken]) is None
    found = quality([broken, *runs([0.1])])
    assert found is not None
    assert [seed.block for seed in found.seeds] == [1]


def test_the_first_passage_is_linear_within_a_step() -> None:
    curve = LossCurve(seconds=(1.0, 2.0, 3.0), loss=(5.0, 4.0, 4.5))
    assert seconds_to(curve, 6.0) == 1.0
    assert seconds_to(curve, 4.25) == pytest.approx(1.75)
    assert seconds_to(curve, 3.0) is None


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.Generator(np.random.PCG64(7))
    covered = 0
    for _ in range(300):
        found = quality(runs(list(generator.normal(0.2, 0.05, size=4))))
        assert found is not None
        assert found.equal_steps.low is not None
        assert found.equal_steps.high is not None
        covered += found.equal_steps.low <= -0.2 <= found.equal_steps.high
    # 300 draws of 95 %: six standard errors below would be 0.87.
    assert 0.9 < covered / 300 < 0.99
