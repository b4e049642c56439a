"""What the decisions of a campaign from both bases say about interactions, and whether single effects add up.

Pure: decisions in, documents out, so `analyse` recomputes it from receipts. The statistics are `measure.interactions`.
Such campaigns have no early looks: a series that may stop because its mean is large is no fair sample of it, and a
difference of two such series has no interval one could defend.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from lanewise.lab import protocol
from lanewise.lab.arms import FULL_STACK, PSEUDO
from lanewise.lab.keys import BaseDesign
from lanewise.measure.interactions import Comparison, Effect, compare, interaction_tests
from lanewise.receipts.decision import Decision, Verdict
from lanewise.receipts.interaction import (
    Additivity,
    Interaction,
    InteractionTable,
    UntestedInteraction,
)

ALPHA = 1 - protocol.CONFIDENCE


def interaction_table(
    decisions: Sequence[Decision], *, stack_features: Collection[str]
) -> InteractionTable:
    """Interactions of every feature measured from both bases, and additivity of the stack.

    Args:
        decisions: of one campaign.
        stack_features: features in which the full stack differs from the bare lane.
    """
    by_base = {(d.feature, d.design): d for d in decisions if d.feature != FULL_STACK}
    features = list(dict.fromkeys(f for f, _ in by_base if f not in PSEUDO))
    untested, pairs = [], []
    for feature in features:
        bare = by_base.get((feature, "add-one"))
        full = by_base.get((feature, "leave-one-out"))
        reason = _why_not(bare, "on the bare lane") or _why_not(full, "in the full stack")
        if reason is None and bare is not None and full is not None:
            pairs.append((bare, full))
        else:
            untested.append(UntestedInteraction(feature=feature, reason=reason or "not planned"))
    additivity, why_none = _additivity(by_base, decisions, sorted(stack_features))
    return InteractionTable(
        interactions=_interactions(pairs),
        untested=tuple(untested),
        additivity=additivity,
        additivity_reason=why_none,
    )


def _interactions(pairs: Sequence[tuple[Decision, Decision]]) -> tuple[Interaction, ...]:
    tests = interaction_tests([(_effect(bare), _effect(full)) for bare, full in pairs], alpha=ALPHA)
    found = []
    for (bare, full), test in zip(pairs, tests, strict=True):
        one = test.comparison
        if test.found:
            reason = _direction(bare, full)
        else:
            reason = (
                f"no interaction larger than {_percent(test.detectable_log)} was detectable "
                f"(it lies within {_interval(one)})"
            )
        found.append(
            Interaction(
                feature=bare.feature,
                add_one=bare.decision_id,
                leave_one_out=full.decision_id,
                add_one_log=_effect(bare).mean_log,
                leave_one_out_log=_effect(full).mean_log,
                difference_log=one.difference_log,
                interval_low_log=one.low,
                interval_high_log=one.high,
                confidence=protocol.CONFIDENCE,
                degrees_of_freedom=one.degrees_of_freedom,
                p_value=one.p_value,
                adjusted_p=test.adjusted_p,
                mde_log=one.mde_log,
                detectable_log=test.detectable_log,
                found=test.found,
                reason=reason,
            )
        )
    return tuple(found)


def _additivity(
    by_base: Mapping[tuple[str, BaseDesign], Decision],
    decisions: Sequence[Decision],
    stack_features: Sequence[str],
) -> tuple[Additivity | None, str | None]:
    stack = next((d for d in decisions if d.feature == FULL_STACK), None)
    if (reason := _why_not(stack, "as a whole")) is not None or stack is None:
        return None, f"the full stack {reason}"
    usable, missing = [], []
    for feature in stack_features:
        decision = by_base.get((feature, "add-one"))
        if decision is None or _why_not(decision, "") is not None:
            missing.append(feature)
        else:
            usable.append(decision)
    one = compare([_effect(stack)], [_effect(decision) for decision in usable], alpha=ALPHA)
    differs = one.p_value <= ALPHA and abs(one.difference_log) >= one.mde_log
    if missing:
        explained = None
        reason = f"not told: {', '.join(missing)} has no usable effect on the bare lane" + (
            "" if len(missing) == 1 else " each"
        )
    else:
        explained = not differs
        reason = (
            "the product of the single effects misses the full stack, whose step time is "
            f"{_signed(one.difference_log)} away from it, {_interval(one)}"
            if differs
            else "the product of the single effects explains the full stack: no gap larger than "
            f"{_percent(one.mde_log)} was detectable (it lies within {_interval(one)})"
        )
    return (
        Additivity(
            full_stack=stack.decision_id,
            add_one=tuple(decision.decision_id for decision in usable),
            missing=tuple(missing),
            sum_log=sum(_effect(decision).mean_log for decision in usable),
            full_stack_log=_effect(stack).mean_log,
            difference_log=one.difference_log,
            interval_low_log=one.low,
            interval_high_log=one.high,
            confidence=protocol.CONFIDENCE,
            degrees_of_freedom=one.degrees_of_freedom,
            p_value=one.p_value,
            mde_log=one.mde_log,
            explained=explained,
            reason=reason,
        ),
        None,
    )


def _why_not(decision: Decision | None, where: str) -> str | None:
    """Why a decision's effect cannot be used, or None."""
    if decision is None or decision.verdict is Verdict.NOT_MEASURED:
        return f"was not measured {where}"
    if decision.verdict is Verdict.INVALID:
        return f"is INVALID {where}"
    if decision.status != "COMPLETE":
        return f"is INCOMPLETE {where}"
    if decision.estimate is None or decision.estimate.block_sd_log is None:
        return f"has fewer than two blocks that count {where}"
    return None


def _effect(decision: Decision) -> Effect:
    estimate = decision.estimate
    assert estimate is not None, "only usable decisions come here"
    assert estimate.block_sd_log is not None, "only usable decisions come here"
    return Effect(
        mean_log=estimate.log_ratio,
        sd_log=estimate.block_sd_log,
        num_blocks=estimate.num_blocks,
    )


def _direction(bare: Decision, full: Decision) -> str:
    """What an interaction does to the gain of its feature, in words."""
    alone, among = _effect(bare).mean_log, _effect(full).mean_log
    changes = f"{_signed(alone)} alone, {_signed(among)} in the full stack"
    if alone * among < 0:
        return f"turns round: {changes}"
    if min(alone, among) < 0:
        return f"{'gains less' if among > alone else 'gains more'} with the others: {changes}"
    return f"{'costs more' if among > alone else 'costs less'} with the others: {changes}"


def _percent(value: float) -> str:
    return f"{100 * math.expm1(value):.2f} %"


def _signed(value: float) -> str:
    return f"{100 * math.expm1(value):+.2f} %".replace("-", "−")


def _interval(one: Comparison) -> str:
    return f"[{_signed(one.low)}, {_signed(one.high)}]"
