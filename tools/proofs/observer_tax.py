"""What observing costs a step: accounted in the process, and as a campaign of a bare loop against an observed one.

Direct accounting resolves a ten-thousandth of a step, which no campaign does; the campaign shows that nothing larger escapes
the accounting. Both are drawn by the verb that publishes them, `lanewise calibrate --observer`.
"""

from __future__ import annotations

import math
import tempfile
import time

from lanewise.lab.calibrate import CalibrateOptions, calibrate
from lanewise.lab.calibration import Trials
from lanewise.lab.prepare import CampaignOptions
from lanewise.lab.session import Lab
from lanewise.receipts.calibration import CalibrationRecord
from tools.proofs import Claim, Proof
from tools.proofs.real_lab import LANE, real_lab, tiny_campaign

BUDGET_SECONDS = 270.0
BLOCKS = 8
LARGEST_TAX = 0.001
LARGEST_HALF_WIDTH = 0.04
"""An interval wider than this would contain the accounted cost whatever it was."""


def run(scale: float) -> Proof:
    """The proof on this machine; at scale 1 about 5 minutes on two quiet cores."""
    with tempfile.TemporaryDirectory() as root:
        budget = max(60.0, BUDGET_SECONDS * scale)
        return prove(real_lab(root), tiny_campaign(budget_seconds=budget, seed=0))


def prove(lab: Lab, campaign: CampaignOptions) -> Proof:
    """The same in a lab of the caller's."""
    started = time.monotonic()
    asked = CalibrateOptions(
        campaign=campaign, blocks=BLOCKS, observer=True, trials=Trials(single=1, looks=1)
    )
    result = calibrate(lab, asked)
    assert result.calibration is not None, "nobody interrupts a proof"
    why = "; ".join(result.problems) or "the runs accounted nothing"
    blocks = sum(len(d.blocks) for found in result.campaigns for d in found.decisions)
    return Proof(
        name="observer_tax",
        title=f"Observer tax on {LANE}",
        counts={"campaigns": len(result.campaigns), "blocks": blocks},
        claims=(_accounted(result.calibration, why), _contained(result.calibration, why)),
        seconds=time.monotonic() - started,
    )


def _accounted(calibration: CalibrationRecord, why_none: str) -> Claim:
    direct = calibration.observer
    return Claim(
        text="what observing takes, in the timed step and between steps, ÷ step time",
        measured=why_none
        if direct is None
        else f"{direct.total_ratio:.4%} ({direct.in_step_ratio:.4%} in the step)",
        required=f"less than {LARGEST_TAX:.1%}",
        holds=direct is not None and direct.total_ratio < LARGEST_TAX,
    )


def _contained(calibration: CalibrationRecord, why_none: str) -> Claim:
    direct = calibration.observer
    interval = None if direct is None else direct.interval_log
    width = None if interval is None else (interval.high - interval.low) / 2
    return Claim(
        text="the 95 % interval of a campaign, observed against bare, contains the accounted cost",
        measured=why_none
        if interval is None
        else f"[{math.expm1(interval.low):+.2%}, {math.expm1(interval.high):+.2%}]",
        required=f"contains it, and is no wider than ± {LARGEST_HALF_WIDTH:.0%}",
        holds=direct is not None
        and bool(direct.contains_direct)
        and width is not None
        and width <= math.log1p(LARGEST_HALF_WIDTH),
    )
