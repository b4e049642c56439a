"""After a screen: which features deserve a campaign, what it would cost, and the command that runs it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lanewise.lab import protocol
from lanewise.lab.multiplicity import planned_alpha
from lanewise.lab.plan import RESERVE_RATIO, ArmCost, CampaignPlan, block_seconds
from lanewise.measure.boundary import fewest_blocks
from lanewise.receipts.decision import Decision, Verdict

LIKELY: Final = (Verdict.LIKELY_FASTER, Verdict.LIKELY_SLOWER)

CONFIRM_QUADS: Final = 8
"""Quads of a block in the estimate of the cost: about what a budget buys."""

SHRINK: Final = 0.7
"""What a screen finds large is on average smaller: a campaign is sized for this share of it."""

VISITS_OF_A_PILOT: Final = 3
MOST_BLOCKS: Final = 48
BUDGET_STEP_SECONDS: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """A campaign that would confirm a screen.

    Attributes:
        features: what to measure, the most promising first.
        too_small: likely effects that a campaign of `MOST_BLOCKS` blocks would not find at this noise.
        blocks: blocks of each feature.
        seconds: what it would cost, pilot and reserve included; rounded up.
        command: what to type, or None when nothing is promising.
    """

    features: tuple[str, ...]
    too_small: tuple[str, ...]
    blocks: int
    seconds: float
    command: str | None


def confirmation(
    plan: CampaignPlan, decisions: Sequence[Decision], *, noise_log: float
) -> Confirmation:
    """The campaign a screen suggests.

    Args:
        plan: of the screen; its pilot knows what a process costs.
        decisions: of the screen.
        noise_log: SD of a lockstep block on this lane.
    """
    effects = {
        decision.feature: SHRINK * decision.estimate.log_ratio
        for decision in ranked(decisions)
        if decision.verdict in LIKELY and decision.estimate is not None
    }
    # Graduation holds the claims of one campaign to 5 % together, so blocks are those of the level that takes.
    alpha = planned_alpha("family", tuple(effects))
    needed: dict[str, int] = {}
    too_small = []
    for feature, effect in effects.items():
        blocks = fewest_blocks(
            noise_log, effect, margin_log=plan.margin.log_value, alpha=alpha, most=MOST_BLOCKS
        )
        if blocks is None:
            too_small.append(feature)
        else:
            needed[feature] = max(blocks, protocol.VERDICT_BLOCKS)
    if not needed:
        return Confirmation(
            features=(), too_small=tuple(too_small), blocks=0, seconds=0.0, command=None
        )
    most = max(needed.values())
    seconds = sum(most * _block_seconds(plan, key) + _pilot_seconds(plan, key) for key in needed)
    seconds /= 1.0 - RESERVE_RATIO
    seconds = BUDGET_STEP_SECONDS * math.ceil(seconds / BUDGET_STEP_SECONDS)
    family = " --claims family" if len(needed) > 1 else ""
    named = " ".join(f"--feature {key}" for key in needed)
    return Confirmation(
        features=tuple(needed),
        too_small=tuple(too_small),
        blocks=most,
        seconds=seconds,
        command=f"lanewise ablate {plan.lane.name} {named} --blocks {most}{family} --budget {seconds:.0f}s",
    )


def ranked(decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """Most likely gain first: likely faster by effect, then unclear, then likely slower, then what was not measured."""

    def place(decision: Decision) -> tuple[int, float]:
        estimate = decision.estimate
        if estimate is None:
            return 3, 0.0
        group = {Verdict.LIKELY_FASTER: 0, Verdict.LIKELY_SLOWER: 2}.get(decision.verdict, 1)
        return group, estimate.log_ratio

    return tuple(sorted(decisions, key=place))


def _block_seconds(plan: CampaignPlan, feature: str) -> float:
    control, treated = _costs(plan, feature)
    return block_seconds(
        control, treated, CONFIRM_QUADS, finish_seconds=plan.finish_seconds, design="lockstep"
    )


def _pilot_seconds(plan: CampaignPlan, feature: str) -> float:
    cost = max(_costs(plan, feature), key=lambda c: c.setup_seconds)
    return VISITS_OF_A_PILOT * (
        cost.setup_seconds + cost.first_step_seconds + 2 * cost.step_seconds
    )


def _costs(plan: CampaignPlan, feature: str) -> tuple[ArmCost, ArmCost]:
    """What the pilot says about both arms; in a design of many features all rows are taken to cost the same."""
    planned = plan.planned[0] if plan.factors else plan.feature(feature)
    assert planned.control is not None, "a planned feature has the cost of both arms"
    assert planned.treated is not None, "a planned feature has the cost of both arms"
    return planned.control, planned.treated
