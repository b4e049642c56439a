import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from lanewise.measure.boundary import critical_t, plan_boundary
from lanewise.measure.looks import Question, single_look, walk
from lanewise.receipts.decision import Verdict

TWELVE = Question(boundary=plan_boundary(12), margin_log=0.005)
CLEAR = [0.100, 0.104, 0.097, 0.099, 0.101, 0.098, 0.103, 0.100, 0.102, 0.099, 0.100, 0.101]
WIDE = [0.06, -0.02, 0.05, -0.01, 0.04, 0.03, -0.03, 0.05, 0.02, -0.02, 0.06, 0.01]


def outcomes(contrasts: list[float], question: Question, *, ended: bool = True) -> list[str]:
    return [look.record.outcome for look in walk(contrasts, question, ended=ended)]


# --- the walk ----------------------------------------------------------------------------------------------------


def test_a_clear_answer_stops_at_the_first_look():
    (look,) = walk(CLEAR, TWELVE)
    assert look.stops
    assert look.record.num_blocks == look.estimate.num_blocks == 4
    assert look.verdict is Verdict.SLOWER
    assert look.record.nominal_p == pytest.approx(
        float(scipy_stats.ttest_1samp(CLEAR[:4], 0).pvalue)
    )
    assert look.record.log_ratio == pytest.approx(np.mean(CLEAR[:4]))


def test_no_look_before_its_blocks_are_there():
    assert walk(CLEAR[:3], TWELVE, ended=False) == ()
    assert walk(WIDE[:7], TWELVE, ended=False) == walk(WIDE[:4], TWELVE, ended=False)
    assert outcomes(WIDE[:7], TWELVE, ended=False) == ["go_on"]


def test_what_is_left_when_a_campaign_ends_is_its_last_look():
    looks = walk(WIDE[:7], TWELVE, ended=True)
    assert [look.record.num_blocks for look in looks] == [4, 7]
    assert looks[-1].record.outcome == "last"
    (early,) = walk(CLEAR[:3], TWELVE)
    assert early.record.num_blocks == 3
    assert walk(CLEAR[:1], TWELVE) == walk([], TWELVE) == ()


def test_the_planned_last_look_is_last_while_the_campaign_runs_too():
    looks = walk(WIDE, TWELVE, ended=False)
    assert [look.record.num_blocks for look in looks] == [4, 8, 12]
    assert [look.record.outcome for look in looks] == ["go_on", "go_on", "last"]


def test_blocks_beyond_the_plan_change_nothing():
    assert walk([*WIDE, 5.0], TWELVE) == walk(WIDE, TWELVE)


def test_later_blocks_never_change_an_earlier_look():
    assert walk(WIDE, TWELVE)[:2] == walk(WIDE[:8], TWELVE, ended=False)


def test_hopeless_blocks_stop_for_futility():
    values = [0.05, -0.05, 0.04, -0.04, 0.05, -0.05, 0.04, -0.04]
    looks = walk(values, TWELVE)
    assert [look.record.outcome for look in looks] == ["futile"]
    assert looks[0].verdict is Verdict.INCONCLUSIVE
    assert "most likely tell no more" in looks[0].reason


# --- verdicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contrasts", "expected"),
    [
        ([-0.10, -0.11, -0.09, -0.10], Verdict.FASTER),
        ([0.10, 0.11, 0.09, 0.10], Verdict.SLOWER),
        ([0.001, -0.001, 0.0005, -0.0005], Verdict.EQUIVALENT),
        ([0.0020, 0.0021, 0.0019, 0.0020], Verdict.EQUIVALENT),
        ([-0.10, 0.09, -0.12, 0.05], Verdict.INCONCLUSIVE),
        ([0.0044, 0.0054, 0.0039, 0.0045], Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts_of_hot_paths(contrasts: list[float], expected: Verdict):
    (look,) = walk(contrasts, single_look(4, margin_log=0.005))
    assert look.verdict is expected
    assert look.reason


@pytest.mark.parametrize(
    ("contrasts", "expected"),
    [
        ([0.001, 0.002, 0.0015, 0.001], Verdict.WITHIN_BUDGET),
        ([-0.2, -0.21, -0.2, -0.19], Verdict.WITHIN_BUDGET),
        ([0.02, 0.021, 0.019, 0.02], Verdict.OVER_BUDGET),
        ([0.005, 0.012, 0.009, 0.02], Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts_of_taxes_compare_with_the_budget_and_not_with_the_margin(
    contrasts: list[float], expected: Verdict
):
    for margin in (0.0, 0.5):
        (look,) = walk(contrasts, single_look(4, margin_log=margin, tax_budget_ratio=1.01))
        assert look.verdict is expected
        assert "1.0%" in look.reason
        against_budget = scipy_stats.ttest_1samp(contrasts, math.log(1.01)).pvalue
        assert look.estimate.p_value == pytest.approx(float(against_budget))
        assert look.record.nominal_p == pytest.approx(float(against_budget))


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.integers(-40, 40), min_size=2, max_size=10),
    centre=st.integers(-60, 60),
    margin=st.integers(1, 60),
)
def test_one_look_follows_the_t_test_and_two_one_sided_tests(
    values: list[int], centre: int, margin: int
):
    contrasts = [(value + centre) / 1000 for value in values]
    assume(len(set(values)) > 1)
    margin_log = margin / 1000 + 1e-7  # off the grid of the contrasts, where rounding would decide
    mean = float(np.mean(contrasts))
    differs = scipy_stats.ttest_1samp(contrasts, 0).pvalue
    below = scipy_stats.ttest_1samp(contrasts, margin_log, alternative="less").pvalue
    above = scipy_stats.ttest_1samp(contrasts, -margin_log, alternative="greater").pvalue
    assume(all(abs(p - 0.05) > 1e-9 for p in (differs, below, above)))
    expected = Verdict.INCONCLUSIVE
    if differs <= 0.05 and abs(mean) >= margin_log:
        expected = Verdict.FASTER if mean < 0 else Verdict.SLOWER
    elif max(below, above) < 0.05:
        expected = Verdict.EQUIVALENT
    (look,) = walk(contrasts, single_look(len(contrasts), margin_log=margin_log))
    assert look.verdict is expected


MIRROR = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}


@settings(deadline=None, max_examples=25)
@given(
    values=st.lists(st.integers(-40, 40), min_size=2, max_size=12),
    centre=st.integers(-40, 40),
    margin=st.integers(0, 30),
)
def test_laws_of_a_walk(values: list[int], centre: int, margin: int):
    contrasts = [(value + centre) / 1000 for value in values]
    question = Question(boundary=TWELVE.boundary, margin_log=margin / 1000)
    looks = walk(contrasts, question)
    mirrored = walk([-value for value in contrasts], question)
    assert [look.record.outcome for look in looks] == [look.record.outcome for look in mirrored]
    assert [look.stops for look in looks] == [False] * (len(looks) - 1) + [True]
    assert mirrored[-1].verdict is MIRROR.get(looks[-1].verdict, looks[-1].verdict)
    for look in looks:
        low, high = math.log(look.estimate.interval_low), math.log(look.estimate.interval_high)
        if look.verdict in MIRROR:
            assert look.estimate.p_value is not None
            assert look.estimate.p_value <= 0.05
            assert abs(look.estimate.log_ratio) >= question.margin_log
            assert high < 0 or low > 0
        elif "the interval contains 0" in look.reason:
            assert low <= 0 <= high
        elif "leaves out 0" in look.reason:
            assert not low <= 0 <= high


def test_an_early_look_needs_more_than_an_interval_without_zero():
    """t = 3.5 on 3 degrees of freedom: p = 4 %, below 5 % but not at the level of one look of three."""
    values = np.array([-1.0, 1.0, -0.5, 0.5])
    values = values / values.std(ddof=1) * 0.01 + 3.5 * 0.01 / 2
    (look,) = walk(values.tolist(), TWELVE)
    assert look.estimate.interval_low > 1
    assert look.verdict is Verdict.INCONCLUSIVE
    assert look.reason == "the interval leaves out 0, but no look reached its planned level of 2.0%"


def test_equivalence_is_tested_at_the_level_of_the_look():
    level = TWELVE.boundary.nominal_alpha
    values = np.array([-1.0, 1.0, -0.5, 0.5]) * 0.01
    half_width = critical_t(4, level=2 * level) * values.std(ddof=1) / 2
    for factor, expected in ((1.01, Verdict.EQUIVALENT), (0.99, Verdict.INCONCLUSIVE)):
        question = Question(boundary=TWELVE.boundary, margin_log=factor * half_width)
        assert walk(values.tolist(), question)[0].verdict is expected
    one_sided = scipy_stats.ttest_1samp(values, half_width, alternative="less").pvalue
    assert one_sided == pytest.approx(level)


def test_a_real_effect_below_the_margin_is_no_verdict():
    question = single_look(4, margin_log=0.02)
    (look,) = walk([0.010, 0.014, 0.018, 0.022], question)
    assert look.verdict is Verdict.INCONCLUSIVE
    assert "a real effect, but below 2.0%" in look.reason


# --- error rates -------------------------------------------------------------------------------------------------


def simulated(num: int, seed: int, effect: float = 0.0) -> list[list[float]]:
    random = np.random.Generator(np.random.PCG64(seed))
    return (effect + 0.03 * random.standard_normal((num, 12))).tolist()


def test_effects_at_the_margin_are_called_equivalent_in_at_most_five_percent():
    question = Question(boundary=TWELVE.boundary, margin_log=0.05)
    ends = [walk(row, question, num_draws=2**10)[-1] for row in simulated(500, 21, effect=0.05)]
    wrong = sum(look.verdict is Verdict.EQUIVALENT for look in ends) / len(ends)
    assert 0.005 < wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(ends))


def test_equal_arms_are_called_different_in_five_percent_with_looks_on():
    question = Question(boundary=TWELVE.boundary, margin_log=0.0)
    ends = [walk(row, question, num_draws=2**10)[-1] for row in simulated(500, 22)]
    wrong = sum(look.verdict is not Verdict.INCONCLUSIVE for look in ends) / len(ends)
    assert wrong == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / len(ends)))
    assert np.mean([look.estimate.num_blocks for look in ends]) < 9


def test_a_tax_at_its_budget_is_within_it_in_at_most_half_of_alpha():
    question = Question(boundary=TWELVE.boundary, margin_log=0.005, tax_budget_ratio=1.02)
    ends = [
        walk(row, question, num_draws=2**10)[-1]
        for row in simulated(500, 23, effect=math.log(1.02))
    ]
    within = sum(look.verdict is Verdict.WITHIN_BUDGET for look in ends) / len(ends)
    assert within <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / len(ends))
