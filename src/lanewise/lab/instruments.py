"""What campaigns of the lab's own instruments say: a planted delay that must be found, a bare loop against the observed one.

What observing costs is tested by direct accounting, which resolves a ten-thousandth of a step. The campaign is a cross-check
for what escapes the accounting: its 95 % interval misses the truth one time in twenty, so it is held against the accounted
cost at 99.9 %, shared by its looks, and only a cost outside of that contradicts the accounting.
"""

from __future__ import annotations

import math
from typing import Final

from scipy.special import stdtrit

from lanewise.lab.arms import PLANTED
from lanewise.lab.plan import CampaignPlan
from lanewise.measure.stats import MIN_MARGIN_LOG
from lanewise.receipts.calibration import (
    ControlResult,
    Interval,
    ObserverResult,
)
from lanewise.receipts.decision import Decision, Verdict

CROSS_CHECK_ALPHA: Final = 0.001
"""Chance that a sound campaign contradicts a sound accounting, over all its looks."""

LARGEST_IN_STEP_RATIO: Final = math.expm1(MIN_MARGIN_LOG)
"""A timed step that holds as much observing as the smallest effect that ever gets a verdict is no step of a training run."""


def control_result(plan: CampaignPlan, decision: Decision) -> ControlResult:
    """What the campaign of a planted delay found."""
    planted = math.log1p(plan.planted_ratio or 0.0)
    interval = _interval(decision)
    return ControlResult(
        campaign_id=plan.campaign_id,
        decision_id=decision.decision_id,
        planted_log=planted,
        planned_blocks=plan.blocks.get(PLANTED, 0),
        num_blocks=decision.estimate.num_blocks if decision.estimate else 0,
        verdict=decision.verdict.value,
        log_ratio=decision.estimate.log_ratio if decision.estimate else None,
        interval_log=interval,
        found=decision.verdict is Verdict.SLOWER,
        covered=interval is not None and interval.low <= planted <= interval.high,
    )


def observer_result(direct: ObserverResult | None, decision: Decision) -> ObserverResult | None:
    """The accounted cost with the campaign's; nothing can be said where the runs accounted nothing."""
    if direct is None:
        return None
    interval, strict = _interval(decision), strict_interval(decision)
    # A campaign compares timed steps, so it can only find what lies inside of them.
    accounted = math.log1p(direct.in_step_ratio)
    return direct.model_copy(
        update={
            "campaign_id": decision.campaign_id,
            "log_ratio": decision.estimate.log_ratio if decision.estimate else None,
            "interval_log": interval,
            "contains_direct": None if interval is None else _contains(interval, accounted),
            "strict_interval_log": strict,
            "contradicts_direct": None if strict is None else not _contains(strict, accounted),
        }
    )


def strict_interval(decision: Decision) -> Interval | None:
    """θ̂ ± t₁₋α/₂L,K₋₁ · s/√K at α = `CROSS_CHECK_ALPHA` over L planned looks (Bonferroni); None with fewer than two blocks."""
    estimate = decision.estimate
    if estimate is None or estimate.block_sd_log is None:
        return None
    looks = len(decision.boundary.looks) if decision.boundary else 1
    t = float(stdtrit(estimate.num_blocks - 1, 1 - CROSS_CHECK_ALPHA / (2 * looks)))
    half_width = t * estimate.block_sd_log / math.sqrt(estimate.num_blocks)
    return Interval(low=estimate.log_ratio - half_width, high=estimate.log_ratio + half_width)


def observer_fails(observer: ObserverResult) -> bool:
    """Whether the accounted cost is too large to measure beside, or the campaign contradicts it."""
    return observer.in_step_ratio >= LARGEST_IN_STEP_RATIO or observer.contradicts_direct is True


def _contains(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def _interval(decision: Decision) -> Interval | None:
    estimate = decision.estimate
    if estimate is None or estimate.half_width_log is None:
        return None
    return Interval(low=math.log(estimate.interval_low), high=math.log(estimate.interval_high))
