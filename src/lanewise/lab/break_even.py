"""After how many steps a feature that compiles has paid for it (P11), from a cold cache and from a warm one.

n* = (C_B − C_A) / (t_A − t_B), with C the seconds of compilation and t the seconds of a step. A run that starts from a
warm cache pays less, so each state of the cache has its own n*; one that no counted block met is null and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Final, Literal

from lanewise.lab.judge import JudgedBlock
from lanewise.receipts.decision import BreakEven, Estimate
from lanewise.receipts.schema import RunReceipt

CacheState = Literal["cold", "warm", "mixed"]
ROUNDING_DIGITS: Final = 6
"""Of a quotient before it is rounded up: 100.00000000001 steps are 100."""
STATES: Final[tuple[CacheState, ...]] = ("cold", "warm", "mixed")


def break_evens(
    blocks: Sequence[JudgedBlock],
    estimate: Estimate | None,
    control_step_seconds: float | None,
) -> tuple[BreakEven, ...]:
    """One entry for a cold and one for a warm cache, one more where a cache was mixed; none where neither arm compiles.

    Args:
        blocks: blocks that count.
        estimate: effect on step time, treated ÷ control.
        control_step_seconds: median step of the control.
    """
    compiling = [block for block in blocks if _state(block) is not None]
    if not compiling:
        return ()
    met = {_state(block) for block in compiling}
    return tuple(
        _entry(
            state,
            [block for block in compiling if _state(block) == state],
            estimate,
            control_step_seconds,
        )
        for state in STATES
        if state in met or state != "mixed"
    )


def _entry(
    state: CacheState,
    blocks: Sequence[JudgedBlock],
    estimate: Estimate | None,
    control_step_seconds: float | None,
) -> BreakEven:
    control, treated = _compile_seconds(blocks, "A"), _compile_seconds(blocks, "B")
    if control is None or treated is None:
        reason = (
            f"no block that counts compiled from a {state} cache"
            if not blocks
            else "compile time was not measured"
        )
        return BreakEven(
            cache_state=state, control_seconds=control, treated_seconds=treated, reason=reason
        )
    if estimate is None or control_step_seconds is None:
        return BreakEven(
            cache_state=state,
            control_seconds=control,
            treated_seconds=treated,
            reason="step times were not measured",
        )
    extra = treated - control

    def steps(ratio: float) -> int | None:
        saved = control_step_seconds * (1.0 - ratio)
        if extra <= 0:
            return 0 if saved >= 0 else None
        return math.ceil(round(extra / saved, ROUNDING_DIGITS)) if saved > 0 else None

    found = steps(estimate.ratio)
    has_interval = estimate.half_width_log is not None
    return BreakEven(
        cache_state=state,
        control_seconds=control,
        treated_seconds=treated,
        steps=found,
        steps_low=steps(estimate.interval_low) if has_interval else None,
        steps_high=steps(estimate.interval_high) if has_interval else None,
        reason=None if found is not None else "the treated step is not shorter, so it never pays",
    )


def _state(block: JudgedBlock) -> CacheState | None:
    """State of the cache that the treated arm compiled from, or the control where only that compiles."""
    for arm in ("B", "A"):
        states = {r.compile.cache_state for r in _receipts(block, arm) if r.compile.enabled}
        used: list[CacheState] = [state for state in STATES if state in states]
        if len(used) == 1:
            return used[0]
        if used:
            return "mixed"
    return None


def _compile_seconds(blocks: Sequence[JudgedBlock], arm: str) -> float | None:
    values = [r.compile.compile_duration_seconds for b in blocks for r in _receipts(b, arm)]
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _receipts(block: JudgedBlock, arm: str) -> tuple[RunReceipt, ...]:
    return block.evidence.receipts["A" if arm == "A" else "B"]
