"""What a person should do about a feature, in a few words, from its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lanewise.lab.arms import Arms
from lanewise.measure.boundary import critical_t, fewest_blocks, plan_boundary
from lanewise.measure.looks import Question
from lanewise.measure.stats import POWER
from lanewise.receipts.decision import BreakEven, Estimate, MetricDelta, Verdict

WORTH_PAYING_BACK_SECONDS = 1.0
"""Compile time below this is not worth a word."""

MEASURED = (Verdict.FASTER, Verdict.SLOWER, Verdict.EQUIVALENT)
"""What a campaign can say about the lab's own instruments; there is nothing to turn on or off."""

HOPELESS_BLOCKS = 96
"""Beyond this many blocks the honest advice is a quieter machine."""


def advice(
    arms: Arms,
    verdict: Verdict,
    *,
    estimate: Estimate | None,
    question: Question | None,
    compile_seconds: MetricDelta,
    control_step_seconds: float | None,
    treated_step_seconds: float | None,
    break_even: Sequence[BreakEven] = (),
) -> str:
    """The stance of a decision.

    Args:
        arms: the feature.
        verdict: what its blocks say.
        estimate: of its blocks.
        question: what was asked of them; None where nothing was measured.
        compile_seconds: time spent compiling in both arms.
        control_step_seconds: median step of arm A.
        treated_step_seconds: median step of arm B.
    """
    if arms.role in ("control", "observer") and verdict in MEASURED:
        return arms.stance
    if verdict is Verdict.FASTER:
        steps = break_even_steps(compile_seconds, control_step_seconds, treated_step_seconds)
        if steps is not None:
            return pays_back(break_even) or f"pays back after {steps} steps"
        return arms.stance if arms.on_by_default else "worth turning on here"
    if verdict is Verdict.SLOWER:
        return "turn off on this lane" if arms.on_by_default else "stays off"
    if verdict is Verdict.INCONCLUSIVE:
        return enough_blocks(arms, estimate, question)
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


def enough_blocks(arms: Arms, estimate: Estimate | None, question: Question | None) -> str:
    """How many blocks would settle an open question with 80 % power, if its estimate and spread are near the truth.

    They are those of a new campaign: a plan that has ended cannot be stretched until it says something.
    """
    if estimate is None or estimate.block_sd_log is None or question is None:
        return "one block has no spread: give a larger --budget"
    tail = f" ({_budget(arms)})" if arms.tax_budget_ratio else ""
    distance = abs(estimate.log_ratio - question.null_log)
    sd, margin = estimate.block_sd_log, question.test_margin_log
    needed = fewest_blocks(
        sd, distance, margin_log=margin, alpha=question.boundary.alpha, most=HOPELESS_BLOCKS
    ) or blocks_for_equivalence(sd, margin - distance, alpha=question.boundary.alpha)
    if needed is None:
        return f"over {HOPELESS_BLOCKS} blocks: use a quieter machine{tail}"
    # Fewer than were run means that they came out unluckily; the same plan again has its power.
    return f"{max(needed, estimate.num_blocks)} blocks would tell{tail}"


def blocks_for_equivalence(block_sd: float, room_log: float, *, alpha: float) -> int | None:
    """Fewest blocks whose one-sided tests show an effect to be within the margin, or None if a campaign may not have as many.

    K such that (t₁₋α′ + t_power)·s/√K ≤ δ − |θ| at the level α′ of the last look that K blocks get.

    Args:
        block_sd: SD of a block's contrast.
        room_log: margin less the effect.
        alpha: chance of an error over all looks.
    """

    def enough(num_blocks: int) -> bool:
        level = plan_boundary(num_blocks, alpha=alpha).nominal_alpha
        t_sum = critical_t(num_blocks, level=2 * level) + critical_t(
            num_blocks, level=2 * (1 - POWER)
        )
        return t_sum * block_sd / math.sqrt(num_blocks) <= room_log

    if not enough(HOPELESS_BLOCKS):
        return None
    too_few, found = 1, HOPELESS_BLOCKS
    while found - too_few > 1:
        middle = (too_few + found) // 2
        too_few, found = (too_few, middle) if enough(middle) else (middle, found)
    return found


def _budget(arms: Arms) -> str:
    ratio = arms.tax_budget_ratio or 1.0
    return f"budget {100 * (ratio - 1):.3g} %"
