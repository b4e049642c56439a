"""Twenty real A/A campaigns on the tiny lane: how many call a difference, and how wide each one's margin is.

A run that was cut off goes on with the campaigns that are missing (`_progress`).
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import binom

from lanewise.errors import CampaignError
from lanewise.lab.calibrate import CalibrateOptions, calibrate
from lanewise.lab.calibration import Trials
from lanewise.lab.prepare import CampaignOptions
from lanewise.lab.session import Lab
from lanewise.measure.boundary import plan_boundary
from lanewise.measure.looks import Question, walk
from lanewise.receipts.calibration import CalibrationRecord
from lanewise.receipts.decision import Verdict
from tools.proofs import Claim, Proof
from tools.proofs._progress import Parts
from tools.proofs.real_lab import real_lab, tiny_campaign

CAMPAIGNS = 20
BLOCKS = 9
"""One more than a margin needs at least (`protocol.CALIBRATION_BLOCKS`), so that one block may be refused. At 9 blocks δ is 1.54
block SDs; quads do more for it than blocks, because each block pays for its set-up."""
CAMPAIGN_SECONDS = 165.0
"""About 30 quads a block where a step takes 0.11 s."""
LARGEST_MARGIN = 0.04

MOST_CALLS_P = 0.98
"""20 honest campaigns at 5 % call at most 3 differences with this probability."""


def run(scale: float) -> Proof:
    """The proof on this machine; at scale 1 about an hour on two quiet cores."""
    count = _count(scale)
    settings = {"campaigns": count, "blocks": BLOCKS, "budget_seconds": CAMPAIGN_SECONDS}
    parts = Parts("aa_campaigns", settings, total=count)

    def lab(number: int) -> Lab:
        # A store of its own for each, so that none is pooled with another. What a cut run left of it is not used.
        root = parts.folder / str(number)
        shutil.rmtree(root, ignore_errors=True)
        return real_lab(str(root))

    proof = prove(
        scale,
        lab,
        lambda number: tiny_campaign(budget_seconds=CAMPAIGN_SECONDS, seed=number),
        parts,
    )
    parts.close()
    return proof


def _count(scale: float) -> int:
    return max(2, round(CAMPAIGNS * scale))


def prove(
    scale: float,
    lab: Callable[[int], Lab],
    campaign: Callable[[int], CampaignOptions],
    parts: Parts,
) -> Proof:
    """The same with labs and campaigns of the caller's; both are given the number of the campaign.

    Args:
        scale: share of `CAMPAIGNS`.
        lab: of each campaign.
        campaign: options of each.
        parts: campaigns that are finished already, and where those of this run go.
    """
    count = _count(scale)
    records: list[CalibrationRecord] = []
    refusals: list[str] = []
    for number in range(count):
        part = f"campaign {number + 1}"
        if parts.get(part) is None:
            started = time.monotonic()
            found, words = _measured(lab(number), campaign(number))
            parts.add(part, found, started=started, words=words)
        known = parts.get(part)
        if "refused" in known:
            refusals.append(f"{part}: {known['refused']}")
        else:
            records.append(CalibrationRecord.model_validate(known))
    counted = Claim(
        text="campaigns whose blocks give a margin",
        measured="; ".join((f"{len(records)} of {count}", *refusals)),
        required="all",
        holds=not refusals,
    )
    alone = [record.bias_p < 0.05 for record in records]
    looked = [_called_at_looks(record) for record in records]
    allowed = int(binom.ppf(MOST_CALLS_P, count, 0.05))
    return Proof(
        name="aa_campaigns",
        title="A/A campaigns on nam56r-tiny",
        counts={"campaigns": count, "blocks": sum(record.num_blocks for record in records)},
        claims=(
            counted,
            _calls(
                "the t test over all blocks of an A/A campaign calls a difference", alone, allowed
            ),
            _calls("the planned looks at the same blocks call a difference", looked, allowed),
            *_common(records),
        ),
        seconds=parts.seconds,
        tables={"A/A campaigns": _table(records, alone, looked)},
    )


def _measured(lab: Lab, campaign: CampaignOptions) -> tuple[dict[str, Any], str]:
    """What one campaign found, as plain data and in words. One that is refused is a result, not to be tried again."""
    # False-positive rates of each are not what is asked here; one trial keeps them out of the way.
    asked = CalibrateOptions(campaign=campaign, blocks=BLOCKS, trials=Trials(single=1, looks=1))
    try:
        record = calibrate(lab, asked).calibration
    except CampaignError as error:
        return {"refused": str(error)}, f"refused: {error}"
    assert record is not None, "nobody interrupts a proof"
    words = f"p {record.bias_p:.2f}, δ {math.expm1(record.margin.log_value):.2%}"
    return record.model_dump(mode="json"), words


def _called_at_looks(record: CalibrationRecord) -> bool:
    contrasts = [block.contrast_log for block in record.blocks]
    question = Question(boundary=plan_boundary(len(contrasts)), margin_log=0.0)
    return walk(contrasts, question)[-1].verdict in (Verdict.FASTER, Verdict.SLOWER)


def _calls(text: str, called: Sequence[bool], allowed: int) -> Claim:
    return Claim(
        text=text,
        measured=f"{sum(called)} of {len(called)}",
        required=f"at most {allowed} of {len(called)}",
        holds=sum(called) <= allowed,
    )


def _common(records: Sequence[CalibrationRecord]) -> tuple[Claim, ...]:
    """The widest margin, and the mean: a bias that each campaign is too small to see adds up over all of them."""
    if len(records) < 2:
        return ()
    widest = max(math.expm1(record.margin.log_value) for record in records)
    margins = Claim(
        text="the margin δ of every campaign",
        measured=f"largest {widest:.2%}",
        required=f"at most {LARGEST_MARGIN:.0%}",
        holds=widest <= LARGEST_MARGIN,
    )
    means = [record.bias_log for record in records]
    error = stdev(means) / math.sqrt(len(means))
    mean = fmean(means)
    common = Claim(
        text="the mean over all campaigns, which would show a bias too small for one",
        measured=f"{mean:+.3%} ± {error:.3%} (standard error)",
        required="within 3 standard errors of 0",
        holds=abs(mean) <= 3 * error,
    )
    return margins, common


def _table(
    records: Sequence[CalibrationRecord], alone: Sequence[bool], looked: Sequence[bool]
) -> list[list[str]]:
    rows = [["campaign", "blocks", "block SD", "mean", "95 % interval", "p", "δ", "called"]]
    for number, record in enumerate(records, start=1):
        low, high = record.bias_interval.low, record.bias_interval.high
        words = [word for word, hit in (("t test", alone), ("looks", looked)) if hit[number - 1]]
        rows.append(
            [
                str(number),
                str(record.num_blocks),
                f"{math.expm1(record.block_sd_log):.2%}",
                f"{math.expm1(record.bias_log):+.2%}",
                f"[{math.expm1(low):+.2%}, {math.expm1(high):+.2%}]",
                f"{record.bias_p:.3f}",
                f"{math.expm1(record.margin.log_value):.2%}",
                ", ".join(words) or "no",
            ]
        )
    return rows
