"""Verdicts of one look, against hand-picked series, SciPy's t tests and simulated campaigns."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from lanewise.measure.looks import Look, single_look, walk
from lanewise.receipts.decision import Verdict

contrasts_lists = st.lists(
    st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=10
).filter(lambda values: np.std(values) > 1e-6)
margins = st.floats(0.001, 0.5)
CAMPAIGNS = 4000
THREE_SE = 3 * math.sqrt(0.05 * 0.95 / CAMPAIGNS)


def final(
    contrasts: Sequence[float], *, margin: float = 0.005, budget: float | None = None
) -> Look:
    question = single_look(len(contrasts), margin_log=margin, tax_budget_ratio=budget)
    (look,) = walk(contrasts, question)
    return look


@pytest.mark.parametrize(
    ("contrasts", "expected"),
    [
        ([-0.10, -0.11, -0.09, -0.10], Verdict.FASTER),
        ([0.10, 0.11, 0.09, 0.10], Verdict.SLOWER),
        ([0.1] * 4, Verdict.SLOWER),
        ([0.001, -0.001, 0.0005, -0.0005], Verdict.EQUIVALENT),
        ([0.0020, 0.0021, 0.0019, 0.0020], Verdict.EQUIVALENT),
        ([-0.10, 0.09, -0.12, 0.05], Verdict.INCONCLUSIVE),
        ([0.0044, 0.0054, 0.0039, 0.0045], Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts_of_hot_paths(contrasts: list[float], expected: Verdict):
    look = final(contrasts)
    assert look.verdict is expected
    assert look.reason
    assert look.stops


@pytest.mark.parametrize(
    ("contrasts", "expected"),
    [
        ([0.001, 0.002, 0.0015, 0.001], Verdict.WITHIN_BUDGET),
        ([-0.2, -0.21, -0.2, -0.19], Verdict.WITHIN_BUDGET),
        ([0.02, 0.021, 0.019, 0.02], Verdict.OVER_BUDGET),
        ([0.005, 0.012, 0.009, 0.02], Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts_of_taxes_compare_the_interval_with_the_budget(
    contrasts: list[float], expected: Verdict
):
    look = final(contrasts, budget=1.01)
    assert look.verdict is expected
    assert "1.0%" in look.reason


def by_scipy(contrasts: Sequence[float], margin: float) -> Verdict:
    """The rule in the words of its definition, with SciPy's t tests."""
    two_sided = scipy_stats.ttest_1samp(contrasts, 0.0).pvalue
    below = scipy_stats.ttest_1samp(contrasts, margin, alternative="less").pvalue
    above = scipy_stats.ttest_1samp(contrasts, -margin, alternative="greater").pvalue
    effect = float(np.mean(contrasts))
    if two_sided <= 0.05 and abs(effect) >= margin:
        return Verdict.FASTER if effect < 0 else Verdict.SLOWER
    return Verdict.EQUIVALENT if max(below, above) < 0.05 else Verdict.INCONCLUSIVE


@settings(deadline=None)
@given(contrasts=contrasts_lists, margin=margins, scale=st.floats(0.001, 1))
def test_a_verdict_is_what_the_t_tests_say(contrasts: list[float], margin: float, scale: float):
    scaled = [scale * contrast for contrast in contrasts]
    assert final(scaled, margin=margin).verdict is by_scipy(scaled, margin)


@settings(deadline=None)
@given(contrasts=contrasts_lists, margin=margins)
def test_swapping_the_arms_swaps_the_verdict(contrasts: list[float], margin: float):
    swapped = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}
    found = final(contrasts, margin=margin).verdict
    other = final([-contrast for contrast in contrasts], margin=margin).verdict
    assert other is swapped.get(found, found)


def test_tost_declares_an_effect_at_the_margin_equivalent_in_at_most_five_percent():
    margin, sd = 0.02, 0.01
    rng = np.random.Generator(np.random.PCG64(20231123))
    series = margin + sd * rng.normal(size=(CAMPAIGNS, 8))
    equivalent = sum(
        final(row.tolist(), margin=margin).verdict is Verdict.EQUIVALENT for row in series
    )
    assert 0.02 < equivalent / CAMPAIGNS <= 0.05 + THREE_SE
