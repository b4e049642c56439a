import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from scipy import stats as scipy_stats

from lanewise.measure import boundary as b
from lanewise.receipts.decision import Boundary

contrasts_lists = st.lists(st.integers(-100, 100), min_size=2, max_size=12).filter(
    lambda values: len(set(values)) > 1
)


def one_look(num_blocks: int, alpha: float = 0.05) -> Boundary:
    return Boundary(looks=(num_blocks,), alpha=alpha, nominal_alpha=alpha)


def normal_rows(num: int, num_blocks: int, seed: int, effect: float = 0.0) -> list[list[float]]:
    random = np.random.Generator(np.random.PCG64(seed))
    return (effect + random.standard_normal((num, num_blocks))).tolist()


# --- looks and levels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_blocks", "looks"),
    [
        (2, (2,)),
        (5, (5,)),
        (6, (4, 6)),
        (8, (4, 8)),
        (9, (4, 6, 9)),
        (12, (4, 8, 12)),
        (30, (10, 20, 30)),
    ],
)
def test_looks_come_after_each_third(num_blocks: int, looks: tuple[int, ...]):
    assert b.plan_looks(num_blocks) == looks


@given(num_blocks=st.integers(2, 500))
def test_looks_rise_to_the_whole_plan_and_never_come_too_early(num_blocks: int):
    looks = b.plan_looks(num_blocks)
    assert looks[-1] == num_blocks
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(looks))
    assert len(looks) <= 3
    assert len(looks) == 1 or looks[0] >= b.MIN_LOOK_BLOCKS


@pytest.mark.parametrize(
    ("num_looks", "published"), [(2, 2.178), (3, 2.289), (4, 2.361), (5, 2.413)]
)
def test_levels_of_long_plans_are_pococks(num_looks: int, published: float):
    """Jennison and Turnbull 1999, table 2.1: critical z of equal looks at α = 5 %."""
    looks = tuple(60 * (index + 1) for index in range(num_looks))
    level = b._nominal_alpha(looks, 0.05)
    # At 60 blocks t is still a little wider than z; the limit is approached from below.
    assert scipy_stats.norm.isf(level / 2) == pytest.approx(published, abs=0.02)


def test_level_of_two_looks_against_the_bivariate_normal():
    correlation = [[1.0, math.sqrt(0.5)], [math.sqrt(0.5), 1.0]]
    joint = scipy_stats.multivariate_normal(cov=correlation)

    def crossing(z: float) -> float:
        return 1 - float(joint.cdf([z, z], lower_limit=[-z, -z]))

    z = optimize.brentq(lambda value: crossing(value) - 0.05, 1.5, 3.0)
    level = b._nominal_alpha((150, 300), 0.05)
    assert level == pytest.approx(2 * scipy_stats.norm.sf(z), abs=0.0008)


@pytest.mark.parametrize("num_blocks", [6, 9, 12])
def test_few_blocks_cross_in_five_percent_of_other_campaigns(num_blocks: int):
    plan = b.plan_boundary(num_blocks)
    random = np.random.Generator(np.random.PCG64(5))
    rows = random.standard_normal((20_000, num_blocks))
    crossed = np.zeros(len(rows), dtype=bool)
    for look in plan.looks:
        crossed |= scipy_stats.ttest_1samp(rows[:, :look], 0.0, axis=1).pvalue <= plan.nominal_alpha
    assert crossed.mean() == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 20_000))


def test_one_look_tests_at_alpha():
    assert b.plan_boundary(3).nominal_alpha == 0.05
    assert b.plan_boundary(5, alpha=0.01).nominal_alpha == 0.01


def test_a_plan_of_one_block_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        b.plan_boundary(1)


# --- one look is the t test --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(values=contrasts_lists, null=st.sampled_from([0.0, 7.5, -20.0]))
def test_one_look_is_the_t_test(values: list[int], null: float):
    found = b.conclude(values, one_look(len(values)), null_log=null, margin_log=3.0)
    expected = scipy_stats.ttest_1samp(values, null)
    interval = expected.confidence_interval(0.95)
    assert found.low == pytest.approx(interval.low, abs=1e-9)
    assert found.high == pytest.approx(interval.high, abs=1e-9)
    assert found.median_unbiased == pytest.approx(np.mean(values), abs=1e-9)
    assert found.p_value == pytest.approx(expected.pvalue, abs=1e-12)
    assert found.crossed == (expected.pvalue <= 0.05)


def test_the_first_of_several_looks_gives_the_plain_interval_but_pays_for_the_others():
    values = [0.9, 1.3, 0.4, 1.1]
    found = b.conclude(values, b.plan_boundary(12))
    plain = scipy_stats.ttest_1samp(values, 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(plain.confidence_interval(0.95)))
    assert 2 * plain.pvalue < found.p_value < 3 * plain.pvalue


# --- intervals after earlier looks -------------------------------------------------------------------------------


def test_the_interval_of_a_second_look_against_integrated_normal_theory():
    """For many blocks: P(stop above first) + P(go on, z₂ at least as large), integrated over z₁."""
    plan = Boundary(looks=(200, 400), alpha=0.05, nominal_alpha=b._nominal_alpha((200, 400), 0.05))
    values = np.linspace(-1.7, 1.7, 400)
    values = np.random.Generator(np.random.PCG64(3)).permutation(values - values.mean())
    values = values / values.std(ddof=1) + 0.125  # z = 2.5
    found = b.conclude(values.tolist(), plan)
    critical = float(scipy_stats.norm.isf(plan.nominal_alpha / 2))

    def upper_tail(effect: float) -> float:
        early = scipy_stats.norm.sf(critical - effect * math.sqrt(200))

        def later(z: float) -> float:
            # Z₂ = (Z₁ + Z of the second half) / √2
            rest = math.sqrt(2) * 2.5 - z - effect * math.sqrt(200)
            return float(
                scipy_stats.norm.pdf(z - effect * math.sqrt(200)) * scipy_stats.norm.sf(rest)
            )

        return float(early + integrate.quad(later, -critical, critical)[0])

    for quantile, end in ((0.025, found.low), (0.5, found.median_unbiased), (0.975, found.high)):
        exact = optimize.brentq(lambda x, q=quantile: upper_tail(x) - q, -1, 1)
        assert end == pytest.approx(exact, abs=0.004)
    assert found.median_unbiased < 0.125


@settings(deadline=None, max_examples=15)
@given(values=st.lists(st.integers(-50, 50), min_size=12, max_size=12), margin=st.integers(0, 30))
def test_laws_of_the_interval(values: list[int], margin: int):
    assume(len(set(values)) > 1)
    plan = b.plan_boundary(12)
    found = b.conclude(values, plan, margin_log=margin)
    mirrored = b.conclude([-value for value in values], plan, margin_log=margin)
    scaled = b.conclude([value / 8 for value in values], plan, margin_log=margin / 8)
    shifted = b.conclude([value + 16 for value in values], plan, margin_log=margin, null_log=16)
    near = 1e-3 * np.std(values)
    assert found.low <= found.median_unbiased <= found.high
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=near)
    assert mirrored.p_value == pytest.approx(found.p_value)
    assert (8 * scaled.low, 8 * scaled.high) == pytest.approx((found.low, found.high), abs=near)
    assert (shifted.low - 16, shifted.high - 16) == pytest.approx((found.low, found.high), abs=near)
    assert shifted.p_value == pytest.approx(found.p_value)


def test_looks_that_could_not_have_stopped_leave_the_t_interval():
    (values,) = normal_rows(1, 12, seed=13, effect=0.3)
    found = b.conclude(values, b.plan_boundary(12), margin_log=1e6)
    interval = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.008)
    assert found.median_unbiased == pytest.approx(np.mean(values), abs=0.005)


def test_every_end_rises_with_the_outcome():
    plan = b.plan_boundary(12)
    base = np.array([0.3, -1.2, 0.8, 0.1, -0.4, 1.9, -0.7, 0.2, 0.5, -1.0, 0.6, -0.1])
    found = [
        b.conclude((base + shift).tolist(), plan, num_draws=2**14)
        for shift in np.linspace(-1, 1, 11)
    ]
    for name in ("low", "median_unbiased", "high"):
        ends = [getattr(one, name) for one in found]
        assert ends == sorted(ends)
        assert len(set(ends)) == len(ends)


def test_crossing_at_the_last_look_is_an_interval_without_zero():
    plan = b.plan_boundary(12)
    found = [b.conclude(row, plan) for row in normal_rows(120, 12, seed=8, effect=0.75)]
    decided = [(one.crossed, not one.low <= 0 <= one.high) for one in found]
    assert all(crossed == excluded for crossed, excluded in decided)
    assert 20 < sum(crossed for crossed, _ in decided) < 100


@pytest.mark.parametrize("num_blocks", [4, 8, 10, 12])
def test_p_is_at_most_alpha_exactly_where_a_look_crosses(num_blocks: int):
    plan = b.plan_boundary(12)
    rows = normal_rows(150, num_blocks, seed=9, effect=0.8)
    found = [b.conclude(row, plan, num_draws=2) for row in rows]
    assert all((one.p_value <= 0.05) == one.crossed for one in found)
    assert {one.crossed for one in found} == {True, False}


def test_the_smallest_p_of_all_looks_errs_as_often_as_it_says():
    plan = b.plan_boundary(12)
    smallest = np.array(
        [
            min(b.conclude(row[:look], plan, num_draws=2).p_value for look in plan.looks)
            for row in normal_rows(600, 12, seed=10)
        ]
    )
    for level in (0.02, 0.05, 0.2, 0.5):
        assert np.mean(smallest <= level) == pytest.approx(
            level, abs=4 * math.sqrt(level * (1 - level) / len(smallest))
        )


def test_p_rises_with_the_nominal_p_and_stays_between_it_and_the_union_bound():
    nominal = np.geomspace(1e-9, 1.0, 300)
    found = [b._overall_p(float(p), (4, 8, 12)) for p in nominal]
    assert found == sorted(found)
    assert all(p <= q <= min(1.0, 3 * p) for p, q in zip(nominal, found, strict=True))


@pytest.mark.parametrize("nominal", [0.001, 0.004, 0.03])
def test_p_is_how_often_equal_arms_come_as_far_at_any_look(nominal: float):
    random = np.random.Generator(np.random.PCG64(14))
    rows = random.standard_normal((200_000, 12))
    reached = np.zeros(len(rows), dtype=bool)
    for look in (4, 8, 12):
        reached |= scipy_stats.ttest_1samp(rows[:, :look], 0.0, axis=1).pvalue <= nominal
    share = float(reached.mean())
    error = math.sqrt(share / len(rows))
    assert b._overall_p(nominal, (4, 8, 12)) == pytest.approx(share, abs=5 * error)


def test_strong_evidence_at_the_second_look_has_a_small_p():
    values = [0.2, 2.2, 0.4, 2.0, 1.3, 1.2, 1.1, 1.3]
    found = b.conclude(values, b.plan_boundary(12))
    assert not b.conclude(values[:4], b.plan_boundary(12)).crossed
    assert found.p_value < 0.01 < b.plan_boundary(12).nominal_alpha


@pytest.mark.parametrize("effect_in_mde", [0.0, 1.0, 2.0])
def test_the_interval_covers_after_sequential_stops(effect_in_mde: float):
    plan = b.plan_boundary(12)
    effect = effect_in_mde * b.smallest_effect(1.0, plan)
    covered = []
    for row in normal_rows(600, 12, seed=11, effect=effect):
        found = None
        for look in plan.looks:
            found = b.conclude(row[:look], plan, num_draws=2**11)
            if found.crossed:
                break
        assert found is not None
        covered.append(found.low <= effect <= found.high)
    assert 0.91 < np.mean(covered) < 0.98


def test_fewer_draws_say_nearly_the_same():
    (values,) = normal_rows(1, 12, seed=12, effect=0.4)
    many, few = (b.conclude(values, b.plan_boundary(12), num_draws=2**n) for n in (17, 13))
    assert (few.low, few.high) == pytest.approx((many.low, many.high), abs=0.03)
    assert few.p_value == many.p_value


def test_contrasts_without_spread_have_a_point_for_an_interval():
    found = b.conclude([0.25] * 4, b.plan_boundary(12))
    assert (found.low, found.high, found.p_value, found.crossed) == (0.25, 0.25, 0.0, True)
    null = b.conclude([0.25] * 4, b.plan_boundary(12), null_log=0.25)
    assert (null.low, null.p_value, null.crossed) == (0.25, 1.0, False)


@pytest.mark.parametrize(
    ("values", "words"), [([0.1], "at least 2"), ([0.1, math.nan], "not finite")]
)
def test_contrasts_that_say_nothing_are_refused(values: list[float], words: str):
    with pytest.raises(ValueError, match=words):
        b.conclude(values, one_look(2))


# --- futility ----------------------------------------------------------------------------------------------------


def test_a_look_gives_up_below_a_tenth_of_predictive_power():
    plan = b.plan_boundary(12)
    shape = np.array([-1.0, 1.0, -0.5, 0.5])
    sd = shape.std(ddof=1)
    needed = scipy_stats.t.isf(plan.nominal_alpha / 2, 11) * sd / math.sqrt(12)
    spread = sd * math.sqrt(1 / 4 - 1 / 12)
    turn = needed - spread * scipy_stats.t.isf(0.1, 3)
    assert turn > 0
    for sign in (1, -1):
        assert b.is_futile((shape + sign * turn * 0.99).tolist(), plan, margin_log=0.0)
        assert not b.is_futile((shape + sign * turn * 1.01).tolist(), plan, margin_log=0.0)
    shifted = (shape + 5 + turn * 0.99).tolist()
    assert b.is_futile(shifted, plan, margin_log=0.0, null_log=5.0)
    assert not b.is_futile(shifted, plan, margin_log=0.0)


def test_a_look_never_gives_up_where_equivalence_can_still_be_shown():
    values = [-1.0, 1.0, -0.5, 0.5]
    plan = b.plan_boundary(12)
    half_width = (
        b.critical_t(12, level=2 * plan.nominal_alpha) * np.std(values, ddof=1) / math.sqrt(12)
    )
    assert b.is_futile(values, plan, margin_log=0.99 * half_width)
    assert not b.is_futile(values, plan, margin_log=1.01 * half_width)


def test_the_last_look_has_nothing_to_give_up():
    plan = b.plan_boundary(6)
    assert not b.is_futile([0.1, -0.1, 0.2, -0.2, 0.1, -0.1], plan, margin_log=0.0)
    assert not b.is_futile([0.1], plan, margin_log=0.0)


# --- power and plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_blocks", "effect"), [(3, 0.05), (5, 0.04), (5, 0.02)])
def test_power_of_one_look_is_the_noncentral_t(num_blocks: int, effect: float):
    sd = 0.03
    shift = effect / sd * math.sqrt(num_blocks)
    critical = scipy_stats.t.isf(0.025, num_blocks - 1)
    expected = scipy_stats.nct.sf(critical, num_blocks - 1, shift)
    for sign in (1, -1):
        assert b.power(sign * effect, sd, one_look(num_blocks)) == pytest.approx(
            expected, abs=0.006
        )


def test_no_effect_is_called_a_difference_on_one_side_in_half_of_alpha():
    assert b.power(0.0, 0.03, b.plan_boundary(12)) == pytest.approx(0.025, abs=0.001)


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.05])
def test_the_smallest_effect_has_the_power_wanted(margin: float):
    plan = b.plan_boundary(12)
    effect = b.smallest_effect(0.02, plan, margin_log=margin, power_wanted=0.9)
    assert effect > margin
    assert b.power(effect, 0.02, plan, margin_log=margin) == pytest.approx(0.9, abs=0.003)


def test_two_blocks_at_a_strict_level_need_a_huge_effect_and_get_one():
    plan = b.plan_boundary(2, alpha=0.001)
    assert b.power(b.smallest_effect(1.0, plan), 1.0, plan) == pytest.approx(0.8, abs=0.003)


def test_without_noise_the_margin_is_the_smallest_effect():
    assert b.smallest_effect(0.0, b.plan_boundary(4), margin_log=0.01) == 0.01


@pytest.mark.parametrize("margin", [0.0, 0.02])
def test_fewest_blocks_are_enough_and_one_less_is_not(margin: float):
    found = b.fewest_blocks(0.03, 0.04, margin_log=margin)
    assert found is not None
    powers = [
        b.power(0.04, 0.03, b.plan_boundary(n), margin_log=margin) for n in (found - 1, found)
    ]
    assert powers[0] < 0.8 <= powers[1]


def test_some_effects_take_more_blocks_than_there_may_be():
    assert b.fewest_blocks(0.03, 0.005, most=24) is None
    assert b.fewest_blocks(0.001, 0.02, margin_log=0.02) is None


@pytest.mark.parametrize("num_features", [1, 2, 8, 12, 20, 100])
def test_crossing_and_p_agree_at_the_level_of_any_family(num_features):
    """Below 0.2 % the p-value leaves counting for a bound; a level that does not would cross with p above α."""
    alpha = 0.05 / num_features
    plan = b.plan_boundary(12, alpha=alpha)
    assert alpha / 3 <= plan.nominal_alpha < alpha
    for t_over_critical, crosses in ((1 + 1e-6, True), (1 - 1e-6, False)):
        t = b.critical_t(12, level=plan.nominal_alpha) * t_over_critical
        spread = [1.0, -1.0] * 6
        mean = t * float(np.std(spread, ddof=1)) / math.sqrt(12)
        found = b.conclude([mean + each for each in spread], plan)
        assert found.crossed is crosses
        assert (found.p_value <= alpha) is crosses or found.p_value == pytest.approx(
            alpha, rel=1e-3
        )
        assert not crosses or found.p_value <= alpha
