"""Gates on the clocks: goodput closes, the device's clock agrees with the wall, and the steps were steady."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gap:
    """How far the clocks of one run are apart, as ratios of its wall time.

    Attributes:
        total: between device events and wall time.
        named: what the host did between the steps, by its own account; it explains as much of the total.
        allowed: what may be left unexplained.
    """

    arm: str
    total: float
    named: float
    allowed: float

    @property
    def unexplained(self) -> float:
        return max(0.0, self.total - self.named)

    @classmethod
    def of(cls, arm: str, receipt: RunReceipt) -> _Gap | None:
        timing = receipt.timing
        if timing.event_wall_gap_ratio is None:
            return None
        steps, allowed, named = timing.step_duration_seconds, protocol.EVENT_WALL_RATIO, 0.0
        if steps is not None and steps.mean > 0:
            allowed = max(allowed, protocol.EVENT_WALL_SECONDS_PER_STEP / steps.mean)
            named = (timing.between_steps_seconds or 0.0) / steps.mean
        return cls(arm=arm, total=timing.event_wall_gap_ratio, named=named, allowed=allowed)


def event_wall_closure(block: BlockEvidence) -> Gate:
    """On a device with events, their sum is the wall time of the same steps and what the host says it did between them."""
    found = (_Gap.of(arm, receipt) for arm, receipt in visits(block))
    gaps = [gap for gap in found if gap is not None]
    why = block.receipts["A"][0].missing.get("timing.event_wall_gap_ratio", "not recorded")
    largest = max(gaps, key=lambda gap: gap.unexplained, default=None)
    return Gate(
        name="event_wall_closure",
        rule="|device events − wall time| ÷ wall time, less what the host did between the steps, ≤ "
        f"{protocol.EVENT_WALL_RATIO:.1%} over the steady steps, or "
        f"{1e3 * protocol.EVENT_WALL_SECONDS_PER_STEP:g} ms a step where that is more",
        received=why
        if largest is None
        else f"largest gap {largest.unexplained:.3%} of {largest.total:.3%}; the host takes {largest.named:.3%} between "
        "steps",
        faults=tuple(
            Fault(
                text=f"arm {gap.arm}: device events miss wall time by {gap.total:.2%}, of which the host names "
                f"{gap.named:.2%}, allowed {gap.allowed:.2%} more: nobody knows what that time is, or work runs on "
                "another stream",
                family=FailureFamily.ACCOUNTING,
                structural=True,
            )
            for gap in gaps
            if gap.unexplained > gap.allowed
        ),
    )


def host_bound(block: BlockEvidence) -> str | None:
    """Which arms leave their device idle, in words, or None: not a fault, but to be said beside every verdict.

    The device's work is that of the profiled step, the time that of the steady steps.
    """
    idle = []
    for arm, receipt in visits(block):
        busy = receipt.profile.device_busy_seconds if receipt.profile is not None else None
        steps = receipt.timing.step_duration_seconds
        if busy is None or steps is None or steps.mean == 0:
            continue
        ratio = busy / steps.mean
        if ratio < protocol.HOST_BOUND_BUSY_RATIO:
            idle.append(f"{ratio:.0%} of arm {arm}'s step of {1e3 * steps.mean:.2f} ms")
    return f"host-bound: the device works {' and '.join(idle)}" if idle else None


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
