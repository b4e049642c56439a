"""Calibrate the instrument: A/A blocks first, then, where asked, a delay of known size and the observer against a bare loop.

Every part is a campaign like any other, with its own receipts and decision; the calibration cites them. The control is
planned from the noise just measured, so it comes second and uses the margin it is there to test.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Final

from lanewise.errors import UsageError
from lanewise.lab import protocol
from lanewise.lab.arms import NO_FEATURE, OBSERVER, PLANTED
from lanewise.lab.calibration import Trials, draw_calibration
from lanewise.lab.campaign import CampaignFolder, stored_plans
from lanewise.lab.events import CampaignResult
from lanewise.lab.plan import CampaignPlan
from lanewise.lab.prepare import CampaignOptions
from lanewise.lab.session import Lab
from lanewise.lane.schema import Lane
from lanewise.measure.boundary import MIN_LOOK_BLOCKS, fewest_blocks
from lanewise.receipts.calibration import (
    CalibrationRecord,
    ControlResult,
    Interval,
    ObserverResult,
)
from lanewise.receipts.decision import Decision, Verdict

DEFAULT_BLOCKS: Final = 16

CONTROL_POWER: Final = 0.95
"""A control that misses one time in five, as a campaign may, would control nothing."""

SHARES: Final = {NO_FEATURE: 3.0, PLANTED: 2.0, OBSERVER: 2.0}
"""How the budget is divided between the parts that are asked for."""

_PARTS: Final = frozenset(SHARES)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateOptions:
    """What a person asked for.

    Attributes:
        campaign: lane, machine, budget of everything, design, seed, threads, data; its features and blocks are not used.
        blocks: A/A blocks.
        control_ratio: delay to plant ÷ step time; None plants none.
        observer: whether to run the observer against a bare loop.
        trials: pseudo-campaigns behind false-positive rates; fewer in tests.
    """

    campaign: CampaignOptions
    blocks: int = DEFAULT_BLOCKS
    control_ratio: float | None = None
    observer: bool = False
    trials: Trials | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationResult:
    """How a calibration ended.

    Attributes:
        calibration: as written to the store; None when the A/A was interrupted.
        campaigns: what was run, in order.
        problems: parts that were asked for and not run, each with its reason.
        interrupted: whether the user stopped it; finished blocks are kept.
    """

    calibration: CalibrationRecord | None
    campaigns: tuple[CampaignResult, ...]
    problems: tuple[str, ...] = ()
    interrupted: bool = False


def parse_control(text: str) -> float:
    """The ratio of `5%`, `5 %` or `0.05`.

    Raises:
        UsageError: it is none, or outside of 0 to 100 %.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%?)\s*", text)
    ratio = float(found.group(1)) / (100.0 if found.group(2) else 1.0) if found else math.nan
    if not 0.0 <= ratio <= 1.0:
        raise UsageError(
            f"--control {text!r} is no delay; write a share of the step between 0% and 100%, e.g. 5%"
        )
    return ratio


def calibrate(lab: Lab, options: CalibrateOptions) -> CalibrationResult:
    """Run the A/A and the parts asked for.

    Raises:
        UsageError: the lane cannot be measured, or the budget is too small for one block.
        CampaignError: too few A/A blocks count.
        ChildError: the lane's process died.
    """
    part = _Part(lab, options)
    return _after_noise(part, (part.run(NO_FEATURE, blocks=options.blocks),))


def resume_calibration(
    lab: Lab, options: CalibrateOptions, campaign_id: str | None
) -> CalibrationResult:
    """Run the missing blocks of an unfinished part, then the parts asked for that come after it.

    Args:
        lab: the lab.
        options: as for `calibrate`; what an unfinished campaign has planned is kept.
        campaign_id: which campaign; None takes the newest unfinished one of this lane that belongs to a calibration.

    Raises:
        UsageError: there is none.
        CampaignError: it is driven by another process, damaged, or too few of its blocks count.
    """
    plan = _unfinished(lab, options.campaign.lane, campaign_id)
    result = lab.resume(options.campaign.lane, options.campaign.machine_class, plan.campaign_id)
    part = _Part(lab, options)
    if tuple(plan.blocks) == (NO_FEATURE,):
        return _after_noise(part, (result,))
    calibration = lab.store.read_calibration(plan.noise_source)
    if result.interrupted:
        return CalibrationResult(calibration=calibration, campaigns=(result,), interrupted=True)
    calibration = _attach(lab, calibration, plan, result)
    return CalibrationResult(calibration=calibration, campaigns=(result,))


def control_blocks(calibration: CalibrationRecord, ratio: float) -> int | None:
    """Blocks that find a planted delay with `CONTROL_POWER`; None when no plan does at this noise and margin.

    A delay of 0 has none to find and takes as many blocks as a calibration needs at least.
    """
    if ratio == 0:
        return protocol.CALIBRATION_BLOCKS
    effect, margin = math.log1p(ratio), calibration.margin.log_value
    if effect <= margin:
        return None
    if calibration.block_sd_log == 0:
        return MIN_LOOK_BLOCKS
    found = fewest_blocks(
        calibration.block_sd_log, effect, margin_log=margin, power_wanted=CONTROL_POWER
    )
    return None if found is None else max(found, MIN_LOOK_BLOCKS)


def plant(
    lab: Lab, campaign: CampaignOptions, calibration: CalibrationRecord, ratio: float
) -> tuple[ControlResult, CampaignResult]:
    """Run one positive control of its own, planned from a calibration. The calibration is left as it is.

    Args:
        lab: the lab.
        campaign: lane, machine, budget, seed, threads and data.
        calibration: noise and margin to plan with.
        ratio: delay ÷ step time; 0 plants none.

    Raises:
        UsageError: no number of blocks would find it, or the budget is too small for the blocks it takes.
    """
    result = lab.start(
        replace(
            campaign,
            features=(PLANTED,),
            blocks=_control_blocks(calibration, ratio),
            block_design=calibration.block_design,
            planted_ratio=ratio,
        )
    )
    plan = CampaignFolder.find(lab.store.root, result.campaign.campaign_id).plan()
    return _control(plan, result.decisions[0]), result


class _Part:
    """Runs the parts of one calibration inside one budget."""

    def __init__(self, lab: Lab, options: CalibrateOptions) -> None:
        self.lab = lab
        self.options = options
        self._end = lab.clock() + options.campaign.budget_seconds
        asked = [NO_FEATURE]
        asked += [PLANTED] if options.control_ratio is not None else []
        asked += [OBSERVER] if options.observer else []
        self._left = asked

    def run(
        self, feature: str, *, blocks: int | None, like: CalibrationRecord | None = None
    ) -> CampaignResult:
        """One campaign with its share of what is left; blocks are run as those of `like` were."""
        share = SHARES[feature] / sum(SHARES[part] for part in self._left)
        self._left.remove(feature)
        campaign = self.options.campaign
        return self.lab.start(
            replace(
                campaign,
                features=(feature,),
                blocks=blocks,
                budget_seconds=max(1.0, share * (self._end - self.lab.clock())),
                block_design=campaign.block_design if like is None else like.block_design,
                planted_ratio=self.options.control_ratio if feature == PLANTED else None,
            )
        )


def _after_noise(part: _Part, campaigns: tuple[CampaignResult, ...]) -> CalibrationResult:
    (noise,) = campaigns
    if noise.interrupted:
        return CalibrationResult(calibration=None, campaigns=campaigns, interrupted=True)
    lab, options = part.lab, part.options
    calibration = draw_calibration(
        lab.store, noise.campaign.campaign_id, now=lab.now(), trials=options.trials
    )
    lab.store.write_calibration(calibration)
    problems: list[str] = []
    for feature, wanted in (
        (PLANTED, options.control_ratio is not None),
        (OBSERVER, options.observer),
    ):
        if not wanted:
            continue
        try:
            blocks = (
                _control_blocks(calibration, options.control_ratio)
                if feature == PLANTED and options.control_ratio is not None
                else None
            )
            result = part.run(feature, blocks=blocks, like=calibration)
        except UsageError as error:
            problems.append(f"{feature} was not run: {error}")
            continue
        campaigns = (*campaigns, result)
        if result.interrupted:
            return CalibrationResult(
                calibration=calibration,
                campaigns=campaigns,
                problems=tuple(problems),
                interrupted=True,
            )
        plan = CampaignFolder.find(lab.store.root, result.campaign.campaign_id).plan()
        calibration = _attach(lab, calibration, plan, result)
    return CalibrationResult(calibration=calibration, campaigns=campaigns, problems=tuple(problems))


def _control_blocks(calibration: CalibrationRecord, ratio: float) -> int:
    """`control_blocks`, or why there is no such number.

    Raises:
        UsageError: no number of blocks would find the planted delay.
    """
    blocks = control_blocks(calibration, ratio)
    if blocks is None:
        margin = math.expm1(calibration.margin.log_value)
        raise UsageError(
            f"a delay of {ratio:.1%} cannot be told from noise with a block SD of "
            f"{math.expm1(calibration.block_sd_log):.1%} and δ = {margin:.1%}; calibrate again (agreeing A/A campaigns "
            "are pooled and narrow δ), use a quieter machine, or plant more"
        )
    return blocks


def _attach(
    lab: Lab, calibration: CalibrationRecord, plan: CampaignPlan, result: CampaignResult
) -> CalibrationRecord:
    """The calibration with what another of its campaigns found, written to the store."""
    (decision,) = result.decisions
    update: dict[str, object] = (
        {"control": _control(plan, decision)}
        if decision.feature == PLANTED
        else {"observer": _observer(calibration.observer, decision)}
    )
    extended = calibration.model_copy(update=update)
    lab.store.write_calibration(extended)
    return extended


def _control(plan: CampaignPlan, decision: Decision) -> ControlResult:
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


def _observer(direct: ObserverResult | None, decision: Decision) -> ObserverResult | None:
    """The accounted cost with the campaign's; nothing can be said where the runs accounted nothing."""
    if direct is None:
        return None
    interval = _interval(decision)
    # A campaign compares timed steps, so it can only find what lies inside of them.
    accounted = math.log1p(direct.in_step_ratio)
    return direct.model_copy(
        update={
            "campaign_id": decision.campaign_id,
            "log_ratio": decision.estimate.log_ratio if decision.estimate else None,
            "interval_log": interval,
            "contains_direct": None
            if interval is None
            else interval.low <= accounted <= interval.high,
        }
    )


def _interval(decision: Decision) -> Interval | None:
    estimate = decision.estimate
    if estimate is None or estimate.half_width_log is None:
        return None
    return Interval(low=math.log(estimate.interval_low), high=math.log(estimate.interval_high))


def _unfinished(lab: Lab, lane: Lane, campaign_id: str | None) -> CampaignPlan:
    if campaign_id is not None:
        plan = CampaignFolder.find(lab.store.root, campaign_id).plan()
        if len(plan.blocks) != 1 or not plan.blocks.keys() <= _PARTS:
            raise UsageError(
                f"campaign {campaign_id} is no part of a calibration; continue it with "
                f"`lanewise ablate {lane.name} --resume {campaign_id}`"
            )
        return plan
    for plan in stored_plans(lab.store.root):
        is_part = len(plan.blocks) == 1 and plan.blocks.keys() <= _PARTS
        folder = CampaignFolder.find(lab.store.root, plan.campaign_id)
        if is_part and plan.lane.name == lane.name and folder.missing():
            return plan
    raise UsageError(
        f"no unfinished calibration of lane {lane.name!r} in {lab.store.root}; run `lanewise calibrate {lane.name}` "
        "without --resume"
    )
