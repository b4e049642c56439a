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
from lanewise.lab.campaign import CampaignFolder
from lanewise.lab.events import CampaignResult
from lanewise.lab.instruments import control_result, observer_result
from lanewise.lab.plan import CampaignPlan
from lanewise.lab.prepare import CampaignOptions
from lanewise.lab.resume import (
    Given,
    blocks_text,
    newest_unfinished,
    ratio_text,
    require_agreement,
    require_same,
    require_verb,
)
from lanewise.lab.session import Lab
from lanewise.lane.schema import Lane
from lanewise.measure.boundary import MIN_LOOK_BLOCKS, fewest_blocks
from lanewise.receipts.calibration import CalibrationRecord, ControlResult

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
    part = _Part(lab, options, (NO_FEATURE, *_later_parts(options, NO_FEATURE)))
    return _after_noise(part, (part.run(NO_FEATURE, blocks=options.blocks),))


def resume_calibration(
    lab: Lab,
    options: CalibrateOptions,
    campaign_id: str | None,
    *,
    flags: frozenset[str] = frozenset(),
    retry_crashed: bool = False,
) -> CalibrationResult:
    """Run the missing blocks of an unfinished part, then the parts asked for that come after it.

    Args:
        lab: the lab.
        options: as for `calibrate`; what an unfinished campaign has planned is kept.
        campaign_id: which campaign; None takes the newest unfinished one of this lane that belongs to a calibration.
        flags: flags that were typed, by their long names; one that contradicts what is planned is refused.
        retry_crashed: give blocks whose attempts have failed their attempts anew.

    Raises:
        UsageError: there is none, or a flag contradicts its plan.
        CampaignError: it is driven by another process, damaged, or too few of its blocks count.
    """
    plan = _unfinished(lab, options.campaign.lane, campaign_id)
    (resumed,) = plan.blocks
    later = _later_parts(options, resumed)
    _require_agreement(lab, plan, options, flags, later)
    result = lab.resume(
        options.campaign.lane,
        options.campaign.machine_class,
        plan.campaign_id,
        verb="calibrate",
        retry_crashed=retry_crashed,
    )
    part = _Part(lab, options, later)
    if resumed == NO_FEATURE:
        return _after_noise(part, (result,))
    calibration = lab.store.read_calibration(plan.noise_source)
    if result.interrupted:
        return CalibrationResult(calibration=calibration, campaigns=(result,), interrupted=True)
    return _run_parts(part, _attach(lab, calibration, plan, result), (result,))


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
            verb="calibrate",
        )
    )
    plan = CampaignFolder.find(lab.store.root, result.campaign.campaign_id).plan()
    return control_result(plan, result.decisions[0]), result


class _Part:
    """Runs the parts of one calibration inside one budget."""

    def __init__(self, lab: Lab, options: CalibrateOptions, parts: tuple[str, ...]) -> None:
        self.lab = lab
        self.options = options
        self._end = lab.clock() + options.campaign.budget_seconds
        self._left = list(parts)

    @property
    def left(self) -> tuple[str, ...]:
        """Parts that are still to run, in order."""
        return tuple(self._left)

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
                verb="calibrate",
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
    return _run_parts(part, calibration, campaigns)


def _run_parts(
    part: _Part, calibration: CalibrationRecord, campaigns: tuple[CampaignResult, ...]
) -> CalibrationResult:
    """The parts asked for that come after the A/A, each attached to the calibration."""
    lab, options = part.lab, part.options
    problems: list[str] = []
    for feature in part.left:
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
        {"control": control_result(plan, decision)}
        if decision.feature == PLANTED
        else {"observer": observer_result(calibration.observer, decision)}
    )
    extended = calibration.model_copy(update=update)
    lab.store.write_calibration(extended)
    return extended


def _later_parts(options: CalibrateOptions, done: str) -> tuple[str, ...]:
    """Parts asked for that come after one, in order."""
    asked = {PLANTED: options.control_ratio is not None, OBSERVER: options.observer}
    order = tuple(SHARES)
    return tuple(part for part in order[order.index(done) + 1 :] if asked[part])


def _require_agreement(
    lab: Lab,
    plan: CampaignPlan,
    options: CalibrateOptions,
    flags: frozenset[str],
    later: tuple[str, ...],
) -> None:
    """Refuse flags that contradict the part that is resumed, or that it leaves without use.

    `--budget` is that of the parts to come, where there are any; `--control` and `--observer` ask for such parts.

    Raises:
        UsageError: with the first such flag.
    """
    (resumed,) = plan.blocks
    of_plans = flags - {"--blocks"} - ({"--budget"} if later else set())
    require_agreement(plan, Given(options=options.campaign, flags=of_plans))
    if "--blocks" in flags:
        noise = plan
        if resumed != NO_FEATURE:
            calibration = lab.store.read_calibration(plan.noise_source)
            noise = CampaignFolder.find(lab.store.root, calibration.campaigns[-1]).plan()
        require_same(noise, "--blocks", str(options.blocks), blocks_text(noise))
    if "--control" in flags and resumed == PLANTED:
        planted = ratio_text(plan.planted_ratio or 0.0)
        require_same(plan, "--control", ratio_text(options.control_ratio), planted)
    if "--control" in flags and resumed == OBSERVER:
        raise UsageError(
            f"--control was given beside --resume, and campaign {plan.campaign_id} is the observer's, which comes after "
            "the control; leave it out, or start a new calibration without --resume"
        )


def _unfinished(lab: Lab, lane: Lane, campaign_id: str | None) -> CampaignPlan:
    if campaign_id is None:
        plan = newest_unfinished(lab.store.root, lane.name, "calibrate").plan()
    else:
        plan = CampaignFolder.find(lab.store.root, campaign_id).plan()
        require_verb(plan, "calibrate")
    if len(plan.blocks) != 1 or not plan.blocks.keys() <= _PARTS:
        raise UsageError(
            f"campaign {plan.campaign_id} has no blocks of a calibration; start a new one with `lanewise calibrate "
            f"{lane.name}`"
        )
    return plan
