"""After how many steps compile time is paid for, as people read it."""

from __future__ import annotations

from lanewise.dash import format as fmt
from lanewise.receipts.decision import BreakEven


def sentence(entry: BreakEven) -> str:
    """One state of the cache: `640 steps [600, 690], compile 0 s → 8.7 s`, or why there is no number."""
    if entry.steps is None:
        return entry.reason or "no reason recorded"
    span = ""
    if entry.steps_low is not None:
        high = "never" if entry.steps_high is None else f"{entry.steps_high:,}"
        span = f" [{entry.steps_low:,}, {high}]"
    costs = f"compile {fmt.seconds(entry.control_seconds)} → {fmt.seconds(entry.treated_seconds)}"
    return f"{fmt.plural(entry.steps, 'step')}{span}, {costs}"
