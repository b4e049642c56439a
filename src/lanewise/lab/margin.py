"""Practical margin and expected noise of a lane: from its newest valid calibration, or assumed until there is one (P5, P7).

Every calibration of the lane that is not used is named with the reason. An A/A campaign of `ablate --feature none` that no
calibration cites still counts, as it did before there were calibrations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lanewise.lab import protocol
from lanewise.lab.arms import NO_FEATURE
from lanewise.lab.conditions import Conditions, why_not
from lanewise.lab.protocol import BlockDesign
from lanewise.lane.resolved import ResolvedLane
from lanewise.measure.noise import sd_interval
from lanewise.measure.stats import margin_log
from lanewise.receipts.calibration import CalibrationRecord
from lanewise.receipts.decision import Decision, Margin, Verdict
from lanewise.receipts.store import Store

NAMED_CALIBRATIONS = 3
"""Calibrations named with the reason why they are not used, the newest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """What is known about noise before a campaign.

    Attributes:
        margin: smallest effect worth a verdict.
        block_sd_log: expected SD of a block's contrast.
        source: `assumed`, or the id of the calibration or A/A decision.
        quads_per_block: quads of the blocks it was measured in; None where that is not known.
        num_blocks: A/A blocks behind it; None where it is assumed.
        notes: what a person should know about the choice.
    """

    margin: Margin
    block_sd_log: float
    source: str
    quads_per_block: float | None = None
    num_blocks: int | None = None
    notes: tuple[str, ...] = ()

    def at(self, quads: int, design: BlockDesign) -> Noise:
        """The noise of blocks of so many quads; never less than was measured, whatever more quads might save.

        A block's variance is σ_b²·(1 + r²/q) over q quads, with r of `protocol.QUAD_NOISE_RATIO`. δ stays: it says how well
        the instrument is known, and the test takes the noise of its own blocks.
        """
        if self.quads_per_block is None or quads >= self.quads_per_block:
            return self
        ratio = protocol.QUAD_NOISE_RATIO[design] ** 2
        factor = math.sqrt((1 + ratio / quads) / (1 + ratio / self.quads_per_block))
        note = (
            f"noise was calibrated with {self.quads_per_block:g} quads a block and this plan has {quads}: it expects "
            f"blocks {factor:.1f} times as noisy; a larger --budget buys quads"
        )
        return replace(
            self,
            block_sd_log=factor * self.block_sd_log,
            quads_per_block=quads,
            notes=(*self.notes, note),
        )

    @property
    def upper(self) -> Noise | None:
        """The same at the upper end of what the A/A blocks leave open (95 %); None where nothing was measured."""
        if self.num_blocks is None or self.block_sd_log == 0:
            return None
        return replace(self, block_sd_log=sd_interval(self.block_sd_log, self.num_blocks).high)

    def uncertainty(self, mde_log: float, upper_mde_log: float) -> tuple[str, ...]:
        """What a plan finds if its machine is as noisy as the A/A blocks allow.

        Args:
            mde_log: what it finds with 80 % power at this noise.
            upper_mde_log: the same at `upper`.
        """
        upper = self.upper
        if upper is None:
            return ()
        return (
            f"block SD {math.expm1(self.block_sd_log):.2%} is known from {self.num_blocks} A/A blocks and may be up to "
            f"{math.expm1(upper.block_sd_log):.2%}; then 80 % power begins at {math.expm1(upper_mde_log):.2%}, not at "
            f"{math.expm1(mde_log):.2%} (`lanewise calibrate` again narrows this)",
        )


def known_noise(
    store: Store,
    base: ResolvedLane,
    design: BlockDesign,
    *,
    parameters: Mapping[str, Any],
    conditions: Callable[[], Conditions],
    now: str,
) -> Noise:
    """Noise of this lane on this machine class under this block design and software.

    Args:
        store: where calibrations and decisions are.
        base: the lane.
        design: how blocks will be run.
        parameters: protocol of the runs to be planned, which their receipts will hash.
        conditions: of this machine now; asked for only when there is a calibration to compare with.
        now: RFC 3339 time.
    """
    calibrations = list(store.iter_calibrations([]))
    candidates = sorted(
        (
            calibration
            for calibration in calibrations
            if calibration.lane.name == base.lane.name or calibration.lane.digest == base.digest
        ),
        key=lambda calibration: calibration.created_at,
        reverse=True,
    )
    rejected: list[str] = []
    present = conditions() if candidates else None
    for calibration in candidates:
        assert present is not None, "there is a candidate"
        reasons = why_not(
            calibration,
            lane_digest=base.digest,
            block_design=design,
            protocol=parameters,
            conditions=present,
            now=now,
        )
        if not reasons:
            return _calibrated(calibration, rejected)
        rejected.append(
            f"calibration {calibration.calibration_id} is not used: {', '.join(reasons)}"
        )
    cited = {campaign for calibration in calibrations for campaign in calibration.campaigns}
    return _from_decision(store, base, design, cited, tuple(rejected[:NAMED_CALIBRATIONS]))


def _calibrated(calibration: CalibrationRecord, rejected: Sequence[str]) -> Noise:
    notes = list(rejected[:NAMED_CALIBRATIONS])
    if calibration.biased:
        notes.append(
            f"calibration {calibration.calibration_id} is biased by {math.expm1(calibration.bias_log):+.2%}: "
            "the margin covers it, and `lanewise calibrate` should be repeated"
        )
    return Noise(
        margin=calibration.margin,
        block_sd_log=calibration.block_sd_log,
        source=calibration.calibration_id,
        quads_per_block=calibration.quads_per_block,
        num_blocks=calibration.num_blocks,
        notes=tuple(notes),
    )


def _from_decision(
    store: Store,
    base: ResolvedLane,
    design: BlockDesign,
    cited: set[str],
    notes: tuple[str, ...],
) -> Noise:
    """An A/A of fewer than `CALIBRATION_BLOCKS` blocks says too little about noise to move a margin."""
    found = [
        decision
        for decision in store.iter_decisions([])
        if decision.campaign_id not in cited and _calibrates(decision, base, design)
    ]
    newest = max(found, key=lambda decision: decision.created_at, default=None)
    if newest is None or newest.estimate is None or newest.estimate.block_sd_log is None:
        return Noise(
            margin=Margin(log_value=margin_log(None), source="protocol: 0.5 %, not calibrated"),
            block_sd_log=protocol.ASSUMED_NOISE_LOG[design],
            source="assumed",
            notes=notes,
        )
    return Noise(
        margin=Margin(
            log_value=margin_log(newest.estimate.half_width_log), source=newest.decision_id
        ),
        block_sd_log=newest.estimate.block_sd_log,
        source=newest.decision_id,
        num_blocks=newest.estimate.num_blocks,
        notes=notes,
    )


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
