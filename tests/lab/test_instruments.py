"""The observer's campaign is a cross-check of the accounting: how often a sound one fails, and what makes it fail."""

import math
import random
from statistics import fmean, stdev

import pytest
from scipy import stats

from lanewise.lab.instruments import (
    CROSS_CHECK_ALPHA,
    LARGEST_IN_STEP_RATIO,
    observer_fails,
    observer_result,
    strict_interval,
)
from lanewise.receipts.calibration import ObserverResult
from tests.receipts.factory import make_decision

ACCOUNTED = ObserverResult(in_step_ratio=0.0003, total_ratio=0.0006)


def found(contrasts, looks=(8,)):
    """The decision of a campaign of these blocks, and nothing else of it."""
    num, mean, sd = len(contrasts), fmean(contrasts), stdev(contrasts)
    half = stats.t.ppf(0.975, num - 1) * sd / math.sqrt(num)
    decision = make_decision()
    assert decision.estimate is not None
    estimate = decision.estimate.model_copy(
        update={
            "log_ratio": mean,
            "interval_low": math.exp(mean - half),
            "interval_high": math.exp(mean + half),
            "half_width_log": half,
            "block_sd_log": sd,
            "num_blocks": num,
        }
    )
    boundary = {"looks": looks, "alpha": 0.05, "nominal_alpha": 0.05 / len(looks)}
    return type(decision).model_validate(
        {
            **decision.model_dump(mode="json"),
            "estimate": estimate.model_dump(),
            "boundary": boundary,
        }
    )


@pytest.mark.parametrize("looks", [(8,), (4, 8)])
def test_the_strict_interval_is_student_t_shared_by_the_looks(looks):
    contrasts = [0.001, -0.004, 0.003, 0.002, -0.001, 0.005, -0.002, 0.0]
    interval = strict_interval(found(contrasts, looks))
    expected = stats.t.interval(
        1 - CROSS_CHECK_ALPHA / len(looks), 7, fmean(contrasts), stdev(contrasts) / math.sqrt(8)
    )
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_sound_runs_fail_one_time_in_a_thousand_where_95_percent_fails_one_in_twenty():
    rng = random.Random(0)
    truth, trials = math.log1p(ACCOUNTED.in_step_ratio), 3000
    missed = failed = 0
    for _ in range(trials):
        result = observer_result(ACCOUNTED, found([rng.gauss(truth, 0.01) for _ in range(8)]))
        missed += result.contains_direct is False
        failed += observer_fails(result)
    assert 0.04 <= missed / trials <= 0.06
    assert failed <= stats.binom.ppf(0.999, trials, CROSS_CHECK_ALPHA)


def test_a_cost_that_escapes_the_accounting_fails():
    contrasts = [0.05 + 0.001 * index for index in range(8)]
    result = observer_result(ACCOUNTED, found(contrasts))
    assert result.contradicts_direct is True
    assert observer_fails(result)


def test_a_near_miss_of_the_95_percent_interval_is_told_and_passes():
    noise = [0.01, -0.01] * 4
    shift = 2.7 * stdev(noise) / math.sqrt(8)
    result = observer_result(ACCOUNTED, found([each + shift for each in noise]))
    assert (result.contains_direct, result.contradicts_direct) == (False, False)
    assert not observer_fails(result)


def test_accounting_fails_by_itself_at_half_a_percent_inside_the_step():
    assert pytest.approx(0.005, rel=0.01) == LARGEST_IN_STEP_RATIO
    for ratio, fails in ((0.004, False), (0.006, True)):
        assert observer_fails(ObserverResult(in_step_ratio=ratio, total_ratio=0.02)) is fails


def test_one_block_has_no_spread_to_contradict_with():
    decision = found([0.1, 0.1001])
    estimate = decision.estimate.model_copy(update={"block_sd_log": None, "half_width_log": None})
    result = observer_result(ACCOUNTED, decision.model_copy(update={"estimate": estimate}))
    assert result.contradicts_direct is None
    assert not observer_fails(result)
