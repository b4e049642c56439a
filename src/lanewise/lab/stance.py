"""What a person should do about a feature, in a few words, from its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lanewise.lab.arms import Arms
from lanewise.measure.stats import required_blocks
from lanewise.receipts.decision import BreakEven, Estimate, Margin, MetricDelta, Verdict

WORTH_PAYING_BACK_SECONDS = 1.0
"""Compile time below this is not worth a word."""

HOPELESS_BLOCKS = 200
"""Beyond this many more blocks the honest advice is a quieter machine."""


def advice(
    arms: Arms,
    verdict: Verdict,
    *,
    estimate: Estimate | None,
    margin: Margin,
    compile_seconds: MetricDelta,
    control_step_seconds: float | None,
    treated_step_seconds: float | None,
    break_even: Sequence[BreakEven] = (),
) -> str:
    """The stance of a decision."""
    if verdict is Verdict.FASTER:
        steps = break_even_steps(compile_seconds, control_step_seconds, treated_step_seconds)
        if steps is not None:
            return pays_back(break_even) or f"pays back after {steps} steps"
        return arms.stance if arms.on_by_default else "worth turning on here"
    if verdict is Verdict.SLOWER:
        return "turn off on this lane" if arms.on_by_default else "stays off"
    if verdict is Verdict.INCONCLUSIVE:
        return more_blocks(arms, estimate, margin)
    return {
        Verdict.EQUIVALENT: f"no effect here ({arms.stance})",
        Verdict.WITHIN_BUDGET: f"affordable ({_budget(arms)})",
        Verdict.OVER_BUDGET: (
            f"must earn it in loss, or turn off ({_budget(arms)})"
            if arms.on_by_default
            else f"stays opt-in ({_budget(arms)})"
        ),
        Verdict.INVALID: "no evidence: mend the cause, then measure again",
        Verdict.NOISE: "the noise of this lane and machine",
        Verdict.NOT_MEASURED: arms.stance,
    }[verdict]


def pays_back(break_even: Sequence[BreakEven]) -> str | None:
    """Steps until compile time is paid for, by the state of the cache a run starts from; None where no state is known."""
    known = [f"{each.steps} ({each.cache_state} cache)" for each in break_even if each.steps]
    return f"pays back after {' or '.join(known)} steps" if known else None


def break_even_steps(
    compile_seconds: MetricDelta,
    control_step_seconds: float | None,
    treated_step_seconds: float | None,
) -> int | None:
    """Steps after which saved step time has paid for extra compile time (P11); None when there is nothing to pay.

    n* = (C_B − C_A) / (t_A − t_B), C in seconds of compilation, t in seconds per step.
    """
    extra = compile_seconds.delta
    if extra is None or control_step_seconds is None or treated_step_seconds is None:
        return None
    saved = control_step_seconds - treated_step_seconds
    if extra < WORTH_PAYING_BACK_SECONDS or saved <= 0:
        return None
    return math.ceil(extra / saved)


def more_blocks(arms: Arms, estimate: Estimate | None, margin: Margin) -> str:
    """How many more blocks would settle an open question, if its estimate and spread are near the truth."""
    if estimate is None or estimate.block_sd_log is None:
        return "one block has no spread: give a larger --budget"
    line = math.log(arms.tax_budget_ratio) if arms.tax_budget_ratio else 0.0
    distance = max(abs(estimate.log_ratio - line), margin.log_value)
    more = max(1, required_blocks(estimate.block_sd_log, distance) - estimate.num_blocks)
    tail = f" ({_budget(arms)})" if arms.tax_budget_ratio else ""
    if more > HOPELESS_BLOCKS:
        return f"over {HOPELESS_BLOCKS} more blocks: use a quieter machine{tail}"
    return f"{more} more block{'s' * (more > 1)} would tell{tail}"


def _budget(arms: Arms) -> str:
    ratio = arms.tax_budget_ratio or 1.0
    return f"budget {100 * (ratio - 1):.3g} %"
