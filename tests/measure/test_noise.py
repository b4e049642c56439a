"""Statistics of A/A blocks against scipy, closed forms and simulations whose truth is known."""

import random

import numpy as np
import pytest
from scipy import stats

from lanewise.measure.boundary import plan_boundary
from lanewise.measure.looks import Question, single_look
from lanewise.measure.noise import (
    agree,
    autocorrelation,
    false_positives,
    mean_interval,
    rate_interval,
    sd_interval,
)


def normal(count: int, sd: float = 0.01, seed: int = 0, mean: float = 0.0) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(mean, sd) for _ in range(count)]


def test_the_interval_of_an_sd_covers_it_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        interval = sd_interval(float(np.std(rng.normal(0, 0.02, 16), ddof=1)), 16)
        covered += interval.low <= 0.02 <= interval.high
    # 2,000 trials of 95 % have an SD of 0.5 %.
    assert 0.935 <= covered / 2000 <= 0.965


def test_the_interval_of_a_mean_is_student_s():
    values = normal(12)
    low, high = stats.t.interval(0.95, 11, loc=np.mean(values), scale=stats.sem(values))
    interval = mean_interval(values)
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_autocorrelation_by_hand():
    # Distances from the mean of 2: −1, 0, 1; products 0 and 0; squares sum to 2.
    assert autocorrelation([[1.0, 2.0, 3.0]])[0] == 0.0
    # −1, 1, −1, 1: three products of −1 over four squares of 1.
    assert autocorrelation([[1.0, 3.0, 1.0, 3.0]])[0] == pytest.approx(-0.75)
    # Each campaign has its own mean, and no pair spans two campaigns.
    assert autocorrelation([[1.0, 3.0], [11.0, 13.0]])[0] == pytest.approx(-0.5)
    assert autocorrelation([[1.0, 1.0, 1.0]]) == (0.0, 1.0)


def test_independent_blocks_are_rarely_called_drifting_and_drifting_ones_mostly():
    independent = sum(autocorrelation([normal(16, seed=seed)])[1] < 0.05 for seed in range(60))
    assert independent <= 8
    rng = random.Random(1)
    found = 0
    for _ in range(20):
        walk = [0.0]
        for _ in range(15):
            walk.append(0.95 * walk[-1] + rng.gauss(0, 1))
        found += autocorrelation([walk])[1] < 0.05
    assert found >= 14


def test_agreement_is_brown_forsythe_and_welch():
    for seed in range(30):
        one, other = normal(12, seed=seed), normal(16, sd=0.014, seed=seed + 100, mean=0.004)
        spread = stats.ttest_ind(
            np.abs(np.array(one) - np.median(one)),
            np.abs(np.array(other) - np.median(other)),
            equal_var=False,
        ).pvalue
        means = stats.ttest_ind(one, other, equal_var=False).pvalue
        assert agree(one, other) == (spread >= 0.05 and means >= 0.05)
    assert not agree(normal(16), normal(16, sd=0.06, seed=1))
    assert not agree(normal(16), normal(16, mean=0.03, seed=1))
    assert agree([0.0] * 8, [0.0] * 8)


def test_wilson_interval():
    interval = rate_interval(5, 100)
    expected = stats.binomtest(5, 100).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert rate_interval(0, 50).low == pytest.approx(0.0, abs=1e-12)


def test_pseudo_campaigns_of_quiet_blocks_err_as_often_as_they_may():
    found = false_positives(normal(64), single_look(8, margin_log=0.0), trials=600)
    assert found.looks == (8,)
    # Binomial SD of 5 % over 600 trials is 0.9 %.
    assert 0.025 <= found.rate <= 0.075
    assert found.interval.low < found.rate < found.interval.high


def test_random_signs_take_any_bias_out_of_pseudo_campaigns():
    biased = [0.05 + value for value in normal(32, sd=0.001)]
    assert false_positives(biased, single_look(8, margin_log=0.0), trials=200).rate < 0.1


def test_the_margin_only_makes_calls_rarer():
    values, boundary = normal(16), plan_boundary(12)
    alone, held = (
        false_positives(values, Question(boundary=boundary, margin_log=margin), trials=15)
        for margin in (0.0, 0.02)
    )
    assert held.looks == boundary.looks
    assert held.called <= alone.called
    assert held.called == 0, "a mean of twelve blocks never reaches twice the SD of one"
