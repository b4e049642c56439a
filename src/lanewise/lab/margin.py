"""Practical margin and expected noise of a lane: from its newest A/A campaign, or assumed until there is one (P5, P7)."""

from __future__ import annotations

from dataclasses import dataclass

from lanewise.lab import protocol
from lanewise.lab.arms import NO_FEATURE, ArmBuilder
from lanewise.lab.plan import CampaignPlan
from lanewise.lab.protocol import BlockDesign
from lanewise.lane.resolved import ResolvedLane
from lanewise.measure.stats import margin_log
from lanewise.receipts.decision import Decision, Margin, Verdict
from lanewise.receipts.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """What is known about noise before a campaign.

    Attributes:
        margin: smallest effect worth a verdict.
        block_sd_log: expected SD of a block's contrast.
        source: `assumed`, or the id of the A/A decision.
    """

    margin: Margin
    block_sd_log: float
    source: str


def known_noise(store: Store, base: ResolvedLane, design: BlockDesign) -> Noise:
    """Noise of this lane on this machine class under this block design.

    An A/A of fewer than `CALIBRATION_BLOCKS` blocks says too little about noise to move a margin.
    """
    calibrations = [
        decision for decision in store.iter_decisions([]) if _calibrates(decision, base, design)
    ]
    newest = max(calibrations, key=lambda decision: decision.created_at, default=None)
    if newest is None or newest.estimate is None or newest.estimate.block_sd_log is None:
        return Noise(
            margin=Margin(log_value=margin_log(None), source="protocol: 0.5 %, not calibrated"),
            block_sd_log=protocol.ASSUMED_NOISE_LOG[design],
            source="assumed",
        )
    return Noise(
        margin=Margin(
            log_value=margin_log(newest.estimate.half_width_log), source=newest.decision_id
        ),
        block_sd_log=newest.estimate.block_sd_log,
        source=newest.decision_id,
    )


def lockstep_noise(store: Store, plan: CampaignPlan) -> float:
    """SD of a lockstep block's contrast on the lane of a plan."""
    base = ArmBuilder(
        lane=plan.lane,
        machine_class=plan.machine_class,
        device_type=plan.device_type,
        design="leave-one-out",
    ).base()
    return known_noise(store, base, "lockstep").block_sd_log


def _calibrates(decision: Decision, base: ResolvedLane, design: BlockDesign) -> bool:
    return (
        decision.feature == NO_FEATURE
        and decision.status == "COMPLETE"
        and decision.verdict is Verdict.NOISE
        and decision.lane.digest == base.digest
        and decision.machine.class_name == base.machine_class
        and decision.estimate is not None
        and decision.estimate.num_blocks >= protocol.CALIBRATION_BLOCKS
        and all(block.design == design for block in decision.blocks)
    )
