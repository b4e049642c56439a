import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lanewise.measure import simulate_naive as naive
from lanewise.measure.boundary import plan_boundary
from lanewise.measure.looks import Question, single_look, walk
from lanewise.measure.simulate import QUIET
from lanewise.measure.simulate_outcomes import Outcome, rates, replay, replay_all
from lanewise.receipts.decision import Verdict

RANDOM = np.random.Generator(np.random.PCG64(4))


def outcome(verdict: Verdict, num_blocks: int, effect: float, *, covered: bool) -> Outcome:
    return Outcome(
        verdict=verdict,
        num_blocks=num_blocks,
        effect_log=effect,
        median_unbiased_log=effect - 0.01,
        covered=covered,
        naively_covered=not covered,
        p_value=0.5,
    )


def test_a_replay_says_what_the_walk_says():
    row = [0.06, -0.02, 0.05, -0.01, 0.04, 0.03, -0.03, 0.05, 0.02, -0.02, 0.06, 0.01]
    question = Question(boundary=plan_boundary(12), margin_log=0.005)
    last = walk(row, question)[-1]
    found = replay(row, question, 0.02)
    assert found.verdict is last.verdict
    assert found.num_blocks == last.estimate.num_blocks
    assert found.p_value == last.estimate.p_value
    assert found.covered
    assert not replay(row, question, 0.2).covered
    assert replay_all(np.array([row, row]), question, 0.02) == (found, found)


@pytest.mark.parametrize("truth", [0.0, 0.01, 0.035, 0.05])
def test_with_one_look_both_intervals_are_the_t_interval(truth: float):
    row = [0.01, 0.03, 0.02, 0.015, 0.025]
    interval = scipy_stats.ttest_1samp(row, 0).confidence_interval(0.95)
    found = replay(row, single_look(5, margin_log=0.0), truth)
    assert found.covered == found.naively_covered == (interval.low <= truth <= interval.high)


def test_rates_count():
    outcomes = [
        outcome(Verdict.SLOWER, 4, 0.05, covered=True),
        outcome(Verdict.FASTER, 8, -0.05, covered=False),
        outcome(Verdict.EQUIVALENT, 12, 0.025, covered=True),
        outcome(Verdict.INCONCLUSIVE, 12, 0.01, covered=True),
    ]
    found = rates(outcomes, 0.02)
    assert (found.different, found.in_direction, found.equivalent) == (0.5, 0.25, 0.25)
    assert (found.coverage, found.naive_coverage) == (0.75, 0.25)
    assert (found.mean_above, found.unbiased_above) == (0.5, 0.25)
    assert (found.mean_blocks, found.num_campaigns) == (9.0, 4)
    assert rates(outcomes, -0.02).in_direction == 0.25
    assert rates(outcomes, 0.0).in_direction == 0.5


# --- designs in use ----------------------------------------------------------------------------------------------


def test_peeking_stops_at_the_first_block_that_is_significant():
    rows = RANDOM.standard_normal((40, 8))
    expected, covered = [], []
    for row in rows:
        for num_blocks in range(3, 9):
            found = scipy_stats.ttest_1samp(row[:num_blocks], 0)
            if found.pvalue <= 0.05:
                break
        expected.append(found.pvalue <= 0.05)
        interval = found.confidence_interval(0.95)
        covered.append(interval.low <= 0.3 <= interval.high)
    assert 0 < sum(expected) < len(expected)
    assert naive.peeking(rows) == pytest.approx(np.mean(expected))
    assert naive.peeking_coverage(rows, 0.3) == pytest.approx(np.mean(covered))


def test_a_percentile_bootstrap_of_six_blocks_errs_too_often():
    rows = RANDOM.standard_normal((1_000, 6))
    share = naive.percentile_bootstrap(rows, seed=1)
    assert 0.09 < share < 0.18
    assert naive.percentile_bootstrap(rows + 5.0, seed=1) == 1.0


def test_steps_of_one_run_are_no_samples():
    share = naive.one_run_per_arm(QUIET, num_steps=50, num_campaigns=300, seed=2)
    assert share > 0.5


def test_arms_in_a_row_take_drift_for_an_effect():
    share = naive.arms_in_a_row(QUIET, runs_per_arm=4, num_steps=20, num_campaigns=400, seed=3)
    assert share > 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
