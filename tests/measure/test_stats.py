import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from lanewise.measure import stats

contrasts_lists = st.lists(
    st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=10
).filter(lambda values: np.std(values) > 1e-6)
seconds = st.floats(1e-3, 1e3)


def simulated(num_campaigns: int, num_blocks: int, sd: float, effect: float = 0.0) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(20231123))
    return effect + sd * rng.normal(size=(num_campaigns, num_blocks))


# --- contrasts ---------------------------------------------------------------------------------------------------


def test_quad_contrast_is_the_centre_of_the_quads():
    control = [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    treated = [2.0, 2.0, 2.0, 2.0, 4.0 * math.e, 4.0]
    quads = (math.log(2), 0.0, 0.5)
    assert stats.median_quad_contrast(control, treated) == pytest.approx(0.5)
    # Of 0.693, 0, 0.5, 0.347, 0.597 and 0.25 the middle two are 0.347 and 0.5.
    expected = (math.log(2) / 2 + 0.5) / 2
    assert stats.quad_contrast(control, treated) == pytest.approx(expected)
    assert stats.hodges_lehmann(quads) == pytest.approx(expected)


@settings(deadline=None)
@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=12), shift=st.floats(-5, 5))
def test_the_hodges_lehmann_centre_moves_with_its_values_and_lies_among_them(values, shift):
    centre = stats.hodges_lehmann(values)
    assert min(values) - 1e-12 <= centre <= max(values) + 1e-12
    assert stats.hodges_lehmann([-v for v in values]) == pytest.approx(-centre, abs=1e-12)
    moved = stats.hodges_lehmann([v + shift for v in values])
    assert moved == pytest.approx(centre + shift, abs=1e-9)


def test_a_quarter_of_wild_values_does_not_carry_the_centre_off():
    assert abs(stats.hodges_lehmann([0.01 * i for i in range(-7, 8)] + [1e6] * 5)) < 0.2
    with pytest.raises(ValueError, match="no values"):
        stats.hodges_lehmann([])


def test_quad_contrast_cancels_a_linear_drift_in_either_order():
    drift = 0.01
    log_time = [drift * i for i in range(8)]
    control = [log_time[i] for i in (0, 3, 5, 6)]  # ABBA then BAAB
    treated = [log_time[i] + 0.1 for i in (1, 2, 4, 7)]
    contrast = stats.quad_contrast([math.exp(y) for y in control], [math.exp(y) for y in treated])
    assert contrast == pytest.approx(0.1)


@settings(deadline=None)
@given(
    data=st.lists(st.tuples(seconds, seconds, seconds, seconds), min_size=1, max_size=6),
    factor=st.floats(0.1, 10),
)
def test_quad_contrast_laws(data: list[tuple[float, ...]], factor: float):
    control = [x for quad in data for x in quad[:2]]
    treated = [x for quad in data for x in quad[2:]]
    contrast = stats.quad_contrast(control, treated)
    scaled = stats.quad_contrast([factor * x for x in control], [factor * x for x in treated])
    assert stats.quad_contrast(treated, control) == pytest.approx(-contrast, abs=1e-12)
    assert scaled == pytest.approx(contrast, abs=1e-9)
    slower = stats.quad_contrast(control, [factor * x for x in treated])
    assert slower == pytest.approx(contrast + math.log(factor), abs=1e-9)


@pytest.mark.parametrize(
    ("control", "treated", "message"),
    [
        ([1.0, 1.0], [1.0], "took 2 and 1 steps"),
        ([], [], "0 steps"),
        ([1.0] * 3, [1.0] * 3, "3 steps an arm are no whole number of quads"),
        ([1.0, 0.0], [1.0, 1.0], "positive and finite"),
        ([1.0, 1.0], [1.0, math.nan], "positive and finite"),
    ],
)
def test_quad_contrast_refuses_what_is_no_quad(
    control: list[float], treated: list[float], message: str
):
    with pytest.raises(ValueError, match=message):
        stats.quad_contrast(control, treated)


def test_visit_contrast_averages_the_visits_log_medians():
    control = [[1.0, 1.0, 9.0], [4.0]]
    treated = [[2.0, 2.0], [8.0, 8.0, 1.0]]
    assert stats.visit_contrast(control, treated) == pytest.approx(math.log(2))
    assert stats.visit_contrast(treated, control) == pytest.approx(-math.log(2))
    with pytest.raises(ValueError, match="needs a visit"):
        stats.visit_contrast([], treated)
    with pytest.raises(ValueError, match="needs a visit"):
        stats.visit_contrast([[]], treated)


# --- estimate ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(contrasts=contrasts_lists, confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_estimate_agrees_with_scipys_one_sample_t(contrasts: list[float], confidence: float):
    estimate = stats.estimate_from_contrasts(contrasts, confidence=confidence)
    reference = scipy_stats.ttest_1samp(contrasts, 0.0)
    interval = reference.confidence_interval(confidence)
    assert math.log(estimate.interval_low) == pytest.approx(interval.low, rel=1e-6, abs=1e-9)
    assert math.log(estimate.interval_high) == pytest.approx(interval.high, rel=1e-6, abs=1e-9)
    assert stats.paired_t_p(contrasts) == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    assert estimate.ratio == pytest.approx(scipy_stats.gmean(np.exp(contrasts)))
    assert estimate.num_blocks == len(contrasts)


@settings(deadline=None)
@given(contrasts=contrasts_lists)
def test_swapping_the_arms_negates_the_estimate(contrasts: list[float]):
    one = stats.estimate_from_contrasts(contrasts)
    other = stats.estimate_from_contrasts([-contrast for contrast in contrasts])
    assert other.log_ratio == pytest.approx(-one.log_ratio, abs=1e-12)
    assert other.interval_low == pytest.approx(1 / one.interval_high)
    assert other.half_width_log == pytest.approx(one.half_width_log)
    assert other.sign_flip_p == one.sign_flip_p


def test_one_block_is_an_estimate_without_interval():
    estimate = stats.estimate_from_contrasts([-0.2])
    assert estimate.ratio == pytest.approx(math.exp(-0.2))
    nothing = (
        estimate.half_width_log,
        estimate.block_sd_log,
        estimate.mde_log,
        estimate.sign_flip_p,
    )
    assert nothing == (None, None, None, None)


@pytest.mark.parametrize("contrasts", [[], [0.1, math.nan], [math.inf]])
def test_impossible_contrasts_are_refused(contrasts: list[float]):
    with pytest.raises(ValueError, match="all finite"):
        stats.estimate_from_contrasts(contrasts)


def test_identical_contrasts_have_a_zero_width_interval():
    estimate = stats.estimate_from_contrasts([0.1] * 4)
    assert (estimate.half_width_log, estimate.mde_log) == (0.0, 0.0)
    assert stats.paired_t_p([0.1] * 4) == 0.0
    assert stats.paired_t_p([0.0] * 4) == 1.0


# --- sign flips --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(contrasts=st.lists(st.integers(-20, 20), min_size=1, max_size=7))
def test_sign_flips_are_enumerated_exactly(contrasts: list[int]):
    observed = abs(sum(contrasts))
    flips = list(itertools.product((-1, 1), repeat=len(contrasts)))
    extreme = sum(
        abs(sum(s * c for s, c in zip(f, contrasts, strict=True))) >= observed for f in flips
    )
    p = stats.sign_flip_p([c / 1000 for c in contrasts])
    assert p == pytest.approx(extreme / len(flips))


@pytest.mark.parametrize("num_blocks", [6, 8, 16])
def test_the_smallest_sign_flip_p_is_two_in_all_patterns(num_blocks: int):
    assert stats.sign_flip_p([0.1 + 0.01 * i for i in range(num_blocks)]) == 2 / 2**num_blocks


def test_many_blocks_are_sampled_with_a_fixed_seed():
    contrasts = [0.01 * (i % 5) - 0.015 for i in range(20)]
    p = stats.sign_flip_p(contrasts)
    assert p == stats.sign_flip_p(contrasts)
    reference = scipy_stats.permutation_test(
        (np.array(contrasts),),
        np.mean,
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    )
    assert p == pytest.approx(reference.pvalue, abs=0.02)
    assert stats.sign_flip_p([0.1] * 20) == 1 / 2**16


# --- planning ----------------------------------------------------------------------------------------------------


def test_mde_by_the_formula():
    expected = (scipy_stats.t.ppf(0.975, 7) + scipy_stats.t.ppf(0.8, 7)) * 0.02 / math.sqrt(8)
    assert stats.mde(0.02, 8) == pytest.approx(expected)
    with pytest.raises(ValueError, match="at least 2"):
        stats.mde(0.02, 1)


def test_margin_is_half_a_percent_unless_the_noise_is_larger():
    assert stats.margin_log(None) == stats.margin_log(0.001) == 0.005
    assert stats.margin_log(0.01) == 0.02


# --- multiplicity ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_benjamini_hochberg_agrees_with_scipy(p_values: list[float]):
    expected = scipy_stats.false_discovery_control(p_values)
    assert stats.benjamini_hochberg(p_values) == pytest.approx(list(expected))


def test_holm_on_a_worked_example():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert stats.holm([]) == ()


@settings(deadline=None)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p_values: list[float]):
    adjusted = stats.holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * max(p_values))
    assert adjusted[p_values.index(min(p_values))] == min(1.0, len(p_values) * min(p_values))
    by_p = [adjusted[i] for i in sorted(range(len(p_values)), key=p_values.__getitem__)]
    assert by_p == sorted(by_p)


# --- error rates over simulated campaigns ------------------------------------------------------------------------

CAMPAIGNS = 4000
THREE_SE = 3 * math.sqrt(0.05 * 0.95 / CAMPAIGNS)


@pytest.mark.parametrize("num_blocks", [3, 8])
def test_an_a_a_campaign_is_called_different_in_five_percent(num_blocks: int):
    estimates = [
        stats.estimate_from_contrasts(row.tolist())
        for row in simulated(CAMPAIGNS, num_blocks, 0.03)
    ]
    outside = sum(not e.interval_low <= 1.0 <= e.interval_high for e in estimates)
    assert outside / CAMPAIGNS == pytest.approx(0.05, abs=THREE_SE)


def test_the_interval_covers_the_true_effect_in_ninety_five_percent():
    effect = -0.08
    covered = sum(
        e.interval_low <= math.exp(effect) <= e.interval_high
        for e in (
            stats.estimate_from_contrasts(row.tolist())
            for row in simulated(CAMPAIGNS, 5, 0.03, effect)
        )
    )
    assert covered / CAMPAIGNS == pytest.approx(0.95, abs=THREE_SE)


def test_an_effect_of_the_mde_is_found_in_eighty_percent():
    num_blocks, sd = 12, 0.03
    effect = stats.mde(sd, num_blocks)
    found = sum(
        stats.estimate_from_contrasts(row.tolist()).interval_low > 1
        for row in simulated(1000, num_blocks, sd, effect)
    )
    assert found / 1000 == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 1000))
