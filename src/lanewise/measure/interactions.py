"""Differences and sums of effects that come from independent sets of blocks. Pure.

Two effects of one feature, each a mean over blocks of its own, differ by an interaction or by noise. Their spreads need
not be alike (a step of the bare lane is longer), so Welch's test compares them:

    Δ = θ₂ − θ₁     se² = Σ s²/K     ν = se⁴ / Σ (s²/K)²/(K − 1)        (Welch 1947, Satterthwaite 1946)

The same holds for any sum with signs, so it also tells whether single effects add up to that of all features at once.
Effects and SDs are on the log scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scipy.special import nctdtrinc, stdtr, stdtrit

from lanewise.measure.stats import POWER, holm

RESOLUTION_LOG: Final = 1e-8
"""A nanosecond of a step of a tenth of a second: no standard error is taken to be smaller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A mean block contrast.

    Attributes:
        mean_log: treated − control on log step time.
        sd_log: SD of the blocks.
        num_blocks: at least two.
    """

    mean_log: float
    sd_log: float
    num_blocks: int

    @property
    def variance(self) -> float:
        """Of the mean."""
        return self.sd_log**2 / self.num_blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A sum of effects with signs, tested against 0.

    Attributes:
        difference_log: the sum.
        standard_error_log: of the sum.
        degrees_of_freedom: Welch and Satterthwaite's.
        low: lower end of the interval.
        high: its upper end.
        p_value: two-sided, of 0.
        mde_log: smallest difference that this test finds with 80 % power.
    """

    difference_log: float
    standard_error_log: float
    degrees_of_freedom: float
    low: float
    high: float
    p_value: float
    mde_log: float


@dataclass(frozen=True, kw_only=True, slots=True)
class InteractionTest:
    """One feature of a family.

    Attributes:
        comparison: leave-one-out − add-one.
        adjusted_p: Holm over the family.
        detectable_log: smallest interaction that `found` says yes to with 80 % power.
        found: interval without 0, adjusted p within α, and at least the MDE.
    """

    comparison: Comparison
    adjusted_p: float
    detectable_log: float
    found: bool


def compare(plus: Sequence[Effect], minus: Sequence[Effect], *, alpha: float = 0.05) -> Comparison:
    """Test that the effects of `plus` add up to those of `minus`; all of them independent.

    Raises:
        ValueError: no effect, or one of fewer than two blocks.
    """
    effects = [*plus, *minus]
    if not effects or any(effect.num_blocks < 2 for effect in effects):
        raise ValueError("every effect needs at least two blocks; one block has no spread")
    difference = sum(e.mean_log for e in plus) - sum(e.mean_log for e in minus)
    variance = sum(effect.variance for effect in effects)
    error = max(math.sqrt(variance), RESOLUTION_LOG)
    spread = sum(effect.variance**2 / (effect.num_blocks - 1) for effect in effects)
    freedom = variance**2 / spread if spread > 0 else float(sum(e.num_blocks - 1 for e in effects))
    half_width = _t(1 - alpha / 2, freedom) * error
    return Comparison(
        difference_log=difference,
        standard_error_log=error,
        degrees_of_freedom=freedom,
        low=difference - half_width,
        high=difference + half_width,
        p_value=2 * float(stdtr(freedom, -abs(difference) / error)),
        mde_log=half_width + _t(POWER, freedom) * error,
    )


def interaction_tests(
    pairs: Sequence[tuple[Effect, Effect]], *, alpha: float = 0.05
) -> tuple[InteractionTest, ...]:
    """Test every feature of a campaign for an interaction.

    Args:
        pairs: (add-one, leave-one-out) of each feature.
        alpha: chance that any interaction at all is reported where there is none.
    """
    found = [compare([full], [bare], alpha=alpha) for bare, full in pairs]
    adjusted = holm([comparison.p_value for comparison in found])
    return tuple(
        InteractionTest(
            comparison=comparison,
            adjusted_p=p,
            detectable_log=_detectable(comparison, len(found), alpha),
            found=p <= alpha and abs(comparison.difference_log) >= comparison.mde_log,
        )
        for comparison, p in zip(found, adjusted, strict=True)
    )


def _detectable(comparison: Comparison, num_tests: int, alpha: float) -> float:
    """What passes the threshold, taken at Holm's first and strictest step, with 80 % power: noncentral t, for the spread
    that sets the threshold is itself estimated from few blocks."""
    error, freedom = comparison.standard_error_log, comparison.degrees_of_freedom
    threshold = max(comparison.mde_log / error, _t(1 - alpha / (2 * num_tests), freedom))
    return error * float(nctdtrinc(freedom, 1 - POWER, threshold))


def _t(probability: float, freedom: float) -> float:
    return float(stdtrit(freedom, probability))
