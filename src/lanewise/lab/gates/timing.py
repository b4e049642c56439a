"""Gates on the clocks: goodput closes, the device's clock agrees with the wall, and the steps were steady."""

from __future__ import annotations

import math

from lanewise.lab import protocol
from lanewise.lab.evidence import BlockEvidence
from lanewise.lab.gates.gate import Fault, Gate, visits
from lanewise.receipts.failures import FailureFamily
from lanewise.receipts.schema import RunReceipt


def goodput_closure(block: BlockEvidence) -> Gate:
    """Steps and badput add up to wall time, and what is left over is not negative; counted again from the numbers."""
    limit = protocol.GOODPUT_CLOSURE_RATIO
    largest: float | None = None
    faults: list[Fault] = []
    for arm, receipt in visits(block):
        goodput = receipt.goodput
        if goodput is None:
            continue
        wall = goodput.wall_duration_seconds
        parts = goodput.step_seconds + math.fsum(goodput.badput_seconds.values())
        gap = abs(parts - wall) / wall if wall > 0 else math.inf
        other = goodput.badput_seconds.get("other", -math.inf)
        largest = max(gap, largest or 0.0)
        if gap > limit or other < -limit * wall:
            faults.append(
                Fault(
                    text=f"arm {arm}: goodput misses wall time by {gap:.2%}, other is {other:.4f} s",
                    family=FailureFamily.ACCOUNTING,
                    structural=True,
                )
            )
    return Gate(
        name="goodput_closure",
        rule=f"steps + badput = wall time within {limit:.1%}, other not negative",
        received="goodput is switched off" if largest is None else f"largest gap {largest:.4%}",
        faults=tuple(faults),
    )


def event_wall_closure(block: BlockEvidence) -> Gate:
    """On a device with events, their sum is the wall time of the same steps, but for the host's own part of a step."""
    gaps = [
        (arm, gap, _allowed_gap(receipt))
        for arm, receipt in visits(block)
        if (gap := receipt.timing.event_wall_gap_ratio) is not None
    ]
    why = block.receipts["A"][0].missing.get("timing.event_wall_gap_ratio", "not recorded")
    return Gate(
        name="event_wall_closure",
        rule=f"|device events − wall time| ÷ wall time ≤ {protocol.EVENT_WALL_RATIO:.1%} over the steady steps, or "
        f"{1e3 * protocol.EVENT_WALL_SECONDS_PER_STEP:g} ms a step where that is more",
        received=f"largest gap {max(gap for _arm, gap, _ in gaps):.3%}" if gaps else why,
        faults=tuple(
            Fault(
                text=f"arm {arm}: device events miss wall time by {gap:.2%}, allowed {allowed:.2%}: "
                "time is bound to the host, or work runs on another stream",
                family=FailureFamily.ACCOUNTING,
                structural=True,
            )
            for arm, gap, allowed in gaps
            if gap > allowed
        ),
    )


def _allowed_gap(receipt: RunReceipt) -> float:
    steps = receipt.timing.step_duration_seconds
    if steps is None or steps.mean == 0:
        return protocol.EVENT_WALL_RATIO
    return max(protocol.EVENT_WALL_RATIO, protocol.EVENT_WALL_SECONDS_PER_STEP / steps.mean)


def steady_state(block: BlockEvidence) -> Gate:
    """The arms' difference is steady (sequential: every visit is), and enough is left after warm-up."""
    entry = block.entry
    needed = protocol.MIN_STEADY_QUADS
    faults: tuple[Fault, ...] = ()
    if not entry.steady:
        faults = (Fault(text=entry.warmup_reason, family=FailureFamily.UNSTEADY, structural=False),)
    elif entry.design != "sequential" and block.num_quads < needed:
        text = (
            f"{block.num_quads} quads left after {entry.warmup_steps} warm-up steps, "
            f"{needed} are needed"
        )
        faults = (Fault(text=text, family=FailureFamily.UNSTEADY, structural=False),)
    return Gate(
        name="steady_state",
        rule="by change points a level that holds, without drift and without compiling: of the arms' difference where they "
        "take turns, else of every visit, the longest warm-up dropped",
        received=f"{entry.warmup_steps} steps dropped: {entry.warmup_reason}",
        faults=faults,
    )
